"""What the documents say and point at."""

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
