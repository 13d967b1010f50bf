"""The report as one page: its data, style, scripts and charts in a single file that asks nothing of the network."""

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from fspmu.errors import InputError

Json = dict[str, Any]
SCHEMA = 1
ASSETS = files("fspmu.report") / "assets"
STYLES = ("style.css", "review.css")
# A module may use only what stands before it; main.js comes last and starts the page.
MODULES = (
    *("csv", "interval", "threshold", "geometry", "data", "dom", "filters", "review", "exports", "state", "storage", "tiles", "grid", "picker", "drawer"),
    *(
        "controls",
        "importing",
        "matrix",
        "tables",
        "charts",
        "histogram",
        "raster",
        "colouring",
        "mapview",
        "map",
        "flips",
        "bindings",
        "keyboard",
        "navigation",
        "main",
    ),
)
PANELS = (
    *(("run", "Run"), ("verdict", "Verdict"), ("warnings", "Warnings"), ("classes", "Noise by class"), ("matrix", "Given and suggested"), ("scores", "Scores")),
    *(("review", "Review"), ("features", "Feature map"), ("flips", "What changed"), ("curves", "Curves"), ("audit", "Forgetting audit")),
    *(("settings", "Settings and glossary"), ("downloads", "Downloads"), ("compare", "Other runs")),
)
# What a panel is made of; a panel whose part of the payload is empty is left out.
PARTS = {"warnings": "warnings", "features": "map", "flips": "flips", "curves": "curves", "audit": "audit", "compare": "compare"}
_IMPORT = re.compile(r'^import \{ ([\w, ]+) \} from "\./(\w+)\.js";$')
_DECLARED = re.compile(r"^(export )?(?:async )?(?:function|const|let|class) (\w+|\[[^\]]+\])", re.MULTILINE)


def render_page(payload: Json, *, plotly: bool = True, server: Mapping[str, str] | None = None) -> str:
    """Return the HTML of a report; the same payload gives the same bytes.

    Without `plotly` tables stand in for its charts. `server` ({"token", "save", "revision"}) makes the page send each decision to the address
    `save` of the program that serves it. Raises InputError for a payload of another schema.
    """
    if payload.get("schema") != SCHEMA:
        raise InputError(f"the page's data has schema {payload.get('schema')!r}, but this version shows schema {SCHEMA}; write the report again")
    script, style = page_script(), page_style()
    scored = bool((payload["scores"] or {}).get("counts"))
    packed, chart_hash, taken = _packed_plotly() if plotly else ("", "", [])
    hashes = [_hash(script), *([chart_hash] if plotly else [])]
    shown = [(name, words) for name, words in PANELS if payload.get(PARTS.get(name, ""), True) and (name != "scores" or scored)]
    template = _environment().from_string((ASSETS / "page.html").read_text("utf-8"))
    html = template.render(
        page=payload,
        policy=_policy(hashes, [_hash(style), *([_hash("")] if plotly else [])], server is not None),
        panels=shown,
        panel_names=dict(shown),
        largest=max((row["count"] for row in payload["by_class"]), default=0) or 1,
        style=style,
        script=script,
        data=script_json(payload),
        server=script_json(dict(server)) if server is not None else None,
        charts=packed,
        taken=taken,
    )
    # Names of files may hold bytes that are no text; the data keeps them escaped, and what is merely read shows a mark.
    return html.encode("utf-8", "replace").decode("utf-8") + "\n"


def script_json(value: object) -> str:
    """Return JSON that can stand inside a script element and that any reader of JSON takes back unchanged.

    Raises InputError for numbers that JSON does not have.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError as error:
        raise InputError(f"the page's data cannot be written as JSON ({error}); unknown numbers are None") from None
    return re.sub("[<>&\u2028\u2029\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)


@cache
def page_script() -> str:
    """Return the modules as one classic script; raises ValueError where they do not fit together."""
    return join_modules({name: (ASSETS / f"{name}.js").read_text("utf-8") for name in MODULES})


def join_modules(sources: Mapping[str, str]) -> str:
    """Return ES modules, in their order, as one script within one function: no names but their own, none twice.

    Only `import { a, b } from "./module.js";` on a line of its own, of modules that stand before, and `export` before a declaration are understood.
    Raises ValueError for anything else.
    """
    known: dict[str, set[str]] = {}
    owner: dict[str, str] = {}
    parts = []
    for name, source in sources.items():
        lines = []
        for line in source.replace("\r\n", "\n").split("\n"):
            found = _IMPORT.match(line)
            if found:
                missing = set(found[1].split(", ")) - known.get(found[2], set())
                if missing:
                    raise ValueError(f"{name}.js imports {sorted(missing)} from {found[2]}.js, which does not export that before it")
            elif line.startswith("import ") or re.match(r"export (default|\{|\*)", line):
                raise ValueError(f"{name}.js has a line that cannot be joined: {line}")
            else:
                lines.append(line)
        text = "\n".join(lines).strip("\n")
        known[name] = set()
        for exported, declared in _DECLARED.findall(text):
            for word in re.findall(r"\w+", declared):
                if word in owner:
                    raise ValueError(f"{word} is declared by both {owner[word]}.js and {name}.js")
                owner[word] = name
                known[name] |= {word} if exported else set()
        parts.append(f"// {name}.js\n{re.sub('^export ', '', text, flags=re.MULTILINE)}")
    script = '(() => {\n"use strict";\n' + "\n\n".join(parts) + "\n})();\n"
    if re.search(r"</script|<!--|<script", script, re.IGNORECASE):
        raise ValueError("a module holds a text that would end or nest its script element")
    return script


@cache
def page_style() -> str:
    """Return the style sheets as one."""
    return "\n".join((ASSETS / name).read_text("utf-8").replace("\r\n", "\n") for name in STYLES)


@cache
def _packed_plotly() -> tuple[str, str, list[str]]:
    """Return Plotly's script as base64 of its compressed text, the hash of the text, and the ids of style elements that it would write text into.

    It is unpacked when a chart is about to be seen. The styles are those of maps, which no chart here needs: it leaves elements alone that are there.
    """
    from plotly.offline import get_plotlyjs

    text = get_plotlyjs().replace("\r\n", "\n").replace("\r", "\n")
    taken = sorted(set(re.findall(r'getElementById\("([0-9a-f]{64})"\)', text)))
    return (
        base64.b64encode(zlib.compress(text.encode("utf-8"), 9)).decode("ascii"),
        _hash(text),
        taken,
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"


def _policy(scripts: Sequence[str], styles: Sequence[str], served: bool) -> str:
    # Plotly fills empty style elements by rules, hence the hash of nothing among the styles.
    own, none = "'self'", "'none'"
    rules = {"default-src": none, "script-src": " ".join(scripts), "style-src": " ".join(styles), "img-src": f"data: {own}"}
    rules |= {"connect-src": own if served else none, "base-uri": none, "form-action": none}
    return "; ".join(f"{name} {value}" for name, value in rules.items())


@cache
def _environment() -> Environment:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=False, keep_trailing_newline=False)
    environment.filters |= {
        "whole": lambda number: f"{number:,}",
        "counted": lambda number, noun: f"{number:,} {noun}{'' if number == 1 else 's'}",
        "percent": lambda share: "–" if share is None else f"{100 * share:.1f}\u202f%",
        "points": lambda change: "–" if change is None else f"{100 * change:+.1f}".replace("-", "−"),
        "capitalised": lambda text: text[:1].upper() + text[1:],
        "by_epoch": _by_epoch,
        "side_by_side": _side_by_side,
        "outcome": _outcome,
    }
    return environment


def _by_epoch(curve: Json) -> Iterator[tuple[Any, list[Any]]]:
    """Yield each epoch of a chart with the values of its series there."""
    columns = [dict(zip(series["x"], series["y"], strict=True)) for series in curve["series"]]
    for epoch in sorted({epoch for column in columns for epoch in column}):
        yield epoch, [column.get(epoch) for column in columns]


def _side_by_side(runs: Sequence[Json]) -> list[tuple[str, list[str]]]:
    """Return each number of several runs with its value in each of them, or a dash."""
    columns = [dict(map(tuple, run["numbers"])) for run in runs]
    labels = dict.fromkeys(label for column in columns for label in column)
    return [(label, [column.get(label, "–") for column in columns]) for label in labels]


def _outcome(row: Json, tolerance: float = 0.02) -> tuple[str, str]:
    """Return the style and the words for whether a measure of the audit went as hoped; holding means within two points."""
    if row["before"] is None or row["after"] is None:
        return "", "–"
    change = row["after"] - row["before"]
    came = {"falls": change < 0, "rises": change > 0, "stays": abs(change) <= tolerance or change > 0}.get(row["hope"])
    return ("", "–") if came is None else ("yes", "✓ yes") if came else ("no", "✕ no")
