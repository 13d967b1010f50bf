"""What the documents say and point at."""

import importlib
import re
from pathlib import Path

import pytest

from fspmu.cli import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_named_exist(page):
    for name in re.findall(r"(?m)(?:^|`)fspmu ([a-z]+)", page.read_text()):
        assert name in COMMANDS, name


@pytest.mark.parametrize("name", ["detection.md", "recovering.md"])
def test_measured_tables_are_those_of_the_records(name, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    detectors = importlib.import_module("detectors")
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert detectors.MARK.search(page), "there is something to compare"
    assert detectors.written(page) == page, "write it by `python benchmarks/detectors.py`"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_code_of_the_cleanlab_page_repairs_both_ways(monkeypatch):
    pytest.importorskip("cleanlab")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    figures = importlib.import_module("beside_cleanlab").measured()
    for ours in (figures["cleanlab"], figures["fspmu"]):
        assert ours["after"] > figures["before"] + 5 and ours["recall"] > 80
