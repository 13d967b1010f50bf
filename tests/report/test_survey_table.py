"""Tables of surveys from records alone: by hand, the same from slim files, small enough to be committed."""

import csv
import io
import random
import re

import pytest

from fspmu.errors import InputError
from fspmu.report.result_table import Figure, Layout, Result
from fspmu.report.slim_records import LARGEST, load_results, save_results
from fspmu.report.survey_table import FIGURES, render_all, rows_of, survey_figures

COLUMNS = ("sym 50, 30 epochs", "none, 30 epochs")
LAYOUT = Layout("detectors-x", "forget set = found", ("cifar10",), ("original", "FSPMU tuned, combined"), COLUMNS, ("Small.",))
CUTS = ("mixture", "mixture-reference", "bounded-mixture", "sign", "per-class", "beta", "otsu", "noise-rate")
DETECTORS = "gmm gmm-reference gmm-probe feature-margin knn fine views-margin trajectory probe confident-learning combined".split()
JUDGED = ("auc", "average_precision", "f1", "precision", "recall", "retain_purity", "clean_recall")


def row(detector, cut, own, seconds=0.25, flagged=0.5, **figures):
    return {"detector": detector, "cut": cut, "own": own, "flagged": flagged, "seconds": seconds, "agreement": 1.0, "remarks": ["long words"], **figures}


def record_of(rows, seconds=None, wrong=0.45, **config):
    names = dict.fromkeys(row["detector"] for row in rows)
    told = {name: {"seconds": 0.5, "passes": ["plain"], "seconds_with_passes": (seconds or {}).get(name, 1.5)} for name in names}
    survey = {"rows": rows, "detectors": told, "wrong_share": wrong, "shared_seconds": {"plain": 1.0}, "left_out": {}, "refused": {}, "samples": 5000}
    survey["looked"] = {"views": 6, "depth": {"name": "blocks.3", "how": "held-out", "depths": {"blocks.3": 0.3}}}
    return {
        "schema": 1,
        "config": {"command": "survey", "run": "14bb4b136a81", "survey": {"views": 6}} | config,
        "test_accuracy": None,
        "detection": None,
        "seconds": {"detection": 12.3456, "pretraining": None},
        "machine": {"device": "cpu"},
        "versions": {"torch": "2.14.1"},
        "survey": survey,
    }


def surveyed(seed, *rows, column=COLUMNS[0], **named):
    return Result(("cifar10", "survey", column), seed, record_of(list(rows), seed=seed, **named))


def accuracy(row, value, seed=0):
    record = record_of([], seed=seed) | {"test_accuracy": {"last": value, "best": value}}
    del record["survey"]
    return Result(("cifar10", row, COLUMNS[0]), seed, record)


def test_means_by_hand_and_a_detector_has_the_figures_of_its_own_cut():
    found = [
        surveyed(seed, row("gmm", "otsu", False, auc=0.1, f1=f1), row("gmm", "mixture", True, auc=auc, f1=f1 + 0.01), seconds={"gmm": 1.0 + seed})
        for seed, (auc, f1) in enumerate([(0.80, 0.50), (0.90, 0.60)])
    ]
    assert rows_of(found, "auc") == ["gmm"] and rows_of(found, "f1") == ["gmm, otsu", "gmm, mixture*"]
    assert survey_figures(found, "auc") == {("cifar10", "gmm", COLUMNS[0]): Figure(pytest.approx(85), pytest.approx(50**0.5), 2)}
    figures = survey_figures(found, "f1")
    assert figures["cifar10", "gmm, otsu", COLUMNS[0]].mean == pytest.approx(55) and figures["cifar10", "gmm, mixture*", COLUMNS[0]].mean == pytest.approx(56)
    assert survey_figures(found, "seconds")["cifar10", "gmm", COLUMNS[0]].mean == pytest.approx(1.75)
    with pytest.raises(InputError, match="two results for cifar10, gmm, sym 50, 30 epochs, seed 0"):
        survey_figures([*found, surveyed(0, row("gmm", "mixture", True, auc=0.7))], "auc")


def test_markdown_shows_a_table_for_each_figure_before_the_accuracies():
    unknown = surveyed(0, row("gmm", "mixture", True, flagged=0.04), column=COLUMNS[1], wrong=None)  # nobody knows the truth there
    found = [surveyed(0, row("gmm", "mixture", True, auc=0.8, f1=0.5), row("knn", "sign", True, auc=0.9, f1=None)), unknown, accuracy("original", 0.5)]
    sheets = render_all(LAYOUT, found, ("last",), "markdown").split("\n\n**")
    assert [re.match(r"\**detectors-x\.\*\* (.*)", sheet)[1] for sheet in sheets[:-1]] == list(FIGURES.values()) and "Test accuracy" in sheets[-1]
    auc, f1, flagged = sheets[0].splitlines(), sheets[2].splitlines(), sheets[5].splitlines()
    assert auc[2:6] == [
        "| data | row | sym 50, 30 epochs | none, 30 epochs |",
        "| --- | --- | ---: | ---: |",
        "| cifar10 | gmm | 80.00 | – |",
        "|  | knn | 90.00 | – |",
    ]
    assert r"| cifar10 | gmm, mixture\* | 50.00 | – |" in f1 and r"|  | knn, sign\* | – | – |" in f1 and r"\*: the detector's own cut." in f1[-1]
    assert r"| cifar10 | gmm, mixture\* | 50.00 | 4.00 |" in flagged
    assert "| cifar10 | original | 50.00 | – |" in sheets[-1] and "own cut" not in auc[-1] and "One seed" in auc[-1] and "Small." in auc[-1]
    assert render_all(LAYOUT, found[-1:], ("last",), "markdown") == "**" + sheets[-1], "without a survey the accuracies alone"


def test_csv_and_latex_hold_the_same():
    found = [surveyed(seed, row("gmm", "mixture", True, auc=0.8, f1=0.5 + seed / 10)) for seed in range(2)] + [accuracy("original", 0.5)]
    lines = list(csv.DictReader(io.StringIO(render_all(LAYOUT, found, ("last",), "csv"))))
    assert len(lines) == 2 * 2 + len(FIGURES) * 2 and {line["statistic"] for line in lines} == {"last", *FIGURES}
    (line,) = (line for line in lines if line["statistic"] == "f1" and line["column"] == COLUMNS[0])
    assert (line["row"], line["mean"], line["deviation"], line["n"]) == ("gmm, mixture*", "55.0000", "7.0711", "2")
    text = render_all(LAYOUT, found, ("last",), "latex")
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == len(FIGURES) + 1 and "gmm, mixture$^{*}$ & 55.00 $\\pm$ 7.07" in text
    assert not re.search(r"(?<!\\)[%#]|[±–†]", text) and text.count("{") == text.count("}")


def test_a_whole_grid_in_one_small_file_gives_the_same_tables(tmp_path):
    draw = random.Random(0)
    found = []
    for number, column in enumerate(f"noise {number}, 30 epochs" for number in range(8)):
        for seed in range(3 if number < 4 else 1):
            rows = [
                row(name, cut, place == 3, draw.random(), draw.random(), **{key: draw.random() for key in JUDGED})
                for name in DETECTORS
                for place, cut in enumerate(CUTS)
            ]
            found.append(surveyed(seed, *rows, column=column, seconds={name: 9 * draw.random() for name in DETECTORS}))
            found += [Result(("cifar10", f"row {repair}", column), seed, accuracy("", draw.random(), seed).record) for repair in range(8 if number < 4 else 1)]
    path = tmp_path / "detectors.jsonl"
    save_results(path, LAYOUT, found)
    assert path.stat().st_size < 0.7 * LARGEST
    again = load_results([path], LAYOUT)
    layout = Layout(LAYOUT.name, "", ("cifar10",), ("row 0",), tuple(dict.fromkeys(result.cell[2] for result in found)))
    for form in ("markdown", "csv", "latex"):
        assert render_all(layout, again, ("last",), form) == render_all(layout, found, ("last",), form)
    save_results(tmp_path / "again.jsonl", LAYOUT, again)
    assert (tmp_path / "again.jsonl").read_bytes() == path.read_bytes()
