"""A result at a glance: every name is shown and none is obeyed, and nothing makes it long."""

from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fspmu.report.summary import LONGEST, SHOWN, summary_html

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'; drop",
    "a\u2028b",
    "\u202eoverridden",
    "x" * 500,
    "&lt;b&gt;",
    "]]>",
    "\x00\x1b[31m",
]
NAMES = st.sampled_from(HOSTILE) | st.text(max_size=90)
KNOWN = {"div", "p", "b", "br", "table", "thead", "tbody", "tr", "th", "td"}


class Reader(HTMLParser):
    """What a browser would make of a page: tags with their attributes, and the text of each cell."""

    def __init__(self):
        super().__init__()
        self.tags, self.cells, self.text, self.open = [], [], "", None

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, attributes))
        if tag == "td":
            self.cells.append("")
        self.open = tag

    def handle_endtag(self, tag):
        self.open = None

    def handle_data(self, data):
        self.text += data
        if self.open == "td":
            self.cells[-1] += data


def read(page):
    reader = Reader()
    reader.feed(page)
    reader.close()
    return reader


def record(name="mine", warnings=(), evaluation=None):
    return {"data": {"name": name, "train": 12345}, "detection": {"issues": 678}, "evaluation": evaluation, "warnings": list(warnings)}


def row(name, given="cat", suggested="dog"):
    return {"id": name, "given_label": given, "suggested_label": suggested, "label_score": 0.25, "action": "forget"}


@settings(max_examples=60)
@given(NAMES, st.lists(st.tuples(NAMES, NAMES, NAMES), max_size=4), st.lists(NAMES, max_size=4))
def test_no_name_is_obeyed(name, rows, warnings):
    page = read(summary_html(record(name, warnings), [row(*names) for names in rows]))
    assert {tag for tag, _ in page.tags} <= KNOWN and not any(attributes for _, attributes in page.tags)
    assert all(letter.isprintable() for letter in page.text) and len(page.cells) == 5 * len(rows)
    for place, names in enumerate(rows):
        for shown, given_name in zip(page.cells[5 * place : 5 * place + 3], names, strict=True):
            plain = "".join(letter if letter.isprintable() else " " for letter in given_name)
            assert shown == plain if len(plain) <= LONGEST else shown == f"{plain[: LONGEST - 1]}…"


def test_it_stays_short():
    page = summary_html(record("n" * 10_000, ["w" * 10_000] * 500), [row("i" * 10_000, "g" * 10_000)] * 500)
    assert len(page) < 20_000 and page.count("<tr>") == SHOWN + 1


@pytest.mark.parametrize(("handed_back", "told"), [("repaired", False), ("original", True)])
def test_what_changed_is_said(handed_back, told):
    evaluation = {"before": 0.8125, "after": 0.875, "samples": 1600, "handed_back": handed_back}
    text = read(summary_html(record("digits", ["mind this"], evaluation), [])).text
    assert "678 of 12,345 labels look wrong" in text and "81.25 → 87.50% on 1,600 images" in text and "mind this" in text
    assert ("handed back as it was" in text) is told and "given" not in text  # and no table without issues


def test_without_evaluation_nothing_is_claimed():
    assert "accuracy" not in summary_html(record(), [row("a")])
