"""The benchmarks: both sides do the same work, and the scripts print what they promise."""

import ast
import copy
import importlib
import importlib.util
import json
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fspmu import losses
from fspmu.data.sources import DataOptions
from fspmu.detection.cuts import mixture
from fspmu.engine.inference import predict
from fspmu.engine.run import Run
from fspmu.experiments.experiment import Pretrain
from fspmu.results.store import read_lines
from fspmu.unlearning.feature_preserving import statistics_moved_twice

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TINY = ["--width", "8", "--retain", "16", "--forget", "16", "--workers", "0", "--device", "cpu", "--rounds", "1"]


@pytest.fixture
def script(monkeypatch):
    """Return a function that imports a benchmark by its name; afterwards none of them is left behind."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield importlib.import_module
    for name in ("textbook", "run", "gpu"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.stem)
def test_what_a_benchmark_imports_is_there(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "fspmu":
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name) or importlib.util.find_spec(f"{node.module}.{alias.name}"), f"{node.module} has no {alias.name}"


@pytest.fixture
def run(script):
    return script("run")


@pytest.fixture
def bench(run):
    """Return a bench of 24 plain images, which make one batch on both sides.

    Width 4 has the plain memory layout on both: in channels-last a CPU's batch norm rounds to 1e-5, which moves a ReLU here and there, and the gradient by 1%.
    """
    bench = run.prepare(run.Options(retain=24, forget=24, width=4, device="cpu", precision="fp32", workers=0))
    plain = bench.retain.prepared_as(replace(run.CIFAR, augment="none"))
    return replace(bench, retain=plain, forget=plain)


def draw(dtype, seed):
    """Return logits, the teacher's logits, features, labels and centroids; the first of 7 samples points away from every centroid."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    centroids = F.normalize(normal(5, 16).abs(), dim=1)
    features = normal(7, 16)
    features[0] = -features[0].abs()
    return 3 * normal(7, 5), 3 * normal(7, 5), features, torch.arange(7) % 5, centroids


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_textbook_has_the_same_losses(script, dtype):
    textbook = script("textbook")
    for seed in range(3):
        logits, before, features, labels, centroids = draw(dtype, seed)
        assert bool((losses.cosines(features, centroids)[0] < 0).all())  # weight 0 for each centroid
        ours = losses.forget_loss(logits, before, features, centroids, eta=1.0, zeta=0.5, t=0.25, temperature=0.5)
        torch.testing.assert_close(textbook.forget_loss(centroids)(logits, features, before, labels), ours)
        ours = losses.retain_loss(logits, features, labels, centroids, gamma=1.0, delta=500.0)
        torch.testing.assert_close(textbook.retain_loss(centroids)(logits, features, before, labels), ours)


@pytest.mark.parametrize("stage", ["retain_pass", "forget_pass", "pretrain_epoch"])
def test_both_sides_change_the_weights_alike(run, bench, monkeypatch, stage):
    monkeypatch.setattr(run, "LR", 0.1)  # the published one moves fp32 weights by little more than their rounding
    first, theirs, ours = (copy.deepcopy(bench.model).train() for _ in range(3))
    run.textbook_work(bench)[stage](theirs)
    with statistics_moved_twice(ours, stage != "pretrain_epoch"):  # the textbook's student runs twice
        run.our_work(bench)[stage](ours)
    first, theirs, ours = (torch.cat([parameter.detach().flatten() for parameter in model.parameters()]) for model in (first, theirs, ours))
    change = (theirs - first).norm()
    assert change > 0.01 and (theirs - ours).norm() < 1e-4 * change


def test_both_sides_find_the_same(run, bench):
    theirs, ours = run.textbook_work(bench), run.our_work(bench)
    torch.testing.assert_close(theirs["centroids"](bench.model), ours["centroids"](bench.model), rtol=1e-4, atol=1e-5)
    assert theirs["evaluation"](bench.model) == pytest.approx(ours["evaluation"](bench.model))
    labels = bench.retain.given_labels
    values = F.cross_entropy(predict(bench.model, bench.retain, bench.run).logits, labels, reduction="none")
    published = mixture.reference_cut((values - values.min()) / (values.max() - values.min()), labels, mixture.REFERENCE, torch.Generator()).clean
    found = theirs["detection"](bench.model)
    np.testing.assert_allclose(found, published.numpy(), atol=1e-3)


def test_times_of_different_work_are_not_compared(run, bench, monkeypatch):
    run.check(bench)
    right = losses.retain_loss
    monkeypatch.setattr(losses, "retain_loss", lambda *tensors, **weights: 1.001 * right(*tensors, **weights))
    with pytest.raises(SystemExit, match="retain_pass: the textbook's loss is .* that of fspmu .* on the same images"):
        run.check(bench)


def test_three_rounds_are_measured_whatever_the_time(run, bench):
    sides = [run.Side({"evaluation": lambda student: None}, bench.model) for _ in range(2)]
    late = time.perf_counter() - 1
    assert len(run.paired_rounds(bench, sides, ["evaluation"], 5, late)["evaluation"]) == run.LEAST_ROUNDS
    assert len(run.paired_rounds(bench, sides, ["evaluation"], 5, late + 60)["evaluation"]) == 5


def test_quick_json_is_one_object(run, capfd, monkeypatch):
    randn = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *size, **kind: randn(*(min(side, 256) for side in size), **kind))  # a matrix product that takes no second
    run.main(["--quick", "--json", *TINY])
    result = json.loads(capfd.readouterr().out)
    assert list(result) == ["retain_pass", "forget_pass", "pretrain_epoch", "machine"]
    for stage in ("retain_pass", "forget_pass", "pretrain_epoch"):
        found = result[stage]
        assert found["ratio"] > 0 and found["ratio"] == pytest.approx(found["textbook_s"] / found["fspmu_s"])
        assert found["fspmu_share_of_matrix_rate"] == pytest.approx(found["fspmu_flops_per_s"] / result["machine"]["matrix_flops_per_s"])


def test_the_table_has_a_row_for_every_stage(run, capfd, monkeypatch):
    monkeypatch.setattr(run, "matrix_rate", lambda device, precision: 1e12)
    run.main(TINY)
    lines = capfd.readouterr().out.splitlines()
    for stage in run.NEEDS:
        assert sum(line.startswith(f"| {stage} |") for line in lines) == 1


@pytest.fixture
def gpu(run, script, monkeypatch):
    monkeypatch.setattr(run, "matrix_rate", lambda device, precision: 1e12)
    return script("gpu")


def gpu_lines(gpu, out, *arguments):
    """Run gpu.py on the CPU; return the lines of this call but the first, which is about the machine."""
    tiny = ["--device", "cpu", "--precision", "fp32", "--width", "8", "--images", "32", "--epochs", "1", "--compile", "no", "--out", str(out)]
    earlier = len(read_lines(out / "results.jsonl"))
    assert gpu.main([*tiny, *arguments]) == 0
    first, *lines = read_lines(out / "results.jsonl")[earlier:]
    assert first["part"] == "machine"
    return lines


def test_the_gpu_benchmark_writes_each_measurement(gpu, tmp_path):
    lines = gpu_lines(gpu, tmp_path, "--only", "pretraining", "--batches", "16", "32")
    assert [line["batch"] for line in lines] == [16, 32]
    assert all(line["images_per_s"] > 0 and 0 < line["share_of_matrix_rate"] < 1 for line in lines)


def test_the_gpu_benchmark_says_what_did_not_fit(gpu, tmp_path):
    lines = gpu_lines(gpu, tmp_path, "--minutes", "0.9", "--compile", "both", "--only", "pipeline")
    assert "s are left, it takes 60 s at least" in lines[0]["skipped"]
    lines = gpu_lines(gpu, tmp_path, "--minutes", "0", "--compile", "both", "--batches", "128")
    order = [("pretraining", False), ("pipeline", None), ("pretraining", True), ("table", False), ("table", True), *[("concurrent", None)] * 3]
    assert [(line["part"], line.get("compile")) for line in lines] == order and all("skipped" in line for line in lines)


def test_the_gpu_pipeline_goes_on_in_the_next_call(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "Pretrain", lambda **asked: Pretrain(**asked | {"dataset": "digits", "data": DataOptions(limit=20, test_limit=10)}))
    log, trained = Run.log, []

    def stop_once(run, epoch, **values):
        log(run, epoch, **values)
        trained.extend([epoch] * (run.stage == "pretraining"))
        if trained == [1, 2]:
            raise gpu.TimeUp

    monkeypatch.setattr(Run, "log", stop_once)
    asked = ["--only", "pipeline", "--pipeline-epochs", "3"]
    (stopped,) = gpu_lines(gpu, tmp_path, *asked)
    nothing = {"done": False, "epochs": {}}
    assert stopped["reached"] == {"original": {"done": False, "epochs": {"pretraining": 2}}, "known": nothing, "gmm": nothing}
    lines = gpu_lines(gpu, tmp_path, *asked)
    assert [line["model"] for line in lines] == ["original", "fspmu, known", "fspmu, gmm"] and trained == [1, 2, 2, 3]
    assert all(run["done"] for run in gpu.reached(tmp_path / "runs")["reached"].values())


class Thread(threading.Thread):
    """What `subprocess.Popen` would do, in this process."""

    def __init__(self, gpu, command):
        super().__init__(target=lambda: setattr(self, "code", gpu.main(command[2:])))
        self.start()

    def wait(self):
        self.join()
        return self.code

    def kill(self):
        pass


def test_processes_of_the_gpu_benchmark_train_at_the_same_time(gpu, tmp_path, monkeypatch):
    late = iter([0.0, 0.3])
    create = gpu.Together.create
    monkeypatch.setattr(gpu.Together, "create", lambda **sizes: time.sleep(next(late)) or create(**sizes))
    monkeypatch.setattr(gpu.subprocess, "Popen", lambda command, stdout: Thread(gpu, command))
    (line,) = gpu_lines(gpu, tmp_path, "--only", "concurrent", "--processes", "2", "--seconds", "0.2")
    assert line["share_of_time_together"] > 0 and line["seconds"] >= 0.2 and len(line["peak_memory_bytes"]) == 2
    assert 0 < line["images_per_s"] <= sum(line["images_per_s_each"])


def test_the_gpu_benchmark_goes_on_after_a_failure_and_stops_in_time(gpu, tmp_path):
    call = gpu.Call(gpu.read_arguments(["--out", str(tmp_path), "--minutes", "0.005"]))

    def broken():
        yield {"found": 1}
        raise ValueError("no compiler")

    def endless():
        time.sleep(60)
        yield {"found": 2}

    call.attempt(gpu.Part({"part": "broken"}, broken, 0.1))
    call.attempt(gpu.Part({"part": "endless"}, endless, 0.1, lambda: {"reached": 7}))
    assert [line.get("found") for line in call.lines] == [1, None, None] and call.failed
    assert call.lines[1]["error"] == "ValueError: no compiler" and call.lines[2]["stopped"] and call.lines[2]["reached"] == 7
    assert gpu.read_lines(tmp_path / "results.jsonl") == call.lines
