"""Picks a Triton kernel or its torch reference; the only importer of kernels/."""

from psychecore.kernels.rms_norm import rms_norm_reference as rms_norm
from psychecore.kernels.rotary import rotary_reference as rotary
from psychecore.kernels.swiglu import swiglu_reference as swiglu

__all__ = ["rms_norm", "rotary", "swiglu"]
