"""A run: streams by purpose, precision, counts, and epochs that go on where they were stopped."""

import itertools
import json
import math
import time

import pytest
import torch
import torch.nn.functional as F

from fspmu.data.images import Images
from fspmu.engine.device import choose_device, choose_precision, is_out_of_memory
from fspmu.engine.inference import predict
from fspmu.engine.run import Run
from fspmu.engine.training import set_lr, sgd, train_epoch
from fspmu.errors import InputError
from fspmu.models import MODELS
from fspmu.models.classifier import reinitialised
from fspmu.preprocessing import Preprocessing
from fspmu.pretraining.trained import SampleHistory
from fspmu.results.store import RunFolder

CPU = torch.device("cpu")


def make_images(count=50):
    draw = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=draw)
    return Images(pixels, torch.arange(count) % 3, ("a", "b", "c"), [str(row) for row in range(count)], preprocessing=Preprocessing(augment="crop", padding=1))


def new_model(run):
    return run.place(reinitialised(MODELS["smallcnn"](3, width=4), run.generator("weights")))


def draws(run, *purpose):
    return torch.randint(0, 2**62, (4,), generator=run.generator(*purpose)).tolist()


def test_every_purpose_has_its_own_stream():
    run = Run(seed=1)
    purposes = [("noise",), ("weights",), ("train", "retain", 1), ("train", "retain", 2), ("train", "forget", 1), ("train", 1, "retain"), ("1",), (1,)]
    streams = [draws(run, *purpose) for purpose in purposes]
    for left, right in itertools.combinations(streams, 2):
        assert not set(left) & set(right)
    assert draws(run, "noise") == streams[0]  # draws from the others did not move it


def test_the_seed_moves_every_stream():
    assert draws(Run(seed=1), "noise") == draws(Run(seed=1), "noise")
    assert not set(draws(Run(seed=1), "noise")) & set(draws(Run(seed=2), "noise"))
    # (1, 23) and (12, 3) must not run together
    assert draws(Run(seed=1), 23) != draws(Run(seed=12), 3)


def test_layers_that_draw_by_themselves_reach_no_gpu_of_others(monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda _: pytest.fail("a GPU that this run is not on was seeded"))
    run, before = Run(seed=3), torch.random.get_rng_state()
    with run._own_draws(1):
        first = torch.rand(3)
    with run._own_draws(1):
        assert torch.equal(torch.rand(3), first)
    with run._own_draws(2):
        assert not torch.equal(torch.rand(3), first)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_streams_do_not_depend_on_the_global_state():
    torch_state = torch.random.get_rng_state()
    first = draws(Run(), "noise")
    torch.random.manual_seed(5)
    assert draws(Run(), "noise") == first
    torch.random.set_rng_state(torch_state)


class Stopped(Exception):
    pass


def train(folder, epochs, stop_at=None, seed=3):
    """Train as a method does; `stop_at` = (epoch, step) ends the process there. Return the run, the model and the history."""
    run, images = Run(seed=seed, folder=folder, saving=math.inf), make_images()
    model, history = new_model(run), SampleHistory(len(images), run)
    optimizer, steps = sgd(model, 0.05), []

    def loss(model, batch):
        steps.append(1)
        if stop_at is not None and (epoch, len(steps)) == stop_at:
            raise Stopped
        logits = model(batch.images).logits
        history.record(batch.index, logits, batch.given_labels)
        return F.cross_entropy(logits, batch.given_labels), {}

    with run.timed("pretraining"):
        for epoch in run.epochs(epochs, model=model, optimizer=optimizer, history=history):
            steps.clear()
            set_lr(optimizer, 0.05 / epoch)
            if epoch == 2:
                run.notice("said in epoch 2")
            run.log(epoch, **train_epoch(model, run.batches(images, None, 16, "train", epoch), loss, optimizer, run), nothing=None)
            history.end_epoch()
    return run, model, history


def lines(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stop_at", [(1, 1), (1, 3), (3, 1), (3, 3), (4, 2)])
def test_a_run_stopped_anywhere_resumes_bit_for_bit(tmp_path, stop_at):
    expected_run, expected, expected_history = train(RunFolder(tmp_path / "whole"), 4)
    with pytest.raises(Stopped):
        train(RunFolder(tmp_path / "cut"), 4, stop_at)
    if stop_at[0] > 1:  # a line of the epoch that was cut short must not stand beside the new one
        RunFolder(tmp_path / "cut").log({"stage": "pretraining", "epoch": stop_at[0], "loss": 99.0})
    RunFolder(tmp_path / "cut").log({"stage": "another", "epoch": 9, "loss": 1.0})
    run, model, history = train(RunFolder(tmp_path / "cut"), 4)
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    assert torch.equal(history.margins, expected_history.margins)
    found = lines(tmp_path / "cut")
    assert {"stage": "another", "epoch": 9, "loss": 1.0} in found
    mine = [line for line in found if line["stage"] == "pretraining"]
    assert mine == lines(tmp_path / "whole") == run.lines == expected_run.lines
    assert [line["epoch"] for line in mine] == [1, 2, 3, 4] and "nothing" not in mine[0]
    assert run.notices == ["said in epoch 2"]
    assert run.passes["pretraining"] == expected_run.passes["pretraining"] == {"forward": 200, "backward": 200}
    assert run.seconds["pretraining"] > 0


def test_states_are_saved_as_long_as_that_costs_little(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr("fspmu.engine.run.save_state", lambda path, state, extra: (saved.append(extra["epoch"]), time.sleep(0.02)))
    for share in (math.inf, 1e-6):
        run = Run(folder=RunFolder(tmp_path), saving=share)
        with run.timed("training"):
            for _ in run.epochs(5):
                pass
        assert saved == ([1, 2, 3, 4, 5] if share == math.inf else [1, 5])
        saved.clear()


def test_seconds_of_a_stopped_run_are_counted_once(tmp_path, monkeypatch):
    now = [0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def stages(stop):
        run = Run(folder=RunFolder(tmp_path), saving=math.inf)
        for stage in ("search", "training"):
            with run.timed(stage):
                for epoch in run.epochs(2):
                    now[0] += 1
                    if stop == (stage, epoch):
                        raise Stopped
        return run.seconds

    with pytest.raises(Stopped):
        stages(("training", 2))
    seconds = stages(None)
    assert seconds == {"search": 2, "training": 2}, "an epoch that was not saved is made, and counted, again"


def test_a_finished_stage_is_not_trained_again(tmp_path):
    _, expected, _ = train(RunFolder(tmp_path), 2)
    _, model, _ = train(RunFolder(tmp_path), 2, stop_at=(1, 1))
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in model.state_dict().items())
    assert len(lines(tmp_path)) == 2


def test_without_a_folder_the_same_happens_in_memory(tmp_path):
    run, model, _ = train(None, 2)
    other_run, other, _ = train(RunFolder(tmp_path), 2)
    assert run.lines == other_run.lines
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    another = train(None, 2, seed=4)[1]
    assert not torch.equal(another.head.weight, model.head.weight)


def test_accuracies_are_those_of_one_stage():
    run = Run()
    with run.timed("pretraining"):
        run.log(1, test_accuracy=0.5)
    with run.timed("unlearning"):
        run.log(1, test_accuracy=0.6)
        run.log(2, test_accuracy=None)
    assert run.accuracies("pretraining") == [0.5] and run.accuracies("unlearning") == [0.6] and run.accuracies("detection") == []


def test_stages_nest_and_add_up():
    run = Run()
    with run.timed("outer"):
        with run.timed("inner"):
            assert run.stage == "inner"
        assert run.stage == "outer"
    first = run.seconds["outer"]
    with pytest.raises(Stopped), run.timed("outer"):
        raise Stopped
    assert run.stage == "" and run.seconds["outer"] > first >= run.seconds["inner"]


def test_passes_are_counted_per_stage():
    run, images = Run(), make_images(20)
    model = new_model(run)
    with run.timed("detection"):
        predict(model, images, run)
    with run.timed("unlearning"):
        train_epoch(model, run.batches(images, torch.arange(20) < 6, 4, "x", 1), lambda m, b: (m(b.images).logits.mean(), {}), sgd(model, 0.1), run)
    assert run.passes == {"detection": {"forward": 20, "backward": 0}, "unlearning": {"forward": 6, "backward": 6}}


def test_a_notice_is_kept_once(capsys):
    run = Run(progress=True)
    for _ in range(3):
        run.notice("mind the step")
    assert run.notices == ["mind the step"]
    assert capsys.readouterr().err.count("mind the step") == 1


def test_bf16_computes_short_and_returns_float32():
    run, images = Run(precision="bf16"), make_images(20)
    model = new_model(run)
    short, full = predict(model, images, run), predict(model, images, Run())
    assert short.logits.dtype == short.features.dtype == torch.float32
    assert not torch.equal(short.logits, full.logits)
    torch.testing.assert_close(short.logits, full.logits, rtol=0.05, atol=0.05)
    assert model.head.weight.dtype == torch.float32


def test_devices_and_precisions_that_are_not_here():
    assert choose_device("cpu") == CPU
    with pytest.raises(InputError, match="unknown device 'cdua'; did you mean 'cuda'"):
        choose_device("cdua")
    with pytest.raises(InputError, match="unknown precision 'fp8'"):
        choose_precision("fp8", CPU)
    assert choose_precision("fp32", CPU) == "fp32" and choose_precision("auto", CPU) in ("fp32", "bf16")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="'cuda' is not available on this machine"):
            Run.create(device="cuda")


def test_what_counts_as_out_of_memory():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"))
    assert not is_out_of_memory(RuntimeError("size mismatch"))
