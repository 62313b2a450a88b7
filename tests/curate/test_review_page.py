"""The review page in headless Chromium, worked with keys; a reviewer's file then goes through the real merge."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from browser import LOW_CONTRAST, chromium, complaints, resize

from psychecore.curate.review import Decision, merge_decisions, read_decisions, row_hash
from psychecore.curate.review_page import span_parts, verdict_lines, write_page

ENTER, ESCAPE, RIGHT, LEFT, TAB, CONTROL = "\ue007", "\ue00c", "\ue014", "\ue012", "\ue004", "\ue009"
HOSTILE = (
    "</script><img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script><!-- ]]> &amp; "
)
PASSAGE = "When rewards stop,\nthe behaviour undergoes extinction. It may return after a rest."


def row(id_: str, **changes: Any) -> dict[str, Any]:
    return {
        "id": id_,
        "question": f"Stem of {id_}",
        "options": {"A": "Punishment", "B": "Reinforcement", "C": "Extinction", "D": "Rest"},
        "answer": "C",
        "kind": "single",
        "language": "en",
        "area": "learning",
        "passage_id": "p1",
        "span": "the behaviour undergoes extinction",
        "quality": {"answerable": {"score": 4, "reason": "stated in the passage"}},
        **changes,
    }


def hostile_row(id_: str) -> dict[str, Any]:
    return row(
        f"{id_}{HOSTILE}",
        question=HOSTILE + "\u2028/*DATA*/ /*POLICY*/`${alert(1)}` 你好",
        options={"A": HOSTILE, "B": "<b>bold</b>"},
        answer="A",
        span=HOSTILE,
        area=HOSTILE,
        source=HOSTILE,
        context=HOSTILE,
        passage=f"before {HOSTILE} after",
        quality={HOSTILE: {"score": HOSTILE, "reason": HOSTILE, "more": [HOSTILE]}},
    )


class Page:
    """The page under test: presses keys, and tells what a person would see."""

    def __init__(self, driver: Any, path: Path):
        self.driver, self.url = driver, path.as_uri()
        driver.get(self.url)

    def press(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def save(self) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).key_down(CONTROL).send_keys(ENTER).key_up(CONTROL).perform()

    def text(self, id_: str) -> str:
        return self.driver.find_element("id", id_).text

    def element(self, id_: str) -> Any:
        return self.driver.find_element("id", id_)

    def focused(self) -> str:
        return self.driver.switch_to.active_element.get_attribute("id")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with chromium(tmp_path_factory.mktemp("chromium")) as driver:
        resize(driver, 1280)
        yield driver


def downloaded(driver: Any) -> Path:
    """The newest download, once it is whole."""
    for _ in range(100):
        files = sorted(driver.downloads.glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
        if files:
            return files[-1]
        time.sleep(0.05)
    raise AssertionError(f"nothing was downloaded to {driver.downloads}")


def open_page(driver: Any, folder: Path, rows: list[dict[str, Any]], forget: bool = True, **more: Any) -> Page:
    for old in driver.downloads.glob("*.jsonl"):
        old.unlink()
    path = folder / "review.html"
    write_page(path, rows, {"p1": PASSAGE}, **more)
    page = Page(driver, path)
    if forget:  # pages of other tests may hold the same questions, and then have the same progress
        driver.execute_script("localStorage.clear()")
        driver.get(page.url)
    return page


def test_a_reviewer_works_by_keys_reloads_exports_and_the_file_merges(driver: Any, tmp_path: Path) -> None:
    rows = [row(f"q{i}") for i in range(1, 6)]
    page = open_page(driver, tmp_path, rows)
    assert page.text("position") == "Question 1 of 5"
    assert driver.find_element("css selector", ".passage mark").text == "the behaviour undergoes extinction"
    assert driver.find_element("css selector", ".options .right").text.split("\n")[0] == "C"
    assert "stated in the passage" in page.text("verdict")

    page.press("a")
    assert page.text("position") == "Question 2 of 5"
    assert page.text("said") == "Question 1 accepted."
    assert page.focused() == "position"
    page.press("r")
    assert page.focused() == "reason"
    page.press("a trivial one", ENTER)  # keys typed into a field are text
    page.press("e")
    assert page.focused() == "edit-stem"
    page.press(" as edited")
    page.press(TAB, TAB, "!")  # the box of option A, then its text
    page.save()
    assert page.text("position") == "Question 4 of 5"
    assert page.text("count") == "3 of 5 decided (1 accepted, 1 rejected, 1 edited)"

    for _ in range(20):  # progress is kept, though Chromium may show it to the next page a moment later
        driver.get(page.url)
        if not page.text("count").startswith("0 "):
            break
        time.sleep(0.25)
    assert page.text("count") == "3 of 5 decided (1 accepted, 1 rejected, 1 edited)"
    assert page.text("position") == "Question 4 of 5"
    page.press("k")
    assert page.text("state") == "edited"
    assert page.text("stem") == "Stem of q3 as edited"
    page.press(LEFT)
    assert page.text("reason-said") == "Reason: a trivial one"

    page.element("export").click()
    path = downloaded(driver)
    decisions = read_decisions(path)
    assert [(one.id, one.decision) for one in decisions] == [("q1", "accept"), ("q2", "reject"), ("q3", "edit")]
    merged = merge_decisions(rows, decisions)
    assert merged.undecided == ["q4", "q5"]
    assert merged.notes == []
    edited = merged.outcomes[2].kept[0]
    assert edited["question"] == "Stem of q3 as edited"
    assert edited["options"] == {**rows[2]["options"], "A": "Punishment!"}
    assert merged.outcomes[1].rejected[0].detail == "a trivial one"
    assert complaints(driver) == []


def test_an_earlier_export_is_imported_where_the_questions_are_unchanged(driver: Any, tmp_path: Path) -> None:
    rows = [row(f"q{i}") for i in range(1, 5)]
    lines = [
        {"id": "q1", "hash": row_hash(rows[0]), "decision": "accept"},
        {"id": "q2", "hash": "0" * 32, "decision": "accept"},
        {"id": "q9", "hash": "0" * 32, "decision": "accept"},
        {"id": "q3", "hash": row_hash(rows[2]), "decision": "edit", "edited": {"answer": "E"}},
        {"id": "q4", "hash": row_hash(rows[3]), "decision": "edit", "edited": {"answer": "AB", "kind": "multiple"}},
    ]
    (tmp_path / "old.jsonl").write_text("\ufeff" + "".join(json.dumps(line) + "\n" for line in lines) + "{broken\n")
    page = open_page(driver, tmp_path, rows)
    page.element("import").send_keys(str(tmp_path / "old.jsonl"))
    said = "2 decisions imported, 1 of questions that have changed, 1 of questions that are not here, 2 unreadable."
    wait_for(lambda: page.text("said") == said, lambda: page.text("said"))
    assert page.text("count") == "2 of 4 decided (1 accepted, 1 edited)"
    page.press("u")
    assert page.text("count") == "0 of 4 decided"


def test_undo_takes_back_one_decision_at_a_time(driver: Any, tmp_path: Path) -> None:
    page = open_page(driver, tmp_path, [row(f"q{i}") for i in range(1, 4)])
    page.press("a", "a", "u")
    assert (page.text("position"), page.text("state")) == ("Question 2 of 3", "undecided")
    page.press("u", "u")
    assert page.text("count") == "0 of 3 decided"
    assert page.text("said") == "Nothing to undo."
    driver.get(page.url)
    assert page.text("count") == "0 of 3 decided"


def test_an_edit_is_validated_and_escape_leaves_the_question_as_it_was(driver: Any, tmp_path: Path) -> None:
    page = open_page(driver, tmp_path, [row("q1"), row("q2")])
    page.press("e")
    page.element("edit-stem").clear()
    driver.find_element("css selector", "[aria-label='D is right']").click()
    driver.find_element("css selector", "[aria-label='Option A']").clear()
    driver.find_element("css selector", "[aria-label='Option B']").clear()
    page.press("extinction")  # the field just cleared has the focus, or not; either way it must not decide
    driver.find_element("css selector", "[aria-label='Option B']").send_keys("extinction ")
    page.save()
    assert page.text("edit-errors").split("\n") == [
        "The question is empty.",
        "Option A is empty.",
        "Option C repeats another one.",
        "A single-choice question has one right answer, but 2 are ticked.",
    ]
    assert page.focused() == "edit-stem"
    assert page.element("edit-stem").get_attribute("aria-invalid") == "true"
    page.press(ESCAPE)
    assert page.text("stem") == "Stem of q1"
    assert page.text("count") == "0 of 2 decided"
    page.press("e")
    page.save()
    assert page.text("edit-errors") == "Nothing differs from the original: cancel, and accept it."
    for _ in range(3):
        driver.find_element("css selector", "[aria-label='Remove option A']").click()
    page.element("edit-add").click()
    page.press("Praise")
    driver.find_element("css selector", "[aria-label='B is right']").click()
    page.save()
    page.press("k")
    assert page.text("options").split("\n") == ["A", "Rest", "B", "Praise", "✓ key"]
    page.press("a")  # accepting must not lose the edit
    assert page.text("state") == "edited"


def test_search_and_filter_narrow_what_the_keys_walk_through(driver: Any, tmp_path: Path) -> None:
    page = open_page(
        driver, tmp_path, [row(f"q{i}", question=f"Stem {'even' if i % 2 == 0 else 'odd'}") for i in range(6)]
    )
    page.press("/")
    assert page.focused() == "search"
    page.press("EVEN stem")
    assert page.text("matches") == "3 of 6 shown"
    page.press(ENTER, "j", "a")
    assert page.text("position") == "Question 3 of 3"
    page.press(RIGHT)
    assert page.text("said") == "This is the last question."
    page.element("search").clear()
    page.element("filter").send_keys("Undecided")
    assert page.text("matches") == "5 of 6 shown"
    page.element("search").send_keys("no such words")
    assert "No question fits" in page.text("empty")
    page.press(ESCAPE, "a", "r", "e")
    assert page.text("count") == "1 of 6 decided (1 accepted)"


def test_hostile_text_stays_text(driver: Any, tmp_path: Path) -> None:
    # the driver can't read a lone surrogate from the page, so it stands where only the export shows it
    rows = [hostile_row("a"), {**hostile_row("b"), "context": "\ud800"}]
    page = open_page(driver, tmp_path, rows, title="Title " + HOSTILE)
    html = (tmp_path / "review.html").read_text(encoding="utf-8")
    assert html.count("</script>") == 2  # the island's and the program's
    assert HOSTILE.strip() in page.text("stem")
    assert page.text("title") == "Title " + HOSTILE.strip()
    assert "/*DATA*/ /*POLICY*/" in page.text("stem")
    assert HOSTILE.strip() in driver.find_element("css selector", "mark").text
    page.press("e", ESCAPE, "r", HOSTILE, ENTER, "k")
    assert HOSTILE.strip() in page.text("reason-said")
    page.press("e", "x")
    page.save()
    assert driver.find_elements("tag name", "img") == []
    assert len(driver.find_elements("tag name", "script")) == 2
    assert driver.title.startswith("Title ")
    assert complaints(driver) == []
    page.element("export").click()
    merged = merge_decisions(rows, read_decisions(downloaded(driver)))
    assert merged.notes == []
    assert merged.outcomes[0].kept[0]["question"] == rows[0]["question"] + "x"
    assert merged.undecided == [rows[1]["id"]]


def test_the_policy_refuses_script_style_and_markup_from_elsewhere(driver: Any, tmp_path: Path) -> None:
    open_page(driver, tmp_path, [row("q1")])
    # what runs inside the page, were something to get in; execute_script itself is not bound by the policy
    attempts = """
      const script = document.createElement('script'); script.append("document.title = 'owned'");
      try { document.body.append(script); } catch {}
      const link = document.createElement('a'); link.href = "javascript:document.title = 'owned'";
      document.body.append(link);
      link.click();
      const style = document.createElement('style'); style.append('body { display: none }');
      document.head.append(style);
      const image = document.createElement('img'); image.src = 'data:image/gif;base64,R0lGODlhAQABAAAAACw=';
      document.body.append(image);
      try { document.body.insertAdjacentHTML('beforeend', '<p id=owned></p>'); } catch {}
      return fetch('http://127.0.0.1:9/').then(() => 'sent', error => String(error));
    """
    assert "Failed to fetch" in driver.execute_script(attempts)
    assert driver.title == "Question review"
    assert driver.find_elements("id", "owned") == []
    assert driver.find_element("id", "stem").is_displayed()
    told = " ".join(complaints(driver))
    for directive in ("script-src", "style-src", "connect-src", "TrustedHTML", "TrustedScript", "img-src"):
        assert directive in told


def test_the_page_names_nothing_outside_itself(tmp_path: Path) -> None:
    write_page(tmp_path / "review.html", [row("q1")])
    html = (tmp_path / "review.html").read_text(encoding="utf-8")
    assert re.findall(r"https?://|\bsrc=|@import|url\(|<link", html) == []


def test_decisions_made_before_are_shown_and_those_of_older_versions_are_not(driver: Any, tmp_path: Path) -> None:
    rows = [row("q1"), row("q2"), row("q3")]
    earlier = [
        Decision("q1", "reject", row_hash(rows[0]), "dull"),
        Decision("q2", "accept", row_hash(row("q2", answer="A"))),
    ]
    page = open_page(driver, tmp_path, rows, decisions=earlier)
    assert page.text("count") == "1 of 3 decided (1 rejected)"
    assert page.text("reason-said") == "Reason: dull"
    page.press("a")
    driver.get(page.url)
    assert page.text("count") == "1 of 3 decided (1 accepted)"


def test_a_page_with_changed_questions_starts_afresh(driver: Any, tmp_path: Path) -> None:
    page = open_page(driver, tmp_path, [row("q1"), row("q2")])
    page.press("a")
    page = open_page(driver, tmp_path, [row("q1"), row("q2", answer="A")], forget=False)  # same file, other content
    assert page.text("count") == "0 of 2 decided"
    page = open_page(driver, tmp_path, [row("q1"), row("q2")], forget=False)
    assert page.text("count") == "1 of 2 decided (1 accepted)"


def test_single_keys_can_be_switched_off_and_all_works_with_tab_and_enter(driver: Any, tmp_path: Path) -> None:
    page = open_page(driver, tmp_path, [row("q1"), row("q2"), row("q3")])
    page.press("?")
    page.element("keys-on").click()
    page.press(ESCAPE, "a", "r")
    assert page.text("count") == "0 of 3 decided"
    assert not page.element("reason-form").is_displayed()
    reached = set()
    for _ in range(20):
        page.press(TAB)
        reached.add(page.focused())
        if page.focused() == "accept" and page.text("count") == "0 of 3 decided":
            ring = driver.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
            assert ring == "solid"
            page.press(ENTER)
            assert page.focused() == "accept"  # the pressed button keeps the focus
    assert {"export", "import", "help-open", "search", "filter", "accept", "reject", "edit", "next", "undo"} <= reached
    assert page.text("count") == "1 of 3 decided (1 accepted)"


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_cut_off_and_every_text_has_contrast(driver: Any, tmp_path: Path, width: int, dark: bool) -> None:
    long = row("q1", question="Donaudampfschifffahrtsgesellschaft" * 8, area="x" * 90)
    page = open_page(driver, tmp_path, [long, row("q2")])
    resize(driver, width, dark=dark)
    page.press("a", "k")
    for keys in ("", "r", ESCAPE + "e"):
        page.press(*keys) if keys else None
        overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert driver.execute_script(overflow) == 0
        assert driver.execute_script(LOW_CONTRAST) == []
    page.press(ESCAPE)
    unnamed = driver.execute_script(
        "return [...document.querySelectorAll('button, input, select, textarea')].filter(one => "
        "!one.textContent.trim() && !one.labels?.length && !one.getAttribute('aria-label'))"
        ".map(one => one.id || one.outerHTML)"
    )
    assert unnamed == []
    resize(driver, 1280)


def wait_for(holds: Any, tell: Any) -> None:
    for _ in range(100):
        if holds():
            return
        time.sleep(0.03)
    raise AssertionError(tell())


# ---- without a browser


@pytest.mark.parametrize(
    ("span", "parts"),
    [
        (
            "rewards stop",
            ["When ", "rewards stop", ",\nthe behaviour undergoes extinction. It may return after a rest."],
        ),
        ("STOP, the", ["When rewards ", "stop,\nthe", " behaviour undergoes extinction. It may return after a rest."]),
        ("no such words", None),
        (" ", None),
        ("It may (return", None),
    ],
)
def test_the_span_is_found_whatever_its_white_space(span: str, parts: list[str] | None) -> None:
    assert span_parts(PASSAGE, span) == parts


def test_verdicts_of_stage_quality_become_lines() -> None:
    verdicts = [
        {"judge": "m1", "sample": 0, "scores": {"key": 4, "sound": 5}, "reasons": {"key": "it is B", "sound": ""}},
        {"judge": "m2", "sample": 0, "scores": {"key": 5, "sound": 5}, "reasons": {"key": "clear", "sound": ""}},
    ]
    quality = {"prompts": 1, "verdicts": verdicts, "scores": {"key": 4.5, "sound": 5.0}, "mean": 4.75}
    assert verdict_lines({"quality": quality}) == [
        ["key", "4.5", "it is B; clear"],
        ["sound", "5", ""],
        ["prompts", "1", ""],
        ["mean", "4.75", ""],
        ["judge", "m1, m2", ""],
    ]


def test_verdicts_of_any_other_shape_become_lines() -> None:
    quality = {"sound": {"score": 3, "reason": "fine"}, "pass": True, "scores": [1, 2], "note": "ok"}
    lines = [["sound", "3", "fine"], ["pass", "yes", ""], ["scores", "[1, 2]", ""], ["note", "ok", ""]]
    assert verdict_lines({"quality": quality}) == lines
    assert verdict_lines({}) == []


def test_a_row_that_is_no_question_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="question 'q1': answer 'F' names option F"):
        write_page(tmp_path / "review.html", [row("q1", answer="F")])
