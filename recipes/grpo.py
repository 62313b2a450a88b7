"""GRPO (arXiv 2402.03300) on multiple-choice questions with verifiable answers.

    python recipes/grpo.py --config recipes/presets/demo.toml
    torchrun --nproc-per-node 8 recipes/grpo.py --config recipes/presets/psyche_r1_7b.toml \\
        --model.path runs/sft/export --data.train grpo.jsonl --run.folder runs/grpo

The loop below is the whole algorithm: next prompts, sample groups, score, advantages, update against the reference,
log, checkpoint, evaluate. The run folder's export/ is a Hugging Face folder.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

import torch
from cli import dump_config, load_config, main_guard
from common import (
    evaluate_sets,
    evaluated_on_first,
    evaluation_due,
    load_policy,
    prompt_ids,
    quarters,
    record_evaluation,
    require,
    require_room,
    steps_of,
)
from grpo_options import GrpoRecipe
from grpo_reference import (
    last_refresh,
    load_reference,
    on_device,
    prune_references,
    reference_folder,
    reference_hashes,
)
from planning import warn_if_too_large
from run_folder import check_hashes, end_step, hash_inputs, open_run_folder, resume, settle_dtype

from psychecore.data.records import Question, read_questions
from psychecore.data.stream import Stream, share
from psychecore.model.pretrained import local_folder, save_model
from psychecore.report.page import write_report
from psychecore.reward.score import score_group
from psychecore.rollout.sampler import Sampler
from psychecore.rollout.sampling import stream_key
from psychecore.rollout.trajectory import Group
from psychecore.runtime import Runtime, gather_json, runtime
from psychecore.text.tokenizer import Tokenizer, load_tokenizer
from psychecore.train.advantage import group_advantages, informative_groups
from psychecore.train.grpo import grpo_update
from psychecore.train.metrics import RunLog, Stopwatch, matmul_peak, peak_memory_gib, step_line, training_flops
from psychecore.train.optimizer import Optimizer
from psychecore.train.run_state import Checkpoints
from psychecore.train.sharding import gathered

LINE = {
    "reward": ".3f",
    "reward_correct": ".2f",
    "reward_format": ".2f",
    "informative": ".0%",
    "kl": ".4f",
    "entropy": ".2f",
    "length": ".0f",
    "rollout_tokens_per_s": ".0f",
    "seconds": ".0f",
}


def main(config: GrpoRecipe, runtime: Runtime) -> None:
    """Train as configured, or continue the run that the folder holds."""
    with runtime.together("reading the data"):
        require(config.data.train, "data.train")
        questions = read_questions(config.data.train)
        heldout = config.evaluation.read()
        model_folder = local_folder(config.model.path)
        named = [config.model.path] + ([config.reference.path] if config.reference.path else [])
        model_folders = {name: local_folder(name) for name in named}
        tokenizer = load_tokenizer(model_folder, config.model.thinking)
        prompts = encode(questions, tokenizer, config.data.max_prompt_tokens)
        require_room(heldout, tokenizer, model_folder, config.evaluation)
    config = settle_dtype(config, runtime)
    folder, train, config_text = config.run.folder, config.train, dump_config(config)
    open_run_folder(folder, config_text, runtime)
    inputs = hash_inputs(model_folders, [config.data.train, *config.evaluation.files], runtime)

    total_steps = steps_of(config.run, len(questions), train.prompts_per_step)
    longest = max(map(len, prompts))  # a cache that holds no prompt of max_prompt_tokens may hold the real ones
    warn_if_too_large(replace(config, data=replace(config.data, max_prompt_tokens=longest)), runtime)
    policy = load_policy(config.model, config.sharding, runtime)
    optimizer = Optimizer(policy, config.optimizer, total_steps * train.mini_batches)
    run = config.run
    checkpoints = Checkpoints(
        folder / "checkpoints", runtime, run.keep_checkpoints, run.checkpoint_in_background, config_text
    )
    state = resume(checkpoints, optimizer, inputs, config_text, runtime)
    first_step = state["step"]
    stream = Stream(len(questions), config.run.seed, state["cursor"])
    log = RunLog(folder, runtime)
    for name in ("metrics.jsonl", "timings.jsonl", "samples.jsonl"):
        log.keep_until(name, first_step)
    if "reference" in state:
        now = reference_hashes(config, last_refresh(config, first_step), runtime)
        check_hashes(state["reference"], now, "the reference was refreshed")
    reference = load_reference(config, first_step, policy.compute_dtype, runtime)
    sampling = config.sampling
    length = longest + sampling.params.max_new_tokens
    sampler = Sampler(policy, tokenizer, sampling.max_slots, length, sampling.memory_gib, sampling.cuda_graphs)
    runtime.say(
        f"GRPO: {len(questions)} questions, {total_steps} steps of {train.prompts_per_step} prompts x "
        f"{train.samples_per_prompt} samples, {policy.config.parameters / 1e6:.0f}M parameters, "
        f"{runtime.world_size} rank(s) on {runtime.device}"
    )
    peak = matmul_peak(runtime, policy.compute_dtype)

    def evaluate(label: str, step: int) -> None:
        if heldout and not (first_step and evaluated_on_first(folder, label, runtime)):
            runtime.say(f"held-out accuracy {label} (step {step}):")
            with runtime.phase("evaluation"):
                reports = evaluate_sets(
                    policy,
                    tokenizer,
                    heldout,
                    config.evaluation,
                    sampling.max_slots,
                    runtime,
                    sampling.memory_gib,
                    sampling.cuda_graphs,
                )
            record_evaluation(folder, label, step, reports, runtime)

    if config.run.evaluate_first and first_step == 0:
        evaluate("before", 0)
    if first_step and evaluation_due(config.run, first_step, total_steps):
        evaluate(f"step {first_step}", first_step)  # a run may have been killed between checkpoint and evaluation
    for step in range(first_step + 1, total_steps + 1):
        watch, started = Stopwatch(runtime), time.perf_counter()
        # next prompts: all ranks draw the same batch, each takes its share
        picked = stream.take(train.prompts_per_step)
        mine = share(range(train.prompts_per_step), runtime.rank, runtime.world_size)
        # sample groups
        params = replace(config.sampling.params, seed=stream_key(config.run.seed, step, 0))
        bar = "rollout" if runtime.first else None
        with watch("rollout"), gathered(policy), runtime.together("rollout"):
            groups = sampler.generate(
                [prompts[picked[i]] for i in mine], params, train.samples_per_prompt, prompt_keys=mine, progress=bar
            )
        # score, and compare each sample with its siblings
        with watch("reward"), runtime.together("reward"):
            for i, group in zip(mine, groups, strict=True):
                scores = score_group(group.texts, questions[picked[i]], config.reward)
                for rollout, score in zip(group.rollouts, scores, strict=True):
                    rollout.scores = score
        rewards_PG = torch.tensor([[r.scores["total"] for r in g.rollouts] for g in groups])
        rewards_PG = rewards_PG.view(len(groups), train.samples_per_prompt)
        advantages_PG = group_advantages(rewards_PG, train.advantage)
        # update the policy against the reference
        lr = optimizer.lr
        with watch("update"), on_device(reference, runtime.device):
            metrics = grpo_update(
                policy,
                optimizer,
                groups,
                advantages_PG,
                train,
                runtime,
                temperature=params.temperature,
                reference=reference,
                progress=runtime.first,
            )
        # log
        state |= {"step": step, "cursor": stream.position, "total_tokens": state["total_tokens"] + metrics["tokens"]}
        row = {"phase": "grpo", "step": step, **summarise(groups, runtime), **metrics, "lr": lr, "epoch": stream.epoch}
        row["total_tokens"] = state["total_tokens"]
        log.write("metrics.jsonl", row)
        write_samples(log, step, [(questions[picked[i]].id, g) for i, g in zip(mine, groups, strict=True)], tokenizer)
        flops = training_flops(policy.config, row["tokens"], row["new_tokens"])
        timing = {"phase": "grpo", "step": step, **{f"{name}_seconds": s for name, s in watch.seconds.items()}}
        timing["rollout_tokens_per_s"] = row["new_tokens"] / watch.seconds["rollout"]
        timing["update_tokens_per_s"] = row["tokens"] / watch.seconds["update"]
        timing["mfu"] = flops / watch.seconds["update"] / (peak * runtime.world_size)
        timing |= {"occupancy": sampler.stats.occupancy, "slot_use": sampler.stats.slot_use}
        timing["memory_gib"] = peak_memory_gib(runtime.device)
        timing["seconds"] = time.perf_counter() - started
        log.write("timings.jsonl", timing)
        runtime.say(step_line("grpo", step, total_steps, row | timing, LINE))
        # refresh, checkpoint (which a restart may follow, so it comes second), evaluate
        if reference is not None and config.reference.refresh_every and step % config.reference.refresh_every == 0:
            with runtime.phase("reference"):
                save_model(policy, tokenizer, reference_folder(config, step), dtype=policy.compute_dtype)
                reference = None  # two may not fit
                reference = load_reference(config, step, policy.compute_dtype, runtime)
            state["reference"] = reference_hashes(config, step, runtime)
        if end_step(config.run, state, total_steps, checkpoints, optimizer, runtime):
            return
        prune_references(config, runtime)
        if evaluation_due(config.run, step, total_steps):
            evaluate(f"step {step}", step)
    if runtime.first:  # the rank that writes the log
        early, late = quarters([row["reward"] for row in log.read("metrics.jsonl")])
        runtime.say(f"mean reward: first quarter of the steps {early:.3f}, last quarter {late:.3f}")
    with runtime.phase("export"):  # before the evaluation, which may fail
        save_model(policy, tokenizer, folder / "export", dtype=torch.bfloat16)
    evaluate("after", total_steps)
    if runtime.first:
        write_report([folder], folder / "report.html")
    runtime.say(f"exported to {folder / 'export'}")


def encode(questions: list[Question], tokenizer: Tokenizer, max_tokens: int) -> list[list[int]]:
    """Prompt token ids of all questions. Raises ValueError for a prompt that is too long."""
    prompts = []
    for question in questions:
        try:
            ids = prompt_ids(tokenizer, question)
        except ValueError as error:
            raise ValueError(f"question {question.id!r}: {error}") from None
        if len(ids) > max_tokens:
            raise ValueError(
                f"question {question.id!r} has a prompt of {len(ids)} tokens, more than data.max_prompt_tokens "
                f"{max_tokens}: shorten it, or raise --data.max_prompt_tokens"
            )
        prompts.append(ids)
    return prompts


def summarise(groups: list[Group], runtime: Runtime) -> dict[str, float]:
    """Rewards by name, informative share, lengths and truncation over the samples of all ranks."""
    rows = [
        [{"length": len(r.token_ids), "truncated": r.finish_reason == "length", **r.scores} for r in group.rollouts]
        for group in groups
    ]
    gathered_rows = [group for part in gather_json(rows, runtime.device) for group in part]
    samples = [sample for group in gathered_rows for sample in group]
    totals_PG = torch.tensor([[sample["total"] for sample in group] for group in gathered_rows])
    means = {name: sum(float(sample[name]) for sample in samples) / len(samples) for name in samples[0]}
    summary = {"reward": means.pop("total"), "length": means.pop("length"), "truncated": means.pop("truncated")}
    summary |= {f"reward_{name}": value for name, value in means.items()}
    summary["informative"] = informative_groups(totals_PG).float().mean().item()
    summary["new_tokens"] = sum(sample["length"] for sample in samples)
    return summary


def write_samples(log: RunLog, step: int, groups: list[tuple[str, Group]], tokenizer: Tokenizer) -> None:
    """Every sample of the first rank with its scores, for reading and for the report."""
    for question_id, group in groups:
        samples = [{"text": r.text, "finish_reason": r.finish_reason, "scores": r.scores} for r in group.rollouts]
        prompt = tokenizer.decode(group.prompt_ids, skip_special_tokens=False)
        row = {"phase": "grpo", "step": step, "question": question_id, "prompt": prompt, "samples": samples}
        log.write("samples.jsonl", row)


if __name__ == "__main__":
    with main_guard():
        recipe = load_config(GrpoRecipe, sys.argv[1:], __doc__, table="grpo")
        with runtime(recipe.run.device, recipe.run.timeout_minutes) as here:
            main(recipe, here)
