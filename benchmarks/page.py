"""Is a large report still quick? Prints one line of JSON: its size, and what a browser takes to open it, to scroll it and to draw its map.

    python benchmarks/page.py [--suspects 5000] [--points 50000] [--browser chromium]

The data is that of the tests, made up; the browser is asked through Playwright. Times in milliseconds, of one run in a browser that has just been started.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from fspmu.report.page import render_page

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "report"))
from sample_payload import sample_payload

SCROLL = """async () => {
  const grid = document.querySelector("#grid"), gaps = [];
  let last = performance.now();
  for (let step = 0; step < 60; step += 1) {
    grid.scrollTop += 900;
    await new Promise(requestAnimationFrame);
    const now = performance.now();
    gaps.push(now - last);
    last = now;
  }
  return gaps.sort((a, b) => a - b);
}"""


def wait(tab: Page, condition: str) -> None:
    """Ask until a script says yes: the page's policy forbids the strings that Playwright would evaluate by itself."""
    while not tab.evaluate(condition):
        tab.wait_for_timeout(5)


def measure(path: Path, browser: str) -> dict[str, float]:
    """Return what opening, scrolling and drawing take, in milliseconds."""
    with sync_playwright() as tools:
        started = tools.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        tab = started.new_page(viewport={"width": 1400, "height": 900})
        begun = time.perf_counter()
        tab.goto(path.as_uri(), wait_until="commit")
        wait(tab, "document.documentElement?.classList.contains('alive')")
        alive = 1000 * (time.perf_counter() - begun)
        paint = tab.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0")
        tab.evaluate("document.querySelector('#review').scrollIntoView()")
        gaps = tab.evaluate(SCROLL)
        begun = time.perf_counter()
        tab.evaluate("document.querySelector('#features').scrollIntoView()")
        wait(tab, "document.querySelector('#map').dataset.shown")
        drawn = 1000 * (time.perf_counter() - begun)
        started.close()
    return {"first_paint": paint, "interactive": alive, "frame_median": gaps[len(gaps) // 2], "frame_longest": gaps[-1], "map": drawn}


def main() -> None:
    """Write a page, open it, print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suspects", type=int, default=5_000)
    parser.add_argument("--points", type=int, default=50_000)
    parser.add_argument("--browser", default=shutil.which("chromium"))
    options = parser.parse_args()
    if not options.browser:
        parser.error("no Chromium found; name one by --browser")
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "page.html"
        begun = time.perf_counter()
        path.write_text(render_page(sample_payload(options.suspects, 20, options.points)), encoding="utf-8")
        found = {"suspects": options.suspects, "points": options.points, "bytes": path.stat().st_size, "written": 1000 * (time.perf_counter() - begun)}
        found |= measure(path, options.browser)
    print(json.dumps({name: round(value) for name, value in found.items()}))


if __name__ == "__main__":
    main()
