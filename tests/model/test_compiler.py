"""Norm, rotary embedding, SwiGLU and loss through torch's compiler, against the formulas in float64."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import transformers
from common import ModelOptions, load_policy
from torch import Tensor
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

import psychecore as pc
from psychecore.model import compiler, fused
from psychecore.model.attention import PackedAttention
from psychecore.model.pretrained import hf_places
from psychecore.runtime import Runtime
from psychecore.train import token_logprobs as loss
from psychecore.train.sharding import ShardingConfig
from psychecore.train.token_logprobs import token_logprobs

EPS, TOKENS, ROUNDING = 1e-5, 451, {torch.bfloat16: 2**-7, torch.float32: 2e-6}  # bf16: two units in the last place


@pytest.fixture(scope="module", autouse=True)
def use(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The compiler in use, with a cache of its own; tests of other files go without."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        # beyond torch's limit a function would run uncompiled
        patch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
        try:
            compiler.use()
        except ValueError as error:
            pytest.skip(str(error))
        yield
        compiler.use(False)


@pytest.fixture(autouse=True)
def afresh() -> None:
    """Nothing compiled yet."""
    torch.compiler.reset()


def graphs() -> int:
    """How many functions torch has compiled."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def draw(seed: int, *shape: int) -> Tensor:
    """Numbers that bf16 has too, so that float64 starts from the same."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).bfloat16().double()


def norm(x_TD: Tensor, weight_D: Tensor) -> Tensor:
    return x_TD * (x_TD.square().mean(-1, keepdim=True) + EPS).rsqrt() * weight_D


def heads(qkv_TNH: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys as the decoder has them: views of the fused projection."""
    q_TNH, k_TKH, _ = qkv_TNH.split([3, 2, 2], 1)
    return q_TNH, k_TKH


def turned(qkv_TNH: Tensor, angle_TR: Tensor) -> Tensor:
    """Pairs as complex numbers, each times that of its angle."""
    out = []
    for x_TNH in heads(qkv_TNH):
        pair_TNR = torch.complex(*x_TNH.chunk(2, -1)) * torch.polar(torch.ones_like(angle_TR), angle_TR)[:, None]
        out.append(torch.cat((pair_TNR.real, pair_TNR.imag), -1))
    return torch.cat(out, 1)


ANGLE_TR = torch.linspace(0, 50, TOKENS * 32).view(TOKENS, 32)
FUNCTIONS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "norm": (lambda x, w: fused.rms_norm(x, w, EPS), norm, (draw(0, TOKENS, 192), draw(1, 192))),
    "norm of heads": (
        lambda x, w: fused.rms_norm(heads(x)[0], w, EPS),
        lambda x, w: norm(heads(x)[0], w),
        (draw(2, TOKENS, 7, 64), draw(3, 64)),
    ),
    "norm after an addition": (
        lambda x, y, w: torch.stack(fused.add_rms_norm(x, y, w, EPS)),
        lambda x, y, w: torch.stack((norm(x + y, w), x + y)),
        (draw(4, TOKENS, 192), draw(5, TOKENS, 192), draw(6, 192)),
    ),
    "rotary": (
        lambda x: torch.cat(fused.rotary(*heads(x), ANGLE_TR.cos(), ANGLE_TR.sin()), 1),
        lambda x: turned(x, ANGLE_TR.double()),
        (draw(7, TOKENS, 7, 64),),
    ),
    "swiglu": (
        fused.swiglu,
        lambda x: x.chunk(2, -1)[0] * torch.sigmoid(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1],
        (draw(8, TOKENS, 320),),
    ),
}


@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), torch.bfloat16])
@pytest.mark.parametrize(
    "name",  # the norm after an addition holds the other two
    [pytest.param(name, marks=[pytest.mark.slow] * (name in ("norm", "norm of heads"))) for name in FUNCTIONS],
)
def test_values_and_gradients_are_those_of_float64_to_rounding(name: str, dtype: torch.dtype) -> None:
    """Against formulas of their own; compiled twice, with gradient and without, so that this can't be plain torch."""
    ours, formula, wide = FUNCTIONS[name]
    assert min(x.numel() for x in wide if x.ndim > 1) >= compiler.SMALLEST
    wide = tuple(x.clone().requires_grad_() for x in wide)
    narrow = tuple(x.detach().to(dtype).requires_grad_() for x in wide)
    before = graphs()
    out, expected = ours(*narrow), formula(*wide)
    assert graphs() == before + 1
    weights = draw(9, *expected.shape)
    got = [out, *torch.autograd.grad(out, narrow, weights.to(dtype))]
    want = [expected, *torch.autograd.grad(expected, wide, weights)]
    for a, b in zip(got, want, strict=True):
        assert a.dtype == dtype
        assert (a.double() - b).norm() <= ROUNDING[dtype] * b.norm()
    with torch.no_grad():
        torch.testing.assert_close(ours(*narrow), out.detach(), rtol=ROUNDING[dtype], atol=ROUNDING[dtype])
    assert graphs() == before + 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("temperature", "entropy"), [(1.0, False), (0.7, True)])
def test_the_loss_is_that_of_a_softmax_in_float64(
    temperature: float, entropy: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels in every chunk and on both sides of each border, which divide neither evenly; the last rows are few."""
    monkeypatch.setattr(loss, "VOCABULARY_PER_CHUNK", 256)
    monkeypatch.setattr(loss, "ROWS_PER_CHUNK", 300)
    rows, vocabulary = 700, 500
    wide = [draw(0, rows, 96).requires_grad_(), (draw(1, vocabulary, 96) / 8).requires_grad_()]
    narrow = [x.detach().to(dtype).requires_grad_() for x in wide]
    labels_T = torch.arange(rows) % vocabulary
    before = graphs()
    logprobs_TV = (wide[0] @ wide[1].T / temperature).log_softmax(-1)
    want = [logprobs_TV.gather(1, labels_T[:, None])[:, 0], -(logprobs_TV.exp() * logprobs_TV).sum(-1)]
    got = token_logprobs(narrow[0], narrow[1], labels_T, temperature)
    outputs = 2 if entropy else 1
    weights = [draw(2 + i, rows) for i in range(outputs)]
    want += torch.autograd.grad(want[:outputs], wide, weights)
    got = [*got, *torch.autograd.grad(got[:outputs], narrow, [w.float() for w in weights])]
    for a, b in zip(got, want, strict=True):
        assert (a.double() - b).norm() <= ROUNDING[dtype] * b.norm()
    assert graphs() >= before + 2  # statistics and slopes


def test_small_tensors_float64_and_other_processes_go_without() -> None:
    """No call there is worth a compiled function's, and float64 is for checks."""
    large = torch.zeros(compiler.SMALLEST)
    assert compiler.takes(large)
    assert compiler.takes(large.bfloat16())
    assert not compiler.takes(large[1:])
    assert not compiler.takes(large.double())
    assert not compiler.takes(large.int())
    compiler.use(False)
    assert not compiler.takes(large)
    compiler.use()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        pytest.param({"CXX": "no-such-compiler"}, "no-such-compiler", marks=pytest.mark.slow),
        pytest.param(
            {"CXX": "no-such-compiler", "TORCHDYNAMO_SUPPRESS_ERRORS": "1"}, "switched off", marks=pytest.mark.slow
        ),
        ({"TORCHDYNAMO_DISABLE": "1"}, "switched off"),
        pytest.param({"TORCH_COMPILE_DISABLE": "1"}, "switched off", marks=pytest.mark.slow),
    ],
)
def test_a_machine_that_does_not_compile_is_told_what_to_do(setting: dict[str, str], said: str, tmp_path: Path) -> None:
    """In a process of its own, with nothing compiled before; what would run as it is written is an error too."""
    code = "from psychecore.model import compiler\ncompiler.use()"
    environment = os.environ | setting | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode
    assert last.startswith("ValueError: torch.compile ")
    assert said in last
    assert "install a C++ compiler" in last


@pytest.mark.parametrize("kind", ["anybody's", "link", "file"])
def test_a_folder_of_another_user_is_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch includes headers, loads libraries and reads pickles from it, and its name in /tmp can be foreseen."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = Path(default_cache_dir())
    assert folder.parent == tmp_path
    if kind == "link":
        (tmp_path / "elsewhere").mkdir()
        folder.symlink_to(tmp_path / "elsewhere")
    elif kind == "file":
        folder.write_text("")
    else:
        folder.mkdir()
        folder.chmod(0o777)
    with pytest.raises(ValueError, match=r"torch\.compile fails here .*torchinductor.*go without"):
        compiler.use()
    if kind == "anybody's":
        folder.rmdir()
        compiler.use()
        assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.slow  # a minute of g++; the functions that are compiled are tested one by one above
def test_the_real_models_loss_and_gradients_are_transformers(smollm2_folder: Path) -> None:
    """Compiled, with activations made again in backward, where compiled functions run a second time."""
    text = "Sleep comes sooner when the hour before it is quiet, dark and always the same. " * 9
    tokens_T = torch.tensor(pc.load_tokenizer(smollm2_folder).encode(text))
    oracle = transformers.AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32)
    logits_TV = oracle(tokens_T[None]).logits[0, :-1]  # its own loss in fp32 is 2e-5 off on a CPU without AVX-512
    expected = torch.nn.functional.cross_entropy(logits_TV.double(), tokens_T[1:])
    expected.backward()
    model = pc.load_model(smollm2_folder, torch.float32)
    model.checkpoint_activations = True
    before = graphs()
    hidden_TD = model(
        tokens_T, torch.arange(len(tokens_T)), PackedAttention.of_lengths([len(tokens_T)], tokens_T.device)
    )
    assert graphs() == before + 4  # two norms, rotary, SwiGLU
    got = -token_logprobs(hidden_TD[:-1], model.head_weight, tokens_T[1:])[0].mean()
    got.backward()
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=0)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    for name, place in hf_places(model.config).items():
        ours, theirs = gradients[place.parameter][place.start : place.stop], oracle.get_parameter(name).grad
        assert (ours - theirs).norm() <= 1e-3 * theirs.norm(), name


def test_on_a_gpu_the_option_is_refused() -> None:
    """There it would have nothing to do, and no option is taken and ignored."""
    runtime = Runtime(0, 1, torch.device("cuda"))
    with pytest.raises(ValueError, match=r"model\.compile is for runs on CPU"):
        load_policy(ModelOptions("nowhere", compile=True), ShardingConfig(), runtime)
