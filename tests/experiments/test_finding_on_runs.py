"""What a run folder tells a detector, and what older folders and pages still say."""

from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fspmu.data.images import Images
from fspmu.data.split import indices_of
from fspmu.detection.splitting import SplitSettings
from fspmu.engine.checkpoint import save_tensors
from fspmu.engine.model_card import CardFacts, model_card
from fspmu.engine.run import Run
from fspmu.experiments.earlier_run import history_of, left_out_of_training
from fspmu.pretraining import METHODS
from fspmu.pretraining.two_networks import training_mask
from fspmu.report.verdicts import command_of, settings_of
from fspmu.stages.choosing import choose_detection

IMAGES = Images(torch.zeros(200, 1, 2, 2, dtype=torch.uint8), torch.zeros(200, dtype=torch.int64), ("a", "b"), [str(row) for row in range(200)])


def opened(tmp_path, method, **config):
    settings = asdict(replace(METHODS[method].settings, **config.pop("changed", {})))
    config = {"command": "pretrain", "seed": 3, "method": method, "settings": settings, **config}
    return SimpleNamespace(path=tmp_path, config=config, images=IMAGES, test=IMAGES)


@pytest.mark.parametrize("method", ["dividemix", "promix", "longremix"])
def test_what_was_held_out_of_training_is_known_again(method, tmp_path):
    run = opened(tmp_path, method, changed={"keep": "better-on-validation", "held_out": 0.1})
    with (stage := Run(seed=3)).timed("pretraining"):
        trained_on = training_mask(IMAGES, "better-on-validation", 0.1, stage)
    found = left_out_of_training(run)
    assert torch.equal(found, ~trained_on) and len(indices_of(found)) == 20


def test_a_run_that_trained_on_all_has_nothing_left_out(tmp_path):
    for run in (
        opened(tmp_path, "ce"),
        opened(tmp_path, "dividemix", changed={"keep": "net1"}),
        opened(tmp_path, "promix", changed={"keep": "better-on-test"}),
        opened(tmp_path, "dividemix", changed={"keep": "better-on-validation"}, weights="0123"),  # trained elsewhere
        opened(tmp_path, "dividemix", changed={"keep": "better-on-validation"}, command="unlearn"),  # it has seen everything since
    ):
        assert left_out_of_training(run) is None


def test_a_history_is_what_the_run_recorded(tmp_path):
    assert history_of(opened(tmp_path, "ce")) is None
    margins = torch.randn(4, 200).half()
    save_tensors(tmp_path / "sample_history.safetensors", {"margins": margins})
    assert torch.equal(history_of(opened(tmp_path, "ce")), margins)
    save_tensors(tmp_path / "sample_history.safetensors", {"margins": margins[:0]})  # weights of somebody else's: nobody knows
    assert history_of(opened(tmp_path, "ce")) is None


def files_of(config):
    return SimpleNamespace(config=config, material={}, record={"data": {"name": "photos"}}, folder=Path("nowhere/run/unlearn"))


def test_the_page_reads_runs_from_before_cuts_had_names():
    old = {
        "command": "unlearn",
        "run": "abc",
        "method": "fspmu",
        "detector": "gmm",
        "detector_settings": {"starts": 10},
        "cut": {"threshold": 0.4, "class_floor": 10},
        "settings": {"lr": 0.1},
    }
    assert settings_of(old) == {"detector": {"starts": 10}, "cut": {}, "split": {"threshold": 0.4, "class_floor": 10}, "method": {"lr": 0.1}, "rounds": {}}
    words = command_of(files_of(old))
    assert "--cut" not in words and "--threshold 0.4" in words and "--starts 10" in words


def test_the_page_repeats_a_run_with_its_cut():
    config = {
        "command": "unlearn",
        "run": "abc",
        "method": "fspmu",
        "settings": {"lr": 0.1},
        "split": asdict(SplitSettings(threshold=0.3)),
        **choose_detection("fine", cut="otsu").config(),
    }
    words = command_of(files_of(config)).split()
    assert words[words.index("--cut") + 1] == "otsu" and words[words.index("--threshold") + 1] == "0.3"
    given = settings_of(config | {"detector": "given", "detector_settings": {}})
    assert given["cut"] == {} and given["detector"] == {} and given["split"]["threshold"] == 0.3


def test_a_model_card_names_the_cut_and_a_forget_set_has_none():
    facts = CardFacts(title="birds", samples=10, forgotten=2, detector="knn", method="fspmu", cut="otsu", cut_settings={"per_class": True})
    assert "Cut: otsu (per_class True)." in model_card(facts).replace("\\_", "_")
    assert "Cut:" not in model_card(replace(facts, detector="given", cut="", cut_settings={}))
