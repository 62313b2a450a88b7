"""psychecore: Psyche-R1 in plain PyTorch, from texts to a policy, without a trainer framework.

Names of tensors end in their dimensions:
    B sequences   T packed tokens   S cached positions   N query heads   K key/value heads   H head dimension
    D model width   F feed-forward width   V vocabulary   G samples per prompt   P prompts   L layers
and in a few places R rows with a label (training) or rotated pairs (rotary tables), I gathered keys.
"""

from psychecore.model.config import ModelConfig
from psychecore.model.decoder import Decoder
from psychecore.model.pretrained import load_model, save_model
from psychecore.rollout.sampler import Sampler
from psychecore.rollout.sampling import SamplingParams
from psychecore.rollout.trajectory import Group, Rollout
from psychecore.text.tokenizer import Tokenizer, load_tokenizer
from psychecore.train.advantage import group_advantages
from psychecore.train.token_logprobs import token_logprobs

__version__ = "0.1.0"
__all__ = [
    "Decoder",
    "Group",
    "ModelConfig",
    "Rollout",
    "Sampler",
    "SamplingParams",
    "Tokenizer",
    "group_advantages",
    "load_model",
    "load_tokenizer",
    "save_model",
    "token_logprobs",
]
