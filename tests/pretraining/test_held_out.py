"""Images that plain training sets aside: never trained on, known again, and neither judged nor unlearned."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from fspmu.cli import main
from fspmu.data.augment import normalise
from fspmu.data.images import Images
from fspmu.data.sources import DataOptions, load_source
from fspmu.engine.checkpoint import build_model, load
from fspmu.engine.run import Run
from fspmu.errors import InputError, check_settings
from fspmu.models.classifier import Description
from fspmu.pretraining import METHODS, cross_entropy
from fspmu.pretraining.trained import held_out_mask
from fspmu.pretraining.two_networks import training_mask
from fspmu.report.run_files import read_issues


def make_images(count=40):
    draw = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 255, (count, 3, 8, 8), dtype=torch.uint8, generator=draw)
    return Images(pixels, torch.arange(count) % 4, tuple("abcd"), [str(row) for row in range(count)])


def pretrain(held_out, images):
    run = Run(seed=2)
    settings = cross_entropy.Settings(epochs=2, batch_size=8, held_out=held_out)
    with run.timed("pretraining"):
        return cross_entropy.pretrain(images, lambda draw: build_model(Description("smallcnn", {"width": 4}, tuple("abcd")), draw), settings, run), run


def test_what_is_held_out_does_not_touch_the_weights():
    images = make_images()
    trained, run = pretrain(0.25, images)
    aside = trained.held_out
    assert int(aside.sum()) == 10 and run.passes["pretraining"]["backward"] == 2 * 30
    other = replace(images, pixels=torch.where(aside[:, None, None, None], 255 - images.pixels, images.pixels))
    again = pretrain(0.25, replace(other, given_labels=torch.where(aside, 3 - other.given_labels, other.given_labels)))[0]
    weights = zip(trained.models[0].state_dict().values(), again.models[0].state_dict().values(), strict=True)
    assert all(torch.equal(*pair) for pair in weights)
    margins = trained.history.margins
    assert margins.shape == (2, 40) and margins[:, aside].isnan().all() and margins[:, ~aside].isfinite().all()
    assert torch.equal(aside, held_out_mask(40, 0.25, Run(seed=2))) and not torch.equal(aside, held_out_mask(40, 0.25, Run(seed=3)))


def test_without_a_share_all_is_trained_on():
    trained, run = pretrain(0.0, make_images())
    assert trained.held_out is None and run.passes["pretraining"]["backward"] == 2 * 40 and trained.history.margins.isfinite().all()
    assert METHODS["ce"].settings.held_out == 0.0


def test_a_share_that_leaves_nothing_is_refused():
    with pytest.raises(InputError, match="leaves none of 4 samples"):
        held_out_mask(4, 0.99, Run())
    with pytest.raises(InputError, match="--held-out is 1.0, but it must be from 0 to below 1"):
        check_settings(cross_entropy.Settings(held_out=1.0))
    with pytest.raises(InputError, match="--keep better-on-validation judges by samples that are held out"):
        training_mask(make_images(), "better-on-validation", 0.0, Run())
    assert training_mask(make_images(), "net1", 0.0, Run()).all()


def command(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main([*map(str, arguments), "--precision", "fp32", "--json"])
    out, err = capsys.readouterr()
    assert end.value.code == 0, err
    return json.loads(out)


def test_a_run_with_images_aside_is_judged_and_repaired_without_them(tmp_path, capsys):
    noise = ["--noise-mode", "sym", "--noise-rate", "0.4", "--limit", "200", "--width", "4", "--epochs", "3"]
    record = command(capsys, "pretrain", *noise, "--held-out", "0.2", "--out", tmp_path / "run")
    aside = load_file(tmp_path / "run" / "labels.safetensors")["held_out"]
    assert int(aside.sum()) == 40 and record["pretraining"]["passes"]["backward"] == 3 * 160
    found = command(capsys, "unlearn", tmp_path / "run", "--detector", "combined", "--views", "1", "--epochs", "1", "--out", tmp_path / "repaired")
    assert found["detection"]["depth"]["fresh"] == 40 and found["detection"]["depth"]["fitted"] == 160
    split = load_file(tmp_path / "repaired" / "split.safetensors")
    assert split["score"][aside].isnan().all() and split["score"][~aside].isfinite().all()
    assert not split["retain"][aside].any() and not split["forget"][aside].any() and (split["retain"] | split["forget"])[~aside].all()
    issues = read_issues(tmp_path / "repaired" / "label_issues.csv")
    assert not issues["is_label_issue"][aside.numpy()].any() and found["detection"]["issues"] == issues["is_label_issue"].sum() > 0
    assert torch.equal(load_file(tmp_path / "repaired" / "labels.safetensors")["held_out"], aside), "whoever works on the repaired model knows it too"
    measured = command(capsys, "evaluate", tmp_path / "run")["evaluation"]["train"]
    model, data = load(tmp_path / "run"), load_source("digits", DataOptions(limit=200)).train
    with torch.no_grad():
        right = model(normalise(data.pixels, model.description.preprocessing)).logits.argmax(1) == load_file(tmp_path / "run" / "labels.safetensors")["given"]
    assert measured["accuracy"] == pytest.approx(float(right[~aside].double().mean())), "of those alone that it was trained on"
    again = command(capsys, "unlearn", tmp_path / "repaired", "--detector", "gmm", "--epochs", "1", "--out", tmp_path / "twice")
    assert again["passes"]["pretraining"] == found["passes"]["pretraining"]
    assert again["passes"]["detection"]["forward"] < found["passes"]["detection"]["forward"], "what it cost itself"
    survey = command(capsys, "survey", tmp_path / "run", "--detectors", "combined,trajectory", "--cuts", "sign", "--views", "1")["survey"]
    scores = load_file(tmp_path / "run" / "survey" / "scores.safetensors")
    assert survey["samples"] == 160 and torch.equal(scores["combined"].isnan(), aside) and torch.equal(scores["trajectory"].isnan(), aside)
    assert torch.equal(scores["combined"][~aside], split["score"][~aside])
