"""The records behind a table in one small file that can be committed: JSON lines, what many of them share written once."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from fspmu.errors import InputError
from fspmu.report.result_table import Layout, Result
from fspmu.results.record import SCHEMA, check_schema, up_to_date
from fspmu.results.store import config_hash, write_text

Json = dict[str, Any]

LARGEST = 300_000
"""Bytes that a file of records may have."""

_OWN = ("seed", "run", "noise")
"""Parts of a config that differ from run to run; the rest is shared by many."""

SURVEYED = ("auc", "average_precision", "f1", "precision", "recall", "retain_purity", "clean_recall", "flagged", "seconds")
"""Figures of a row of a survey that are kept."""


def save_results(path: Path, layout: Layout, results: Iterable[Result]) -> None:
    """Write what the table needs, and what another run would need to compare with it.

    The first line holds what lines share, by name: `config` but for seed, run and noise, `machine`, `versions`. Shares are fractions; `quality` is that of
    the detection; `ensemble` is the accuracy of both networks together, where there were two; times in seconds. Of a survey the figures of each row are
    kept, in the order of SURVEYED; `rows` names detector, cut, and whether that is
    the detector's own. Raises InputError when the file would be too large to be committed.
    """
    shared: dict[str, Json] = {}

    def share(part: Any) -> str | None:
        if not part:
            return None
        shared.setdefault(name := config_hash(part)[:8], part)
        return name

    lines = []
    for result in sorted(results, key=lambda result: (result.cell, result.seed)):
        record, config = result.record, result.record["config"]
        line: Json = {"cell": result.cell, "seed": result.seed, "config": share({key: value for key, value in config.items() if key not in _OWN})}
        line |= {key: config[key] for key in ("run", "noise") if key in config}
        line |= {"test_accuracy": _rounded(record["test_accuracy"], 6), "quality": _rounded((record["detection"] or {}).get("quality"), 4)}
        line |= {"seconds": _rounded(record["seconds"], 1), "machine": share(record["machine"]), "versions": share(record["versions"])}
        if ensemble := (record.get("pretraining") or {}).get("ensemble"):
            line["ensemble"] = _rounded(ensemble, 6)
        if record.get("survey"):
            line["survey"] = _slim_survey(record["survey"], share)
        if (slim := {key: value for key, value in line.items() if value is not None}) not in lines:  # one run may have been read from two files
            lines.append(slim)
    head = {"schema": SCHEMA, "table": layout.name, "shared": shared}
    text = "".join(f"{json.dumps(line, sort_keys=True, separators=(',', ':'))}\n" for line in (head, *lines))
    if len(text.encode()) > LARGEST:
        raise InputError(
            f"{path} would have {len(text.encode()):,} bytes, but a committed file of records has at most {LARGEST:,}; save fewer of its seeds with --seeds"
        )
    write_text(path, text)


def load_results(paths: Sequence[Path], layout: Layout) -> list[Result]:
    """Return what `save_results` wrote of the table into files; files of other tables are passed over.

    Raises InputError when a file is no such file.
    """
    results = []
    for path in paths:
        try:
            head, *lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            check_schema(head, path)
            if head["table"] == layout.name:
                results += [Result(_cell(line), int(line["seed"]), _record(line, head["shared"])) for line in lines]
        except InputError:
            raise
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from None
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(f"{path} holds no records of a table ({type(error).__name__}: {error}); write them by `fspmu table NAME --save FILE`") from None
    return results


def _cell(line: Json) -> tuple[str, str, str]:
    data, row, column = line["cell"]
    return data, row, column


def _record(line: Json, shared: Json) -> Json:
    config = up_to_date(shared[line["config"]]) | {key: line[key] for key in _OWN if key in line}
    return {
        "config": config,
        "test_accuracy": line.get("test_accuracy"),
        "detection": {"quality": line["quality"]} if "quality" in line else None,
        "pretraining": {"ensemble": line["ensemble"]} if "ensemble" in line else None,
        "seconds": line["seconds"],
        "machine": shared.get(line.get("machine", "")),
        "versions": shared.get(line.get("versions", "")),
    } | ({"survey": _survey(line["survey"], shared)} if "survey" in line else {})


def _slim_survey(survey: Json, share: Callable[[Any], str | None]) -> Json:
    """Return what the tables need of a survey: numbers of four digits, the names of its rows shared with the other surveys."""
    figures = [[None if row.get(key) is None else round(row[key], 4) for key in SURVEYED] for row in survey["rows"]]
    names = share({"rows": [[row["detector"], row["cut"], row["own"]] for row in survey["rows"]]})
    seconds = {name: round(told["seconds_with_passes"], 4) for name, told in survey["detectors"].items()}
    depth = {key: survey["looked"]["depth"][key] for key in ("name", "how")} if "depth" in survey["looked"] else None
    return {"rows": names, "figures": figures, "seconds": seconds, "depth": depth, "wrong_share": survey["wrong_share"] and round(survey["wrong_share"], 4)}


def _survey(slim: Json, shared: Json) -> Json:
    """Return a survey as far as `_slim_survey` kept it."""
    named = zip(shared[slim["rows"]]["rows"], slim["figures"], strict=True)
    rows = [{"detector": detector, "cut": cut, "own": own, **dict(zip(SURVEYED, figures, strict=True))} for (detector, cut, own), figures in named]
    detectors = {name: {"seconds_with_passes": seconds} for name, seconds in slim["seconds"].items()}
    looked = {"depth": slim["depth"]} if slim["depth"] else {}
    return {"rows": rows, "detectors": detectors, "looked": looked, "wrong_share": slim["wrong_share"]}


def _rounded(figures: Json | None, digits: int) -> Json | None:
    return figures and {name: round(value, digits) if isinstance(value, float) else value for name, value in figures.items()}
