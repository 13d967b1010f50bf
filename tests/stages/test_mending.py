"""From a model and its images to issues and a repaired model, on the digits."""

import warnings
from dataclasses import replace

import pytest
import torch
from sklearn.metrics import roc_auc_score

import fspmu
from fspmu.data.sources import DataOptions, load_source
from fspmu.detection import DEFAULT, DETECTORS
from fspmu.detection.label_issues import COLUMNS
from fspmu.detection.splitting import SplitSettings
from fspmu.engine.checkpoint import build_model
from fspmu.engine.inference import accuracy
from fspmu.engine.run import Run
from fspmu.errors import EmptySplit, InputError
from fspmu.models.classifier import Description
from fspmu.pretraining import METHODS as PRETRAINING
from fspmu.stages.finding import find_label_issues
from fspmu.stages.mending import mend, published_settings, say_if_worse, suitable_settings
from fspmu.unlearning import METHODS as UNLEARNING

FEW = replace(UNLEARNING["fspmu"].settings, epochs=2, forget_epochs=1)


@pytest.fixture(scope="module")
def digits():
    """Return the training digits with 30% wrong labels, the truth, and the held-out digits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = load_source("digits", DataOptions())
    draw = torch.Generator().manual_seed(0)
    truth = source.train.given_labels
    wrong = torch.rand(len(truth), generator=draw) < 0.3
    shift = torch.randint(1, 10, (len(truth),), generator=draw)
    return source.train.with_labels(torch.where(wrong, (truth + shift) % 10, truth)), truth, source.test


@pytest.fixture(scope="module")
def model(digits):
    """Return a small network trained for a few epochs: it knows the digits, not yet the wrong labels."""
    images, run = digits[0], Run()
    description = Description("smallcnn", {"width": 8}, images.class_names, images.preprocessing, "ce")
    settings = replace(PRETRAINING["ce"].settings, epochs=8, lr=0.05)
    with run.timed("pretraining"):
        return PRETRAINING["ce"].pretrain(images, lambda generator: build_model(description, generator), settings, run).models[0].eval()


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


def cpu_run(**fields):
    return Run.create(device="cpu", precision="fp32", **fields)


def check_table(table, images):
    assert tuple(table.columns) == COLUMNS
    assert table["id"].tolist() == list(images.ids)
    assert table["given_label"].tolist() == [images.class_names[label] for label in images.given_labels.tolist()]
    assert table["label_score"].between(0, 1).all() and (table["label_score"] + table["noise_probability"]).sub(1).abs().max() < 1e-12
    assert ((table["suggested_label"] != table["given_label"]) == table["is_label_issue"]).all()
    assert table["suggested_confidence"].between(0, 1).all()
    assert (table["is_label_issue"] == (table["forget"] | ~table["retain"])).all()
    assert set(table["suggested_label"]) <= set(images.class_names)


def test_label_issues_of_the_digits(model, digits):
    images, truth, _ = digits
    before, mode = state_of(model), model.training
    found = find_label_issues(model, images, truth=truth, run=(run := cpu_run()))
    assert same(state_of(model), before) and model.training is mode
    check_table(found.issues, images)
    wrong = (images.given_labels != truth).numpy()
    assert roc_auc_score(wrong, -found.issues["label_score"]) > 0.9  # LOW = bad
    assert roc_auc_score(wrong, found.score) > 0.9  # HIGH = looks wrong
    issues = found.issues[found.issues["is_label_issue"]]
    assert issues["label_score"].max() <= 0.5 < found.issues.drop(issues.index)["label_score"].min()
    right = [images.class_names[label] for label in truth[torch.tensor(issues.index.to_numpy())].tolist()]
    assert (issues["suggested_label"] == right).mean() > 0.6
    assert found.report["quality"]["f1"] > 0.7 and found.report["issues"] == len(issues) == found.report["forget"]
    passes = 1 + 6 + 1  # plain images, six views, and plain ones again to choose a depth
    assert found.report["passes"] == {"forward": passes * len(images), "backward": 0} and run.seconds["detection"] > 0

    again = find_label_issues(model, images, run=cpu_run())
    assert again.issues.equals(found.issues)  # the truth has no say in what is found
    assert again.report["quality"] is None


@pytest.mark.parametrize("detector", DETECTORS)
def test_every_detector(model, digits, detector):
    images, truth, _ = digits
    if detector == "confident-learning":
        pytest.importorskip("cleanlab")
    history = torch.where(images.given_labels == truth, 2.0, -1.0).expand(3, -1)
    found = find_label_issues(model, images, detector=detector, truth=truth, history=history, run=cpu_run())
    check_table(found.issues, images)
    assert found.report["detector"] == detector and 0 < found.report["issues"] < len(images)
    if detector == "known":
        assert torch.equal(found.split.forget, images.given_labels != truth)
        assert found.report["quality"]["f1"] == 1


def test_the_cut_is_the_users(model, digits):
    images = digits[0]
    loose, strict = (find_label_issues(model, images, split=SplitSettings(threshold), run=cpu_run()) for threshold in (0.01, 0.99))
    assert loose.report["issues"] < strict.report["issues"]
    assert strict.issues["label_score"][strict.issues["retain"]].min() > 0.99


@pytest.mark.parametrize("method", ["fspmu", "finetune"])
def test_a_repair(model, digits, method):
    images, truth, test = digits
    before = state_of(model)
    settings = FEW if method == "fspmu" else replace(UNLEARNING["finetune"].settings, epochs=1)
    run = cpu_run(evaluation=test)
    result = mend(model, images, method=method, settings=settings, truth=truth, run=run)
    assert same(state_of(model), before)
    assert not same(state_of(result.model), before) and not result.model.training
    check_table(result.issues, images)
    assert (result.issues["is_label_issue"] == result.detection.issues["is_label_issue"]).all()
    assert result.test_accuracy["before"] == pytest.approx(accuracy(model, test, Run()))
    assert result.test_accuracy["last"] == pytest.approx(accuracy(result.model, test, Run()))
    assert result.test_accuracy["best"] == max(line["test_accuracy"] for line in run.lines)
    said = [images.class_names[label] for label in result.after.logits.argmax(1).tolist()]
    assert result.issues["predicted_label"].tolist() == said != result.detection.issues["predicted_label"].tolist()
    agreement = (result.after.logits.argmax(1) == images.given_labels).float().mean()
    assert float(agreement) == pytest.approx(accuracy(result.model, images, Run()))
    assert result.report["method"] == method and result.report["settings"]["epochs"] == settings.epochs


def test_the_audit_counts_agreement_on_both_sets(model, digits):
    images, truth, _ = digits
    result = mend(model, images, settings=FEW, detector="known", truth=truth, run=cpu_run())
    forget = images.given_labels != truth
    for name, predictions in (("before", result.detection.predictions), ("after", result.after)):
        said = predictions.logits.argmax(1)
        expected = {
            "forget_given": (said == images.given_labels)[forget],
            "forget_true": (said == truth)[forget],
            "retain_given": (said == images.given_labels)[~forget],
        }
        figures = result.report["audit"][name]
        assert figures == pytest.approx({key: float(hits.float().mean()) for key, hits in expected.items()})
    blind = mend(model, images, settings=FEW, run=cpu_run())
    assert blind.report["audit"]["after"]["forget_true"] is None and blind.test_accuracy == {"before": None, "last": None, "best": None}


def test_the_same_seed_repairs_the_same(model, digits):
    first, again, other = (mend(model, digits[0], settings=FEW, run=cpu_run(seed=seed)).model for seed in (0, 0, 1))
    assert same(state_of(first), state_of(again)) and not same(state_of(first), state_of(other))


def test_nothing_to_forget_leaves_the_weights(model, digits):
    images, _, test = digits
    run = cpu_run(evaluation=test)
    result = mend(model, images, settings=FEW, detector="known", truth=images.given_labels, run=run)
    assert same(state_of(result.model), state_of(model)) and result.model is not model
    assert any("nothing to forget" in notice and "unchanged" in notice for notice in run.notices)
    assert result.test_accuracy["before"] == result.test_accuracy["last"] == result.test_accuracy["best"]
    assert not result.issues["is_label_issue"].any() and result.report["audit"]["after"]["forget_given"] is None


def test_nothing_to_retain_is_refused(model, digits):
    images = digits[0]
    with pytest.raises(EmptySplit, match="0 of [0-9]+ samples are left"):
        mend(model, images, detector="known", truth=(images.given_labels + 1) % 10, run=cpu_run())


def test_a_worse_repair_is_said_first(model, digits):
    images, truth, test = digits
    run = cpu_run(evaluation=test)
    run.notice("something earlier")
    spoilt = replace(UNLEARNING["retrain"].settings, epochs=1, lr=1e-7)
    result = mend(model, images, method="retrain", settings=spoilt, truth=truth, run=run)
    say_if_worse(result, run)
    assert result.test_accuracy["last"] < result.test_accuracy["before"]
    assert "WORSE" in run.notices[0] and "keep the model you had" in run.notices[0]
    assert f"{result.test_accuracy['last']:.2%} after" in run.notices[0] and f"{result.test_accuracy['before']:.2%} before" in run.notices[0]


def test_a_better_repair_is_not_called_worse(model, digits):
    images, truth, _ = digits
    run = cpu_run(evaluation=images.with_labels(truth))
    result = mend(model, images, method="finetune", settings=replace(UNLEARNING["finetune"].settings, epochs=2), detector="known", truth=truth, run=run)
    say_if_worse(result, run)
    assert result.test_accuracy["last"] > result.test_accuracy["before"]
    assert not any("WORSE" in notice for notice in run.notices)


def test_known_needs_the_truth(model, digits):
    with pytest.raises(InputError, match="true labels are not known.*choose another --detector"):
        find_label_issues(model, digits[0], detector="known", run=cpu_run())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"detector": "gm"}, "unknown detector 'gm'; did you mean 'gmm'"), ({"method": "fspum"}, "unknown method 'fspum'; did you mean 'fspmu'")],
)
def test_a_name_that_is_none(model, digits, options, sentence):
    with pytest.raises(InputError, match=sentence):
        mend(model, digits[0], run=cpu_run(), **options)


def test_other_classes_name_both_lists(model, digits):
    images = digits[0]
    renamed = images.with_labels(images.given_labels, ("zero", *images.class_names[1:]))
    reordered = images.with_labels(images.given_labels, tuple(reversed(images.class_names)))
    more = images.with_labels(images.given_labels, (*images.class_names, "ten"))
    for other in (renamed, reordered, more):
        for call in (find_label_issues, mend):
            with pytest.raises(InputError) as caught:
                call(model, other, run=cpu_run())
            assert ", ".join(model.class_names) in str(caught.value) and ", ".join(other.class_names) in str(caught.value)


def test_images_are_prepared_as_the_model_was_trained(model, digits):
    images, _, test = digits
    careless = images.prepared_as(replace(images.preprocessing, mean=(0.9,) * 3, std=(0.01,) * 3))
    assert find_label_issues(model, careless, run=cpu_run()).issues.equals(find_label_issues(model, images, run=cpu_run()).issues)


def test_evaluation_images_are_prepared_as_the_model_was_trained(model, digits):
    images, _, test = digits
    careless = test.prepared_as(replace(test.preprocessing, mean=(0.9,) * 3, std=(0.01,) * 3))
    settings = replace(UNLEARNING["finetune"].settings, epochs=1)
    figures = [mend(model, images, method="finetune", settings=settings, run=cpu_run(evaluation=part)).test_accuracy for part in (test, careless)]
    assert figures[0] == figures[1]


def test_what_a_detector_doubts_becomes_a_notice(model, digits):
    images, run = digits[0], cpu_run()
    twin = images.subset(torch.arange(40))
    blank = replace(twin, pixels=torch.zeros_like(twin.pixels)).with_labels(torch.zeros(40, dtype=torch.int64))
    find_label_issues(model, blank, run=run)  # forty equal losses
    assert any("equal" in notice for notice in run.notices)


def test_the_settings_suit_how_the_model_was_trained(model):
    presets = UNLEARNING["fspmu"].presets
    assert suitable_settings("fspmu", model) == suitable_settings("fspmu", None) == presets["tuned-soft"]
    assert published_settings("fspmu", model) == presets["original"] and published_settings("scrub", model) == UNLEARNING["scrub"].settings
    assert suitable_settings("fspmu", model, "nll") == presets["nll"]
    assert suitable_settings("scrub", model) == UNLEARNING["scrub"].settings
    with pytest.raises(InputError, match="unknown preset of fspmu 'nil'; did you mean 'nll'"):
        suitable_settings("fspmu", model, "nil")


def test_the_public_names_are_functions(model, digits):
    assert fspmu.find_label_issues is find_label_issues
    assert len(fspmu.find_label_issues(model, digits[0].subset(torch.arange(100)), detector="random", run=cpu_run()).issues) == 100


@pytest.mark.parametrize("detector", ["gmm-probe", "gmm-probe-reference"])
def test_a_probe_finds_what_was_memorised_all_the_same(digits, model, detector):
    images, truth, _ = digits
    run = cpu_run()
    chosen = DETECTORS[detector]
    settings = replace(chosen.settings, probe_epochs=3, probe_lr=0.05)
    found = find_label_issues(model, images, detector=detector, settings=settings, truth=truth, run=run)
    split = found.split
    assert bool((split.forget <= split.retain).all()), "what is forgotten is learned again; what training left out stays out"
    assert bool(split.forget.any()) and bool((~split.retain).any())
    issue = split.forget | ~split.retain
    assert found.issues["is_label_issue"].tolist() == issue.tolist()
    assert torch.equal(issue, split.clean_probability <= 0.5) or detector.endswith("reference")
    quality = found.report["quality"]
    wrong = truth != images.given_labels
    assert quality["recall"] == pytest.approx(float((issue & wrong).sum() / wrong.sum()))
    assert run.passes["probe"] == {"forward": 3 * len(images), "backward": 3 * len(images)}
    assert run.evaluation is None and model.training is False


@pytest.mark.parametrize("detector", ["gmm", DEFAULT])
def test_what_looks_without_a_probe_says_that_one_would_see_more(detector, digits, model):
    images, _, _ = digits
    taught = build_model(replace(model.description, trained_by="dividemix"))
    taught.load_state_dict(model.state_dict())
    run = cpu_run()
    find_label_issues(taught, images, detector=detector, run=run)
    assert any("--detector gmm-probe also finds" in notice for notice in run.notices)
    assert suitable_settings("fspmu", taught) == published_settings("fspmu", taught) == UNLEARNING["fspmu"].presets["nll"]
