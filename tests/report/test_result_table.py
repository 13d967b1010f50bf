"""Tables from records alone: arithmetic by hand, published figures against the source's sums, forms that parse."""

import csv
import io
import json
import re
import subprocess
import sys

import pytest

from fspmu.errors import InputError
from fspmu.report import slim_records
from fspmu.report.published import COLUMNS, DOUBTED, PUBLISHED, published_figure
from fspmu.report.result_table import Figure, Layout, Result, figures_of, read_results, render
from fspmu.report.slim_records import load_results, save_results

ROWS = ("original", "FSPMU", "DivideMix_100%")
SMALL = Layout("table-x-small", "a & b", ("cifar10",), ROWS, ("sym 50", "asym 40"), ("Not published.",))
FULL = Layout("table-known", "known", ("cifar10", "cifar100"), ("original", "FSPMU"), COLUMNS, published="known")


def record(last, best=None, **config):
    accuracy = {"before": 0.5, "last": last, "best": last if best is None else best}
    return {
        "schema": 1,
        "config": {"command": "unlearn", "method": "fspmu", "settings": {"lr": 5e-4}, "run": "14bb4b136a81"} | config,
        "test_accuracy": accuracy,
        "detection": {"quality": {"f1": 0.123456789, "auc": 1.0}, "retain": 3},
        "seconds": {"unlearning": 12.3456, "pretraining": None},
        "machine": {"device": "cpu"},
        "versions": {"torch": "2.14.1"},
        "warnings": ["long words"],
    }


def results(row, column, *values, data="cifar10"):
    return [Result((data, row, column), seed, record(value, seed=seed)) for seed, value in enumerate(values)]


def test_mean_deviation_and_count_are_those_computed_by_hand():
    figures = figures_of(results("FSPMU", "sym 50", 0.80, 0.83, 0.86) + results("original", "sym 50", 0.5), "last")
    assert figures["cifar10", "FSPMU", "sym 50"] == Figure(pytest.approx(83.0), pytest.approx(3.0), 3)  # deviations -3, 0, 3: sqrt(18 / 2)
    assert figures["cifar10", "original", "sym 50"] == Figure(50.0, None, 1)
    with pytest.raises(InputError, match="two results for cifar10, FSPMU, sym 50, seed 0"):
        figures_of(results("FSPMU", "sym 50", 0.8) + results("FSPMU", "sym 50", 0.7), "last")
    without_tests = Result(("cifar10", "FSPMU", "sym 50"), 0, record(0.5) | {"test_accuracy": None})
    assert figures_of([without_tests], "last") == {}


def test_markdown_shows_spread_counts_that_differ_and_what_is_missing():
    found = [*results("FSPMU", "sym 50", 0.80, 0.83, 0.86), *results("original", "sym 50", 0.5, 0.6), *results("FSPMU", "asym 40", 0.7, 0.7, 0.7)]
    text = render(SMALL, found, ("best", "last"), "markdown")
    last, best = text.split("\n\n**")
    assert last.splitlines()[2:7] == [
        "| data | row | sym 50 | asym 40 |",
        "| --- | --- | ---: | ---: |",
        "| cifar10 | original | 55.00 ± 7.07 (n=2) | – |",
        "|  | FSPMU | 83.00 ± 3.00 | 70.00 ± 0.00 |",
        "|  | DivideMix_100% | – | – |",
    ]
    assert "over 3 seeds" in last and "Not published." in last and "published |" not in last
    assert r"\* picked on test data" in best and "picked" not in last, "last stands before best"
    assert "One seed: no spread" in render(SMALL, results("FSPMU", "sym 50", 0.8), ("last",), "markdown")


def test_the_best_of_some_epochs_and_of_others_have_no_mean():
    found = results("FSPMU", "sym 50", 0.80, 0.90) + results("original", "sym 50", 0.5, 0.7)
    for result, every in zip(found, (1, 5, 5, 5), strict=True):
        result.record["machine"]["test_every"] = every
    last, best = render(SMALL, found, ("last", "best"), "markdown").split("\n\n**")
    assert "| FSPMU | 85.00 ± 7.07 |" in last and "| FSPMU | – |" in best and "original | 60.00 ± 14.14 |" in best
    assert "tested after different epochs have no best" in best and "tested after" not in last


def test_a_full_table_sets_the_published_figure_and_the_difference_below_ours():
    text = render(FULL, results("FSPMU", "sym 50", 0.8801, 0.8901), ("last", "best"), "markdown")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.split("\n\n**")[0].splitlines() if line.startswith("|")]
    at = rows[0].index("sym 50")
    ours, published, difference = rows[4:7]
    assert [row[1] for row in rows[2:7]] == ["original", "published", "FSPMU", "published", "difference"]
    assert (ours[at], published[at], difference[at]) == ("88.51 ± 0.71", "89.01", "-0.50")
    assert difference[at + 1] == "–" and rows[7][0] == "cifar100"
    assert "| 89.42 |" in text.split("\n\n**")[1]


def test_a_cell_has_runs_of_one_kind():
    alike = results("FSPMU", "sym 50", 0.8, 0.7)
    assert alike[1].record["config"].update(settings={"lr": 5e-4, "new": 1}, newer=2) is None
    assert "75.00 ± 7.07" in render(SMALL, alike, ("last",), "markdown"), "a newer version knows more settings"
    other = Result(alike[0].cell, 2, record(0.6, settings={"lr": 1e-3}))
    with pytest.raises(InputError, match=r"cifar10, FSPMU, sym 50: seeds 2 and 0 .* settings.lr is 0.001 here and 0.0005 there; leave one of them out"):
        render(SMALL, [*alike, other], ("last",), "csv")
    for precision, result in zip(("fp32", "bf16"), alike, strict=True):
        result.record["machine"]["precision"] = precision
    with pytest.raises(InputError, match="precision is 'bf16' here and 'fp32' there"):
        render(SMALL, alike, ("last",), "markdown")


def test_few_cells_with_several_seeds_are_told():
    found = [*results("FSPMU", "sym 50", 0.5, 0.7), *results("original", "sym 50", 0.5), *results("original", "asym 40", 0.5)]
    text = render(SMALL, found, ("last",), "markdown")
    assert "60.00 ± 14.14 (n=2)" in text and "one seed where no n is given" in text and "One seed:" not in text


def test_csv_parses_and_says_what_is_missing():
    text = render(FULL, results("FSPMU", "sym 50", 0.80, 0.83), ("last", "best"), "csv")
    lines = list(csv.DictReader(io.StringIO(text)))
    assert len(lines) == 2 * 2 * 2 * 10
    line = next(line for line in lines if line["data"] == "cifar10" and line["row"] == "FSPMU" and line["column"] == "sym 50")
    assert line["statistic"] == "last" and (line["mean"], line["n"], line["published"], line["difference"]) == ("81.5000", "2", "89.0100", "-7.5100")
    assert lines[0]["mean"] == "" and lines[0]["n"] == "0" and lines[0]["published"] == "89.0400"
    assert lines[-1]["statistic"] == "best, picked on test data"


def test_latex_has_as_many_columns_in_every_row_and_no_bare_special_sign():
    text = render(SMALL, results("FSPMU", "sym 50", 0.80, 0.83), ("last", "best"), "latex")
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 2 == text.count(r"\begin{tabular}{llrr}") == text.count(r"\end{tabular}")
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 2 * 4 and all(len(re.findall(r"(?<!\\)&", row)) == 3 for row in rows)
    assert r"DivideMix\_100\%" in text and r"a \& b" in text and r"81.50 $\pm$ 2.12" in text and r"best epoch$^{*}$" in text
    assert not re.search(r"(?<!\\)[%#]|[±–†]|(?<![\\^{])\*", text) and text.count("{") == text.count("}")


SUMS = {  # of the ten figures of a row, added up from the source's own page
    ("known", "cifar10"): [577.29, 801.94, 813.82, 878.94, 880.18, 906.79, 940.50, 944.19, 946.92, 923.06, 943.66],
    ("known", "cifar100"): [371.84, 514.71, 516.83, 583.02, 585.18, 637.14, 704.04, 665.55, 682.08, 638.15, 705.43],
    ("gmm", "cifar10"): [580.36, 584.57, 741.76, 771.89, 911.11, 943.81, 927.25],
    ("gmm", "cifar100"): [372.31, 374.25, 410.59, 421.25, 663.99, 676.12, 668.25],
}


def test_published_figures_are_the_sources():
    for (forget_set, data), sums in SUMS.items():
        rows = [figures for key, figures in PUBLISHED.items() if key[:2] == (forget_set, data)]
        assert [round(sum(figures.values()), 2) for figures in rows] == sums
        assert all(tuple(figures) == COLUMNS for figures in rows)
    spots = {
        ("known", "cifar10", "original", "last", "sym 90"): 16.41,
        ("known", "cifar10", "scrub-reference", "best", "sym 90"): 48.62,
        ("known", "cifar10", "FSPMU", "last", "asym 40"): 91.86,
        ("known", "cifar100", "LongReMix + FSPMU", "last", "sym 60"): 75.13,
        ("gmm", "cifar10", "DivideMix + FSPMU", "last", "sym 10"): 95.55,
        ("gmm", "cifar100", "FSPMU", "best", "sym 70"): 23.87,
        ("gmm", "cifar100", "ProMix", "last", "sym 20"): 79.83,  # knows no forget set: as in the other table
        ("gmm", "cifar10", "DivideMix + FSPMU", "best", "sym 10"): None,
        ("known", "digits", "FSPMU", "last", "sym 10"): None,
    }
    for key, value in spots.items():
        assert published_figure(*key) == value, key
    assert all(published_figure(*key) is not None for key in DOUBTED)
    assert "75.13†" in render(Layout("t", "", ("cifar100",), ("LongReMix + FSPMU",), COLUMNS, published="known"), [], ("last",), "markdown")


def test_run_folders_are_read_by_stem_and_seed_and_only_when_done(tmp_path):
    for name, value in {"a-b-123-s0": 0.5, "a-b-123-s1": 0.6, "a-b-123-s2": 0.7, "other-s0": 0.1, "a-b-123-sx": 0.1}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "record.json").write_text(json.dumps(record(value)))
        if name != "a-b-123-s2":
            (tmp_path / name / "done").touch()
    found = read_results(tmp_path, {"a-b-123": ("cifar10", "FSPMU", "sym 50")})
    assert [(result.seed, result.record["test_accuracy"]["last"]) for result in found] == [(0, 0.5), (1, 0.6)]
    assert read_results(tmp_path / "nowhere", {}) == []
    (tmp_path / "a-b-123-s1" / "record.json").write_text(json.dumps(record(0.5) | {"schema": 99}))
    with pytest.raises(InputError, match="schema 99"):
        read_results(tmp_path, {"a-b-123": ("cifar10", "FSPMU", "sym 50")})


def test_saved_records_give_the_same_table_and_stay_small(tmp_path, monkeypatch):
    found = [
        Result((data, row, column), seed, record((seed + 1) / 3, 0.9, seed=seed, noise={"labels": f"{seed:016}", "noise_rate": 0.5}))
        for data in FULL.data
        for row in [f"row {number}" for number in range(11)]
        for column in COLUMNS
        for seed in range(3)
    ]
    path = tmp_path / "table.jsonl"
    save_results(path, FULL, found)
    assert path.stat().st_size < 300_000, "a whole table with three seeds"
    again = load_results([path], FULL)
    assert {(result.cell, result.seed) for result in again} == {(result.cell, result.seed) for result in found}
    key = found[4].cell, found[4].seed
    slim = next(result.record for result in again if (result.cell, result.seed) == key)
    assert slim["config"] == found[4].record["config"] and slim["detection"]["quality"] == {"f1": 0.1235, "auc": 1.0}
    assert slim["seconds"]["unlearning"] == 12.3 and slim["machine"] == {"device": "cpu"} and slim["versions"] == {"torch": "2.14.1"}
    layout = Layout(FULL.name, "", FULL.data, tuple(f"row {number}" for number in range(11)), COLUMNS)
    for form in ("markdown", "latex"):
        assert render(layout, again, ("last", "best"), form) == render(layout, found, ("last", "best"), form)
    save_results(tmp_path / "again.jsonl", FULL, again)
    assert (tmp_path / "again.jsonl").read_bytes() == path.read_bytes()
    assert load_results([path], SMALL) == [], "records of another table are passed over"
    monkeypatch.setattr(slim_records, "LARGEST", 1000)
    with pytest.raises(InputError, match="at most 1,000"):
        save_results(tmp_path / "large.jsonl", FULL, found)
    assert not (tmp_path / "large.jsonl").exists()


@pytest.mark.parametrize("text", ["", "no json\n", "[]\n", '{"schema": 1}\n', '{"schema": 99}\n', '{"schema": 1, "table": "table-known", "shared": {}}\n{}\n'])
def test_a_file_that_holds_no_records_gets_a_sentence(text, tmp_path):
    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(InputError, match="bad.jsonl"):
        load_results([tmp_path / "bad.jsonl"], FULL)
    with pytest.raises(InputError, match="cannot be read"):
        load_results([tmp_path / "nowhere.jsonl"], FULL)


def test_tables_do_not_import_torch():
    code = "import fspmu.report.result_table, fspmu.report.slim_records, fspmu.report.published, sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
