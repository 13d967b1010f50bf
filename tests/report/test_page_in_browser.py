"""The page as people use it: in a browser, from a file, without a network."""

import csv
import io
import json

import pytest
from browser_tab import Page, browser, needs_browser, playwright, rows_of
from sample_payload import sample_payload

from fspmu.report.page import render_page

__all__ = ["browser"]
pytestmark = needs_browser


@pytest.fixture(scope="module", params=[pytest.param("plain", marks=pytest.mark.slow), "hostile"])
def file(request, tmp_path_factory):
    """Return a page whose names attack it; `make test-all` also opens one with names as they should be."""
    path = tmp_path_factory.mktemp("page") / f"{request.param}.html"
    path.write_text(render_page(sample_payload(hostile=request.param == "hostile")), encoding="utf-8")
    return path


@pytest.fixture
def page(browser, file):
    opened = Page(browser, file)
    yield opened
    opened.context.close()
    assert not opened.wrong, "nothing is reported, asked or fetched, whatever names say"


def plain(cell):
    return cell[1:] if cell[:1] == "'" and cell.lstrip("'")[:1] in tuple("=+-@\t\r") else cell


def test_decisions_by_keyboard_and_their_export(page):
    page.go("#review")
    page.tab.locator(".tile").first.click()
    page.press("a", "x", "d", "u", "a", "z")
    page.says("#progress-words", "4 of")
    name, text = page.download("corrections")
    rows, items = rows_of(text), page.data["items"]
    assert name == "corrections.csv" and [row["decision"] for row in rows] == ["accept", "keep", "drop", "unsure"]
    assert [plain(row["id"]) for row in rows] == items["id"][:4]
    assert plain(rows[0]["new_label"]) == page.data["classes"][items["suggested"][0]] and rows[0]["time"]
    assert not any(cell[:1] in ("=", "+", "-", "@") for line in csv.reader(io.StringIO(text, newline="")) for cell in line if cell)
    playwright.expect(page.tab.locator("#unexported")).to_be_hidden()
    review = json.loads(page.download("review")[1])
    assert review["schema"] == 1 and review["key"] == page.data["key"] and len(review["decisions"]) == 4
    assert page.download("metadata")[1].startswith("file_name,label\r\n")
    page.tab.reload()
    page.alive()
    page.says("#progress-words", "4 of")


def test_a_cell_of_the_matrix_filters_and_the_view_can_be_shared(page):
    page.go("#matrix")
    cell = page.tab.locator(".matrix button:not([aria-disabled])").first
    count = int(cell.text_content())
    cell.click()
    page.says("#shown-count", f"{count} image")
    page.until("location.hash.includes('g=') && location.hash.includes('s=')")
    page.tab.reload()
    page.alive()
    page.says("#shown-count", f"{count} image")
    while page.tab.locator(".chip").count():
        page.tab.locator(".chip").first.click()
    page.says("#shown-count", str(page.data["items"]["suspects"]))


def test_the_threshold_counts_as_it_moves(page):
    page.go("#scores")
    playwright.expect(page.tab.locator("#histogram .main-svg").first).to_be_visible()
    scores = page.data["scores"]

    def expected():
        value = float(page.text("#threshold-value"))
        return sum(n for n, edge in zip(scores["counts"], scores["edges"], strict=False) if edge >= value - 1e-9)

    page.tab.locator("#threshold-filter").click()
    page.until(f"location.hash.includes('r={scores['threshold']}')")
    page.go("#scores")
    before = page.text("#threshold-suspects")
    page.tab.locator("#threshold").focus()
    page.press(*["ArrowRight"] * 12)
    after = page.text("#threshold-suspects")
    assert before != after and abs(int(after.replace(",", "")) - expected()) <= max(scores["counts"])
    line = page.tab.locator("#threshold-line").bounding_box()
    page.tab.mouse.move(line["x"] + line["width"] / 2, line["y"] + 60)
    page.tab.mouse.down()
    page.tab.mouse.move(line["x"] + 150, line["y"] + 60, steps=4)
    page.tab.mouse.up()
    assert page.text("#threshold-suspects") != after


def test_bulk_decisions_are_undone_in_one_step_and_a_sample_estimates_precision(page):
    page.go("#review")
    suspects = page.data["items"]["suspects"]
    page.tab.locator("#select-all").click()
    page.tab.locator("#bulk-keep").click()
    page.says("#progress-words", f"{suspects} of {suspects}")
    playwright.expect(page.tab.locator("#bulk")).to_be_hidden()
    page.press("z")
    page.says("#progress-words", f"0 of {suspects}")
    page.tab.locator("#sample-start").click()
    page.says("#shown-count", "50")
    page.tab.locator(".tile").first.click()
    page.press("a", "a", "x")
    page.says("#sample-result", "Wilson")


def test_keys_are_about_the_image_whose_details_are_open(page):
    page.tab.locator("#nav a[data-panel=run]").click()
    playwright.expect(page.tab.locator("#run-h")).to_be_focused()
    page.go("#review")
    page.tab.locator("#grid").focus()
    page.press("ArrowRight", " ", "ArrowRight", " ", "ArrowRight", "Enter")
    playwright.expect(page.tab.locator("#drawer")).to_be_visible()
    page.says("#bulk-count", "2 selected")
    page.says("#neighbours", "Of its nearest images, at most ten,")
    page.press("Enter")
    page.says("#progress-words", "0 of")
    page.press("x")
    page.says("#progress-words", "1 of")
    page.press("Escape")
    playwright.expect(page.tab.locator("#drawer")).to_be_hidden()
    page.press("1")
    page.says("#progress-words", "2 of")
    page.says("#bulk-count", "2 selected")
    page.press("d")
    page.says("#progress-words", "4 of")
    playwright.expect(page.tab.locator("#bulk")).to_be_hidden()
    text, items = page.download("corrections")[1], page.data["items"]
    assert [row["decision"] for row in rows_of(text)][:3] == ["drop", "drop", "keep"]
    assert [plain(row["id"]) for row in rows_of(text)] == items["id"][:4]


def test_an_evaluation_image_is_on_no_side_of_the_split(page):
    items = page.data["items"]
    held, aside = items["evaluation"].index(True), items["aside"].index(True)
    for item, words in ((held, "evaluation alone"), (aside, "when the model was trained")):
        page.tab.evaluate(f"location.hash = new URLSearchParams({{ item: {json.dumps(items['id'][item])} }})")
        page.says("#drawer-body", words)
        page.says("#drawer-title", items["id"][item])
        assert ("Split" in page.text("#drawer-body")) == (item == aside)
    page.tab.locator("#drawer-close").click()
    page.tab.locator("#scope").check()
    playwright.expect(page.tab.locator("#facet-action option")).to_have_count(1 + len({action for action in items["action"] if action}))


def test_the_map_is_lassoed_by_mouse_and_by_keys(page):
    page.go("#features")
    page.until("document.querySelector('#map').dataset.shown")
    box = page.tab.locator("#map").bounding_box()
    page.tab.mouse.move(box["x"] + 60, box["y"] + 40)
    page.tab.mouse.down()
    for x, y in ((600, 30), (600, 420), (60, 420), (60, 60)):
        page.tab.mouse.move(box["x"] + x, box["y"] + y, steps=6)
    page.tab.mouse.up()
    page.says("#map-result", "inside")
    page.until("location.hash.includes('l=before')")
    page.tab.locator("#map-flip").click()
    page.says("#map-state", "after the repair")


def test_typing_decides_nothing(page):
    page.tab.locator("#search").focus()
    page.tab.keyboard.type("axd")
    assert page.text("#progress-words").startswith("0 of")


@pytest.mark.parametrize("width", [360, 1400])
def test_nothing_sticks_out(browser, file, width):
    opened = Page(browser, file, width)
    assert opened.tab.evaluate("document.documentElement.scrollWidth") <= width
    opened.context.close()


@pytest.mark.slow
def test_thousands_of_suspects_and_points(browser, tmp_path):
    path = tmp_path / "large.html"
    path.write_text(render_page(sample_payload(suspects=5000, points=50_000)), encoding="utf-8")
    assert path.stat().st_size < 10e6
    opened = Page(browser, path)
    opened.go("#review")
    assert 0 < opened.tab.locator(".tile").count() < 400, "only what is seen is laid out"
    opened.go("#features")
    opened.until("document.querySelector('#map').dataset.shown")
    assert not opened.wrong
    opened.context.close()
