"""`fspmu.repair`: any classifier and the images it was trained on -> issues, a repaired model of the same kind, and what changed."""

import copy
import inspect
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import fspmu
from fspmu.data.images import Images
from fspmu.detection import DEFAULT
from fspmu.detection.label_issues import COLUMNS
from fspmu.detection.splitting import SplitSettings
from fspmu.engine.checkpoint import build_model
from fspmu.engine.run import Run
from fspmu.errors import EmptySplit, InputError
from fspmu.models.adopt import Adopted
from fspmu.models.classifier import Classifier, Description
from fspmu.preprocessing import Preprocessing
from fspmu.repairing import carry_out
from fspmu.stages.asking import Asked
from fspmu.stages.rounds import Rounds
from fspmu.stages.taking_in import Intake, take_in
from fspmu.unlearning import METHODS
from memorised_digits import FEW, NAMES, build, digits, memorised, repair, same, share_right, state_of, write_folder


@pytest.fixture(scope="module")
def healed():
    """Return a repair that was measured on labels that can be trusted."""
    data = digits()
    return repair(evaluation=(data.test_pixels, data.test_truth))


@pytest.fixture(scope="module")
def held_out():
    """Return a repair without evaluation images."""
    return repair()


def few_rows(count=60):
    data = digits()
    return data.pixels[:count], data.given[:count]


# ---- the model


def test_a_module_comes_back_as_another_of_its_kind(healed):
    data, given = digits(), memorised()
    assert type(healed.model) is nn.Sequential and healed.model is not given and not same(healed.model, given)
    figures = healed.record["evaluation"]
    assert figures["handed_back"] == "repaired" and figures["samples"] == len(data.test_truth)
    assert share_right(healed.model, data.test_pixels, data.test_truth) == pytest.approx(figures["after"])
    assert share_right(given, data.test_pixels, data.test_truth) == pytest.approx(figures["before"])
    assert figures["after"] > figures["before"] + 0.03 and healed.record["test_accuracy"]["last"] == figures["after"]
    before, after = (
        share_right(model, data.pixels[wrong], data.given[wrong]) for wrong in [(data.given != data.truth).numpy()] for model in (given, healed.model)
    )
    assert after < before / 2  # what it had learned by heart it has forgotten


def test_the_given_module_is_left_as_it_is():
    given = copy.deepcopy(memorised()).train()
    given[1].eval()
    given[0].weight.requires_grad_(False)
    before, modes = state_of(given), [module.training for module in given.modules()]
    result = repair(given, keep="always")
    assert same(given, before) and modes == [module.training for module in given.modules()]
    assert [parameter.grad for parameter in given.parameters()] == [None] * 8
    assert not given[0].weight.requires_grad and given[4].weight.requires_grad and not list(given[6]._forward_pre_hooks)
    assert modes == [module.training for module in result.model.modules()]
    assert not result.model[0].weight.requires_grad and result.model[4].weight.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_number_formats_come_back(dtype, healed):
    data, given = digits(), copy.deepcopy(memorised()).to(dtype)
    result = repair(given, evaluation=(data.test_pixels, data.test_truth))
    assert {value.dtype for value in result.model.parameters()} == {dtype} == {value.dtype for value in given.parameters()}
    assert share_right(result.model, data.test_pixels, data.test_truth, dtype) == pytest.approx(result.record["evaluation"]["after"], abs=0.03)
    assert result.record["evaluation"]["after"] == pytest.approx(healed.record["evaluation"]["after"], abs=0.03)


def test_a_timm_model():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    given = timm.create_model("test_resnet", num_classes=10)
    before = state_of(given)
    result = repair(given, few_rows(), size=32, keep="always", settings=replace(FEW, epochs=1), forget=range(9))
    assert type(result.model) is type(given) and same(given, before) and not same(result.model, before)
    assert result.record["config"]["preprocessing"]["mean"] == pytest.approx(given.pretrained_cfg["mean"])
    assert result.record["data"]["shape"] == [3, 32, 32] and result.model.pretrained_cfg == given.pretrained_cfg


def test_a_transformers_model():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=10, id2label=dict(enumerate(NAMES)))
    given = transformers.ResNetForImageClassification(config)
    pixels, labels = few_rows()
    mapped = {str(place): name for place, name in enumerate(NAMES)}
    result = repair(given, (pixels, labels), size=32, mean=[0.5], std=[0.5], class_map=mapped, forget=range(9), keep="always", settings=replace(FEW, epochs=1))
    assert type(result.model) is type(given) and result.model.config.id2label == config.id2label
    assert not same(result.model, given) and set(result.issues["given_label"]) <= set(NAMES)
    with torch.no_grad():
        assert result.model(torch.zeros(2, 3, 32, 32)).logits.shape == (2, 10)


def test_a_network_of_this_package():
    data, run = digits(), Run()
    description = Description("smallcnn", {"width": 4}, tuple("0123456789"), Preprocessing((0.3,) * 3, (0.3,) * 3), "ce")
    given = build_model(description, run.generator("weights")).train()
    given.head.weight.requires_grad_(False)
    before = state_of(given)
    result = repair(given, keep="always")
    assert type(result.model) is Classifier and result.model is not given and same(given, before) and not same(result.model, before)
    assert result.model.description == description and result.model.training and not result.model.head.weight.requires_grad
    assert result.record["config"]["preprocessing"]["mean"] == (0.3,) * 3  # grey images in the three channels it was trained with
    again = fspmu.evaluate(result.model, fspmu.load_images((np.stack([data.pixels] * 3, 3), data.given)).train, run=run)
    assert again == pytest.approx(share_of(result, "predicted_label", data.given))
    assert {value.dtype for value in repair(copy.deepcopy(given).half(), keep="always").model.parameters()} == {torch.float16}


def share_of(result, column, labels):
    return float((result.issues[column].astype(int).to_numpy() == labels.numpy()).mean())


def test_an_adopted_network_stays_adopted():
    taken = take_in(memorised(), few_rows(), run=Run())
    result = repair(taken.model, few_rows(), keep="always")
    assert type(result.model) is Adopted and type(result.model.module) is nn.Sequential and result.model.class_names == tuple("0123456789")
    assert same(repair(images=few_rows(), keep="always").model, result.model.module)
    original = repair(taken.model, few_rows(), evaluation=few_rows())
    assert original.model is taken.model and original.record["evaluation"]["handed_back"] == "original"


# ---- the issues


def test_a_row_for_each_image(held_out):
    data, table = digits(), held_out.issues
    assert tuple(table.columns) == COLUMNS and table["id"].tolist() == [f"train/{row}" for row in range(len(data.given))]
    assert table["given_label"].tolist() == [str(label) for label in data.given.tolist()] and set(table["path"]) == {""}
    assert table["label_score"].between(0, 1).all() and (table["label_score"] + table["noise_probability"]).sub(1).abs().max() < 1e-9
    held = table["action"] == "review"
    assert held.sum() == held_out.record["data"]["held_out"] > 0 and not table["retain"][held].any() and not table["forget"][held].any()
    assert (table["is_label_issue"][held] == (table["label_score"][held] <= 0.5)).all() and table["is_label_issue"][held].any()
    assert (table["is_label_issue"][~held] == table["forget"][~held]).all() and (table["retain"] ^ table["forget"])[~held].all()
    assert (table["action"][~held] == np.where(table["forget"][~held], "forget", "retain")).all()
    assert table["is_label_issue"].sum() == held_out.record["detection"]["issues"] > table["forget"].sum() == held_out.record["detection"]["forget"]
    wrong = (data.given != data.truth).numpy()
    assert table["is_label_issue"][wrong].mean() > 3 * table["is_label_issue"][~wrong].mean()
    said = [str(label) for label in predictions(held_out.model, data.pixels)]
    assert table["predicted_label"].tolist() == said  # as the repaired model sees them
    cleanlab = held_out.to_cleanlab()
    assert cleanlab["given_label"].tolist() == data.given.tolist() and (cleanlab["label_quality"] == table["label_score"]).all()


def predictions(model, pixels):
    with torch.no_grad():
        return model.eval()(torch.from_numpy(pixels).float()[:, None] / 255).argmax(1).tolist()


def test_the_hold_out_is_stratified_and_the_same_each_time(held_out):
    data = digits()
    taken = [take_in(memorised(), (data.pixels, data.given), run=Run(seed=seed)) for seed in (0, 1)]
    assert torch.equal(taken[0].held, taken[1].held) and taken[0].held.numpy().tolist() == (held_out.issues["action"] == "review").tolist()
    for label in range(10):
        of_class = data.given == label
        assert int((taken[0].held & of_class).sum()) == int(0.1 * int(of_class.sum()) + 0.5)
    assert torch.equal(taken[0].evaluation.given_labels, data.given[taken[0].held]) and taken[0].kind == "held out"


@pytest.mark.parametrize("detector", ["gmm", "random"])
def test_neither_detection_nor_unlearning_sees_what_is_held_out(detector):
    data = digits()
    results = []
    for shift in (0, 3):
        taken = take_in(memorised(), (data.pixels, data.given), run=(run := Run()))
        moved = torch.where(taken.held, (data.given + shift) % 10, data.given)
        taken = replace(taken, images=taken.images.with_labels(moved), evaluation=taken.evaluation.with_labels(moved[taken.held]))
        results.append(carry_out(taken, Asked(detector, settings=FEW, keep="always"), run))
    first, other = results
    seen = first.issues["action"] != "review"
    assert same(first.model, other.model) and first.issues[seen].equals(other.issues[seen]) and not first.issues.equals(other.issues)
    assert first.record["detection"]["retain"] == other.record["detection"]["retain"]


@pytest.mark.parametrize("name", ["gmm-probe", "known"])
def test_other_detectors_and_truth(name, tmp_path):
    data = digits()
    settings = replace(fspmu.detection.DETECTORS[name].settings, **({"probe_epochs": 2, "probe_lr": 0.05} if name == "gmm-probe" else {}))
    options = {"detector": name, "detector_settings": settings, "truth": data.truth, "keep": "always", "settings": replace(FEW, epochs=1)}
    first, second = repair(**options), repair(out=tmp_path / "out", **options)
    assert first.issues.equals(second.issues) and same(first.model, second.model)  # a folder changes nothing
    assert first.issues["label_score"].notna().all() and first.record["detection"]["quality"]["recall"] > 0
    with pytest.raises(InputError, match="holds another configuration.*precision is"):
        repair(out=tmp_path / "out", **options, precision="auto")
    if name == "known":
        assert first.issues["is_label_issue"].tolist() == (data.given != data.truth).tolist()
        with pytest.raises(InputError, match="holds another configuration.*truth is"):
            repair(out=tmp_path / "out", **options | {"truth": data.given})
        with pytest.raises(InputError, match=r"truth is torch.int64 \(5,\); needed are whole numbers \(360,\)"):
            repair(**options | {"truth": data.truth[:5]})


# ---- evaluation images, and classes by name


def test_evaluation_images_from_anywhere(tmp_path, healed):
    data = digits()
    folder = write_folder(tmp_path / "test", data.test_pixels, data.test_truth, [str(label) for label in range(10)])
    grey = torch.from_numpy(data.test_pixels)[:, None]
    images = Images(grey, data.test_truth, tuple("0123456789"), [f"mine-{row}" for row in range(len(grey))])
    for source in (str(folder), images, list(zip(data.test_pixels, data.test_truth.tolist(), strict=True))):
        result = repair(evaluation=source)
        assert same(result.model, healed.model)
        figures = result.record["evaluation"]
        assert {name: figures[name] for name in ("before", "after", "samples")} == {
            name: healed.record["evaluation"][name] for name in ("before", "after", "samples")
        }


def test_classes_are_matched_by_name():
    data = digits()
    order = torch.randperm(10, generator=torch.Generator().manual_seed(3))
    plain = Images(torch.from_numpy(data.pixels)[:, None], data.given, NAMES, [str(row) for row in range(len(data.given))])
    test = Images(torch.from_numpy(data.test_pixels)[:, None], data.test_truth, NAMES, [str(row) for row in range(len(data.test_truth))])

    def shuffled(images, order):
        names = tuple(NAMES[place] for place in order.tolist())
        return images.with_labels(order.argsort()[images.given_labels], names)

    expected = repair(images=plain, evaluation=test, class_names=NAMES)
    found = repair(images=shuffled(plain, order), evaluation=shuffled(test, order.flip(0)), class_names=NAMES)
    assert same(expected.model, found.model) and expected.issues.equals(found.issues) and expected.record["evaluation"] == found.record["evaluation"]
    texts = [NAMES[label] for label in data.given.tolist()]  # of an array's own order: sorted
    assert repair(images=(data.pixels, texts), evaluation=test, class_names=NAMES).issues["given_label"].tolist() == texts


def test_a_class_that_the_data_lacks():
    data = digits()
    rows = (data.given != 4) & (data.given != 9)
    result = repair(images=(data.pixels[rows.numpy()], [NAMES[label] for label in data.given[rows].tolist()]), class_names=NAMES, keep="always")
    assert result.record["data"]["classes"] == list(NAMES) and result.record["data"]["class_counts"][4] == 0
    assert result.model[6].out_features == 10 and set(result.issues["given_label"]) == set(NAMES) - {"four", "nine"}


# ---- the verdict


def test_a_repair_that_is_not_better_hands_back_the_very_model(tmp_path):
    data, given = digits(), memorised()
    options = {"evaluation": (data.pixels, data.given), "settings": replace(FEW, epochs=2)}  # what it knew by heart
    result = repair(out=tmp_path / "out", **options)
    assert result.model is given and result.record["evaluation"]["handed_back"] == "original"
    assert any("not better" in text and "the model you gave is handed back" in text for text in result.record["warnings"])
    assert same(fspmu.load(tmp_path / "out", module=build()).module, given)
    assert result.issues["predicted_label"].notna().all()
    assert repair(out=tmp_path / "out", **options).model is given
    always = repair(keep="always", **options)
    assert always.model is not given and always.record["evaluation"]["handed_back"] == "repaired"
    assert any("as asked, the repaired model is still handed back" in text for text in always.record["warnings"])


def test_a_collapse_on_the_hold_out_hands_back_the_model():
    ruinous = replace(FEW, lr=5.0)
    result = repair(settings=ruinous)
    assert result.model is memorised() and result.record["evaluation"]["kind"] == "held out"
    assert any("fell further than forgetting wrong labels explains" in text and "labels that may be wrong" in text for text in result.record["warnings"])
    assert repair(settings=ruinous, keep="always").model is not memorised()


def test_a_healthy_repair_is_kept_although_wrong_labels_agree_less(held_out):
    figures = held_out.record["evaluation"]
    assert figures["after"] < figures["before"] and figures["handed_back"] == "repaired" and held_out.model is not memorised()
    assert any("only labels you trust can tell" in text for text in held_out.record["warnings"])
    assert any("their labels may be as wrong as the others" in text for text in held_out.record["warnings"])


def test_nothing_is_measured_without_a_hold_out():
    result = repair(hold_out=0)
    assert result.record["evaluation"] is None and result.record["test_accuracy"]["last"] is None and "review" not in set(result.issues["action"])
    assert any("nothing is measured" in text for text in result.record["warnings"]) and not same(result.model, memorised())


# ---- what somebody else found


@pytest.mark.parametrize("form", ["mask", "indices", "ids", "cleanlab", "series", "csv", "npy"])
def test_a_forget_set_in_every_form(form, tmp_path):
    data = digits()
    wrong = (data.given != data.truth).numpy()
    rows = np.flatnonzero(wrong)
    table = pd.DataFrame({"is_label_issue": wrong, "label_quality": np.where(wrong, 0.1, 0.3), "given_label": data.given.numpy()})
    forms = {"mask": wrong, "indices": rows.tolist(), "ids": [f"train/{row}" for row in rows], "cleanlab": table, "series": table["is_label_issue"]}
    if form in forms:
        given = forms[form]
    else:
        given = tmp_path / f"wrong.{form}"
        table.to_csv(given, index=False) if form == "csv" else np.save(given, wrong)
    result = repair(forget=given, keep="always", settings=replace(FEW, epochs=1))
    found, held = result.issues, result.issues["action"] == "review"
    assert found["forget"].tolist() == wrong.tolist() == found["is_label_issue"].tolist()
    assert held.any() and not (held & wrong).any() and found["label_score"].notna().all()
    detection = result.record["detection"]
    assert detection["detector"] == "given" and detection["forget"] == detection["issues"] == wrong.sum()
    assert (
        detection["retain"] == len(wrong) - wrong.sum() - held.sum()
        and result.record["data"]["held_out"] == held.sum() == result.record["evaluation"]["samples"]
    )
    assert result.work.mended.detection.split.clean_probability.isnan().tolist() == held.tolist()  # as where a detector may not look
    assert any("they are forgotten" in text for text in result.record["warnings"])
    assert same(result.model, repair(forget=rows, keep="always", settings=replace(FEW, epochs=1)).model)


def test_what_is_remarkable_about_a_forget_set_becomes_a_notice():
    data = digits()
    result = repair(forget=data.given == 3, keep="always", settings=replace(FEW, epochs=1))
    assert any("no sample of the class 3" in text for text in result.record["warnings"])
    nothing = repair(forget=[])
    assert same(nothing.model, memorised()) and not nothing.issues["is_label_issue"].any()
    assert any("nothing will be forgotten" in text for text in nothing.record["warnings"])
    for finding in ({"detector": "gmm"}, {"cut": "otsu"}, {"split": SplitSettings(threshold=0.9)}):
        with pytest.raises(InputError, match=f"{next(iter(finding))} would say how to find it; leave one of them out"):
            repair(forget=[1], **finding)


def test_a_forget_set_is_taken_at_its_word_whatever_score_stands_beside():
    data = digits()
    wrong = (data.given != data.truth).numpy()
    table = pd.DataFrame({"is_label_issue": wrong, "label_quality": np.where(wrong, 0.6, 0.3), "given_label": data.given.numpy()})
    scored, plain = (repair(forget=forget, keep="always", settings=None) for forget in (table, wrong))
    assert same(scored.model, plain.model) and scored.record["unlearning"]["settings"]["weighting"] == "masks"
    assert scored.issues["label_score"][wrong].tolist() == pytest.approx([0.6] * int(wrong.sum())), "the table's own scores are handed back"


# ---- where images lie, and what is said


def test_images_on_disk_or_in_memory_give_the_same(tmp_path):
    data = digits()
    folder = write_folder(tmp_path / "train", data.pixels[:120], data.given[:120])
    options = {"class_names": NAMES, "keep": "always", "augment": "crop", "size": 8, "settings": replace(FEW, epochs=2)}
    first, second = (repair(images=folder, storage=storage, **options) for storage in ("memory", "disk"))
    assert same(first.model, second.model) and first.issues.equals(second.issues) and first.record["config"] == second.record["config"]
    assert first.issues["path"].tolist() == [str(folder / name) for name in first.issues["id"]] and sorted(first.issues["id"]) == first.issues["id"].tolist()
    assert any("streamed from disk" in text for text in second.record["warnings"])


def test_pixels_that_the_model_was_not_trained_with_are_noticed(held_out):
    data = digits()
    assert any("nobody says how this model wants its images" in text for text in held_out.record["warnings"])
    assert not any("implausible" in text for text in held_out.record["warnings"])
    strange = repair(mean=[3.0], std=[1.0], keep="always")
    assert any("implausible" in text and "mean and std" in text for text in strange.record["warnings"])
    assert not any("nobody says" in text for text in strange.record["warnings"])
    both = repair(evaluation=(data.pixels[:50], data.truth[:50]))
    assert any("50 evaluation images are training images too (train/" in text for text in both.record["warnings"])


def test_a_rate_that_was_lowered_is_told():
    data, small = digits(), copy.deepcopy(memorised())
    with torch.no_grad():
        small[4].weight.mul_(0.1)  # short features: the same pull is a large step
        small[4].bias.mul_(0.1)
    usual = METHODS["fspmu"].presets["tuned-soft"]
    result = repair(small, settings=None, keep="always")
    rate = result.record["unlearning"]["settings"]["lr"]
    assert 0 < rate < usual.lr and any(f"lowered from {usual.lr:g} to {rate:g}" in text for text in result.record["warnings"])
    assert result.record["config"]["fitted"] and result.record["config"]["settings"]["lr"] == usual.lr
    taken = fspmu.take_in(small, (data.pixels, data.given), run=(run := Run()))
    found = fspmu.find_label_issues(taken.model, taken.images, unseen=taken.held, run=run)
    assert same(fspmu.unlearn(taken.model, taken.images, found.split, run=run).module, result.model)
    assert not any("lowered" in text for text in repair(small, settings=usual, keep="always").record["warnings"])  # as asked


def test_what_cannot_be_asked():
    data = digits()
    for options, sentence in [
        ({"keep": "bettr"}, "unknown value of keep 'bettr'; did you mean 'better'"),
        ({"method": "fspum"}, "did you mean 'fspmu'"),
        ({"settings": METHODS["scrub"].settings}, "settings is a Settings, but it must be a fspmu.unlearning.feature_preserving.Settings"),
        ({"detector_settings": FEW}, "detector_settings is a Settings, but it must be a fspmu.detection"),
        ({"settings": replace(FEW, lr=-1.0)}, "--lr is -1.0"),
        ({"hold_out": 1.0}, "--hold-out is 1.0"),
        ({"evaluation": (data.pixels, ["a"] * len(data.pixels))}, "1 class"),
    ]:
        with pytest.raises(InputError, match=sentence):
            repair(**options)
    with pytest.raises(InputError, match="the model is a dict, but it must be a torch.nn.Module"):
        repair({"weights": 1})
    with pytest.raises(EmptySplit, match="are left to learn from"):
        repair(detector="known", truth=(data.given + 1) % 10)


# ---- the steps one by one


def test_the_steps_one_by_one_end_in_the_same_model(healed):
    data, run = digits(), Run()
    taken = fspmu.take_in(memorised(), (data.pixels, data.given), (data.test_pixels, data.test_truth), run=run)
    found = fspmu.find_label_issues(taken.model, taken.images, unseen=taken.held, run=run)
    model = fspmu.unlearn(taken.model, taken.images, found.split, settings=FEW, run=run)
    assert same(model.module, healed.model)
    assert fspmu.evaluate(model, taken.evaluation, run=run) == healed.record["evaluation"]["after"]
    assert fspmu.evaluate(taken.model, taken.evaluation, run=run) == healed.record["evaluation"]["before"]


@pytest.mark.parametrize("held", [True, False])
def test_two_rounds(held, tmp_path, healed, held_out):
    """The record counts both, the issues are those of the second, and what was found is as far from what was held out as with one."""
    data, once = digits(), held_out if held else healed
    options = {"evaluation": None if held else (data.test_pixels, data.test_truth), "keep": "always"}
    result = repair(rounds=Rounds(2, relabel=0.8), out=tmp_path / "out", **options)
    told = result.record["unlearning"]["rounds"]
    assert [entry["round"] for entry in told] == [1, 2] and told[1]["moved"] > 0 and told[0]["forget"] == once.record["detection"]["forget"]
    found = result.record["detection"]
    assert found["forget"] == told[1]["forget"] == int(result.issues["forget"].sum()) and found["detector"] == f"{DEFAULT}, then views of the repaired model"
    assert result.record["config"]["rounds"] == {"rounds": 2, "second_look": "views", "look_views": 2, "relabel": 0.8}
    assert not same(result.model, once.model) and result.record["evaluation"]["before"] == once.record["evaluation"]["before"]
    aside = result.issues["action"] == "review"
    assert aside.sum() == (result.record["data"]["held_out"] if held else 0) and not result.issues.loc[aside, ["retain", "forget"]].any(axis=None)
    again = repair(rounds=Rounds(2, relabel=0.8), out=tmp_path / "out", **options)
    assert again.work is None and same(again.model, result.model)
    with pytest.raises(InputError, match="rounds is None here"):
        repair(out=tmp_path / "out", **options)


def test_one_round_is_what_nobody_asked_for(healed):
    data = digits()
    result = repair(rounds=Rounds(), evaluation=(data.test_pixels, data.test_truth))
    assert same(result.model, healed.model) and result.record["config"] == healed.record["config"] and "rounds" not in result.record["config"]


def test_rounds_that_cannot_be():
    with pytest.raises(InputError, match="forget says already what is wrong, and 2 rounds would find it anew"):
        repair(forget=range(9), rounds=Rounds(2))
    with pytest.raises(InputError, match="--detector trajectory reads how a model was trained.*leave --second-look detector out"):
        repair(detector="trajectory", history=torch.zeros(3, 360), rounds=Rounds(2, "detector"))


def test_the_arguments_are_those_of_intake_and_asked():
    known = inspect.signature(fspmu.repair).parameters
    fields = {*Intake.__dataclass_fields__, *Asked.__dataclass_fields__} - {"fit"}  # settings that are given are meant as they are
    assert fields <= set(known)
    for name in fields - {"detector", "split", "rounds"}:
        default = (Intake.__dataclass_fields__ | Asked.__dataclass_fields__)[name].default
        assert known[name].default == default, name


def test_a_result_shows_itself_in_a_notebook(healed):
    page = healed._repr_html_()
    assert page.startswith("<div>") and page.count("<tr>") == 11 and f"{healed.record['detection']['issues']:,} of 360 labels look wrong" in page
    assert f"{100 * healed.record['evaluation']['after']:.2f}%" in page


def test_layers_that_draw_for_themselves_belong_to_the_run(tmp_path):
    """Dropout takes no generator: without care a repair would differ from call to call, and move the caller's own draws."""
    layers = list(copy.deepcopy(memorised()))
    drawing = nn.Sequential(*layers[:-1], nn.Dropout(0.3), layers[-1]).eval()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first = repair(drawing)
    assert torch.equal(torch.rand(4), expected)
    again = repair(drawing, out=tmp_path / "out")
    assert same(state_of(first.model), state_of(again.model)) and not same(state_of(first.model), state_of(repair(drawing, seed=1).model))
