"""Cells of CSV files that people open in spreadsheets: no text of theirs is taken for a formula."""

import re

APART = "evaluation: "
"""Stands before the id of an evaluation image on a page: whoever reads decisions leaves these aside."""
_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def prefixed(cell: str) -> str:
    """Return the text of a cell so that no spreadsheet takes it for a formula; `unprefixed` takes it back, whatever the text was."""
    return f"'{cell}" if _FORMULA.match(cell) else cell


def unprefixed(cell: str) -> str:
    """Return a cell without the apostrophe that keeps spreadsheets from reading a formula."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
