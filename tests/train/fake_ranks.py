"""FSDP2 on n fake ranks, in this process and without memory: what rank 0 holds after a step, and the peak, as JSON.

FSDPMemTracker counts. Its figure for the optimizer's state is wrong by an order of magnitude (NOTES), so no step runs.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.testing._internal.distributed.fake_pg import FakeStore

from psychecore.model import products
from psychecore.model.attention import PackedAttention
from psychecore.model.config import ModelConfig
from psychecore.model.decoder import Decoder
from psychecore.train.sharding import ShardingConfig, make_mesh, sharder


def main() -> None:
    products.SLOW_ON_CPU = frozenset()  # what is planned is a GPU's memory, where nothing is widened
    print(json.dumps([measure(*case) for case in json.loads(sys.argv[1])]))


def measure(ranks: int, replicas: int, tokens: int, config: dict[str, Any]) -> dict[str, int]:
    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    mesh = make_mesh(ShardingConfig(replicas), ranks, torch.device("cpu"))  # before fake tensors: it does arithmetic
    with FakeTensorMode():
        model = Decoder(ModelConfig(**config))
        sharder(mesh, torch.bfloat16)(model)
        tracker = FSDPMemTracker(model, None)
        tracker.track_inputs(())
        with tracker:
            ids_T, positions_T = torch.zeros(tokens, dtype=torch.int64), torch.arange(tokens)
            for _ in range(2):  # the second beside the gradients of the first
                tracker.reset_mod_stats()
                hidden_TD = model(ids_T, positions_T, PackedAttention.of_lengths([tokens], ids_T.device))
                (hidden_TD[:1] @ model.head_weight.T).float().sum().backward()
                del hidden_TD
        now, peak = (tracker.get_tracker_snapshot(kind)[torch.device("cpu")] for kind in ("current", "peak"))
    dist.destroy_process_group()
    names = {str(name).split(".")[-1]: size for name, size in now.items()}
    return {
        "parameters": sum(p.to_local().nbytes for p in model.parameters()),
        "tracked_parameters": names["SHARDED_PARAM"],
        "gradients": sum(p.grad.to_local().nbytes for p in model.parameters()),
        "tracked_gradients": names["SHARDED_GRAD"],
        "peak": peak["Total"],
    }


if __name__ == "__main__":
    main()
