"""The benchmarks: both sides do the same work, and the scripts print what they promise."""

import copy
import importlib
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fspmu import losses
from fspmu.detection import loss_mixture
from fspmu.engine.inference import predict
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
    published = loss_mixture.reference_cut((values - values.min()) / (values.max() - values.min()), labels, loss_mixture.REFERENCE, torch.Generator())
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


def test_quick_json_is_one_object(run, capfd):
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
    """Run gpu.py on the CPU; return its lines but the first, which is about the machine."""
    tiny = ["--device", "cpu", "--precision", "fp32", "--width", "8", "--images", "32", "--epochs", "1", "--compile", "no", "--out", str(out)]
    assert gpu.main([*tiny, *arguments]) == 0
    first, *lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert first["part"] == "machine"
    return lines


def test_the_gpu_benchmark_writes_each_measurement(gpu, tmp_path):
    lines = gpu_lines(gpu, tmp_path, "--only", "pretraining", "--batches", "16", "32")
    assert [line["batch"] for line in lines] == [16, 32]
    assert all(line["images_per_s"] > 0 and 0 < line["share_of_matrix_rate"] < 1 for line in lines)


def test_the_gpu_benchmark_says_what_did_not_fit(gpu, tmp_path):
    lines = gpu_lines(gpu, tmp_path, "--minutes", "0")
    assert {line["part"] for line in lines} == {"pretraining", "pipeline", "table", "concurrent"}
    assert all("skipped" in line for line in lines)


def test_the_gpu_benchmark_goes_on_after_a_failure_and_stops_in_time(gpu, tmp_path):
    call = gpu.Call(gpu.read_arguments(["--out", str(tmp_path), "--minutes", "0.005"]))

    def broken():
        yield {"found": 1}
        raise ValueError("no compiler")

    def endless():
        time.sleep(60)
        yield {"found": 2}

    call.attempt(gpu.Part({"part": "broken"}, lambda: 0.1, broken))
    call.attempt(gpu.Part({"part": "endless"}, lambda: 0.1, endless))
    assert [line.get("found") for line in call.lines] == [1, None, None] and call.failed
    assert call.lines[1]["error"] == "ValueError: no compiler" and "time was up" in call.lines[2]["stopped"]
    assert gpu.read_lines(tmp_path / "results.jsonl") == call.lines
