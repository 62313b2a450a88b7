"""Norm, rotary embedding, SwiGLU and loss through torch's compiler, against the formulas in float64."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import transformers
from common import ModelOptions, load_policy
from torch import Tensor

import psychecore as pc
from psychecore.kernels.rms_norm import add_rms_norm_reference, rms_norm_reference
from psychecore.kernels.rotary import rotary_reference
from psychecore.kernels.swiglu import swiglu_reference
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
    before = os.environ.get(compiler.CACHE)
    os.environ[compiler.CACHE] = str(tmp_path_factory.mktemp("compiled"))
    try:
        compiler.use()
    except ValueError as error:
        pytest.skip(str(error))
    yield
    compiler.use(False)
    del os.environ[compiler.CACHE]
    if before is not None:
        os.environ[compiler.CACHE] = before


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
FUNCTIONS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[Tensor, ...], object]] = {
    "norm": (lambda x, w: fused.rms_norm(x, w, EPS), norm, (draw(0, TOKENS, 192), draw(1, 192)), rms_norm_reference),
    "norm of heads": (
        lambda x, w: fused.rms_norm(heads(x)[0], w, EPS),
        lambda x, w: norm(heads(x)[0], w),
        (draw(2, TOKENS, 7, 64), draw(3, 64)),
        rms_norm_reference,
    ),
    "norm after an addition": (
        lambda x, y, w: torch.stack(fused.add_rms_norm(x, y, w, EPS)),
        lambda x, y, w: torch.stack((norm(x + y, w), x + y)),
        (draw(4, TOKENS, 192), draw(5, TOKENS, 192), draw(6, 192)),
        add_rms_norm_reference,
    ),
    "rotary": (
        lambda x: torch.cat(fused.rotary(*heads(x), ANGLE_TR.cos(), ANGLE_TR.sin()), 1),
        lambda x: turned(x, ANGLE_TR.double()),
        (draw(7, TOKENS, 7, 64),),
        rotary_reference,
    ),
    "swiglu": (
        fused.swiglu,
        lambda x: x.chunk(2, -1)[0] * torch.sigmoid(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1],
        (draw(8, TOKENS, 320),),
        swiglu_reference,
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_gradients_are_those_of_float64_to_rounding(name: str, dtype: torch.dtype) -> None:
    """Against formulas of their own; what was compiled is looked up, so that this can't be plain torch."""
    ours, formula, wide, reference = FUNCTIONS[name]
    assert min(x.numel() for x in wide if x.ndim > 1) >= compiler.SMALLEST
    wide = tuple(x.clone().requires_grad_() for x in wide)
    narrow = tuple(x.detach().to(dtype).requires_grad_() for x in wide)
    compiler._compiled.pop(reference, None)
    out, expected = ours(*narrow), formula(*wide)
    assert reference in compiler._compiled
    weights = draw(9, *expected.shape)
    got = [out, *torch.autograd.grad(out, narrow, weights.to(dtype))]
    want = [expected, *torch.autograd.grad(expected, wide, weights)]
    for a, b in zip(got, want, strict=True):
        assert a.dtype == dtype
        assert (a.double() - b).norm() <= ROUNDING[dtype] * b.norm()
    with torch.no_grad():
        torch.testing.assert_close(ours(*narrow), out.detach(), rtol=ROUNDING[dtype], atol=ROUNDING[dtype])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("entropy", [False, True])
def test_the_loss_is_that_of_a_softmax_in_float64(
    temperature: float, entropy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels in every chunk and on both sides of each border, which divide neither evenly; the last rows are few."""
    monkeypatch.setattr(loss, "VOCABULARY_PER_CHUNK", 256)
    monkeypatch.setattr(loss, "ROWS_PER_CHUNK", 300)
    rows, vocabulary = 700, 500
    wide = [draw(0, rows, 96).requires_grad_(), (draw(1, vocabulary, 96) / 8).requires_grad_()]
    narrow = [x.detach().float().requires_grad_() for x in wide]
    labels_T = torch.arange(rows) % vocabulary
    logprobs_TV = (wide[0] @ wide[1].T / temperature).log_softmax(-1)
    want = [logprobs_TV.gather(1, labels_T[:, None])[:, 0], -(logprobs_TV.exp() * logprobs_TV).sum(-1)]
    got = token_logprobs(narrow[0], narrow[1], labels_T, temperature)
    outputs = 2 if entropy else 1
    weights = [draw(2 + i, rows) for i in range(outputs)]
    want += torch.autograd.grad(want[:outputs], wide, weights)
    got = [*got, *torch.autograd.grad(got[:outputs], narrow, [w.float() for w in weights])]
    for a, b in zip(got, want, strict=True):
        assert (a.double() - b).norm() <= 3e-6 * b.norm()
    assert {loss._slope, loss._add_chunk} <= compiler._compiled.keys()


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


def test_a_machine_without_a_compiler_is_told_what_to_install(tmp_path: Path) -> None:
    """In a process of its own: torch looks for a compiler once."""
    code = "from psychecore.model import compiler\ncompiler.use()"
    environment = os.environ | {"CXX": str(tmp_path / "no-such-compiler"), compiler.CACHE: str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode
    assert last.startswith("ValueError: torch.compile does not work here")
    assert "no-such-compiler" in last
    assert "install a C++ compiler" in last


def test_what_is_made_lies_in_the_users_own_cache(tmp_path: Path) -> None:
    """And not in /tmp, where another user could have put a folder of that name first."""
    code = "from psychecore.model import compiler\ncompiler.use()"
    environment = {k: v for k, v in os.environ.items() if k not in (compiler.CACHE, "XDG_CACHE_HOME")}
    environment |= {"HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert list((tmp_path / ".cache" / "psychecore" / "compiled").rglob("*.so"))


def test_the_real_models_loss_and_gradients_are_transformers(smollm2_folder: Path) -> None:
    """Compiled, with activations made again in backward, where compiled functions run a second time."""
    text = "Sleep comes sooner when the hour before it is quiet, dark and always the same. " * 9
    tokens_T = torch.tensor(pc.load_tokenizer(smollm2_folder).encode(text))
    oracle = transformers.AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32)
    expected = oracle(tokens_T[None], labels=tokens_T[None]).loss
    expected.backward()
    model = pc.load_model(smollm2_folder, torch.float32)
    model.checkpoint_activations = True
    hidden_TD = model(
        tokens_T, torch.arange(len(tokens_T)), PackedAttention.of_lengths([len(tokens_T)], tokens_T.device)
    )
    got = -token_logprobs(hidden_TD[:-1], model.head_weight, tokens_T[1:])[0].mean()
    got.backward()
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=0)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    for name, place in hf_places(model.config).items():
        ours, theirs = gradients[place.parameter][place.start : place.stop], oracle.get_parameter(name).grad
        assert (ours - theirs).norm() <= 1e-3 * theirs.norm(), name


def test_on_a_gpu_the_option_is_refused() -> None:
    """There it would have nothing to do, and no option is taken and ignored."""
    runtime = Runtime(0, 1, torch.device("cuda"))
    with pytest.raises(ValueError, match=r"model\.compile is for runs on CPU"):
        load_policy(ModelOptions("nowhere", compile=True), ShardingConfig(), runtime)
