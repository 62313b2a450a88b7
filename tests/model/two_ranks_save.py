"""Run by test_pretrained.py: two ranks save a sharded model where rank 0 cannot write, then where it can.

python two_ranks_save.py FOLDER
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed.fsdp  # once, before the fork
from forked import ranks

import psychecore as pc
from psychecore.runtime import runtime
from psychecore.train.sharding import ShardingConfig, make_mesh, sharder


def save(folder: Path) -> None:
    with runtime("cpu", timeout_minutes=1) as here:
        model = pc.Decoder(pc.ModelConfig("qwen2", 61, 24, 2, 3, 1, 8, 40, qkv_bias=True)).initialise(0)
        sharder(make_mesh(ShardingConfig(), 2, here.device), torch.float32)(model)
        said = []
        for place in (folder / "a file" / "export", folder / "export"):
            try:
                pc.save_model(model, None, place)
                said.append("saved")
            except OSError as error:
                said.append(f"{type(error).__name__}: {error}")
        (folder / f"rank{here.rank}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    sys.exit(any(ranks(2, lambda: save(Path(sys.argv[1])))))
