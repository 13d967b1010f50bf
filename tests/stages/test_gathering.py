"""What a detector is shown: nothing that it did not ask for, in dataset order, drawn once, at a depth that no true label chose."""

from dataclasses import fields, replace

import pytest
import torch
from torch import nn

from fspmu.data.augment import apply_views, draw_views, normalise
from fspmu.data.images import Images
from fspmu.data.stream import StreamedPixels
from fspmu.detection import DETECTORS
from fspmu.detection.evidence import DepthSettings, Evidence, FoldSettings, ProbeSettings
from fspmu.engine.inference import predict, predict_views
from fspmu.engine.run import Run
from fspmu.errors import InputError
from fspmu.losses import margins
from fspmu.models import MODELS
from fspmu.models.blocks import LAST, AtDepths
from fspmu.preprocessing import Geometry, Preprocessing
from fspmu.stages import gathering
from fspmu.stages.finding import find_label_issues
from fspmu.stages.gathering import Beside, check_needs, cross_fit, depth_for, gather, look, train_probe
from memorised_digits import NAMES, digits, memorised, repair

SHIFTED = Preprocessing((0.5,), (0.25,), "crop-flip", 1)
OF_THE_MODEL = frozenset({"logits", "features", "block", "view_probabilities", "view_margins"})
PLAIN_FIELDS = {"given_labels", "num_classes"}


@pytest.fixture(scope="module")
def images():
    """Return 121 digits with wrong labels, trained on in random views; a batch of 60 leaves a single one over."""
    data = digits()
    return Images(torch.from_numpy(data.pixels[:121])[:, None], data.given[:121], NAMES, [str(row) for row in range(121)], preprocessing=SHIFTED)


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = MODELS["smallcnn"](10, width=4, channels=1)
        with torch.no_grad():  # running statistics that are not those of nothing
            network.train()(torch.randn(64, 1, 8, 8))
    return network.eval()


def staged(**options):
    run = Run(**options)
    run.stage = "detection"
    return run


def views_by_hand(model, images, count, run):
    """Return what every view of every image gives, one pass for each, by a plain loop."""
    found = []
    for view in range(count):
        drawn = draw_views(len(images), images.preprocessing, run.generator("views", view))
        with torch.no_grad():
            found.append(model(normalise(apply_views(images.pixels, drawn, images.preprocessing.padding), images.preprocessing)))
    return found


def test_views_are_averaged_as_a_plain_loop_would(images, model, monkeypatch):
    monkeypatch.setattr("fspmu.engine.inference._batch_size", lambda run: 60)
    run = staged()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    viewed, outputs = predict_views(model, images, run, 3), views_by_hand(model, images, 3, run)
    torch.testing.assert_close(viewed.probabilities, torch.stack([output.logits.softmax(1) for output in outputs]).mean(0))
    torch.testing.assert_close(viewed.margins, torch.stack([margins(output.logits, images.given_labels) for output in outputs]).mean(0))
    torch.testing.assert_close(viewed.features.float(), torch.stack([output.features for output in outputs]).mean(0), rtol=1e-3, atol=1e-3)
    assert viewed.features.dtype == torch.float16 and not torch.equal(outputs[0].logits, outputs[1].logits)
    assert run.passes["detection"]["forward"] == 3 * len(images)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_views_of_streamed_images_are_the_same(images, model):
    streamed = replace(images, pixels=StreamedPixels(lambda row: images.pixels[row].permute(1, 2, 0).numpy(), list(images.ids), Geometry((8, 8), 1)))
    assert all(torch.equal(*pair) for pair in zip(predict_views(model, images, staged(), 2), predict_views(model, streamed, staged(), 2), strict=True))


@pytest.mark.parametrize("trained_on", ["none", "crop"])
def test_images_that_are_to_be_seen_as_they_are_are_looked_at_once(trained_on, images, model):
    images = images.prepared_as(replace(SHIFTED, augment=trained_on))
    run = staged()
    looked = look(frozenset({"view_margins"}), model, images, DepthSettings(views=9, viewing="none"), Beside(), run)
    torch.testing.assert_close(looked.fields["view_margins"], margins(predict(model, images, staged()).logits, images.given_labels))
    assert looked.report == {"views": 1, "viewing": "none"} and run.passes["detection"]["forward"] == 2 * len(images)


@pytest.mark.parametrize(
    ("trained_on", "asked", "seen"), [("none", "auto", "crop-flip"), ("none", "crop", "crop"), ("crop", "auto", "crop"), ("crop", "crop-flip", "crop-flip")]
)
def test_views_are_those_of_training_or_such_as_it_did_not_show(trained_on, asked, seen, images, model):
    as_trained = images.prepared_as(Preprocessing((0.5,), (0.5,), trained_on, padding=0 if trained_on == "none" else 1))
    run = staged()
    looked = look(frozenset({"view_margins"}), model, as_trained, DepthSettings(views=2, viewing=asked), Beside(), run)
    as_seen = as_trained.prepared_as(Preprocessing((0.5,), (0.5,), seen, padding=1))
    torch.testing.assert_close(looked.fields["view_margins"], predict_views(model, as_seen, staged(), 2).margins)
    assert looked.report == {"views": 2, "viewing": seen} and run.passes["detection"]["forward"] == 3 * len(images)


def test_a_padding_that_somebody_named_stays_with_the_view():
    assert Preprocessing(padding=5).viewed("crop", (32, 48)) == Preprocessing(augment="crop", padding=5)
    assert Preprocessing().viewed("crop", (48, 32)).padding == 4 and Preprocessing().viewed("crop", (6, 6)).padding == 1
    assert Preprocessing().viewed("none", (32, 32)) == Preprocessing()


@pytest.mark.parametrize("needs", [frozenset(), frozenset({"logits"}), frozenset({"block"}), frozenset({"view_probabilities", "features"}), OF_THE_MODEL])
def test_nothing_is_gathered_that_was_not_asked_for(needs, images, model):
    settings, beside, run = DepthSettings(views=2), Beside(truth=images.given_labels, history=torch.zeros(3, 121)), staged()
    evidence = gather(needs, model, images, look(needs, model, images, settings, beside, run), beside, settings, run)
    there = {field.name for field in fields(Evidence) if getattr(evidence, field.name) is not None}
    assert there == PLAIN_FIELDS | needs
    assert all(len(getattr(evidence, name)) == 121 for name in needs)


def test_what_no_detector_may_see_is_in_no_evidence(images, model):
    unseen = torch.arange(121) % 5 == 0
    history = torch.arange(2 * 121).reshape(2, 121).half()
    settings, beside, run = DepthSettings(views=2, depth="last"), Beside(unseen=unseen, history=history), staged()
    needs = OF_THE_MODEL | {"history"}
    evidence = gather(needs, model, images, look(needs, model, images, settings, beside, run), beside, settings, run)
    everything = gather(needs, model, images, look(needs, model, images, settings, Beside(history=history), run), Beside(history=history), settings, run)
    assert torch.equal(evidence.given_labels, images.given_labels[~unseen]) and torch.equal(evidence.history, history[:, ~unseen])
    for name in OF_THE_MODEL:
        assert torch.equal(getattr(evidence, name), getattr(everything, name)[~unseen])


def test_a_detector_that_needs_features_gets_all_of_them(images, model, monkeypatch):
    monkeypatch.setattr(gathering, "FEATURE_BYTES", 4 * model.feature_width * 50)
    looked = look(frozenset({"features"}), model, images, DepthSettings(), Beside(), staged())
    expected = predict(model, images, staged())
    assert looked.fields["features"].dtype == torch.float16 and looked.predictions.features.shape == (50, model.feature_width)
    torch.testing.assert_close(looked.fields["features"].float(), expected.features, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(looked.predictions.features, expected.features[looked.predictions.rows], rtol=1e-3, atol=1e-3)
    few = look(frozenset({"logits"}), model, images, DepthSettings(), Beside(), staged())
    assert torch.equal(few.predictions.rows, looked.predictions.rows) and torch.equal(few.predictions.logits, expected.logits)


def test_the_block_is_the_depth_that_was_asked_for(images, model):
    run = staged()
    for name in ("backbone.2", "backbone.0", "last"):
        looked = look(frozenset({"block"}), model, images, DepthSettings(views=2, depth=name), Beside(), run)
        inside = AtDepths(model, [LAST if name == "last" else name], [0])
        expected = torch.stack([output.features for output in views_by_hand(inside, images, 2, run)]).mean(0)
        torch.testing.assert_close(looked.fields["block"].float(), expected, rtol=1e-3, atol=1e-3)
        assert not any(part.training for part in model.modules())
        assert looked.report["depth"] == {"name": LAST if name == "last" else name, "how": "asked for"}
    with pytest.raises(InputError, match="no part 'layer9'.*backbone.2, backbone.6"):
        depth_for(model, images, DepthSettings(depth="layer9"), Beside(), run)


class Erasing(nn.Module):
    """Two steps: the first keeps the image, the second keeps nothing."""

    class Step(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.layer, self.scale = nn.Identity(), scale

        def forward(self, images):
            return self.layer(images) * self.scale

    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = self.Step(1.0), self.Step(0.0), nn.Linear(2, 2)

    def forward(self, images):
        return self.head(self.two(self.one(images)).mean(dim=(2, 3)))


def two_colours(count=60, share=0.2, seed=0):
    """Return images of which the first of two channels tells the class, some under the wrong label, and the true labels."""
    draw = torch.Generator().manual_seed(seed)
    truth = torch.arange(count) % 2
    pixels = torch.randint(90, 110, (count, 2, 4, 4), generator=draw, dtype=torch.uint8)
    pixels[truth == 1, 0] += 90
    given = torch.where(torch.rand(count, generator=draw) < share, 1 - truth, truth)
    return Images(pixels, given, ("dark", "bright"), [f"{seed}-{row}" for row in range(count)], preprocessing=Preprocessing((0.5,) * 2, (0.5,) * 2)), truth


@pytest.mark.parametrize("as_mask", [False, True])
def test_a_depth_is_chosen_by_given_labels_that_the_model_never_saw(as_mask):
    from fspmu.models.adopt import adopt

    images, truth = two_colours()
    fresh = two_colours(seed=5)[0]
    mask = torch.arange(60) < 20
    model = adopt(Erasing().eval(), torch.zeros(2, 2, 4, 4))
    block, told = depth_for(model, images, DepthSettings(), Beside(fresh=mask if as_mask else fresh), staged())
    assert block.name == "one" and told["name"] == "one" and told["how"] == "held-out"
    assert (told["fitted"], told["fresh"]) == ((40, 20) if as_mask else (60, 60))
    given = images.given_labels[mask] if as_mask else fresh.given_labels
    right = truth[mask] if as_mask else two_colours(seed=5)[1]
    assert told["depths"]["one"] == pytest.approx(float((given == right).double().mean()), abs=1e-6)  # their labels are given ones: some are wrong
    as_they_are = replace(DETECTORS["feature-margin"].settings, viewing="none")
    found = find_label_issues(model, images, detector="feature-margin", settings=as_they_are, fresh=mask if as_mask else fresh, truth=truth, run=Run())
    assert found.report["depth"] == told and found.report["views"] == 1
    assert found.report["quality"]["auc"] == 1.0 and found.report["quality"]["f1"] == 1.0


def test_a_depth_is_chosen_without_any_image_aside_too(images, model):
    block, told = depth_for(model, images, DepthSettings(), Beside(), staged())
    assert told["how"] != "held-out" and told["fresh"] == 0 and set(told["depths"]) == {"backbone.2", "backbone.6", LAST} and block.name == told["name"]
    again = depth_for(model, images, DepthSettings(), Beside(), staged())[1]
    assert again == told


def test_a_depth_is_chosen_on_a_part_of_many_images(images, model, monkeypatch):
    monkeypatch.setattr(gathering, "MOST_FITTED", 50)
    monkeypatch.setattr(gathering, "MOST_FRESH", 7)
    unseen = torch.arange(121) % 2 == 0
    run = staged()
    told = depth_for(model, images, DepthSettings(), Beside(unseen=unseen, fresh=images), run)[1]
    assert (told["fitted"], told["fresh"]) == (50, 7) and run.passes["detection"]["forward"] == 57


def test_the_network_is_put_into_the_sets_own_preparation(model, images):
    """The evaluation images of a repair may be prepared otherwise; at every depth they have to be seen as the others are."""
    other = images.prepared_as(Preprocessing((0.1,), (0.9,)))
    same = [depth_for(model, images, DepthSettings(), Beside(fresh=fresh), staged())[1] for fresh in (images, other)]
    assert same[0] == same[1]


def test_a_probe_keeps_its_margins_and_both_evidences_share_it(images, model):
    needs, settings, beside = frozenset({"probe_losses", "probe_history"}), ProbeSettings(probe_epochs=2, probe_lr=0.05), Beside()
    run = Run(evaluation=images)
    with run.timed("detection"):
        evidence = gather(needs, model, images, look(needs, model, images, settings, beside, run), beside, settings, run)
        with run.timed("probe"):
            trained = train_probe(model, images, 2, 0.05, Run(stage="probe"))
    assert evidence.probe_history.shape == (2, 121) and torch.equal(evidence.probe_history, trained.history.margins)
    assert run.passes["probe"]["backward"] == 2 * 121 and run.evaluation is images
    expected = nn.functional.cross_entropy(predict(trained.models[0], images, staged()).logits, images.given_labels, reduction="none")
    torch.testing.assert_close(evidence.probe_losses, expected)


def test_images_are_copied_only_to_be_shown_once_more(images, model, monkeypatch):
    taken, subset, unseen = [], Images.subset, torch.arange(121) % 10 == 3
    monkeypatch.setattr(Images, "subset", lambda self, rows: (taken.append(len(rows)), subset(self, rows))[1])
    for detector, copies in (("noise-transition", 0), ("gmm-reference", 1)):
        taken.clear()
        find_label_issues(model, images, detector=detector, unseen=unseen, run=Run())
        assert taken.count(int((~unseen).sum())) == copies + ("noise" in detector)  # on which a depth is chosen


def test_nobody_judges_an_image_that_it_was_trained_on(images, model, monkeypatch):
    """A network that knows its own images by heart would be sure of their given labels: here each says that it has seen what it was given."""
    seen = []

    def remember(model, images, epochs, lr, run):
        seen.append(set(images.ids))
        return train_probe(model, images, epochs, lr, run)

    monkeypatch.setattr(gathering, "train_probe", remember)
    asked = []

    def judge(probe, shown, run, chosen, rows):
        asked.append(chosen)
        return predict(probe, shown, run, chosen=chosen, rows=rows)

    monkeypatch.setattr(gathering, "predict", judge)
    run = staged()
    found = cross_fit(model, images, FoldSettings(folds=3, probe_epochs=1, probe_lr=0.05), run)
    assert found.shape == (121, 10) and torch.allclose(found.sum(1), torch.ones(121))
    assert torch.stack(asked).sum(0).tolist() == [1] * 121
    for names, mask in zip(seen, asked, strict=True):
        assert names == {images.ids[row] for row in (~mask).nonzero().squeeze(1).tolist()}
        share = torch.bincount(images.given_labels[mask], minlength=10) * 3 - torch.bincount(images.given_labels, minlength=10)
        assert int(share.abs().max()) <= 4  # every fold has its share of every class
    assert {"fold-1", "fold-2", "fold-3"} <= run.seconds.keys()


REFUSED = {
    "truth": ({"truth"}, None, {}, "true labels are not known"),
    "history": ({"history"}, None, {}, "--detector probe trains a fresh network"),
    "history of others": ({"history"}, None, {"history": torch.zeros(3, 5)}, r"shape \(3, 5\); needed is \(epochs, 121\)"),
    "history of nothing": ({"history"}, None, {"history": torch.zeros(0, 121)}, r"shape \(0, 121\)"),
    "truth of others": (set(), None, {"truth": torch.zeros(5, dtype=torch.int64)}, r"truth is torch.int64 \(5,\); needed are whole numbers \(121,\)"),
    "truth in fractions": (set(), None, {"truth": torch.zeros(121)}, r"truth is torch.float32"),
    "unseen by number": (set(), None, {"unseen": torch.arange(121)}, r"unseen is torch.int64 \(121,\); needed is torch.bool"),
    "nothing seen": (set(), None, {"unseen": torch.ones(121, dtype=torch.bool)}, "unseen is set for all images"),
    "fresh of others": (set(), None, {"fresh": torch.zeros(7, dtype=torch.bool)}, r"fresh is torch.bool \(7,\); needed is torch.bool \(121,\)"),
    "too many folds": ({"cross_fitted"}, FoldSettings(folds=200), {}, "--folds is 200, but there are only 121 images"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_had_is_refused_before_anything_is_computed(case, images):
    needs, settings, beside, told = REFUSED[case]
    with pytest.raises(InputError, match=told):
        check_needs(frozenset(needs), settings, images, Beside(**beside))


def test_a_history_is_used_where_it_is_and_not_asked_for_where_it_is_not(images, model):
    history = torch.randn(4, 121).half()
    settings = replace(DETECTORS["combined"].settings, views=1, depth="last")
    without, within = (find_label_issues(model, images, detector="combined", settings=settings, history=given, run=Run()) for given in (None, history))
    assert not torch.equal(without.score, within.score)
    with pytest.raises(InputError, match="--detector probe"):
        find_label_issues(model, images, detector="trajectory", run=Run())
    assert torch.equal(find_label_issues(model, images, detector="trajectory", history=history, run=Run()).score, trajectory_score(history))


def trajectory_score(history):
    detector = DETECTORS["trajectory"]
    return detector.score(Evidence(torch.zeros(history.shape[1], dtype=torch.int64), 10, history=history), detector.settings, torch.Generator())


def test_a_repair_looks_where_its_evaluation_images_say_and_never_at_its_hold_out():
    """Images held out of a repair were trained on like all others: what the network says of them proves nothing about depth."""
    data, settings = digits(), replace(DETECTORS["feature-margin"].settings, views=1)
    how = {"detector": "feature-margin", "detector_settings": settings, "keep": "always"}
    trusted = repair(evaluation=(data.test_pixels, data.test_truth), **how)
    alone = repair(hold_out=0.2, **how)
    depth, other = (result.record["detection"]["depth"] for result in (trusted, alone))
    assert depth["how"] == "held-out" and (depth["fitted"], depth["fresh"]) == (360, 240)
    assert other["how"] != "held-out" and other["fresh"] == 0 and other["fitted"] == 360 - alone.record["data"]["held_out"]
    assert depth["name"] in depth["depths"] and not any("depth" in text for text in trusted.record["warnings"])
    assert alone.issues["label_score"].notna().all() and (alone.issues["action"] == "review").sum() >= alone.record["data"]["held_out"]
    assert trusted.record["detection"]["cut"] == DETECTORS["feature-margin"].cut and memorised() is not None
