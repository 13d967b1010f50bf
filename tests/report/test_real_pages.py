"""Pages of real repairs in a real browser: looked at, decided on, and sent back into the repair."""

import csv
import io
import json
import threading

import numpy as np
import pytest
from browser_tab import PATIENCE, Page, browser, needs_browser, rows_of
from PIL import Image
from safetensors.numpy import load_file
from sample_payload import HOSTILE
from test_payload import with_hostile_names
from torch import nn

import fspmu
from fspmu.experiments.reporting import write_report
from fspmu.report.run_files import read_issues
from fspmu.report.serving import open_review
from memorised_digits import FEW
from repaired_digits import copy_of, repair, repaired, trained

__all__ = ["browser"]
pytestmark = needs_browser


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Return the page of repaired digits as it is written at the end of a run."""
    folder = copy_of(repaired(), tmp_path_factory.mktemp("report") / "run")
    return write_report(folder)


def test_from_a_cell_of_the_matrix_to_a_better_repair(browser, report, tmp_path):
    page = Page(browser, report)
    page.go("#matrix")
    cell = page.tab.locator(".matrix button:not([aria-disabled])").first
    count = int(cell.text_content())
    cell.click()
    page.says("#shown-count", f"{count} image")
    while page.tab.locator(".chip").count():
        page.tab.locator(".chip").first.click()
    page.go("#scores")
    before = page.text("#threshold-suspects")
    page.tab.locator("#threshold").focus()
    page.press(*["ArrowLeft"] * 5)
    page.until(f"document.querySelector('#threshold-suspects').textContent.replaceAll(',', '') !== '{before}'")
    page.go("#review")
    page.tab.locator(".tile").first.click()
    page.press("a", "x", "d", "a", "z")
    page.says("#progress-words", "3 of")
    name, text = page.download("corrections")
    page.context.close()
    assert not page.wrong
    decided = tmp_path / name
    decided.write_text(text, encoding="utf-8", newline="")
    accepted, kept, dropped = rows_of(text)
    assert [row["decision"] for row in (accepted, kept, dropped)] == ["accept", "keep", "drop"]

    corrected = repair(tmp_path / "corrected", corrections=decided)
    issues, split = read_issues(corrected / "label_issues.csv").set_index("id"), load_file(corrected / "split.safetensors")
    place = {identity: row for row, identity in enumerate(issues.index)}
    assert bool(split["retain"][place[kept["id"]]]) and not split["forget"][place[kept["id"]]], "the detector had called it wrong, a person did not"
    assert not split["retain"][place[dropped["id"]]] and not split["forget"][place[dropped["id"]]]
    assert issues.loc[accepted["id"], "suggested_label"] == accepted["new_label"]
    record = json.loads((corrected / "record.json").read_text())
    assert record["detection"]["corrections"] == {"accept": 1, "keep": 1, "drop": 1, "unsure": 0}


def saved(folder, count, page):
    """Return the decisions that the server has written, once there are so many."""
    review = folder / "review.json"
    for _ in range(40 * PATIENCE):
        if review.exists() and len(json.loads(review.read_text())["decisions"]) == count:
            break
        page.tab.wait_for_timeout(25)
    return json.loads(review.read_text())["decisions"]


def test_decisions_are_saved_by_the_server_as_they_are_made(browser, tmp_path):
    folder = copy_of(repaired(), tmp_path / "run")
    with open_review(folder) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            page = Page(browser, server.address)
            page.go("#review")
            page.tab.locator(".tile").first.click()
            page.press("a", "x")
            page.says("#progress-words", "2 of")
            assert [row["decision"] for row in saved(folder, 2, page)] == ["accept", "keep"]
            assert len(rows_of((folder / "corrections.csv").read_text())) == 2
            page.tab.evaluate("localStorage.clear()")
            page.tab.reload()
            page.alive()
            page.says("#progress-words", "2 of")
            page.context.close()
            assert not page.wrong
        finally:
            server.shutdown()
            serving.join()


def test_two_browsers_lose_nothing_of_each_others(browser, tmp_path):
    folder = copy_of(repaired(), tmp_path / "run")
    with open_review(folder) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            one, two = (Page(browser, address) for address in (server.address, server.address.replace("127.0.0.1", "localhost")))
            for place, (page, key) in enumerate(((one, "a"), (two, "x"))):
                page.go("#review")
                page.tab.locator(".tile").nth(place).click()
                page.press(key)
                decided = saved(folder, place + 1, page)
            two.says("#progress-words", "2 of")
            ids = two.data["items"]["id"]
            assert sorted((row["id"], row["decision"]) for row in decided) == sorted([(ids[0], "accept"), (ids[1], "keep")])
            for page in (one, two):
                page.context.close()
            assert not one.wrong and all("409" in words for words in two.wrong), "a browser names every answer that is no success"
        finally:
            server.shutdown()
            serving.join()


def test_hostile_names_of_a_real_run_do_nothing(browser, tmp_path):
    page = Page(browser, write_report(with_hostile_names(tmp_path / "run")))
    assert page.data["classes"] == list(HOSTILE)
    for panel in ("#classes", "#matrix", "#scores", "#features", "#flips", "#downloads"):
        page.go(panel)
    page.go("#review")
    page.tab.locator(".tile").first.click()
    page.press("n", "a", "c", "Escape", "d")
    text = page.download("corrections")[1]
    page.context.close()
    assert not page.wrong, "no dialog, no request, no complaint"
    assert not any(cell[:1] in ("=", "+", "-", "@") for line in csv.reader(io.StringIO(text, newline="")) for cell in line)


def test_a_data_set_of_hostile_folders_and_files_does_nothing(browser, tmp_path):
    names = [name.replace("/", "\u2215") for name in HOSTILE if len(name) < 60 and name != "__proto__"]
    draw = np.random.default_rng(0)
    for label, name in enumerate(names):
        (tmp_path / "data" / name).mkdir(parents=True)
        for place in range(6):
            pixels = np.clip(draw.normal(30 * label, 40, (8, 8, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{names[place]}.png")
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 12), nn.ReLU(), nn.Linear(12, len(names)))
    out = tmp_path / "out"
    how = {"settings": FEW, "detector": "gmm", "keep": "always"}
    result = fspmu.repair(model, tmp_path / "data", out=out, device="cpu", progress=False, class_names=sorted(names), **how)
    page = Page(browser, write_report(out))
    assert sorted(page.data["classes"]) == sorted(names) and any("<script>" in path for path in page.data["items"]["path"])
    page.go("#review")
    page.tab.locator(".tile").first.click()
    page.press("n", "a", "x", "Escape")
    page.context.close()
    assert len(result.issues) == 6 * len(names) and not page.wrong, "no dialog, no request, no complaint"


def test_on_paper_there_is_all_that_the_screen_draws_late(browser, report):
    page = Page(browser, report)
    page.tab.emulate_media(media="print")
    page.tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.until("document.querySelector('#histogram .main-svg') && document.querySelector('#map').dataset.shown")
    page.context.close()
    assert trained() and not page.wrong
