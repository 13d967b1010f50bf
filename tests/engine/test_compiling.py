import copy
import shutil

import pytest
import several
import torch
import torch.nn.functional as F

from fspmu.engine.inference import predict
from fspmu.engine.run import Run
from fspmu.engine.training import sgd, train_epoch
from fspmu.models import smallcnn


def trained(compile):
    """Two epochs, one more pass of another batch size, and predictions."""
    images = several.make_images(torch.Generator().manual_seed(0))
    run = Run(compile=compile, stage="training")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = run.place(smallcnn(4, width=8, channels=3))
    optimizer = sgd(model, 0.05)

    def cross_entropy(model, batch):
        return F.cross_entropy(model(batch.images).logits, batch.given_labels), {}

    losses = [train_epoch(model, run.batches(images, None, size, "train", 1), cross_entropy, optimizer, run)["loss"] for size in (64, 64, 100)]
    return run, model, losses, predict(model, images, run).logits


def test_a_compiler_that_fails_costs_one_line(monkeypatch):
    calls = []

    def broken(model, **options):
        def call(images):
            calls.append(len(images))
            raise TypeError("no kernel for this\nand much more")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    run, model, losses, logits = trained(True)
    plain_run, plain, plain_losses, plain_logits = trained(False)
    assert run.notices == ["--compile does not work here (TypeError: no kernel for this); going on without it"] and plain_run.notices == []
    assert calls == [64], "after a failure nothing is tried again"
    assert losses == plain_losses and torch.equal(logits, plain_logits)
    assert run.passes == plain_run.passes
    assert run.machine["compiled"] and "compiled" not in plain_run.machine


def test_only_full_batches_are_compiled(monkeypatch):
    seen = []

    def watched(model, **options):
        def call(images):
            seen.append((model.training, len(images)))
            return model(images)

        return call

    monkeypatch.setattr(torch, "compile", watched)
    run, *_ = trained(True)
    assert seen == [(True, 64)] * 7 + [(True, 100)], "259 images: the short last batches of 3 and 59 run as they are, and so does the first of each size"
    assert run.notices == []


def test_memory_is_no_failure_of_the_compiler(monkeypatch):
    attempts = []

    def full(model, **options):
        def call(images):
            attempts.append(len(images))
            if len(images) > 40:
                raise torch.OutOfMemoryError("full")
            return model(images)

        return call

    monkeypatch.setattr(torch, "compile", full)
    run, *_, logits = trained(True)
    assert any("in parts" in notice for notice in run.notices) and not any("--compile" in notice for notice in run.notices)
    assert torch.isfinite(logits).all() and attempts[0] == 64


class Unreturnable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values):
        return values.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise TypeError("no kernel for the way back")


def test_a_compiler_that_fails_on_the_way_back_costs_one_line_too(monkeypatch):
    def compile(model, **options):
        def call(images):
            output = model(images)
            return Unreturnable.apply(output.logits), output.features

        return call

    monkeypatch.setattr(torch, "compile", compile)
    run, model, losses, logits = trained(True)
    _, _, plain_losses, plain_logits = trained(False)
    assert run.notices == ["--compile does not work here (TypeError: no kernel for the way back); going on without it"]
    assert losses == pytest.approx(plain_losses, rel=0.02), "the repeated forward moves the running statistics once more, and nothing else"
    assert torch.isfinite(logits).all() and plain_logits.shape == logits.shape


def test_an_error_of_the_method_is_not_blamed_on_the_compiler_for_long(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model, **options: model)
    images = several.make_images(torch.Generator().manual_seed(0))
    run = Run(compile=True, stage="training")
    model = run.place(smallcnn(4, width=8, channels=3))

    def broken(model, batch):
        return model(batch.images).logits.sum() + torch.zeros(2) @ torch.zeros(3), {}

    with pytest.raises(RuntimeError, match="size"):
        train_epoch(model, run.batches(images, None, 64, "train", 1), broken, sgd(model, 0.05), run)


def test_compiled_networks_are_let_go_with_the_stage(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model, **options: model)
    run = Run(compile=True)
    with run.timed("training"):
        with run.timed("evaluation"):
            run.forward(smallcnn(4, width=8, channels=3))
        assert len(run._compiled) == 1
    assert not run._compiled


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_networks_compute_the_same():
    run, model, losses, logits = trained(True)
    _, plain, plain_losses, plain_logits = trained(False)
    assert run.notices == []
    assert losses == pytest.approx(plain_losses, rel=1e-4)
    assert torch.allclose(logits, plain_logits, atol=1e-3)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-3)
    twin = copy.deepcopy(model)
    assert twin.state_dict().keys() == plain.state_dict().keys(), "the network itself is not wrapped"
