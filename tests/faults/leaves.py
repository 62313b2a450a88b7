"""Run by test_rank_faults.py: an error inside `runtime` as on GPUs, where NCCL's tear-down waits for others.

python leaves.py ERROR    # the name of an exception of runtime.py or Python; "" for none
"""

import builtins
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "recipes"))
from cli import main_guard

from psychecore import runtime

join, destroy = dist.init_process_group, dist.destroy_process_group
runtime.dist.rendezvous = lambda *_, **__: iter([(None, 0, 2)])
runtime.dist.init_process_group = lambda *_, **__: join("gloo", store=dist.HashStore(), rank=0, world_size=1)
runtime.dist.destroy_process_group = lambda: time.sleep(600) if sys.argv[1] else destroy()
torch.cuda.is_available, torch.cuda.set_device = (lambda: True), (lambda device: None)

with main_guard(), runtime.runtime("cuda"):
    assert dist.is_initialized()
    if sys.argv[1]:
        raise (getattr(runtime, sys.argv[1], None) or getattr(builtins, sys.argv[1]))("no space left")
print("after")
