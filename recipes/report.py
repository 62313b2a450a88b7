"""The report of one or several runs: curves on shared axes, a browser of rollouts, the evaluation table.

    python recipes/report.py runs/demo/grpo                         # writes runs/demo/grpo/report.html
    python recipes/report.py runs/a runs/b --out compared.html      # several runs on the same axes
    python recipes/report.py runs/demo/grpo --serve                 # live while it trains, on this machine only
    python recipes/report.py runs/a runs/b --tensorboard runs/tb    # event files instead of a page

The page needs no network. From another machine: ssh -L 8765:127.0.0.1:8765 HOST, then http://127.0.0.1:8765/.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cli import main_guard

from psychecore.report.page import write_report
from psychecore.report.server import ReportServer
from psychecore.report.tensorboard import write_events

PORT = 8765


def main(argv: Sequence[str]) -> None:
    """Write the page, serve it, or write event files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folder")
    parser.add_argument("--out", type=Path, help="where the page goes; default: report.html in the one run folder")
    parser.add_argument("--serve", action="store_true", help="serve the page on loopback until Ctrl-C")
    parser.add_argument("--port", type=int, default=None, help=f"of --serve; 0: a free one (default {PORT})")
    parser.add_argument("--tensorboard", type=Path, metavar="FOLDER", help="write TensorBoard event files there")
    options = parser.parse_args(argv)
    if sum([options.serve, options.out is not None, options.tensorboard is not None]) > 1:
        raise ValueError("--serve, --out and --tensorboard are three things to do: name one of them")
    if options.port is not None and not (options.serve and 0 <= options.port < 65536):
        raise ValueError(f"--port {options.port}: give it with --serve, 0 to 65535")
    if options.tensorboard is not None:
        count = write_events(options.runs, options.tensorboard)
        print(f"{count:,} numbers in {options.tensorboard}: tensorboard --logdir {options.tensorboard}")
    elif options.serve:
        serve(options.runs, PORT if options.port is None else options.port)
    else:
        if options.out is None and len(options.runs) > 1:
            raise ValueError("the page of several runs belongs to none of them: say where it goes with --out FILE")
        out = options.out or options.runs[0] / "report.html"
        if out.is_dir():
            raise ValueError(f"--out {out} is a folder: name the file that the page goes to")
        write_report(options.runs, out)
        print(out)


def serve(runs: Sequence[Path], port: int) -> None:
    """Serve until Ctrl-C."""
    try:
        server = ReportServer(runs, port)
    except OSError as error:
        raise OSError(f"port {port} can't be had ({error.strerror}): name another with --port") from None
    with server:
        print(f"{server.url}  (Ctrl-C ends)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("ended; the run, if one is at work, goes on")


if __name__ == "__main__":
    with main_guard():
        main(sys.argv[1:])
