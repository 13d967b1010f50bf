"""Detect, repair, detect again: each round against the same steps taken by hand, and what a stopped one goes on with."""

import copy
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fspmu.data.sources import DataOptions, load_source
from fspmu.data.split import Split
from fspmu.detection import DETECTORS
from fspmu.detection.splitting import SplitSettings
from fspmu.engine.checkpoint import build_model
from fspmu.engine.inference import predict_views
from fspmu.engine.run import Run
from fspmu.errors import InputError
from fspmu.models.classifier import Description
from fspmu.pretraining import METHODS as PRETRAINING
from fspmu.results.store import RunFolder
from fspmu.stages import rounds as module
from fspmu.stages.deciding import WORDS, Decided
from fspmu.stages.finding import find_label_issues
from fspmu.stages.mending import mend
from fspmu.stages.relabelling import with_new_labels
from fspmu.stages.rounds import Rounds, clean_by_views, late_labels, repair_rounds
from fspmu.unlearning import METHODS as UNLEARNING
from fspmu.unlearning import feature_preserving
from fspmu.unlearning.weighing import parts_of

COUNT = 400
FEW = replace(UNLEARNING["fspmu"].settings, epochs=2, forget_epochs=1, lr=2e-3)


@pytest.fixture(scope="module")
def digits():
    """Return some digits with 30% wrong labels, the truth, and others to test with."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = load_source("digits", DataOptions())
    draw, images = torch.Generator().manual_seed(0), source.train.subset(torch.arange(COUNT))
    images = images.prepared_as(replace(images.preprocessing, augment="crop", padding=1))
    wrong = torch.rand(COUNT, generator=draw) < 0.3
    given_labels = torch.where(wrong, (images.given_labels + torch.randint(1, 10, (COUNT,), generator=draw)) % 10, images.given_labels)
    return images.with_labels(given_labels), images.given_labels, source.test.subset(torch.arange(60))


@pytest.fixture(scope="module")
def model(digits):
    images, run = digits[0], Run()
    description = Description("smallcnn", {"width": 8}, images.class_names, images.preprocessing, "ce")
    with run.timed("pretraining"):
        chosen = replace(PRETRAINING["ce"].settings, epochs=12, lr=0.05, batch_size=64)
        return PRETRAINING["ce"].pretrain(images, lambda generator: build_model(description, generator), chosen, run).models[0].eval()


def state_of(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


def test_one_round_is_a_plain_repair(model, digits):
    images, truth, test = digits
    runs = [Run(evaluation=test), Run(evaluation=test)]
    plain = mend(model, images, settings=FEW, truth=truth, run=runs[0])
    once = repair_rounds(model, images, Rounds(), settings=FEW, truth=truth, run=runs[1])
    assert same(state_of(plain.model), state_of(once.model)) and plain.report == once.report and plain.test_accuracy == once.test_accuracy
    assert runs[0].lines == runs[1].lines and runs[0].passes == runs[1].passes


@pytest.mark.parametrize("look", ["detector", "views"])
def test_two_rounds_are_the_steps_by_hand(model, digits, look):
    images, truth, test = digits
    before, run = state_of(model), Run(evaluation=test)
    split_settings = SplitSettings(threshold=0.6)
    result = repair_rounds(model, images, Rounds(2, look), settings=FEW, finding={"split": split_settings}, truth=truth, run=run)

    first = mend(model, images, settings=FEW, split=split_settings, run=Run())
    if look == "detector":
        split = find_label_issues(first.model, images, split=split_settings, run=Run()).split
    else:
        said = predict_views(first.model, images, Run(), 2).probabilities
        clean = clean_by_views(said, images.given_labels)
        split = Split(clean > 0.6, clean <= 0.6, clean)
    assert torch.equal(result.detection.split.retain, split.retain) and torch.equal(result.detection.split.forget, split.forget)
    assert not torch.equal(split.forget, first.detection.split.forget), "a repaired model finds something else"
    second = mend(model, images, settings=FEW, found=replace(first.detection, split=split), run=Run())
    assert same(state_of(result.model), state_of(second.model)), "the model as it was is repaired, by what its repair finds"

    assert same(state_of(model), before)
    assert torch.equal(result.detection.predictions.logits, first.detection.predictions.logits), "what was before is what the model as it was says"
    told = result.report["rounds"]
    assert [entry["round"] for entry in told] == [1, 2] and told[0]["moved"] == 0
    assert told[1]["moved"] == int((split.forget != first.detection.split.forget).sum()) and told[1]["forget"] == int(split.forget.sum())
    assert all(0 < entry["quality"]["f1"] <= 1 and 0 < entry["test_accuracy"]["last"] < 1 for entry in told)
    assert [line["epoch"] for line in run.lines] == [1, 2] and run.accuracies("unlearning")[-1] == result.test_accuracy["last"]


def test_a_model_that_was_trained_on_plain_images_is_looked_at_in_other_views(model, digits, monkeypatch):
    images = digits[0].prepared_as(replace(digits[0].preprocessing, augment="none", padding=0))
    model = copy.deepcopy(model)
    model.description = None  # as of somebody else's: it says nothing of its training
    seen = []

    def watch(network, shown, run, views):
        seen.append((shown.preprocessing.augment, shown.preprocessing.padding, views))
        return predict_views(network, shown, run, views)

    monkeypatch.setattr(module, "predict_views", watch)
    asked = replace(DETECTORS["noise-transition"].settings, views=1, viewing="crop")
    for finding in ({}, {"detector": "noise-transition", "settings": asked}):
        repair_rounds(model, images, Rounds(2), settings=replace(FEW, epochs=1), finding=finding, run=Run())
    assert seen == [("crop-flip", 1, 2), ("crop", 1, 2)], "as the detector looks, where it says how"


def test_every_round_is_paid_for(model, digits):
    run = Run()
    result = repair_rounds(model, digits[0], Rounds(2, "views", 3, relabel=0.9), settings=FEW, run=run)
    counted = [entry["passes"] for entry in result.report["rounds"]]
    assert run.passes["unlearning"]["backward"] == sum(part["unlearning"]["backward"] for part in counted) > 0
    first = 1 + 6 + 1  # plain images, six views, and plain ones again to choose a depth
    assert run.passes["detection"]["forward"] == (first + 3) * COUNT and counted[1]["detection"]["forward"] == 3 * COUNT
    assert run.seconds["unlearning"] > 0 and run.seconds["detection"] > 0


def test_what_nobody_may_look_at_stays_out(model, digits):
    images, truth, _ = digits
    unseen = torch.arange(COUNT) % 5 == 0
    for look in ("detector", "views"):
        split = repair_rounds(model, images, Rounds(2, look), settings=FEW, finding={"unseen": unseen}, truth=truth, run=Run()).detection.split
        assert not bool((split.retain | split.forget)[unseen].any()) and bool(split.clean_probability[unseen].isnan().all())
        assert bool((split.retain | split.forget)[~unseen].all())


def test_a_class_that_a_second_look_would_lose_is_kept_and_named(model, digits):
    images, run = digits[0], Run()
    said = torch.nn.functional.one_hot((images.given_labels + 1) % 10, 10).float()
    said[images.given_labels != 3] = torch.nn.functional.one_hot(images.given_labels, 10).float()[images.given_labels != 3]
    with run.timed("detection"):
        pass
    split = module.found_by_views(said, images, find_label_issues(model, images, run=Run()), SplitSettings(), None, None, run).split
    assert int(split.retain[images.given_labels == 3].sum()) == 10
    assert [f"every label of {images.class_names[3]} looks wrong" in told for told in run.notices] == [True]


def test_a_relabelled_image_is_learned_under_its_new_label_alone(digits):
    images, new = digits[0], torch.full((COUNT,), -1)
    new[7] = (images.given_labels[7] + 1) % 10
    clean = torch.full((COUNT,), 0.9)
    clean[7:9] = 0.4
    both, split = with_new_labels(images, Split(clean > 0.5, clean <= 0.5, clean), new)
    retained, forgotten = parts_of(split, "clean-probability", 0.2)
    assert both.given_labels[COUNT] == new[7] and retained.chosen[COUNT] and not forgotten.chosen[COUNT]
    assert not retained.chosen[7] and forgotten.chosen[7], "with a P(clean) of .4 it would have been learned under both"
    assert retained.chosen[8] and clean[7] == 0.4


probabilities = st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=12)


@given(probabilities, st.integers(0, 99))
@settings(max_examples=50)
def test_clean_by_views(rows, seed):
    said, labels = torch.tensor(rows, dtype=torch.float64), torch.randint(0, 3, (len(rows),), generator=torch.Generator().manual_seed(seed))
    usual = [float(said[labels == label, label].mean()) if bool((labels == label).any()) else 0.0 for label in range(3)]
    for row, label, value in zip(rows, labels.tolist(), clean_by_views(said, labels).tolist(), strict=True):
        ratio = [p / t if t > 0 else 0.0 for p, t in zip(row, usual, strict=True)]
        own, other = ratio[label], max(ratio[:label] + ratio[label + 1 :])
        assert value == (pytest.approx(own / (own + other)) if own + other else 0.5) and 0 <= value <= 1


def test_a_class_that_a_repair_lost_is_not_lost_for_good():
    """Of class 2 the model predicts but a little everywhere; its own samples still have most of that."""
    said = torch.tensor([[0.9, 0.1, 0.0], [0.1, 0.9, 0.0], [0.6, 0.3, 0.1], [0.35, 0.55, 0.1], [0.8, 0.2, 0.0]])
    assert (clean_by_views(said, torch.tensor([0, 1, 2, 2, 2])) > 0.5).tolist() == [True, True, True, True, False]


@given(probabilities, st.floats(0, 1))
@settings(max_examples=50)
def test_late_labels(rows, above):
    said, labels = torch.tensor(rows, dtype=torch.float64), torch.arange(len(rows)) % 3
    draw = torch.Generator().manual_seed(len(rows))
    split = Split(*(torch.rand(len(rows), generator=draw) < 0.5 for _ in range(2)), torch.zeros(len(rows)))
    new = late_labels(said, split, labels, above)
    for row, label in enumerate(new.tolist()):
        sure = bool(split.forget[row]) and not bool(split.retain[row]) and float(said[row].max()) > above and int(said[row].argmax()) != int(labels[row])
        assert label == (int(said[row].argmax()) if sure else -1)


def test_relabelled_images_are_learned_under_the_new_label(model, digits, monkeypatch):
    images, truth, _ = digits
    taken = []

    def watch(*arguments, new_labels=None, **options):
        taken.append(new_labels)
        return mend(*arguments, new_labels=new_labels, **options)

    monkeypatch.setattr(module, "mend", watch)
    result = repair_rounds(model, images, Rounds(2, relabel=0.8), settings=FEW, run=Run())
    assert taken[0] is None, "no model is repaired yet"
    rows = taken[1] >= 0
    assert 0 < int(rows.sum()) == result.report["rounds"][1]["relabelled"]
    assert bool((result.detection.split.forget[rows]).all()) and bool((taken[1] != images.given_labels)[rows].all())
    assert float((taken[1] == truth)[rows].float().mean()) > 0.6, "what it is sure of is mostly right"
    without = repair_rounds(model, images, Rounds(2), settings=FEW, run=Run())
    assert not same(state_of(without.model), state_of(result.model))


def test_a_person_is_right_in_every_round(model, digits, monkeypatch):
    images = digits[0]
    said = torch.full((COUNT,), -1)
    said[:20], said[20:40], said[40:60] = WORDS.index("keep"), WORDS.index("accept"), WORDS.index("drop")
    chosen = torch.where(said == WORDS.index("accept"), (images.given_labels + 1) % 10, torch.full_like(said, -1))
    taken = []
    monkeypatch.setattr(module, "mend", lambda *arguments, **options: taken.append(options["new_labels"]) or mend(*arguments, **options))
    for look in ("detector", "views"):
        asked = Rounds(2, look, relabel=0.5)
        result = repair_rounds(model, images, asked, settings=FEW, decided=Decided(said, chosen), run=Run())
        split = result.detection.split
        assert bool(split.retain[:20].all()) and bool(split.forget[20:40].all()) and not bool((split.retain | split.forget)[40:60].any())
        assert bool((split.clean_probability[:20] == 1).all())
        assert torch.equal(taken[-1][:60], chosen[:60]) and bool((taken[-1][60:] >= 0).any())


def test_it_ends_when_nothing_new_is_found(model, digits, tmp_path):
    images, truth, _ = digits
    run = Run(folder=RunFolder(tmp_path / "run"))
    result = repair_rounds(model, images, Rounds(4, "detector"), settings=FEW, finding={"detector": "known"}, truth=truth, run=run)
    assert len(result.report["rounds"]) == 1 and any("round 2 finds what round 1 found" in notice for notice in run.notices)
    plain = mend(model, images, settings=FEW, detector="known", truth=truth, run=Run())
    assert same(state_of(result.model), state_of(plain.model))
    assert [line["epoch"] for line in run.lines] == [1, 2] and run.folder.metrics("unlearning") == run.lines


class Stopped(Exception):
    pass


@pytest.mark.parametrize(("number", "total"), [(1, 2), (2, 2), (3, 3)])
def test_a_stopped_run_goes_on_in_the_round_it_was_in(model, digits, tmp_path, monkeypatch, number, total):
    images, truth, _ = digits
    asked = Rounds(total, "views", relabel=0.8)
    whole = Run(folder=RunFolder(tmp_path / "whole"), saving=100.0)
    expected = repair_rounds(model, images, asked, settings=FEW, truth=truth, run=whole)
    log, seen = Run.log, []

    def stop(run, epoch, **values):
        seen.append(epoch)
        if len(seen) == 2 * number:  # in the last epoch of that round
            raise Stopped
        log(run, epoch, **values)

    monkeypatch.setattr(Run, "log", stop)
    with pytest.raises(Stopped):
        repair_rounds(model, images, asked, settings=FEW, truth=truth, run=Run(folder=RunFolder(tmp_path / "cut"), saving=100.0))
    monkeypatch.setattr(Run, "log", log)
    trained, work = [], feature_preserving.train_epoch
    monkeypatch.setattr(feature_preserving, "train_epoch", lambda *arguments, **options: trained.append(1) or work(*arguments, **options))
    again = Run(folder=RunFolder(tmp_path / "cut"))
    result = repair_rounds(model, images, asked, settings=FEW, truth=truth, run=again)
    assert same(state_of(result.model), state_of(expected.model)) and torch.equal(result.after.logits, expected.after.logits)
    assert again.lines == whole.lines == whole.folder.metrics("unlearning") == again.folder.metrics("unlearning")
    assert len(trained) == 1 + 3 * (total - number), "what was done is not done again: one pass was left, and the rounds after it"
    for entry, other in zip(result.report["rounds"], expected.report["rounds"], strict=True):
        assert entry["passes"]["unlearning"] == other["passes"]["unlearning"] and entry["forget"] == other["forget"]


def test_what_is_known_of_the_model_as_it_was_says_nothing_of_a_repaired_one(model, digits, monkeypatch):
    images, _, test = digits
    left_out, unseen = torch.arange(COUNT) < 40, torch.arange(COUNT) < 20
    asked = []
    real = module.find_label_issues
    monkeypatch.setattr(module, "find_label_issues", lambda *arguments, **options: asked.append(options) or real(*arguments, **options))
    for fresh, aside in ((left_out, unseen), (left_out, None), (test, None)):
        finding = {"fresh": fresh, "unseen": aside, "history": torch.zeros(2, COUNT)}
        repair_rounds(model, images, Rounds(2, "detector"), settings=FEW, finding=finding, run=Run())
    assert all("history" in options and options["history"] is None for options in asked[1::2]) and asked[0]["history"] is not None
    kept = [options["fresh"] for options in asked[1::2]]
    assert torch.equal(kept[0], unseen), "what the repair learned from is not fresh any more"
    assert kept[1] is None and kept[2] is test


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (Rounds(0), "--rounds is 0, but it must be at least 1"),
        (Rounds(2, look_views=0), "--look-views is 0, but it must be at least 1"),
        (Rounds(2, "view"), "unknown --second-look 'view'; did you mean 'views'"),
        (Rounds(2, relabel=1.5), "--relabel is 1.5, but it must be a fraction"),
        (Rounds(1, "detector"), "--second-look and --look-views look at a repaired model.*add --rounds 2"),
        (Rounds(1, look_views=7), "--second-look and --look-views look at a repaired model.*add --rounds 2"),
        (Rounds(1, relabel=0.9), "--relabel 0.9 takes new labels from a repaired model.*add --rounds 2"),
    ],
)
def test_rounds_that_cannot_be(model, digits, asked, sentence):
    with pytest.raises(InputError, match=sentence):
        repair_rounds(model, digits[0], asked, settings=FEW, run=Run())


def test_a_probe_of_the_last_look_is_paid_for_once(model, digits, tmp_path):
    finding = {"detector": "gmm-probe", "settings": replace(DETECTORS["gmm-probe"].settings, probe_epochs=1)}
    asked = {"settings": replace(FEW, epochs=1), "finding": finding}
    costs = []
    for folder in (None, RunFolder(tmp_path / "run")):
        if folder is not None:
            folder.open({"a": 1}, resume=False)
        run = Run(folder=folder)
        costs.append((state_of(repair_rounds(model, digits[0], Rounds(2, "detector"), run=run, **asked).model), run.passes))
        if folder is not None:
            folder.close()
    assert same(costs[0][0], costs[1][0]) and costs[0][1] == costs[1][1] and costs[0][1]["probe"]["backward"] == 2 * COUNT


def test_rounds_without_settings_take_those_of_the_model(model, digits, monkeypatch):
    seen = []
    monkeypatch.setattr(
        module, "mend", lambda *_, settings, **how: seen.append(settings) or mend(model, digits[0], settings=FEW, found=how["found"], run=how["run"])
    )
    repair_rounds(model, digits[0], Rounds(2), run=Run())
    assert seen and all(settings.weighting == "clean-probability" for settings in seen), "how sure a round is counts, so that none is taken for the one before"
