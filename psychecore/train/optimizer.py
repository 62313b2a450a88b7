"""AdamW on fp32 masters, gradient clipping, and the learning-rate schedule.

Masters are needed because bf16 has 8 bits of mantissa: at lr 1e-6 almost every update would round away. Under FSDP2
the fp32 shards are the masters. Without it, a bf16 model gets them here: after each backward pass its gradients are
added to the masters' in fp32 and freed, and after each step the bf16 parameters are rounded from the masters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from psychecore.train.finite import NonFiniteError, all_finite, describe_nonfinite, global_norm

SKIPS_IN_ROW = 5  # more in a row are no accident


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (arXiv 1711.05101) and its schedule.

    lr is the rate after warm-up, which is warmup_steps optimizer steps (in GRPO there are mini_batches in a step of the
    run) or a share warmup_ratio of all. weight_decay is of matrices, not of norms and biases; beta1, beta2 and eps are
    AdamW's. Gradients are scaled down to a norm of max_grad_norm over all parameters; inf leaves them.

    nonfinite: what to do where a loss or gradient is NaN or infinite, stop the run or skip the step, five in a row at
    most. Weights that are not finite always stop it.
    """

    lr: float = 1e-6
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 0
    warmup_ratio: float = 0.0
    nonfinite: Literal["stop", "skip"] = "stop"

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr is {self.lr}, but must be above 0 and finite")
        if not 0 <= self.beta1 < 1 or not 0 <= self.beta2 < 1:
            raise ValueError(f"beta1 {self.beta1} and beta2 {self.beta2} must be in [0, 1)")
        if not self.max_grad_norm > 0 or not 0 <= self.weight_decay < math.inf or not 0 < self.eps < math.inf:
            raise ValueError(
                f"max_grad_norm {self.max_grad_norm} and eps {self.eps} must be above 0, weight_decay "
                f"{self.weight_decay} at least 0, and all but max_grad_norm finite"
            )
        if self.warmup_steps < 0 or not 0 <= self.warmup_ratio <= 1:
            raise ValueError(f"warmup_steps {self.warmup_steps} or warmup_ratio {self.warmup_ratio} is out of range")
        if self.warmup_steps and self.warmup_ratio:
            raise ValueError("give warmup_steps or warmup_ratio, not both")


def learning_rate(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """The rate of step 0, 1, ...: linear warm-up from lr / warm-up steps, then constant, or cosine down to 0.

    Example: lr 1, 2 warm-up steps, 6 in all, cosine: 0.5, 1, 1, 0.85, 0.5, 0.15.
    """
    warmup = config.warmup_steps or math.ceil(config.warmup_ratio * total_steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "constant":
        return config.lr
    progress = min((step - warmup) / max(total_steps - warmup, 1), 1.0)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))


class Optimizer:
    """Steps a model's masters; call `step` once all micro-batches of a step have gone backward."""

    def __init__(self, model: nn.Module, config: OptimizerConfig, total_steps: int):
        self.config, self.total_steps, self.steps = config, total_steps, 0
        self.skips_in_row = 0
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.masters = {name: _master(p) for name, p in self.parameters.items()}
        decayed = [m for m in self.masters.values() if m.ndim >= 2]
        plain = [m for m in self.masters.values() if m.ndim < 2]  # norms and biases
        self.adamw = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": config.weight_decay},
                {"params": plain, "weight_decay": 0.0},
            ],
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            fused=True,  # one pass over the state; NOTES: 4 times faster than foreach on CPU
        )

    @property
    def lr(self) -> float:
        """The rate that the next step will use."""
        return learning_rate(self.config, self.steps, self.total_steps)

    def step(self, loss: float = 0.0) -> float:
        """Clip, update, clear the gradients; returns the global gradient norm before clipping, NaN for a skipped step.

        `loss` is this rank's; every rank must call. Where a loss, gradient or weight is NaN or infinite on any rank,
        nothing changes: every rank raises NonFiniteError, which names it, or skips the step if the config says so.
        """
        masters = list(self.masters.values())
        norm, weight_norm = global_norm([m.grad for m in masters if m.grad is not None]), global_norm(masters)
        size = float(norm)
        if not all_finite(loss, size, float(weight_norm)):
            return self._refuse(loss, float(weight_norm))
        torch.nn.utils.clip_grads_with_norm_(masters, self.config.max_grad_norm, norm)
        for group in self.adamw.param_groups:
            group["lr"] = self.lr
        self.adamw.step()
        self.zero_grad()
        self.publish()
        self.steps += 1
        self.skips_in_row = 0
        return size

    def _refuse(self, loss: float, weight_norm: float) -> float:
        gradients = {name: master.grad for name, master in self.masters.items()}
        what = describe_nonfinite({"gradient": gradients, "weight": self.masters}, loss)
        self.zero_grad()
        self.skips_in_row += 1
        if self.config.nonfinite == "skip" and math.isfinite(weight_norm) and self.skips_in_row <= SKIPS_IN_ROW:
            return math.nan
        raise NonFiniteError(f"not finite at optimizer step {self.steps}, nothing was updated: {what}")

    def zero_grad(self) -> None:
        """Forget all gradients."""
        self.adamw.zero_grad(set_to_none=True)

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the parameters that compute, where these are apart."""
        for name, parameter in self.parameters.items():
            if self.masters[name] is not parameter:
                parameter.copy_(self.masters[name])

    def state_tensors(self) -> dict[str, Tensor]:
        """Masters and moments by name ("master/...", "exp_avg/...", "exp_avg_sq/..."), as they lie on this rank."""
        tensors: dict[str, Tensor] = {}
        for name, master in self.masters.items():
            tensors[f"master/{name}"] = master.detach()
            state = self.adamw.state.get(master, {})
            for key in ("exp_avg", "exp_avg_sq"):
                tensors[f"{key}/{name}"] = state[key] if key in state else torch.zeros_like(master.detach())
        return tensors

    def counters(self) -> dict[str, int]:
        """What a checkpoint keeps beside the tensors."""
        return {"steps": self.steps, "total_steps": self.total_steps, "skips_in_row": self.skips_in_row}

    @torch.no_grad()
    def allocate_state(self, counters: dict[str, int]) -> dict[str, Tensor]:
        """Zeroed moments at these counters, to be filled in place (as `state_tensors` names them) by a resume."""
        if counters["total_steps"] != self.total_steps:
            raise ValueError(f"its schedule has {counters['total_steps']} optimizer steps, this one {self.total_steps}")
        self.steps, self.skips_in_row = counters["steps"], counters["skips_in_row"]
        for master in self.masters.values():
            self.adamw.state[master] = {
                "step": torch.tensor(float(self.steps), device=master.device),
                "exp_avg": torch.zeros_like(master.detach()),
                "exp_avg_sq": torch.zeros_like(master.detach()),
            }
        return self.state_tensors()


def _master(parameter: nn.Parameter) -> Tensor:
    """The parameter itself where it is fp32 or wider, else an fp32 copy that collects its gradients."""
    if parameter.dtype in (torch.float32, torch.float64):
        return parameter
    master = parameter.detach().float().clone().requires_grad_()

    def collect(p: Tensor) -> None:
        assert p.grad is not None
        if master.grad is None:
            master.grad = p.grad.float()
        else:
            master.grad += p.grad
        p.grad = None  # freed as soon as it is counted

    parameter.register_post_accumulate_grad_hook(collect)
    return master
