"""TensorBoard event files of run folders, for those who keep their runs there; needs the extra `report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from psychecore.report.run_folder import open_runs


def write_events(runs: Sequence[Path], folder: Path) -> int:
    """Write every metric of every run as scalars into FOLDER/RUN; returns how many numbers.

    Tags are SECTION/METRIC as on the page, steps the run's own. Raises ValueError without tensorboard, and where
    a run's folder holds event files already (TensorBoard would draw both).
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            f"event files need tensorboard ({error}): pip install -e '.[report]' in psychecore's folder"
        ) from None
    count = 0
    for run in open_runs(runs):
        target = folder / run.name
        if any(target.glob("events.out.tfevents.*")):
            raise ValueError(f"{target} holds event files already: remove it, or name another folder")
        run.look()
        with SummaryWriter(str(target)) as writer:
            for section, name, steps, values in run.curves.columns():
                for step, value in zip(steps, values, strict=True):
                    writer.add_scalar(f"{section}/{name}", value, step)
                count += len(values)
    return count
