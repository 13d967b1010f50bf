"""Tables for the terminal, made from records alone."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fspmu.results.record import held_out

Json = dict[str, Any]


def percent(share: float | None) -> str:
    """Return a fraction as a percentage, or a dash where there is none."""
    return "–" if share is None else f"{100 * share:.2f}"


def new_table(title: str, *columns: str) -> Table:
    """Return an empty table: the first column text, the others figures."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, min_width=len(title) + 4)
    table.add_column(columns[0])
    for name in columns[1:]:
        table.add_column(name, justify="right")
    return table


def warning_of(record: Json) -> list[str]:
    """Return the first thing to know about a repair: that it did harm, where it did."""
    accuracy = record["test_accuracy"] or {}
    worse = (accuracy.get("before") or 0.0) > (accuracy["last"] if accuracy.get("last") is not None else 1.0)
    return [f"note: {text}" for text in record["warnings"][:1]] if worse else []


class _Pipeable(Console):
    """A console that leaves it to its caller what happens when nobody reads any more, where the usual one exits with 1."""

    def on_broken_pipe(self) -> None:
        """Raise BrokenPipeError again."""
        raise BrokenPipeError


def show(tables: Sequence[Table], lines: Sequence[str] = (), first: Sequence[str] = (), *, to_stderr: bool = False) -> None:
    """Print first lines, tables and last lines."""
    console = _Pipeable(stderr=to_stderr, highlight=False)
    for line in first:
        console.print(line, markup=False, soft_wrap=True)
    for table in tables:
        console.print(table)
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def run_table(record: Json) -> list[Table]:
    """Return the tables of a record: accuracy (last before best), detection quality, and where the time went."""
    tables = []
    accuracy, config = record["test_accuracy"], record["config"]
    if accuracy:
        before = [("before", "before")] if "before" in accuracy else []
        columns = [*before, ("last", "last"), *([("best", "best*")] if "best" in accuracy else [])]
        aside = held_out(record)
        table = new_table("Accuracy on held-out labels (%)" if aside else "Test accuracy (%)", "", *(name for _, name in columns))
        table.min_width = 30
        table.caption, table.caption_justify = (
            ("* picked on these images" if aside else "* picked on test data", "left") if "best" in accuracy else (None, "left")
        )
        pair = record.get("pretraining") or {}
        name = str(config.get("method") or config["command"])
        table.add_row(escape(f"{name}, {pair['kept']}" if "kept" in pair else name), *(percent(accuracy[key]) for key, _ in columns))
        if pair.get("ensemble"):
            table.add_row("both networks together", *(percent(pair["ensemble"][key]) for key, _ in columns))
        tables.append(table)
    if record["detection"]:
        tables.append(detection_table({record["detection"]["detector"]: record["detection"]}))
    if record["unlearning"]:
        tables.append(_audit_table(record["unlearning"]["audit"]))
    tables.append(_cost_table(record))
    return tables


def detection_table(detections: dict[str, Json]) -> Table:
    """Return a column for each detector: what it found, and how well where the truth is known."""
    table = new_table("Detection, positive = wrong label", "", *map(escape, detections))
    for key in ("issues", "forget", "retain"):
        table.add_row({"issues": "label issues", "forget": "to forget", "retain": "to retain"}[key], *(f"{found[key]:,}" for found in detections.values()))
    if any(found["quality"] for found in detections.values()):
        for key in ("precision", "recall", "f1", "auc", "retain_purity", "clean_recall"):
            name = {"f1": "F1", "auc": "AUC"}.get(key, key.replace("_", " "))
            table.add_row(f"{name} (%)", *(percent((found["quality"] or {}).get(key)) for found in detections.values()))
    return table


def _audit_table(audit: Json) -> Table:
    table = new_table("Agreement of the model (%)", "", "before", "after")
    meanings = {
        "forget_given": "forget set, with the given labels (should fall)",
        "forget_true": "forget set, with the truth (should rise)",
        "retain_given": "retain set, with the given labels (should hold)",
    }
    for key, meaning in meanings.items():
        if audit["before"][key] is not None:
            table.add_row(meaning, percent(audit["before"][key]), percent(audit["after"][key]))
    return table


def _cost_table(record: Json) -> Table:
    table = new_table("Cost", "stage", "seconds", "samples forward", "samples backward")
    for stage, seconds in record["seconds"].items():
        if seconds is not None:
            passes = record["passes"].get(stage)
            table.add_row(stage, f"{seconds:.1f}", *(f"{passes[way]:,}" if passes else "–" for way in ("forward", "backward")))
    return table


def survey_tables(survey: Json) -> list[Table]:
    """Return what the scores of a survey are worth, and what each cut makes of them: how far it agrees with the default where the truth is not known."""
    known = survey["wrong_share"] is not None
    scores = new_table("Scores, positive = wrong label", "detector", *(["AUC (%)", "AP (%)"] if known else []), "seconds")
    judged = (
        {"f1": "F1", "precision": "precision", "recall": "recall", "retain_purity": "purity", "clean_recall": "kept"} if known else {"agreement": "agreement"}
    )
    cuts = new_table("Cuts (%)", "cut", *judged.values(), "flagged")
    for name in dict.fromkeys(row["detector"] for row in survey["rows"]):
        rows = [row for row in survey["rows"] if row["detector"] == name]
        told = survey["detectors"][name]
        usual = next((row for row in rows if row["own"]), rows[0])
        scores.add_row(escape(name), *(percent(usual[key]) for key in ("auc", "average_precision") if known), f"{told['seconds_with_passes']:.2f}")
        cuts.add_row(escape(name))
        for row in rows:
            cuts.add_row(f"  {escape(row['cut'])}{'*' if row['own'] else ''}", *(percent(row[key]) for key in (*judged, "flagged")))
    return [scores, cuts]


def survey_lines(survey: Json) -> list[str]:
    """Return what is to be known of the figures of a survey, and who is not among them."""
    shared = ", ".join(f"{name} {seconds:.1f}" for name, seconds in survey["shared_seconds"].items())
    wrong = "" if survey["wrong_share"] is None else f"; {survey['wrong_share']:.2%} of the labels are wrong"
    lines = [f"* the detector's own cut; {survey['samples']:,} labels{wrong}"]
    lines += [f"seconds of what detectors share, counted for each that needs it: {shared}"] if shared else []
    return lines + [f"not here: {name}: {why}" for name, why in (survey["left_out"] | survey["refused"]).items()]


def evaluation_table(evaluation: Json) -> Table:
    """Return accuracies on the evaluation and the training images."""
    table = new_table("Accuracy (%)", "", "images' labels", "true labels")
    for name, figures in evaluation.items():
        if figures is not None:
            table.add_row(name, percent(figures["accuracy"]), percent(figures.get("true_accuracy")))
    return table


def prediction_table(rows: list[Json], most: int = 20) -> Table:
    """Return the first predictions of many."""
    table = new_table(f"{min(most, len(rows))} of {len(rows):,} predictions", "image", "class", "confidence (%)")
    for row in rows[:most]:
        table.add_row(escape(row["path"]), escape(row["predicted_label"]), percent(row["confidence"]))
    return table
