"""`fspmu survey`, and grids of surveys: tiny ones, killed in the middle, end in the table of an undisturbed one."""

import csv
import io
import json
import shutil
import subprocess
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fspmu.cli import main
from fspmu.data.label_noise import NoiseOptions
from fspmu.data.sources import DataOptions
from fspmu.detection import DETECTORS
from fspmu.experiments.detector_grids import MORE_REPAIRS, REPAIRS, WITHOUT_PROBE, detection_layout, with_survey
from fspmu.experiments.experiment import Compute, Pretrain, Unlearn
from fspmu.experiments.grid_jobs import Grid, GridRun, chosen, estimate, jobs_of, rebuild
from fspmu.experiments.grids import GRIDS
from fspmu.experiments.pipeline import pretrain
from fspmu.experiments.repair_run import unlearn
from fspmu.experiments.survey_options import Survey
from fspmu.experiments.surveying import survey_run
from fspmu.pretraining import cross_entropy
from fspmu.results.store import read_json
from fspmu.stages.surveying import ALIASES, WITHOUT_HISTORY, SurveySettings
from fspmu.unlearning import METHODS

WISH = SurveySettings(detectors="gmm,probe,combined", cuts="mixture,sign", views=1, probe_epochs=60)


def tiny(epochs=3, seeds=1):
    """Return a grid on digits: a training, its survey, and a repair."""
    noise, data = NoiseOptions(noise_mode="sym", noise_rate=0.4), DataOptions(limit=300)
    start = Pretrain(data=data, noise=noise, width=4, settings=cross_entropy.Settings(epochs=epochs))
    original, survey, *repairs = with_survey(start, repairs=[("gmm", "original")])
    quick = replace(METHODS["fspmu"].settings, epochs=1, forget_epochs=1)
    runs = [
        original,
        replace(survey, options=replace(survey.options, survey=WISH)),
        *(replace(run, options=replace(run.options, settings=quick)) for run in repairs),
    ]
    return Grid(runs, detection_layout("tiny", runs, ()), seeds)


def run(capsys, *arguments, code=0):
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert end.value.code == code, err
    return out, err


def without_seconds(report):
    rows = [row | {"seconds": 0} for row in report["rows"]]
    return {key: report[key] for key in ("samples", "wrong_share", "left_out", "refused", "looked")} | {"rows": rows}


@pytest.mark.slow
def test_a_grid_killed_in_the_middle_of_a_survey_ends_in_the_table_of_an_undisturbed_one(tmp_path, capsys, monkeypatch):
    grid, out = tiny(), tmp_path / "grid"
    monkeypatch.setitem(GRIDS, "tiny", grid)
    made = jobs_of(grid.runs, [0], Compute(precision="fp32"), out, None)
    pretrain(made[0].options)
    unlearn(made[2].options)
    started, popen = [], subprocess.Popen
    survey_folder = out / f"{grid.runs[1].stem}-s0"

    def kill_the_survey(*arguments, **named):
        process = popen(*arguments, **named)
        started.append(process)
        if len(started) == 1:
            threading.Thread(target=lambda: (wait_for(survey_folder / "metrics.jsonl", process), process.kill())).start()
        return process

    monkeypatch.setattr(subprocess, "Popen", kill_the_survey)
    printed, err = run(capsys, "grid", "tiny", "--precision", "fp32", "--out", out)
    assert "killed by signal 9 (exit code -9, attempt 1)" in err and len(started) == 2 and "3 of 3 runs are done" in printed
    epochs = [json.loads(line)["epoch"] for line in (survey_folder / "metrics.jsonl").read_text().splitlines()]
    assert epochs == list(range(1, 61)), "the probe went on where it was"

    whole = survey_run(replace(made[1].options, compute=replace(made[1].options.compute, out=tmp_path / "whole")))
    record = read_json(survey_folder / "record.json")
    assert without_seconds(record["survey"]) == without_seconds(whole.record["survey"]) and record["config"] == json.loads(json.dumps(whole.record["config"]))
    assert (survey_folder / "scores.safetensors").read_bytes() == (tmp_path / "whole" / "scores.safetensors").read_bytes()
    spent = {way: sum(passes[way] for passes in whole.record["passes"].values()) for way in ("forward", "backward")}
    assert estimate(made[1]) == (spent["forward"], spent["backward"])
    assert not (survey_folder / "state").exists() and not made[0].folder.joinpath("survey").exists()

    rows = {(row["detector"], row["cut"]): row for row in record["survey"]["rows"]}
    assert set(rows) == {("gmm", "mixture"), ("probe", "mixture"), ("probe", "sign"), ("combined", "mixture"), ("combined", "sign")}
    assert f"| digits | gmm | {100 * rows['gmm', 'mixture']['auc']:.2f} |" in printed
    assert f"|  | combined, sign\\* | {100 * rows['combined', 'sign']['f1']:.2f} |" in printed
    repaired = read_json(made[2].folder / "record.json")["test_accuracy"]["last"]
    assert f"|  | FSPMU original, gmm | {100 * repaired:.2f} |" in printed

    saved = tmp_path / "records.jsonl"
    table, _ = run(capsys, "table", "tiny", "--out", out, "--save", saved)
    assert table.strip() in printed and run(capsys, "table", "tiny", "--records", saved)[0] == table
    lines = list(csv.DictReader(io.StringIO(run(capsys, "table", "tiny", "--records", saved, "--format", "csv")[0])))
    assert {"auc", "f1", "seconds", "last"} <= {line["statistic"] for line in lines}
    assert "toprule" in run(capsys, "table", "tiny", "--records", saved, "--format", "latex")[0]


def wait_for(path, process):
    until = time.monotonic() + 100
    while process.poll() is None and time.monotonic() < until and not (path.exists() and path.read_text().count("\n") >= 3):
        time.sleep(0.002)


# The command.


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run on digits with known noise, and one without noise."""
    folder = tmp_path_factory.mktemp("trained")
    short = ["--limit", "200", "--width", "4", "--precision", "fp32", "--json"]
    for name, noise in {"noisy": ["--noise-mode", "sym", "--noise-rate", "0.4", "--epochs", "6"], "plain": ["--epochs", "1"]}.items():
        with pytest.raises(SystemExit) as end:
            main(["pretrain", *noise, *short, "--out", str(folder / name)])
        assert end.value.code == 0
    return folder


WORDS = ["--precision", "fp32", "--views", "1", "--cuts", "mixture,sign,otsu"]


def test_a_survey_has_a_row_for_each_detector_and_cut(trained, tmp_path, capsys):
    out, _ = run(capsys, "survey", trained / "noisy", *WORDS, "--no-probe", "--out", tmp_path / "survey", "--json")
    record = json.loads(out)
    survey, config = record["survey"], record["config"]
    names = [name for name in DETECTORS if name not in ("known", "random", "gmm-probe", "gmm-probe-reference", "probe")] + [WITHOUT_HISTORY]
    assert config["survey"]["detectors"] == names == list(dict.fromkeys(row["detector"] for row in survey["rows"]))
    assert Counter(row["detector"] for row in survey["rows"]) == {name: 2 + DETECTORS[ALIASES.get(name, name)].signed for name in names}
    assert survey["left_out"].keys() == {"gmm-probe", "probe", "confident-learning-cross-fit"} and survey["refused"] == {}
    assert survey["wrong_share"] == pytest.approx(record["data"]["flip_rate"]) and survey["samples"] == 200
    assert all(0.5 < row["auc"] <= 1 and 0 < row["average_precision"] <= 1 and row["seconds"] >= 0 for row in survey["rows"])
    scores = load_file(tmp_path / "survey" / "scores.safetensors")
    assert set(scores) == set(names) and all(score.shape == (200,) and score.dtype == torch.float32 for score in scores.values())
    folder = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "survey").iterdir()}
    assert set(folder) == {"config.json", "record.json", "scores.safetensors", "done"}

    again, _ = run(capsys, "survey", trained / "noisy", *WORDS, "--no-probe", "--out", tmp_path / "survey", "--resume")
    assert "already done, nothing changed" in again and "AUC" in again and "gmm-probe: it takes a probe" in again and "mixture*" in again
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "survey").iterdir()} == folder
    _, err = run(capsys, "survey", trained / "noisy", *WORDS, "--no-probe", "--out", tmp_path / "survey", code=2)
    assert "add --resume" in err
    _, err = run(capsys, "survey", trained / "noisy", *WORDS, "--no-probe", "--threshold", "0.4", "--out", tmp_path / "survey", "--resume", code=2)
    assert "split.threshold is 0.4 here and 0.5 there" in err


def test_detect_says_the_same(trained, tmp_path, capsys):
    wish = ["--views", "2", "--seed", "5", "--precision", "fp32", "--json"]
    out, _ = run(capsys, "survey", trained / "noisy", "--detectors", "combined,knn", *wish, "--out", tmp_path / "survey")
    rows = {(row["detector"], row["cut"]): row for row in json.loads(out)["survey"]["rows"]}
    scores = load_file(tmp_path / "survey" / "scores.safetensors")
    for name, cut in (("combined", "otsu"), ("knn", "sign")):
        out, _ = run(capsys, "detect", trained / "noisy", "--detector", name, "--cut", cut, *wish, "--out", tmp_path / name)
        quality = json.loads(out)["detection"]["quality"]
        assert all(rows[name, cut][key] == value for key, value in quality.items() if key != "wrong_share")
        split = load_file(tmp_path / name / "split.safetensors")
        assert torch.equal(split["score"], scores[name]) and rows[name, cut]["flagged"] == pytest.approx(float((~split["retain"]).float().mean()))


def test_a_run_of_unknown_truth_says_how_much_is_flagged(trained, capsys):
    out, _ = run(capsys, "survey", trained / "plain", "--detectors", "gmm,knn", *WORDS)
    place = trained / "plain" / "survey"
    survey = read_json(place / "record.json")["survey"]
    assert survey["wrong_share"] is None and all("auc" not in row for row in survey["rows"])
    assert "AUC" not in out and "agreement" in out and "flagged" in out and str(place) in out
    shutil.rmtree(place)


BAD = {
    "no such run": (["nowhere"], "nowhere is no run folder"),
    "unknown detector": (["RUN", "--detectors", "gmm,gnm"], "did you mean 'gmm'"),
    "unknown cut": (["RUN", "--cuts", "otzu"], "did you mean 'otsu'"),
    "a detector that knows": (["RUN", "--detectors", "known"], "is shown the true labels"),
    "a cut for margins": (["RUN", "--detectors", "gmm", "--cuts", "sign"], "fits none of the scores of gmm"),
    "no views": (["RUN", "--views", "0"], "--views is 0"),
    "no such depth": (["RUN", "--detectors", "knn", "--depth", "layer9"], "no part 'layer9'"),
    "a threshold": (["RUN", "--threshold", "2"], "--threshold is 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_sentence_and_leaves_nothing(case, trained, tmp_path, capsys):
    arguments, sentence = BAD[case]
    out, err = run(capsys, "survey", *(trained / "noisy" if word == "RUN" else word for word in arguments), "--out", tmp_path / "out", code=2)
    assert sentence in err and err.count("\n") == 1 and out == "" and not (tmp_path / "out").exists()


# The lists.

DETECTOR_GRIDS = [name for name in GRIDS if name.startswith(("detectors-", "recipes-", "routes-"))]


@pytest.mark.parametrize("name", DETECTOR_GRIDS)
def test_lists_of_detectors_come_back_from_json_and_have_a_price(name, tmp_path):
    grid = GRIDS[name]
    jobs = jobs_of(grid.runs, grid.seeds_up_to(None), Compute(device="cpu"), tmp_path, tmp_path / "data")
    assert len({run.stem for run in grid.runs}) == len({run.title for run in grid.runs}) == len({run.cell for run in grid.runs}) == len(grid.runs)
    for job in jobs:
        assert rebuild(json.loads(json.dumps(job.payload))) == job.options
        forward, backward = estimate(job)
        assert forward > 0 and (backward > 0 or (isinstance(job.options, Survey) and not job.options.survey.probe))
        assert job.needs is None or any(other.folder == job.needs for other in jobs)
    assert {run.cell[1] for run in grid.runs} == {*grid.layout.rows, "survey"} and {run.cell[2] for run in grid.runs} == set(grid.layout.columns)


def test_the_small_grid_of_detectors_is_what_it_says():
    grid = GRIDS["detectors-small"]
    jobs = jobs_of(grid.runs, range(3), Compute(), Path("x"), None)
    kinds = Counter((type(job.options).__name__, (job.run.stands_on or job.run).words, job.seed) for job in jobs)
    assert all(kinds[kind, "30 epochs", seed] == 4 for kind in ("Pretrain", "Survey") for seed in range(3))
    assert kinds["Pretrain", "60 epochs", 0] == kinds["Survey", "60 epochs", 0] == 4 and kinds["Pretrain", "60 epochs", 1] == 0
    assert (
        kinds["Unlearn", "30 epochs", 2] == 4 * len(REPAIRS) - 2
        and kinds["Unlearn", "30 epochs", 0] == 4 * len(REPAIRS + MORE_REPAIRS) - 2
        and kinds["Unlearn", "60 epochs", 0] == 0
    ), "without noise nothing is known"
    pairs = {(job.options.detector, job.options.preset) for job in jobs if isinstance(job.options, Unlearn)}
    assert pairs == {*REPAIRS, *MORE_REPAIRS}
    surveys = [job for job in jobs if isinstance(job.options, Survey)]
    assert all(job.options.survey == (SurveySettings() if job.seed or "30 epochs" in job.title else WITHOUT_PROBE) for job in surveys)
    some = chosen(jobs, "asym 40 30 survey")
    assert len(some) == 6 and {type(job.options) for job in some} == {Pretrain, Survey}


def test_what_settings_were_chosen_by_is_found_by_no_other_grid():
    stems = {run.stem for run in GRIDS["recipes-small"].runs}
    assert not any(stems & {run.stem for run in grid.runs} for name, grid in GRIDS.items() if name != "recipes-small")


def test_the_memorised_network_keeps_2000_images_aside():
    (original, survey) = GRIDS["detectors-memorised"].runs
    settings = original.options.settings
    assert original.options.data.limit * (1 - settings.held_out) == pytest.approx(5000) and (settings.epochs, original.options.width) == (100, 32)
    jobs = jobs_of([original, survey], [0], Compute(), Path("x"), None)
    forward, backward = estimate(jobs[0])
    assert backward == 100 * 5000 and forward == 100 * 9000
    assert estimate(jobs[1])[1] == 0, "no probe"


def test_a_run_may_have_fewer_seeds_than_its_grid(tmp_path):
    start = GridRun(Pretrain(), ("digits", "original", "none"), words="few", seeds=2)
    assert [job.seed for job in jobs_of([start], range(5), Compute(), tmp_path, None)] == [0, 1]
    assert replace(start, seeds=None).stem == start.stem != replace(start, words="").stem and start.title.endswith("few")
