"""The report as one HTML page: a file with its data inside, or the shell that a server keeps up to date."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from psychecore.durable import replace_file
from psychecore.page import fill_script_page
from psychecore.report.run_folder import RunFolder, open_runs

TEMPLATE = Path(__file__).with_name("run.html")


def write_report(runs: Sequence[Path], path: Path) -> None:
    """Write the page of some run folders, with everything it shows inside.

    Curves are thinned and rollouts are spread over the run, so that its size is bounded. Raises ValueError for what is
    no run folder, and with file and line for damaged JSONL.
    """
    folders = open_runs(runs)
    for folder in folders:
        folder.look()
    share = 1_500_000 // len(folders)
    rollouts = [folder.rollouts.spread(share) for folder in folders]
    data = page_data(folders) | {"rollouts": rollouts}
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, [fill_script_page(TEMPLATE.read_text(encoding="utf-8"), data)])


def page_data(folders: Sequence[RunFolder]) -> dict[str, Any]:
    """What the page draws, rollouts aside."""
    return {"runs": [folder.to_row() for folder in folders]}


def served_page(seconds: float) -> str:
    """The page for a server, which asks for its data every so many seconds."""
    template = TEMPLATE.read_text(encoding="utf-8")
    return fill_script_page(template, {"live": seconds}, connect="'self'")
