"""The page of made-up data beside the one that was looked at and found good: what a change does to it shows in the diff."""

import os
import re
from pathlib import Path

from sample_payload import sample_payload

from fspmu.report.page import render_page

GOLDEN = Path(__file__).with_name("golden.html")
REWRITE = "FSPMU_REWRITE_GOLDEN"
"""Environment variable under which the page is written anew."""


def without_assets(html):
    """Return the page without styles and scripts, which are files of their own, and without their hashes."""
    html = re.sub(r"(<style[^>]*>).*?(</style>)", r"\1\2", html, flags=re.DOTALL)
    html = re.sub(r"(<script(?![^>]*application/json)[^>]*>).*?(</script>)", r"\1\2", html, flags=re.DOTALL)
    return re.sub(r"'sha256-[^']+'", "'sha256-…'", html)


def test_the_page_is_the_one_that_was_found_good():
    pages = [render_page(sample_payload(6, 3, 8, hostile=hostile, pictures=False), plotly=False) for hostile in (False, True)]
    found = "".join(without_assets(html) for html in pages)
    if os.environ.get(REWRITE):
        GOLDEN.write_text(found, encoding="utf-8", newline="")
    expected = GOLDEN.read_bytes().decode("utf-8")
    assert found.split("\n") == expected.split("\n"), f"look at the page, and if it is meant to be so: {REWRITE}=1 pytest {Path(__file__).name}"


def test_the_same_data_gives_the_same_bytes():
    first, second = (render_page(sample_payload(6, 3, 8), plotly=True) for _ in range(2))
    assert first == second
