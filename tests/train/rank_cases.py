"""What ranks are compared on: named cases of one step, and `run`, which takes that step at any number of ranks."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from itertools import combinations, product
from pathlib import Path

import torch
from torch import Tensor

import psychecore as pc
from psychecore.data.stream import balanced_shares, share
from psychecore.runtime import Runtime
from psychecore.text.tokenizer import Encoded
from psychecore.train.grpo import GrpoConfig, grpo_update
from psychecore.train.losses import LossConfig
from psychecore.train.optimizer import Optimizer, OptimizerConfig
from psychecore.train.sft import SftConfig, sft_step
from psychecore.train.sharding import ShardingConfig, gathered, make_mesh, sharder

PROMPTS = [[*range(1, 21)], [5, 6, 7], [*range(1, 19), 40, 41, 42], [9, 8], [*range(30, 47)]]
PARAMS = pc.SamplingParams(max_new_tokens=9, seed=1)
SAMPLES = 4
SHARED = SftConfig(batch_size=8, token_budget=40)
UPDATE = GrpoConfig(5, SAMPLES, 1, token_budget=70, loss=LossConfig(kl_coefficient=0.1, normalisation="sequence"))
SLEEP = 1.5  # seconds

OPTIONS = {
    "ratio": ("token", "sequence"),
    "normalisation": ("token", "sequence", "constant"),
    "kl": ("k1", "k2", "k3", "off"),
    "advantage": ("mean_std", "mean", "leave_one_out"),
    "importance": ("uncapped", "capped"),
    "overlong": ("trained", "masked"),
    "steps": ("one step", "two recomputed", "two from sampler"),
}


@dataclass(frozen=True)
class Case:
    """One step. `deal` hands the items to the ranks, `truncated` names groups whose samples all hit the limit, `late`
    lets ranks sleep at different places, and sample for themselves instead of reading the groups from a file.
    """

    train: SftConfig | GrpoConfig
    items: int = 5
    deal: str = "in turn"
    dtype: torch.dtype = torch.float64
    sharding: ShardingConfig = field(default_factory=ShardingConfig)
    checkpointed: bool = False
    max_grad_norm: float = 1e9
    truncated: str = "none"
    late: bool = False

    @property
    def uneven(self) -> bool:
        """Whether ranks have very different work, or none, or come late."""
        return self.late or self.items == 1 or self.deal == "to the last" or self.truncated != "none"


@dataclass
class Result:
    """What this rank holds: of every optimizer step the gradients before it, at the end the weights and metrics."""

    gradients: list[dict[str, Tensor]]
    weights: dict[str, Tensor]
    metrics: dict[str, float]
    seconds: float


def cases() -> dict[str, Case]:
    """All cases by name."""
    found = {f"sft {n}, {items} items": Case(replace(SHARED, normalisation=n), items) for n, items in _sft_shares()}
    found["sft balanced"] = Case(SHARED, 8, "by length")
    found["sft all on the last rank"] = Case(SHARED, 5, "to the last")
    found |= {f"grpo {' '.join(row.values())}": Case(_grpo(row)) for row in _every_pair()}
    found |= {f"grpo {items} prompts": Case(UPDATE, items) for items in (1, 3, 4)}
    found["grpo all on the last rank"] = Case(replace(UPDATE, mini_batches=2), deal="to the last")
    masked = replace(UPDATE, loss=replace(UPDATE.loss, mask_overlong=True))
    for which in ("every second group", "all but one sample", "all"):
        found[f"grpo {which} truncated"] = Case(masked, truncated=which)
    for kind, train in (("sft", SHARED), ("grpo", replace(UPDATE, mini_batches=2))):
        found[f"{kind} fp32"] = Case(train, dtype=torch.float32)
        found[f"{kind} clipped gradient"] = Case(train, max_grad_norm=0.05)
        found[f"{kind} replicas"] = Case(train, sharding=ShardingConfig(replicas=2))
        found[f"{kind} checkpointed"] = Case(train, checkpointed=True)
        found[f"{kind} offloaded"] = Case(train, sharding=ShardingConfig(cpu_offload=True))
        # in bf16 one step: in a second, rounding decides which tokens are clipped
        found[f"{kind} bf16"] = Case(SHARED if kind == "sft" else UPDATE, dtype=torch.bfloat16)
    everything = ShardingConfig(replicas=2, cpu_offload=True)
    found["grpo everything at once"] = Case(
        UPDATE, dtype=torch.bfloat16, sharding=everything, checkpointed=True, max_grad_norm=0.05
    )
    found["grpo late ranks"] = Case(UPDATE, late=True)
    return found


def _sft_shares() -> list[tuple[str, int]]:
    return [("token", 8), ("token", 5), ("token", 3), ("token", 1), ("sequence", 5), ("sequence", 1)]


def _every_pair() -> list[dict[str, str]]:
    """Few rows in which each pair of settings of two options stands somewhere: 12 or so instead of 864."""
    candidates = [dict(zip(OPTIONS, values, strict=True)) for values in product(*OPTIONS.values())]
    refused = {"importance": "capped", "steps": "two from sampler"}
    candidates = [row for row in candidates if not refused.items() <= row.items()]
    pairs = {id(row): set(combinations(row.items(), 2)) for row in candidates}
    missing = set().union(*pairs.values())
    rows = []
    while missing:
        rows.append(max(candidates, key=lambda row: len(pairs[id(row)] & missing)))
        missing -= pairs[id(rows[-1])]
    return rows


def _grpo(row: dict[str, str]) -> GrpoConfig:
    loss = LossConfig(
        clip_low=1e-3,
        clip_high=2e-3,
        ratio=row["ratio"],  # type: ignore[arg-type]
        kl_coefficient=0.0 if row["kl"] == "off" else 0.1,
        kl=row["kl"] if row["kl"] != "off" else "k3",  # type: ignore[arg-type]
        normalisation=row["normalisation"],  # type: ignore[arg-type]
        constant_length=9,
        importance_cap=0.95 if row["importance"] == "capped" else None,
        mask_overlong=row["overlong"] == "masked",
    )
    return GrpoConfig(
        5,
        SAMPLES,
        mini_batches=1 if row["steps"] == "one step" else 2,
        advantage=row["advantage"],  # type: ignore[arg-type]
        old_logprobs="sampler" if row["steps"] == "two from sampler" else "recompute",
        token_budget=70,
        loss=loss,
    )


class Letters:
    """Stands in for a tokenizer."""

    stop_ids = frozenset(range(6))
    valid_ids = (True,) * 61

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return " ".join(map(str, ids))


class Watched(Optimizer):
    """Keeps what each step has for gradients."""

    def step(self, loss: float = 0.0) -> float:
        self.seen = [*getattr(self, "seen", []), {name: m.grad.clone() for name, m in self.masters.items()}]
        return super().step(loss)


def prepare(folder: Path) -> None:
    """Write policy, reference and the groups that the GRPO cases train on.

    The weights are bf16 numbers, so that fp32 masters begin as their copies do. The samples come from a model near the
    policy, so that its log-probs and the policy's differ, as they do in practice.
    """
    config = pc.ModelConfig("qwen2", 61, 24, 2, 3, 1, 8, 40, qkv_bias=True)
    policy, reference, near = (pc.Decoder(config).initialise(seed, std=0.3).bfloat16().double() for seed in (0, 1, 0))
    with torch.no_grad():
        for p, q in zip(near.parameters(), reference.parameters(), strict=True):
            p.lerp_(q, 0.05)
    pc.save_model(policy, None, folder / "policy")
    pc.save_model(reference, None, folder / "reference")
    groups = pc.Sampler(near, Letters()).generate(PROMPTS, PARAMS, SAMPLES)  # type: ignore[arg-type]
    (folder / "groups.json").write_text(json.dumps([asdict(group) for group in groups]))


def conversations(count: int) -> list[Encoded]:
    generator = torch.Generator().manual_seed(3)
    rows = []
    for length in torch.randint(4, 30, (count,), generator=generator).tolist():
        ids = torch.randint(1, 61, (length,), generator=generator).tolist()
        rows.append(Encoded(ids, [i > length // 2 for i in range(length)], ""))
    return rows


def stored_groups(case: Case, folder: Path) -> list[pc.Group]:
    """All groups of a case, from the file that `prepare` wrote."""
    rows = json.loads((folder / "groups.json").read_text())[: case.items]
    groups = [pc.Group(row["prompt_ids"], [pc.Rollout(**r) for r in row["rollouts"]]) for row in rows]
    for p, group in enumerate(groups):
        for g, rollout in enumerate(group.rollouts):
            if case.truncated == "all but one sample":
                rollout.finish_reason = "stop" if p == g == 1 else "length"
            elif case.truncated == "all" or (case.truncated == "every second group" and p % 2):
                rollout.finish_reason = "length"
    return groups


def advantages(groups: list[pc.Group], config: GrpoConfig) -> Tensor:
    """Of a made-up reward, [P, G]."""
    rewards_PG = torch.tensor([[float(sum(r.token_ids) % 17) for r in group.rollouts] for group in groups])
    return pc.group_advantages(rewards_PG.view(len(groups), SAMPLES), config.advantage)


def sample(policy: pc.Decoder, mine: list[int]) -> list[pc.Group]:
    """Rollouts of these prompts; call within `gathered`."""
    sampler = pc.Sampler(policy, Letters())  # type: ignore[arg-type]
    return sampler.generate([PROMPTS[i] for i in mine], PARAMS, SAMPLES, prompt_keys=mine)


def load_policy(case: Case, folder: Path, place: Runtime) -> pc.Decoder:
    """The trainable model, laid out as recipes/common.py does."""
    if place.world_size == 1:
        return pc.load_model(folder / "policy", case.dtype)
    mesh = make_mesh(case.sharding, place.world_size, place.device)
    held = torch.float32 if case.dtype == torch.bfloat16 else case.dtype
    shard = sharder(mesh, case.dtype, cpu_offload=case.sharding.cpu_offload)
    return pc.load_model(folder / "policy", held, "cpu", shard)


@cache
def load_reference(dtype: torch.dtype, sharding: ShardingConfig, folder: Path, place: Runtime) -> pc.Decoder:
    """The frozen model, laid out as recipes/common.py does."""
    shard = None
    if place.world_size > 1:
        mesh = make_mesh(sharding, place.world_size, place.device)
        shard = sharder(mesh, dtype, cpu_offload=sharding.cpu_offload, cast=False)
    return pc.load_model(folder / "reference", dtype, "cpu", shard).requires_grad_(False)


def share_of(case: Case, lengths: list[int], place: Runtime) -> list[int]:
    """Which items this rank gets."""
    if case.deal == "by length":
        return balanced_shares(lengths, place.world_size)[place.rank]
    if case.deal == "to the last":
        return [*range(len(lengths))] if place.rank == place.world_size - 1 else []
    return share(range(len(lengths)), place.rank, place.world_size)


def run(case: Case, folder: Path, place: Runtime, during_rollouts: Callable[[], object] | None = None) -> Result:
    """One step of a case on this rank's share. `during_rollouts` is called at the beginning and end of rollouts."""
    started = time.perf_counter()
    policy = load_policy(case, folder, place)
    policy.checkpoint_activations = case.checkpointed
    # a large eps makes AdamW all but linear in the gradient: an error of scale would show in the weights
    optimizer = Watched(policy, OptimizerConfig(lr=1.0, eps=10.0, max_grad_norm=case.max_grad_norm), 4)

    def sleep(rank: int, times: float) -> None:
        if case.late and place.world_size > 1 and rank == place.rank:
            time.sleep(times * SLEEP)

    if isinstance(case.train, SftConfig):
        rows = conversations(case.items)
        mine = share_of(case, [len(row.ids) for row in rows], place)
        metrics = sft_step(policy, optimizer, [rows[i] for i in mine], case.train, place)
    else:
        reference = load_reference(case.dtype, case.sharding, folder, place)
        mine = share_of(case, [0] * case.items, place)
        groups = [stored_groups(case, folder)[i] for i in mine]
        if case.late:
            with gathered(policy):
                if during_rollouts:
                    during_rollouts()
                sleep(0, 1)
                groups = sample(policy, mine)
                if during_rollouts:
                    during_rollouts()
        sleep(1, 2)  # in the reward
        advantages_PG = advantages(groups, case.train)
        sleep(place.world_size - 1, 1)
        metrics = grpo_update(policy, optimizer, groups, advantages_PG, case.train, place, reference=reference)
        if case.late:  # rollouts after the update must see its weights
            with gathered(policy):
                again = sample(policy, [*range(case.items)])
            metrics["second_rollouts"] = sum(sum(r.logprobs) for group in again for r in group.rollouts)
    weights = {name: master.detach().clone() for name, master in optimizer.masters.items()}
    return Result(optimizer.seen, weights, metrics, time.perf_counter() - started)
