"""Grids: tiny ones, killed at every level, end in the table of an undisturbed one."""

import csv
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import types
from dataclasses import replace
from pathlib import Path

import pytest

from fspmu.cli import main
from fspmu.data.label_noise import NoiseOptions
from fspmu.data.sources import DataOptions
from fspmu.detection import DETECTORS
from fspmu.detection.cuts import CUTS
from fspmu.errors import InputError
from fspmu.experiments import grid_launch
from fspmu.experiments.experiment import Compute, Pretrain, Unlearn
from fspmu.experiments.grid_jobs import LATER, Grid, GridRun, asked, estimate, jobs_of, rebuild
from fspmu.experiments.grid_records import left_over
from fspmu.experiments.grids import GRIDS
from fspmu.experiments.pipeline import pretrain
from fspmu.experiments.repair_run import unlearn
from fspmu.experiments.table_grids import NLL_DETECTOR
from fspmu.pretraining import METHODS as PRETRAINING
from fspmu.pretraining import cross_entropy
from fspmu.report.result_table import Layout, Result
from fspmu.results.record import up_to_date
from fspmu.results.store import read_json
from fspmu.stages.rounds import Rounds
from fspmu.unlearning import METHODS as UNLEARNING
from fspmu.unlearning import feature_preserving


def tiny(epochs, *rows, seeds=1):
    """Return a grid on digits: one pretraining a seed, and a repair for each of `rows`."""
    noise, data = NoiseOptions(noise_mode="sym", noise_rate=0.4), DataOptions(limit=300)
    start = GridRun(Pretrain(data=data, noise=noise, width=4, settings=cross_entropy.Settings(epochs=epochs)), ("digits", "original", "sym 40"))
    quick = feature_preserving.Settings(epochs=2, forget_epochs=1, milestones=(1,))
    methods = {"FSPMU": ("fspmu", quick), "scrub-reference": ("scrub-reference", None)}
    repairs = [GridRun(Unlearn(LATER, method=methods[row][0], detector="known", settings=methods[row][1]), ("digits", row, "sym 40"), start) for row in rows]
    return Grid([start, *repairs], Layout("tiny", "digits", ("digits",), ("original", *rows), ("sym 40",)), seeds)


REAL = {"epochs": 40, "rows": ["FSPMU"]}


def run(capsys, *arguments):
    """Run a command here; return exit code, standard output, standard error."""
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return end.value.code, out, err


def folder_of(grid, place, out, seed=0):
    return out / f"{grid.runs[place].stem}-s{seed}"


def lines_of(path):
    return path.read_text().count("\n") if path.exists() else 0


def wait_for_lines(path, count, alive):
    until = time.monotonic() + 200
    while lines_of(path) < count:
        assert alive() and time.monotonic() < until
        time.sleep(0.005)


def test_a_grid_killed_twice_ends_in_the_table_of_an_undisturbed_one(tmp_path, capsys, monkeypatch):
    grid, out = tiny(REAL["epochs"], *REAL["rows"]), tmp_path / "grid"
    metrics = folder_of(grid, 0, out) / "metrics.jsonl"
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_grid; from fspmu.cli import main\n"
    code += f"test_grid.GRIDS['tiny'] = test_grid.tiny({REAL['epochs']}, *{REAL['rows']}); main(['grid', 'tiny', '--precision', 'fp32', '--out', {str(out)!r}])"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_lines(metrics, 2, lambda: process.poll() is None)
    process.kill()
    process.communicate()
    time.sleep(0.5)
    stopped_at = lines_of(metrics)
    time.sleep(0.3)
    assert lines_of(metrics) == stopped_at and not (metrics.parent / "done").exists(), "a worker ends with its grid"

    monkeypatch.setitem(GRIDS, "tiny", grid)
    started, popen = [], subprocess.Popen

    def kill_the_first(*arguments, **named):
        process = popen(*arguments, **named)
        started.append(process)
        if len(started) == 1:
            lines = min(stopped_at + 3, REAL["epochs"] - 1)
            threading.Thread(target=lambda: (wait_for_lines(metrics, lines, lambda: process.poll() is None), process.kill())).start()
        return process

    monkeypatch.setattr(subprocess, "Popen", kill_the_first)
    code, printed, err = run(capsys, "grid", "tiny", "--precision", "fp32", "--out", out)
    assert code == 0 and "killed by signal 9 (exit code -9, attempt 1)" in err, err
    assert len(started) == 3, "one killed, its second attempt, one repair: the pretraining is shared and resumed"
    assert [line["epoch"] for line in map(json.loads, metrics.read_text().splitlines())] == list(range(1, REAL["epochs"] + 1))
    assert "2 of 2 runs are done" in printed and str(out) in printed

    whole = [replace(job.options, compute=replace(job.options.compute, out=tmp_path / f"whole-{number}")) for number, job in enumerate(jobs(grid, out))]
    first = pretrain(whole[0]).record
    second = unlearn(replace(whole[1], run=tmp_path / "whole-0")).record
    for place, record in ((0, first), (1, second)):
        theirs = read_json(folder_of(grid, place, out) / "record.json")
        assert theirs["test_accuracy"] == record["test_accuracy"] and theirs["config"] == json.loads(json.dumps(record["config"]))
        assert f"| {100 * record['test_accuracy']['last']:.2f} |" in printed

    before = sorted((path, path.stat().st_mtime_ns) for path in out.rglob("*") if path.is_file())
    code, again, _ = run(capsys, "grid", "tiny", "--precision", "fp32", "--out", out)
    assert code == 0 and again == printed and len(started) == 3, "what is finished is skipped"
    assert sorted((path, path.stat().st_mtime_ns) for path in out.rglob("*") if path.is_file()) == before

    estimated = [estimate(job) for job in jobs(grid, out)]
    assert estimated[0] == (first["passes"]["pretraining"]["forward"] + first["passes"]["evaluation"]["forward"], 300 * REAL["epochs"])
    spent = {way: sum(passes[way] for stage, passes in second["passes"].items() if stage != "pretraining") for way in ("forward", "backward")}
    assert estimated[1] == pytest.approx((spent["forward"], spent["backward"]), rel=0.1)

    code, _, err = run(capsys, "grid", "tiny", "--out", out)
    assert code == 2 and "--precision fp32, not auto" in err
    check_the_table_command(tmp_path, out, printed, capsys)


def check_the_table_command(tmp_path, out, printed, capsys):
    saved = tmp_path / "records.jsonl"
    code, table, err = run(capsys, "table", "tiny", "--out", out, "--best", "--save", saved)
    assert code == 0 and table.index("after the last epoch") < table.index(r"best epoch\*") < table.index(r"\* picked on test data") and str(saved) in err
    assert table.split("\n\n**")[0].strip() in printed
    assert run(capsys, "table", "tiny", "--records", saved, "--best")[1] == table, "the same from a file, without run folders"
    assert run(capsys, "table", "tiny", "--records", saved, "--best", "--seeds", "1")[1] == table
    assert "--seeds is 0" in run(capsys, "table", "tiny", "--records", saved, "--seeds", "0")[2]
    _, text, _ = run(capsys, "table", "tiny", "--records", saved, "--format", "csv")
    assert len(list(csv.DictReader(io.StringIO(text)))) == 2
    code, _, err = run(capsys, "table", "tiny", "--out", tmp_path / "nothing")
    assert code == 2 and "fspmu grid tiny" in err and err.count("\n") == 1


SHORT = {"promix": {"rho_start": 1.0, "rho_end": 1.0}, "longremix": {"search_epochs": 2, "agreement": 1, "last_sets": 1}}
"""Short trainings; ProMix trusts every label, as an estimate does where none is wrong."""


@pytest.mark.parametrize(("method", "changes"), SHORT.items())
def test_what_two_networks_cost_is_said_beforehand_and_afterwards(method, changes, tmp_path):
    settings = replace(PRETRAINING[method].settings, epochs=2, warm_up=1, batch_size=32, **changes)
    start = Pretrain(dataset="digits", method=method, width=4, data=DataOptions(limit=200), settings=settings)
    (job,) = jobs_of([GridRun(start, ("digits", method, "none"))], (0,), Compute(device="cpu", precision="fp32"), tmp_path, None)
    record = pretrain(job.options).record
    spent = {way: sum(passes[way] for stage, passes in record["passes"].items() if stage != "evaluation") for way in ("forward", "backward")}
    assert record["pretraining"]["passes"] == spent, "both trainings of LongReMix"
    if method == "promix":
        assert estimate(job) == pytest.approx((spent["forward"] + record["passes"]["evaluation"]["forward"], spent["backward"]), rel=0.07)


def jobs(grid, out, seeds=(0,)):
    return jobs_of(grid.runs, seeds, Compute(precision="fp32"), out, None)


# What follows needs no training: a worker that writes a record, or fails as it is told.

STUB = """
import json, os, sys, time
from pathlib import Path

payload, plan = json.loads(sys.stdin.readline()), Path(sys.argv[1])
asked = payload["asked"]
out = Path(asked["compute"]["out"])
with (plan / "started").open("a") as file:
    file.write(out.name + chr(10))
for fault in plan.glob("fault-*"):
    _, word, deed, left = fault.name.split("-")
    if word in out.name and int(left):
        fault.rename(fault.with_name(f"fault-{word}-{deed}-{int(left) - 1}"))
        if deed == "kill":
            os.kill(os.getpid(), 9)
        if deed == "refuse":
            print("fspmu: error: the images are gone; bring them back", file=sys.stderr)
            sys.exit(2)
        if deed == "sleep":
            time.sleep(60)
if payload["command"] == "unlearn":
    assert (Path(asked["run"]) / "done").exists(), "a repair begins when its pretraining is done"
out.mkdir(parents=True)
accuracy = {"last": (0.5 if payload["command"] == "pretrain" else 0.75) + asked["compute"]["seed"] / 100, "best": 0.9}
record = {"schema": 1, "config": {"command": payload["command"], "seed": asked["compute"]["seed"]}, "test_accuracy": accuracy, "detection": None}
record |= {"test_every": asked["compute"].get("test_every", 1), "compiled": asked["compute"].get("compile", False)}
record |= {"seconds": {"pretraining": 1.0}, "machine": {"device": "cpu"}, "versions": {"python": "3"}}
(out / "config.json").write_text(json.dumps({"schema": 1, "config": {}}))
(out / "record.json").write_text(json.dumps(record))
(out / "done").touch()
"""


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """Replace the worker by one that only pretends; return the folder that tells it what to do and what it did."""
    plan = tmp_path / "plan"
    plan.mkdir()
    (plan / "worker.py").write_text(STUB)
    monkeypatch.setattr(grid_launch, "WORKER", (sys.executable, "-S", str(plan / "worker.py"), str(plan)))
    monkeypatch.setitem(GRIDS, "tiny", tiny(3, "FSPMU", "scrub-reference"))
    return plan


def started(plan):
    return (plan / "started").read_text().splitlines() if (plan / "started").exists() else []


def test_a_dry_run_touches_nothing(stub, tmp_path, capsys):
    code, out, _ = run(capsys, "grid", "tiny", "--dry-run", "--out", tmp_path / "grid", "--seeds", "2")
    assert code == 0 and not started(stub) and not (tmp_path / "grid").exists()
    assert "6 runs below" in out and "0 done, 0 unfinished, 6 new" in out and "digits n300 sym 40 ce fspmu known seed 1" in out
    run(capsys, "grid", "tiny", "--out", tmp_path / "grid")
    code, out, _ = run(capsys, "grid", "tiny", "--dry-run", "--out", tmp_path / "grid", "--seeds", "2", "--json")
    plan = json.loads(out)
    assert [entry["state"] for entry in plan["plan"]] == ["done"] * 3 + ["new"] * 3
    assert plan["backward"] == sum(entry["backward"] for entry in plan["plan"][3:])


def test_seeds_are_added_later_and_the_table_has_their_mean(stub, tmp_path, capsys):
    run(capsys, "grid", "tiny", "--out", tmp_path / "grid")
    code, out, _ = run(capsys, "grid", "tiny", "--out", tmp_path / "grid", "--seeds", "3", "--only", "ce FSPMU", "--test-every", "4", "--compile")
    assert code == 0 and len(started(stub)) == 3 + 2 * 2 and len(set(started(stub))) == 7
    records = [json.loads(path.read_text()) for path in (tmp_path / "grid").glob("*/record.json")]
    asked_for = sorted((record["test_every"], record["compiled"]) for record in records)
    assert asked_for == [(1, False)] * 3 + [(4, True)] * 4, "as asked for now: it is no part of what a run is"
    assert "| digits | original | 51.00 ± 1.00 |" in out and "|  | FSPMU | 76.00 ± 1.00 |" in out and "|  | scrub-reference | 75.00 (n=1) |" in out


def test_what_a_file_of_records_holds_is_not_made_again(stub, tmp_path, capsys):
    saved, first, second = tmp_path / "kept" / "records.jsonl", tmp_path / "first", tmp_path / "second"
    (stub / "fault-scrub-kill-99").touch()
    code, out, _ = run(capsys, "grid", "tiny", "--out", first, "--records", saved, "--retries", "0")
    assert code == 1 and f"0 of 3 runs were in {saved} already" in out and lines_of(saved) == 1 + 2, "what ended well is kept, whatever becomes of the rest"
    content = saved.read_bytes()
    begun = started(stub)
    (stub / "fault-scrub-kill-98").unlink()

    code, out, _ = run(capsys, "grid", "tiny", "--out", second, "--records", saved, "--dry-run")
    assert code == 0 and "the records hold 1 more" in out and "ce fspmu known seed 0" not in out and saved.read_bytes() == content
    code, out, _ = run(capsys, "grid", "tiny", "--out", second, "--records", saved)
    assert code == 0 and "1 of 3 runs were in" in out and "|  | FSPMU | 75.00 |" in out and "|  | scrub-reference | 75.00 |" in out
    again = started(stub)[len(begun) :]
    assert len(again) == 2 and "fspmu" not in again[0] and "scrub" in again[1], "another machine needs the pretraining once more"
    assert lines_of(saved) == 1 + 3
    code, table, _ = run(capsys, "table", "tiny", "--records", saved)
    assert table.strip() in out
    code, out, _ = run(capsys, "grid", "tiny", "--out", tmp_path / "third", "--records", saved)
    assert code == 0 and "3 of 3 runs were in" in out and table.strip() in out and len(started(stub)) == len(begun) + 2


def test_records_of_another_precision_are_refused_before_anything_runs(stub, tmp_path, capsys):
    saved = tmp_path / "records.jsonl"
    run(capsys, "grid", "tiny", "--out", tmp_path / "grid", "--records", saved)
    head, *lines = map(json.loads, saved.read_text().splitlines())
    head["shared"]["there"] = {"precision": "bf16"}
    saved.write_text("".join(f"{json.dumps(line)}\n" for line in (head, *(line | {"machine": "there"} for line in lines))))
    content, begun = saved.read_bytes(), len(started(stub))
    code, _, err = run(capsys, "grid", "tiny", "--out", tmp_path / "other", "--records", saved, "--seeds", "2", "--precision", "fp32")
    assert code == 2 and "seed 1 would stand in one mean with records of --precision bf16, not fp32; give that, or another file to --records" in err
    assert saved.read_bytes() == content and not (tmp_path / "other").exists() and len(started(stub)) == begun


def test_records_of_other_settings_are_refused(stub, tmp_path, capsys):
    saved = tmp_path / "records.jsonl"
    run(capsys, "grid", "tiny", "--out", tmp_path / "grid", "--records", saved)
    head, *lines = map(json.loads, saved.read_text().splitlines())
    for line in lines:
        settings = {"original": {"epochs": 3, "lr": 0.01}, "FSPMU": {"milestones": [1]}, "scrub-reference": {"lr": 7.0}}[line["cell"][1]]
        head["shared"][line["cell"][1]] = {"command": "x", "settings": settings}
        line["config"] = line["cell"][1]
    saved.write_text("".join(f"{json.dumps(line)}\n" for line in (head, *lines)))
    content = saved.read_bytes()
    code, _, err = run(capsys, "grid", "tiny", "--out", tmp_path / "other", "--records", saved)
    assert code == 2 and "sym 40 ce scrub-reference known seed 0 is in the records, but otherwise than now: settings.lr is 7.0 here" in err
    assert saved.read_bytes() == content and not (tmp_path / "other").exists()
    saved.write_text("nothing\n")
    code, _, err = run(capsys, "grid", "tiny", "--out", tmp_path / "other", "--records", saved)
    assert code == 2 and "holds no records of a table" in err and saved.read_text() == "nothing\n"


@pytest.mark.parametrize(
    ("cell", "config", "told"),
    [
        ("original", {"data": {"limit": 900}}, "data.limit is 900 here and 300 there"),
        ("original", {"model": {"width": 64}}, "model.width is 64 here and 4 there"),
        ("original", {"method": "promix"}, "method is 'promix' here and 'ce' there"),
        ("original", {"noise": {"noise_rate": 0.2}}, "noise.noise_rate is 0.2 here and 0.4 there"),
        ("FSPMU", {"detector": "gmm"}, "detector is 'gmm' here and 'known' there"),
        ("FSPMU", {"cut": "otsu"}, "cut is 'otsu' here and 'as-is' there"),
        ("FSPMU", {"split": {"margin": 0.1}}, "split.margin is 0.1 here and 0.0 there"),
        ("FSPMU", {"cut": {"threshold": 0.4}}, "split.threshold is 0.4 here and 0.5 there"),
    ],
)
def test_whatever_else_was_otherwise_is_refused_too(cell, config, told):
    grid = tiny(3, "FSPMU")
    (job,) = (job for job in jobs(grid, Path("out")) if job.run.cell[1] == cell)
    with pytest.raises(InputError, match=told):
        left_over([job], [Result(job.run.cell, 0, {"config": up_to_date(config)})])
    assert left_over([job], [Result(job.run.cell, 0, {"config": {"command": "of an older version"}})]) == []


def test_records_that_grow_too_large_stop_no_grid(stub, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fspmu.report.slim_records.LARGEST", 600)
    code, out, _ = run(capsys, "grid", "tiny", "--out", tmp_path / "grid", "--records", tmp_path / "records.jsonl")
    assert code == 1 and "3 of 3 runs are done" in out and "not all that was made is in the records" in out and "at most 600" in out
    assert len(started(stub)) == 3


def test_a_run_that_always_fails_is_named_and_the_others_are_done(stub, tmp_path, capsys):
    (stub / "fault-scrub-kill-99").touch()
    code, out, err = run(capsys, "grid", "tiny", "--out", tmp_path / "grid", "--retries", "1")
    assert code == 1 and "2 of 3 runs are done" in out and "| 75.00 |" in out and "|  | scrub-reference | – |" in out
    assert "failed for good: digits n300 sym 40 ce scrub-reference known seed 0: killed by signal 9 (exit code -9, attempt 2)" in out
    assert [name.split("-known")[0] for name in started(stub)].count("digits-n300-sym-40-ce-scrub-reference") == 2
    log = next((tmp_path / "grid" / "logs").glob("*scrub*"))
    assert str(log) in out and log.read_text().count("--- {") == 2
    (stub / "fault-scrub-kill-97").unlink()
    code, out, _ = run(capsys, "grid", "tiny", "--out", tmp_path / "grid")
    assert code == 0 and len(started(stub)) == 5 and "3 of 3 runs are done" in out


def test_bad_input_is_not_tried_again_and_what_stands_on_it_is_not_begun(stub, tmp_path, capsys):
    (stub / "fault-ce-refuse-1").touch()
    code, out, _ = run(capsys, "grid", "tiny", "--out", tmp_path / "grid", "--json")
    failed = json.loads(out)["failed"]
    assert code == 1 and len(started(stub)) == 1 and len(failed) == 3
    assert "the images are gone; bring them back (exit code 2" in failed["digits n300 sym 40 ce seed 0"]
    assert failed["digits n300 sym 40 ce fspmu known seed 0"] == grid_launch.BLOCKED


@pytest.fixture
def ctrl_c():
    """Let SIGINT mean Ctrl-C: a shell that starts the tests in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_grid_stops_its_worker_and_goes_on(number, code, stub, tmp_path, capsys, ctrl_c):
    (stub / "fault-fspmu-sleep-1").touch()

    def stop():
        while len(started(stub)) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop).start()
    ended, _, err = run(capsys, "grid", "tiny", "--out", tmp_path / "grid")
    assert ended == code and "the same command goes on" in err and "Traceback" not in err
    ended, out, _ = run(capsys, "grid", "tiny", "--out", tmp_path / "grid")
    assert ended == 0 and len(started(stub)) == 4 and "3 of 3 runs are done" in out


def test_two_grids_do_not_share_a_folder(stub, tmp_path, capsys):
    with grid_launch._alone(tmp_path / "grid"):
        code, _, err = run(capsys, "grid", "tiny", "--out", tmp_path / "grid")
    assert code == 2 and "another `fspmu grid` is at work" in err and not started(stub)


BAD = {
    "unknown grid": (["table-knwon"], "did you mean 'table-known'"),
    "unknown place": (["tiny", "--where", "cloud"], "known: local, ray"),
    "no seeds": (["tiny", "--seeds", "0"], "--seeds is 0"),
    "negative retries": (["tiny", "--retries", "-1"], "--retries is -1"),
    "tested never": (["tiny", "--test-every", "0"], "--test-every is 0"),
    "no share": (["tiny", "--gpu-share", "0"], "--gpu-share is 0.0"),
    "no such words": (["tiny", "--only", "sym 41"], "--only 'sym 41'; the words are"),
    "no such data": (["tiny", "--data-dir", "nowhere"], "--data-dir nowhere is no folder"),
    "ray is not installed": (["tiny", "--where", "ray"], "pip install 'ray"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_sentence(case, stub, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(grid_launch, "find_spec", lambda name: None)
    arguments, sentence = BAD[case]
    code, out, err = run(capsys, "grid", *arguments, "--out", tmp_path / "grid")
    assert code == 2 and sentence in err and err.count("\n") == 1 and out == "" and not (tmp_path / "grid").exists()


# Ray, by a stand-in that runs tasks when they are waited for, in this process, and may kill one.


class FakeRay(types.ModuleType):
    def __init__(self, gpus=0, deaths=0):
        super().__init__("ray")
        self.gpus, self.deaths, self.asked, self.cancelled, self.shut = gpus, deaths, None, [], False

    def init(self, **named):
        assert named == {"ignore_reinit_error": True}

    def cluster_resources(self):
        return {"CPU": 2.0} | ({"GPU": self.gpus} if self.gpus else {})

    def remote(self, **named):
        self.asked = named

        def wrap(function):
            return types.SimpleNamespace(remote=lambda *arguments: Task(self, function, arguments))

        return wrap

    def wait(self, tasks, num_returns):
        tasks[-1].finish()  # the last first: what it depends on is finished before it
        ready = [task for task in tasks if task.finished]
        return ready[:num_returns], [task for task in tasks if task not in ready[:num_returns]]

    def get(self, task):
        if task.error is not None:
            raise task.error
        return task.value

    def cancel(self, task):
        self.cancelled.append(task)

    def shutdown(self):
        self.shut = True


class Task:
    def __init__(self, ray, function, arguments):
        self.ray, self.function, self.arguments, self.finished, self.value, self.error = ray, function, arguments, False, None, None

    def finish(self):
        if self.finished:
            return
        self.finished = True
        arguments = []
        for argument in self.arguments:
            if isinstance(argument, Task):
                argument.finish()
                if argument.error is not None:
                    self.error = argument.error
                    return
                argument = argument.value
            arguments.append(argument)
        for _ in range(1 + self.ray.asked["max_retries"]):
            try:
                if self.ray.deaths:
                    self.ray.deaths -= 1
                    raise ConnectionError("the worker process died")
                self.value, self.error = self.function(*arguments), None
                return
            except Exception as error:
                assert self.ray.asked["retry_exceptions"] is True
                self.error = error


@pytest.fixture
def ray(monkeypatch):
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setattr(grid_launch, "find_spec", lambda name: object())
    return fake


def test_ray_runs_the_same_worker_and_brings_a_killed_one_back(ray, stub, tmp_path, capsys):
    ray.deaths = 1
    (stub / "fault-fspmu-kill-1").touch()
    code, out, err = run(capsys, "grid", "tiny", "--where", "ray", "--out", tmp_path / "grid")
    assert code == 0 and "3 of 3 runs are done" in out and ray.shut and not ray.cancelled, err
    assert ray.asked == {"num_gpus": 0, "max_retries": 2, "retry_exceptions": True}, "no GPU there, so none is asked for"
    assert len(started(stub)) == 4 and len(set(started(stub))) == 3
    assert run(capsys, "grid", "tiny", "--out", tmp_path / "grid")[1] == out, "the table of a local grid"


def test_ray_names_what_fails_and_what_stands_on_it(ray, stub, tmp_path, capsys):
    ray.gpus = 2
    (stub / "fault-ce-kill-3").touch()
    code, out, _ = run(capsys, "grid", "tiny", "--where", "ray", "--out", tmp_path / "grid", "--retries", "1", "--seeds", "2", "--gpu-share", "0.5", "--json")
    failed = json.loads(out)["failed"]
    assert code == 1 and ray.asked["num_gpus"] == 0.5
    assert len(failed) == 3 and len({title.split()[-1] for title in failed}) == 1, "one seed, whole; the other seed is done"
    assert any("killed by signal 9" in trouble for trouble in failed.values())


def test_a_stopped_grid_takes_its_tasks_back(ray, stub, tmp_path, capsys, monkeypatch):
    def stop(tasks, num_returns):
        raise KeyboardInterrupt

    monkeypatch.setattr(ray, "wait", stop)
    code, _, err = run(capsys, "grid", "tiny", "--where", "ray", "--out", tmp_path / "grid")
    assert code == 130 and "the same command goes on" in err and len(ray.cancelled) == 3 and ray.shut


def test_ray_does_not_repeat_what_is_refused(ray, stub, tmp_path, capsys):
    (stub / "fault-ce-refuse-1").touch()
    code, out, _ = run(capsys, "grid", "tiny", "--where", "ray", "--out", tmp_path / "grid", "--json")
    failed = json.loads(out)["failed"]
    assert code == 1 and len(started(stub)) == 1 and failed["digits n300 sym 40 ce fspmu known seed 0"] == grid_launch.BLOCKED


# The lists.


@pytest.mark.parametrize("name", [name for name in GRIDS if name.startswith(("table-", "learning-", "baselines-"))])
def test_lists_are_complete_and_every_run_comes_back_from_json(name, tmp_path):
    grid = GRIDS[name]
    cells = {run.cell for run in grid.runs}
    assert cells == {(data, row, column) for data in grid.layout.data for row in grid.layout.rows for column in grid.layout.columns}
    assert len(grid.runs) == len(cells) == len({run.stem for run in grid.runs})
    all_jobs = jobs_of(grid.runs, [3], Compute(device="cpu"), tmp_path, tmp_path / "data")
    for job in all_jobs:
        assert rebuild(json.loads(json.dumps(job.payload))) == job.options
        options = job.options
        assert options.method in (PRETRAINING if isinstance(options, Pretrain) else UNLEARNING)
        assert estimate(job) is not None and all(count > 0 for count in estimate(job))
    assert {job.options.detector for job in all_jobs if isinstance(job.options, Unlearn)} <= {"known", "gmm", "random", NLL_DETECTOR}


NAMED = {
    "table-known": "b65a29a635ce5c78",
    "table-gmm": "fe132208d7d6dd6d",
    "table-known-small": "64c65d7455560be8",
    "table-gmm-small": "de782a2064f753e8",
}
"""Digests of the folder names that runs were made under."""


@pytest.mark.parametrize("default", ["gmm", "combined"])
def test_folders_keep_their_names_whatever_the_default_detector(default, monkeypatch):
    """Finished runs are found by these names: a new field, or another default, must not send a grid to compute them again."""
    monkeypatch.setattr(Unlearn.__dataclass_fields__["detector"], "default", default)
    for name, digest in NAMED.items():
        stems = "\n".join(run.stem for run in GRIDS[name].runs)
        assert hashlib.sha256(stems.encode()).hexdigest()[:16] == digest, name
    assert GRIDS["table-gmm-small"].runs[2].stem == "cifar10-n5000-sym-20-ce-fspmu-gmm-e9d3b9ce54e2"


def test_a_run_with_another_detector_and_cut_comes_back_from_json(tmp_path):
    start = GRIDS["table-gmm-small"].runs[0]
    combined, otsu = DETECTORS["combined"], CUTS["otsu"]
    wish = Unlearn(LATER, detector="combined", detector_settings=replace(combined.settings, views=2), cut="otsu", cut_settings=otsu.settings)
    jobs = jobs_of([start, GridRun(wish, start.cell, start)], [0], Compute(), tmp_path, None)
    again = rebuild(json.loads(json.dumps(jobs[1].payload)))
    assert again == jobs[1].options and again.detector_settings.views == 2 and type(again.cut_settings) is type(otsu.settings)
    plain = GridRun(Unlearn(LATER, detector="combined"), start.cell, start)
    assert plain.stem != jobs[1].run.stem and rebuild(json.loads(json.dumps(jobs_of([start, plain], [0], Compute(), tmp_path, None)[1].payload))).cut is None
    dearer = estimate(jobs[1])[0] - estimate(jobs_of([start, GridRun(Unlearn(LATER, detector="gmm"), start.cell, start)], [0], Compute(), tmp_path, None)[1])[0]
    assert dearer == (2 + 1) * 5000  # two views of every image, and a look at every depth
    thrice = GridRun(replace(wish, rounds=Rounds(rounds=3)), start.cell, start)
    more = [now - then for now, then in zip(estimate(jobs_of([start, thrice], [0], Compute(), tmp_path, None)[1]), estimate(jobs[1]), strict=True)]
    settings = UNLEARNING["fspmu"].suited("tuned-soft")
    backward = settings.forget_epochs * 900 + settings.epochs * 4100  # a tenth of the 1,000 labels that are drawn anew comes out as it was
    assert more[1] == 2 * backward and more[0] > 2 * (backward + 2 * 5000), "two repairs more, and two looks at what was made"


def test_tables_share_their_pretrainings_and_places_do_not_name_folders(tmp_path):
    known, predicted = ({run.stem for run in GRIDS[name].runs if run.stands_on is None} for name in ("table-known", "table-gmm"))
    assert known == predicted
    here, there = (
        [job.folder.name for job in jobs_of(GRIDS["table-known-small"].runs, [0], Compute(device=device), out, data)]
        for device, out, data in (("cpu", tmp_path, None), ("cuda", tmp_path / "x", tmp_path))
    )
    assert here == there
    run = GRIDS["table-known-small"].runs[0]
    longer = replace(run, options=replace(run.options, settings=cross_entropy.Settings(epochs=51)))
    assert longer.stem != run.stem and asked(Compute()) == {}
