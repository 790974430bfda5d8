"""The page in a browser: it shows what the records say, whatever they hold, and is usable."""

from __future__ import annotations

import base64
import gzip
import importlib.util
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_asr.evaluation.hypotheses import Hypothesis
from edge_asr.report.__main__ import main
from edge_asr.report.clips import Clips
from edge_asr.report.page import page
from edge_asr.report.page_data import packed_details
from edge_asr.report.read import Run
from edge_asr.report.ship import Contest, advice
from edge_asr.report.tables import tables
from edge_asr.store.record import Interval, Record

RecordMaker = Callable[..., Record]
RunMaker = Callable[..., Path]
HeardMaker = Callable[..., list[Hypothesis]]
HOSTILE = '</script><script>alert("x")</script>'
HOSTILE_NAME = f"rtn+{HOSTILE}".replace("/", "~")  # part of a folder's name
ARABIC = "مرحبا"
METHODS = ("float", "gptq", "awq", "rtn")


def spoil(path: Path) -> None:
    """Let the first word that was heard for another be markup, as no normalizer need prevent."""
    plain = json.loads(path.read_text(encoding="utf-8"))
    edits = next(
        edits
        for edits in plain["speech"].values()
        if any(one[0] == "substitute" and " " not in one[1] for one in edits)
    )
    next(one for one in edits if one[0] == "substitute" and " " not in one[1])[2] = HOSTILE
    path.write_text(json.dumps(plain), encoding="utf-8")


@pytest.fixture
def report(make_run: RunMaker, heard: HeardMaker, tmp_path: Path) -> Path:
    """The page of four runs, of which one is named and writes as an attacker would."""
    base = np.random.default_rng(0).binomial(10, 0.2, 60)
    for number, method in enumerate(METHODS):
        damage = ARABIC if method == "awq" else "x"
        clips = heard(np.clip(base + number, 0, 10), damage=damage)
        folder = make_run(HOSTILE_NAME if method == "rtn" else method, clips)
        spoil(folder / "alignments.json")
    assert main(["--results", str(tmp_path / "runs"), "--out", str(tmp_path)]) == 0
    return tmp_path / "report.html"


def embedded(path: Path) -> tuple[Any, Any]:
    """The tables and the details of a page."""
    text = path.read_text(encoding="utf-8")
    tables = re.search(r'<script type="application/json" id="tables">(.*?)</script>', text, re.S)
    details = re.search(r'id="details">(.*?)</script>', text, re.S)
    assert tables
    assert details
    return json.loads(tables[1]), json.loads(gzip.decompress(base64.b64decode(details[1])))


def test_the_page_needs_no_other_file_and_is_the_same_again(report: Path, tmp_path: Path) -> None:
    text = report.read_text(encoding="utf-8")
    assert len(text) < 3e6
    assert text.count("<script") - text.count("\\u003cscript") <= 3 + text.count("'<script")
    assert not re.search(r"<(?:link|img|iframe)\b|@import|<script[^>]* src=", text)
    assert "default-src 'none'" in text
    assert main(["--results", str(tmp_path / "runs"), "--out", str(tmp_path)]) == 0
    assert report.read_text(encoding="utf-8") == text


def test_the_page_holds_what_the_table_and_the_files_hold(report: Path) -> None:
    data, details = embedded(report)
    (table,) = data["tables"]
    assert table["values"]["method"][:3] == ["float", "gptq", "awq"]
    assert table["columns"][0]["heading"] == "Model"
    assert sorted(table["rivals"]) == ["0", "1"]  # float, and the best of those as small
    run = details["runs"][table["values"]["run_id"][1]]
    assert run["layers"] == [["head", "decoder", "head", 100000, 4.5, None, None, None]]
    assert run["command"] is None  # its settings are not a run's
    heard = details["heard"][table["slug"]]
    assert heard["total"] == len(heard["utterances"]) == 60
    place = [name for name, *_ in heard["utterances"]].index("clip 1")
    assert heard["utterances"][place][2] == 1
    words = heard["utterances"][place][1].split()
    edits = heard["runs"][table["values"]["run_id"][2]][place]
    assert all(start + count <= len(words) for start, count, _ in edits)
    assert any(ARABIC in instead for _, _, instead in edits)


def test_of_more_utterances_than_fit_the_worst_stay() -> None:
    generator = np.random.default_rng(0)
    texts = [" ".join(map(str, generator.integers(0, 10**9, 100))) for _ in range(4000)]
    heard = {
        "total": len(texts),
        "utterances": [[str(number), text] for number, text in enumerate(texts)],
        "runs": {"a": [0] * len(texts)},
    }
    packed = packed_details({}, {"clips": heard})
    assert len(packed) <= 1_500_000
    kept = json.loads(gzip.decompress(base64.b64decode(packed)))["heard"]["clips"]
    assert kept["total"] == 4000
    assert 1000 < len(kept["utterances"]) == len(kept["runs"]["a"]) < 4000
    assert kept["utterances"][0][0] == "0"


# What a browser shows.

pytest_browser = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None or importlib.util.find_spec("playwright") is None:
        pytest.skip("needs chromium and edge_asr[browser]")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


def opened(browser: Any, path: Path, **settings: Any) -> tuple[Any, list[str]]:
    """A page, and where its complaints are noted."""
    shown = browser.new_page(viewport={"width": 1280, "height": 900}, **settings)
    said: list[str] = []
    shown.on("console", lambda message: said.append(message.text))
    shown.on("pageerror", lambda error: said.append(str(error)))
    shown.on("dialog", lambda dialog: (said.append(f"dialog {dialog.message}"), dialog.dismiss()))
    shown.goto(path.as_uri())
    shown.wait_for_selector("#heard-count:not(:empty)")
    return shown, said


def names(shown: Any) -> list[str]:
    return shown.locator("#table tbody tr td:nth-child(3)").all_inner_texts()


@pytest_browser
def test_rows_are_sorted_filtered_and_explained(browser: Any, report: Path) -> None:
    shown, said = opened(browser, report)
    assert names(shown) == ["float", "gptq", "awq", HOSTILE_NAME]
    for _ in range(2):
        shown.click("#table thead button:text-is('WER % [95 %]')")
    assert names(shown) == [HOSTILE_NAME, "awq", "gptq", "float"]
    assert shown.locator("th[aria-sort=descending]").inner_text().startswith("WER %")
    shown.fill("#search", "awq")
    assert names(shown) == ["awq"]
    shown.fill("#search", "")
    shown.select_option("#method", "gptq")
    assert names(shown) == ["gptq", "float"]
    shown.click("#table tbody tr:first-child .link")
    shown.wait_for_selector("#run dl")
    assert "abc123" in shown.inner_text("#run")
    shown.keyboard.press("Escape")
    assert not shown.locator("#run").is_visible()
    assert said == []


@pytest_browser
def test_a_budget_is_answered_as_on_the_command_line(
    browser: Any, report: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown, said = opened(browser, report)
    assert "whisper-micro float 32" in shown.inner_text("#advice")
    shown.fill("#budget-size_mb", "0.1")
    text = shown.inner_text("#advice")
    capsys.readouterr()
    assert main(["--results", str(report.parent / "runs"), "--budget", "size=100KB"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert text.startswith("whisper-micro gptq W4 g64: ")
    figures = text.partition(": ")[2].partition(";")[0].replace(" % WER", " %")
    assert f"whisper-micro gptq W4 g64: {figures}" in printed
    assert "Worse by more than chance explains: 2." in text
    assert "Worse by more than chance explains: 2." in printed
    shown.fill("#budget-size_mb", "0.0001")
    assert "Nothing is within this budget; the least of each: 0.0500 MB" in shown.inner_text(
        "#advice"
    )
    assert said == []


@pytest_browser
def test_rows_without_hypotheses_are_compared_as_the_command_does(
    browser: Any, make_record: RecordMaker, tmp_path: Path
) -> None:
    runs = {
        one.run_id: Run(tmp_path, one)
        for one in (make_record("awq", 4, 26.0), make_record("gptq", 2, 26.5))
    }
    found = tables([run.record for run in runs.values()])
    path = tmp_path / "report.html"
    path.write_text(page(found, runs, {}), encoding="utf-8")
    shown, said = opened(browser, path)
    (frame,) = found.values()
    told = advice(Contest(frame), {})[3].strip()
    assert ": +0.5 [-2.0, 3.0], unpaired; 26.5 [24.8, 28.3]" in told
    assert told.replace(" %,", " % WER,") in shown.inner_text("#advice")
    assert "The smallest file of them: whisper-micro gptq" in shown.inner_text("#advice")
    assert "No hypotheses lay beside these records" in shown.inner_text("#heard-count")
    assert said == []


@pytest_browser
def test_utterances_are_shown_as_text_the_worst_first(browser: Any, report: Path) -> None:
    shown, said = opened(browser, report)
    shown.fill("#words", "alert(")
    assert HOSTILE in shown.locator("#heard ins").all_inner_texts()
    shown.fill("#words", "")
    assert shown.locator("#heard script, #table script, #heard b").count() == 0
    for row in range(4):
        shown.locator("#table tbody input").nth(row).set_checked(row in (0, 2))
    assert "heard by whisper-micro float 32, whisper-micro awq" in shown.inner_text("#heard-count")
    shown.fill("#words", ARABIC)
    line = shown.locator("#heard dd").nth(2)
    assert line.get_attribute("dir") == "auto"
    assert ARABIC in line.locator("ins").first.inner_text()
    shown.fill("#words", "clip 17")
    assert shown.locator("#heard li").count() == 1
    shown.fill("#words", "")
    assert shown.locator("#heard li").count() == 20
    shown.click("#more-heard")
    assert shown.locator("#heard li").count() == 40
    assert said == []


@pytest_browser
def test_pointing_at_a_dot_tells_what_it_is(browser: Any, report: Path) -> None:
    shown, said = opened(browser, report)
    dot = shown.locator("#scatter svg [stroke][transform^='translate']").last
    dot.scroll_into_view_if_needed()
    box = shown.locator("#scatter figure > svg").bounding_box()
    shown.mouse.move(box["x"] + box["width"] - 30, box["y"] + box["height"] / 2)
    shown.wait_for_selector("#scatter text:has-text('float')")
    for axis in ("memory_io_mb", "gbops", "effective_bits"):
        shown.select_option("#axis", axis)
        assert shown.locator("#scatter figure > svg[aria-label*='4 runs']").count() == 1
    assert shown.locator("#heat svg[aria-label]").count() == 0  # no difference to float is known
    shown.select_option("#measure", "wer_average")
    assert shown.locator("#heat figure > svg[aria-label*='3 methods']").count() == 1
    assert said == []


@pytest_browser
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_no_serious_fault_of_accessibility_and_nothing_beyond_the_screen(
    browser: Any, report: Path, scheme: str, width: int
) -> None:
    shown, said = opened(browser, report, color_scheme=scheme)
    shown.set_viewport_size({"width": width, "height": 800})
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(shown).response["violations"]
    assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []
    root = "document.documentElement"
    assert shown.evaluate(f"{root}.scrollWidth - {root}.clientWidth") == 0
    assert said == []


@pytest_browser
def test_two_thousand_records_open_and_sort_at_once(
    browser: Any, make_record: RecordMaker, tmp_path: Path
) -> None:
    records = []
    for number in range(2000):
        wer = 20 + number % 97 / 3
        record = make_record(f"m{number % 14}", 2 + number % 7, wer, run_id=f"{number:012d}")
        (result,) = record.results
        rate = Interval(wer, wer - 1.7, wer + 1.8)
        records.append(replace(record, results=(replace(result, interval=rate),)))
    runs = {one.run_id: Run(tmp_path, one) for one in records}
    found: dict[Clips, Any] = tables(records)
    path = tmp_path / "report.html"
    path.write_text(page(found, runs, {}), encoding="utf-8")
    shown, said = opened(browser, path)
    assert shown.evaluate("performance.now()") < 2000
    assert names(shown)[-1:] != []
    shown.click("#more")
    assert shown.locator("#table tbody tr").count() == 2000
    taken = shown.evaluate(
        """() => {
          const start = performance.now();
          document.querySelector("#table thead button").click();
          document.body.offsetHeight;
          return performance.now() - start;
        }"""
    )
    assert taken < 200
    assert shown.locator("#table tbody tr").count() == 250
    assert shown.inner_text("#count") == "250 of 2000 rows"
    assert said == []
