"""A result at a glance, for a notebook: one static piece of HTML in which every name is shown and none is obeyed."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from fspmu.report.tables import percent

SHOWN = 10
"""Issues that are listed, and warnings."""
LONGEST = 60
"""Characters of a name that are shown."""


def summary_html(record: Mapping[str, Any], worst: Sequence[Mapping[str, Any]]) -> str:
    """Return what was found and what changed, from a record and the rows of its label issues, the worst first."""
    detection, evaluation = record["detection"], record["evaluation"]
    lines = [f"<b>{_text(record['data']['name'])}</b>: {detection['issues']:,} of {record['data']['train']:,} labels look wrong"]
    if evaluation:
        kept = "" if evaluation["handed_back"] == "repaired" else "; the model is handed back as it was"
        lines.append(f"accuracy {percent(evaluation['before'])} &rarr; {percent(evaluation['after'])}% on {evaluation['samples']:,} images{kept}")
    lines += [_text(text, 400) for text in record["warnings"][:SHOWN]]
    cells = "".join(
        f"<tr><td>{_text(row['id'])}</td><td>{_text(row['given_label'])}</td><td>{_text(row['suggested_label'])}</td>"
        f"<td>{float(row['label_score']):.3f}</td><td>{_text(row['action'])}</td></tr>"
        for row in worst[:SHOWN]
    )
    head = "<tr><th>image</th><th>given</th><th>suggested</th><th>label score (low = bad)</th><th>action</th></tr>"
    table = f"<table><thead>{head}</thead><tbody>{cells}</tbody></table>" if cells else ""
    return f"<div><p>{'<br>'.join(lines)}</p>{table}</div>"


def _text(value: object, longest: int = LONGEST) -> str:
    text = "".join(letter if letter.isprintable() else " " for letter in str(value))
    return escape(text if len(text) <= longest else f"{text[: longest - 1]}…")
