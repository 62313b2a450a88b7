"""The report of a real (tiny) run: as a file, live, in headless Chromium, and as event files."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import LOW_CONTRAST, chromium, complaints, resize
from recipe_flags import recipe_flags
from report import main as report_main

from psychecore.report.server import ReportServer

REPO = Path(__file__).resolve().parents[2]
HOSTILE = "</script><img src=x onerror=\"document.title='owned'\"><!-- Zebra\u2028/*DATA*/"
OVERFLOW = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
UNNAMED = """return [...document.querySelectorAll('button, input, select, svg[tabindex]')]
  .filter(one => one.checkVisibility() && !one.textContent.trim() && !one.labels?.length)
  .filter(one => !one.getAttribute('aria-label')).map(one => one.outerHTML)"""


@pytest.fixture(scope="module")
def finished(workplace: Path) -> Path:
    """A GRPO run of four steps, whose report.html the recipe wrote."""
    argv = [sys.executable, str(REPO / "recipes" / "grpo.py"), *recipe_flags("grpo", workplace, "reported")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return workplace / "reported"


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run whose newest group says hostile things."""
    copy = tmp_path / "run"
    copy.mkdir()
    for path in finished.iterdir():
        if path.is_file():
            shutil.copy(path, copy)
    rows = rows_of(copy / "samples.jsonl")
    rows[-1]["samples"][0]["text"] = f"<think>A zebra thinks{HOSTILE}</think>B. {HOSTILE}"
    (copy / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return copy


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


@pytest.fixture
def serve() -> Iterator[Callable[[Path], ReportServer]]:
    servers: list[ReportServer] = []

    def start(folder: Path) -> ReportServer:
        servers.append(ReportServer([folder], seconds=0.1))
        threading.Thread(target=servers[-1].serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def wait_for(holds: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.03)


def texts(driver: Any, selector: str) -> list[str]:
    script = "return [...document.querySelectorAll(arguments[0])].map(one => one.innerText)"  # in one moment
    return driver.execute_script(script, selector)


def test_the_recipe_leaves_a_page_that_holds_every_metric_and_score_of_the_run(finished: Path) -> None:
    page = (finished / "report.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="data">(.*)</script>', page)[1])  # type: ignore[index]
    (run,) = data["runs"]
    curves = {curve["name"]: curve for curve in run["curves"]}
    for log in ("metrics.jsonl", "timings.jsonl"):
        rows = rows_of(finished / log)
        for name in set(rows[0]) - {"step", "phase"}:
            assert curves[name]["step"] == [1, 2, 3, 4]
            assert curves[name]["mean"] == pytest.approx([row[name] for row in rows], rel=1e-4)
    wanted = {"reward", "reward_format", "reward_correct", "kl", "entropy", "length", "clip_fraction", "mismatch"}
    assert wanted | {"rollout_tokens_per_s", "update_tokens_per_s", "memory_gib"} <= set(curves)
    (rollouts,) = data["rollouts"]
    samples = rows_of(finished / "samples.jsonl")
    assert [group["question"] for group in rollouts["groups"]] == [row["question"] for row in reversed(samples)]
    assert rollouts["groups"][0]["samples"][0]["scores"] == samples[-1]["samples"][0]["scores"]
    assert {row["label"] for row in run["evaluation"]} == {"before", "after"}
    assert set(re.findall(r"\w+://[^\s\"']*", page)) == {"http://www.w3.org/2000/svg"}  # a name, not an address


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_draws_searches_folds_and_fits(driver: Any, folder: Path, width: int) -> None:
    report_main([str(folder)])
    resize(driver, width, dark=width == 390)
    driver.get((folder / "report.html").as_uri())
    driver.execute_script("for (const one of document.querySelectorAll('.section')) one.open = true")
    lines = driver.find_elements("css selector", ".chart .line")
    assert len(lines) == len(rows_of(folder / "metrics.jsonl")[0]) + len(rows_of(folder / "timings.jsonl")[0]) - 4
    assert all(line.get_attribute("d").count("L") == 3 for line in lines)
    assert driver.execute_script(OVERFLOW) == 0
    assert driver.execute_script(UNNAMED) == []
    assert driver.execute_script(LOW_CONTRAST) == []
    # rollouts: 8 of 12 groups, thoughts folded
    assert len(texts(driver, ".group")) == 8
    assert not any(one.get_attribute("open") for one in driver.find_elements("css selector", ".think"))
    driver.find_element("id", "more").click()
    wait_for(lambda: len(texts(driver, ".group")) == 12)
    # a search finds any case, opens the thought that it is in, and marks it
    driver.find_element("id", "words").send_keys("zEBRA")
    wait_for(lambda: len(texts(driver, ".group")) == 1)
    assert texts(driver, "mark") == ["zebra", "Zebra", "Zebra"]
    assert driver.find_element("css selector", ".think").get_attribute("open")
    assert HOSTILE.replace("\u2028", " ") in driver.find_element("css selector", ".sample").text.replace("\u2028", " ")
    assert driver.execute_script(OVERFLOW) == 0
    driver.find_element("id", "words").clear()
    driver.find_element("id", "words").send_keys("nobody says this")
    wait_for(lambda: texts(driver, ".group") == [])
    assert driver.title == "Run run"
    assert complaints(driver) == []


def test_a_step_is_read_by_keys_in_all_charts_at_once(driver: Any, folder: Path) -> None:
    report_main([str(folder)])
    resize(driver, 1280)
    driver.get((folder / "report.html").as_uri())
    charts = driver.find_elements("css selector", ".chart svg")
    names = texts(driver, ".chart h3")
    charts[0].send_keys("\ue011\ue014")  # Home, right arrow
    rows = rows_of(folder / "metrics.jsonl")
    readouts = dict(zip(names, texts(driver, ".readout"), strict=True))
    for name in ("reward", "entropy", "length"):
        value, step = readouts[name].split("\n")
        assert float(value) == pytest.approx(rows[1][name], rel=1e-3)
        assert step == "step 2"
    assert len(driver.find_elements("css selector", ".cursor")) == len(charts)
    charts[0].send_keys("\ue00c")
    assert driver.find_elements("css selector", ".cursor") == []


def test_several_runs_share_their_axes_and_can_be_hidden(driver: Any, finished: Path, folder: Path) -> None:
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:2]))
    out = folder / "both.html"
    report_main([str(folder), str(finished), "--out", str(out)])
    resize(driver, 1280)
    driver.get(out.as_uri())
    chart = driver.find_element("css selector", ".chart")
    short, long = (line.get_attribute("d") for line in chart.find_elements("css selector", ".line"))
    assert long.startswith(short)  # the same first two steps, at the same places
    assert (short.count("L"), long.count("L")) == (1, 3)
    driver.find_element("css selector", "label[for=run-1]").click()
    assert len(chart.find_elements("css selector", ".line")) == 1
    with pytest.raises(ValueError, match="--out"):
        report_main([str(folder), str(finished)])
    with pytest.raises(ValueError, match="is a folder: name the file"):
        report_main([str(folder), "--out", str(folder.parent)])
    assert not list(folder.parent.parent.glob(".*.partial"))


@pytest.mark.parametrize("width", [1280, 390])
def test_the_parts_of_a_set_are_folded_under_the_table_of_an_evaluation(
    driver: Any, tmp_path: Path, width: int
) -> None:
    score = {"n": 9, "value": 0.5, "low": 0.4, "high": 0.6}
    part = {"accuracy": score, "format": 0.625}
    result = {"all": {**part, "pass_k": {"4": score}}, "by": {"column": {"ethics": part, "facts": part}}}
    (tmp_path / "evaluation.json").write_text(json.dumps({"model": {"name": "m"}, "benchmarks": {"pceb": result}}))
    report_main([str(tmp_path)])
    resize(driver, width)
    driver.get((tmp_path / "report.html").as_uri())
    assert [text.split()[0] for text in texts(driver, "#evaluation > table tbody td:nth-child(4)")] == ["pceb", "pceb,"]
    assert texts(driver, "#evaluation > table tbody td:nth-child(10)") == ["62.5 %", "–"]
    driver.find_element("css selector", "#evaluation summary").click()
    folded = "#evaluation details table tbody td:nth-child(4)"
    assert texts(driver, folded) == ["pceb, column ethics", "pceb, column facts"]
    assert driver.execute_script(OVERFLOW) == 0
    assert complaints(driver) == []


def test_a_live_page_takes_up_a_step_that_is_appended(driver: Any, folder: Path, serve: Any) -> None:
    logs = {name: (folder / name).read_text().splitlines(keepends=True) for name in ("metrics.jsonl", "samples.jsonl")}
    (folder / "metrics.jsonl").write_text("".join(logs["metrics.jsonl"][:3]))
    (folder / "samples.jsonl").write_text("".join(logs["samples.jsonl"][:9]))
    server = serve(folder)
    resize(driver, 1280)
    driver.get(server.url)

    def points() -> int:
        line = "document.querySelector('.chart .line')"
        return driver.execute_script(f"return {line}?.getAttribute('d').split('L').length")

    wait_for(lambda: points() == 3)
    wait_for(lambda: len(texts(driver, ".group")) == 8)
    for name, first in (("metrics.jsonl", 3), ("samples.jsonl", 9)):
        with open(folder / name, "a") as file:
            file.writelines(logs[name][first:])
    wait_for(lambda: points() == 4)
    wait_for(lambda: driver.find_element("id", "newest").is_displayed())
    driver.find_element("id", "newest").click()
    wait_for(lambda: texts(driver, ".group h3")[:1] == ["Step 4"])
    driver.find_element("id", "words").send_keys("zebra")
    wait_for(lambda: len(texts(driver, ".group")) == 1)
    assert complaints(driver) == []


def get(server: ReportServer, path: str, host: str = "localhost") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.putrequest("GET", path, skip_host=True)
    connection.putheader("Host", host)
    connection.endheaders()
    answer = connection.getresponse()
    found = answer.status, answer.read().decode()
    connection.close()
    return found


def test_the_server_answers_on_loopback_and_gives_no_file(folder: Path, serve: Any) -> None:
    server = serve(folder)
    assert server.server_address[0] == "127.0.0.1"
    status, said = get(server, "/data.json")
    version = json.loads(said)["version"]
    assert (status, get(server, f"/data.json?seen={version}")) == (200, (204, ""))
    other = serve(folder)  # as when one is stopped and another takes its port, with the page still open
    assert (get(other, f"/data.json?seen={version}")[0], get(other, "/data.json?seen=1")[0]) == (200, 200)
    for path in ("/config.toml", "/../config.toml", "/%2e%2e/config.toml", "//etc/passwd", "/metrics.jsonl", "/run"):
        assert get(server, path)[0] == 404, path
    assert get(server, "/", host="evil.example:80")[0] == 403  # a name that was rebound to this address
    status, said = get(server, "/rollouts.json?run=7")
    assert (status, json.loads(said)["error"]) == (500, "run is 7, but must be 0 to 0")
    assert "step is 'x'" in get(server, "/rollouts.json?step=x")[1]
    with open(folder / "samples.jsonl", "a") as file:
        file.write('{"step": 5, "samples": [{"scores": {"total": [1]}}]}\n')
    status, said = get(server, "/data.json")
    assert (status, "samples.jsonl line 13: a sample's scores have [1]" in said) == (500, True)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write("{damaged\n")
    assert "metrics.jsonl line 5: not a JSON object" in get(server, "/data.json")[1]
    assert "connect-src 'self'" in get(server, "/")[1]


def test_event_files_hold_every_number(folder: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    report_main([str(folder), "--tensorboard", str(tmp_path / "tb")])
    found = accumulator.EventAccumulator(str(tmp_path / "tb" / "run"))
    found.Reload()
    rows = rows_of(folder / "metrics.jsonl")
    events = [(event.step, event.value) for event in found.Scalars("Reward/reward")]
    assert events == [(row["step"], pytest.approx(row["reward"], rel=1e-5)) for row in rows]
    with pytest.raises(ValueError, match="holds event files already"):
        report_main([str(folder), "--tensorboard", str(tmp_path / "tb")])


def test_without_tensorboard_the_way_to_it_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"need tensorboard .*pip install -e '\.\[report\]'"):
        report_main([str(folder), "--tensorboard", str(tmp_path / "tb")])
    assert not (tmp_path / "tb").exists()
