"""The seam: every detector and every cut keep their promises, apart and together, on clear evidence and on a real network's."""

import dataclasses
import itertools
import warnings

import pytest
import torch
from made_up_evidence import FIELDS, make_evidence, only, seeded
from sklearn.metrics import roc_auc_score

from fspmu.data.images import Images
from fspmu.detection import DEFAULT, DETECTORS
from fspmu.detection.cuts import CUTS
from fspmu.engine.run import Run
from fspmu.errors import DetectionWarning, InputError
from fspmu.models import MODELS
from fspmu.preprocessing import Preprocessing
from fspmu.pretraining import METHODS as PRETRAINING
from fspmu.stages.choosing import choose_detection
from fspmu.stages.finding import find_label_issues
from fspmu.stages.gathering import Beside, gather, look
from memorised_digits import NAMES, digits


def skip_without(detector):
    """Skip where the package that a detector asks is not installed."""
    if detector == "confident-learning":
        pytest.importorskip("cleanlab")


def content(evidence):
    return {name: value.clone() for name in FIELDS | {"given_labels"} if isinstance(value := getattr(evidence, name), torch.Tensor)}


def test_all_evidence_is_there_in_these_tests():
    assert all(getattr(make_evidence(), name) is not None for name in FIELDS)


@pytest.mark.parametrize("name", DETECTORS)
def test_contract(name):
    skip_without(name)
    detector, everything = DETECTORS[name], make_evidence()
    rule = CUTS[detector.cut]
    evidence = only(everything, detector.needs_with(detector.settings))
    before, results = content(evidence), []
    for seed in (3, 3):
        score = detector.score(evidence, detector.settings, seeded(seed))
        kept = score.clone()
        clean = rule.cut(score, evidence.given_labels, rule.settings, seeded(seed)).clean
        assert torch.equal(score, kept)
        for values in (score, clean):
            assert values.shape == evidence.given_labels.shape and values.is_floating_point() and torch.isfinite(values).all()
        assert clean.min() >= 0 and clean.max() <= 1
        results.append((score, clean))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert content(evidence).keys() == before.keys() and all(torch.equal(value, before[field]) for field, value in content(evidence).items())
    if name != "random":  # HIGH = looks wrong: on evidence this clear, every real detector says so
        wrong = evidence.given_labels != everything.truth
        assert roc_auc_score(wrong, results[0][0]) > 0.95 and roc_auc_score(~wrong, results[0][1]) > 0.95
        assert not detector.signed or ((results[0][0] > 0) == wrong).float().mean() > 0.95


@pytest.mark.parametrize("name", [name for name, detector in DETECTORS.items() if detector.needs_with(detector.settings)])
def test_evidence_that_was_not_gathered_is_named(name):
    detector = DETECTORS[name]
    needs = detector.needs_with(detector.settings)
    missing = min(needs)
    with pytest.raises(LookupError, match=f"needs {missing}"):
        for score in filter(None, (detector.score, detector.early)):
            score(only(make_evidence(), needs - {missing}), detector.settings, seeded())


def test_what_a_detector_needs_and_how_its_scores_are_read_depend_on_its_settings():
    confident, views, trajectory = (DETECTORS[name] for name in ("confident-learning", "views-margin", "trajectory"))
    crossed, shares = dataclasses.replace(confident.settings, cross_fit=True), dataclasses.replace(views.settings, of="probability")
    assert confident.needs_with(confident.settings) == {"logits"} and confident.needs_with(crossed) == {"cross_fitted"}
    assert views.needs_with(views.settings) == {"view_margins"} and views.needs_with(shares) == {"view_probabilities"}
    counted = dataclasses.replace(trajectory.settings, kind="wrong-events")
    assert trajectory.signed_with(trajectory.settings) and not trajectory.signed_with(counted)
    with pytest.raises(InputError, match="0 does not divide the scores of the detector 'trajectory'"):
        choose_detection("trajectory", counted, "sign")
    for name, settings in (("views-margin", shares), ("confident-learning", crossed)):
        skip_without(name)
        detector = DETECTORS[name]
        assert torch.isfinite(detector.score(only(make_evidence(), detector.needs_with(settings)), settings, seeded())).all()


def test_evidence_that_is_optional_is_used_and_may_be_missing():
    everything, optional = make_evidence(), [detector for detector in DETECTORS.values() if detector.optional]
    assert optional
    for detector in optional:
        needs = detector.needs_with(detector.settings)
        assert not needs & detector.optional
        without, within = (detector.score(only(everything, there), detector.settings, seeded()) for there in (needs, needs | detector.optional))
        assert torch.isfinite(without).all() and not torch.equal(without, within)


def test_every_detector_names_a_cut_for_its_scores():
    assert DEFAULT in DETECTORS
    for name, detector in DETECTORS.items():
        choice = choose_detection(name)
        assert choice.cut == detector.cut and choice.rule is CUTS[detector.cut] and choice.settings == detector.settings
        assert choice.cut_settings == choice.rule.settings


REFUSED = {
    "no detector": (("gnm",), "unknown detector 'gnm'; did you mean 'gmm'"),
    "no cut": (("gmm", None, "otzu"), "unknown cut 'otzu'; did you mean 'otsu'"),
    "sign": (("gmm", None, "sign"), "--cut sign asks on which side of 0 a score lies, but 0 does not divide the scores of the detector 'gmm'"),
    "what cut was": (("gmm", None, CUTS["otsu"].settings), "cut is a Settings, but it must be the name of a cut"),
    "settings of another": (("gmm", DETECTORS["knn"].settings), "detector_settings is a Nearest, but it must be a fspmu.detection.loss_mixture.Settings"),
    "cut settings of another": (("gmm", None, "otsu", CUTS["mixture"].settings), "cut_settings is a Settings, but it must be a fspmu.detection.cuts.otsu"),
    "out of bounds": (("gmm", None, None, dataclasses.replace(CUTS["mixture"].settings, starts=0)), "--starts is 0"),
    "one fold": (("confident-learning", dataclasses.replace(DETECTORS["confident-learning"].settings, folds=1)), "--folds is 1, but it must be at least 2"),
    "no epochs": (("probe", dataclasses.replace(DETECTORS["probe"].settings, probe_epochs=0)), "--probe-epochs is 0, but it must be at least 1"),
    "no such word": (("trajectory", dataclasses.replace(DETECTORS["trajectory"].settings, kind="wrong")), "unknown --kind 'wrong'; did you mean"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_together_is_refused_in_a_sentence(case):
    arguments, told = REFUSED[case]
    with pytest.raises(InputError) as refused:
        choose_detection(*arguments)
    assert told in str(refused.value)


@pytest.fixture(scope="module")
def forty():
    """Return 40 digits, 12 of them under wrong labels, their true labels, and a tiny network trained on them, with its history."""
    data = digits()
    wrong, right = ((data.given != data.truth).nonzero().squeeze(1)[:12], (data.given == data.truth).nonzero().squeeze(1)[:28])
    rows = torch.cat([wrong, right]).sort().values
    pixels = torch.from_numpy(data.pixels)[rows][:, None]
    images = Images(pixels, data.given[rows], NAMES, [str(row) for row in rows.tolist()], preprocessing=Preprocessing((0.5,), (0.25,), "crop", 1))
    run = Run()
    settings = dataclasses.replace(PRETRAINING["ce"].settings, epochs=8, lr=0.05, batch_size=20)
    with run.timed("pretraining"):
        trained = PRETRAINING["ce"].pretrain(images, lambda generator: MODELS["smallcnn"](10, width=4, channels=1), settings, run)
    return images, data.truth[rows], trained.models[0].eval(), trained.history.margins


def short(settings):
    """Return settings whose probes train for an epoch."""
    return dataclasses.replace(settings, **{name: value for name, value in {"probe_epochs": 1, "views": 2}.items() if hasattr(settings, name)})


@pytest.fixture(scope="module")
def gathered(forty):
    """Return what each detector says of the forty digits, by what it is shown of them; all of it once."""
    images, truth, model, history = forty
    found = {}

    def of(name):
        if name not in found:
            detector, run, beside = DETECTORS[name], Run(), Beside(truth, history=history)
            settings = short(detector.settings)
            needs = detector.needs_with(settings) | detector.optional
            with run.timed("detection"):
                evidence = gather(needs, model, images, look(needs, model, images, settings, beside, run), beside, settings, run)
            assert {field for field in FIELDS if getattr(evidence, field) is not None} == needs
            before = content(evidence)
            found[name] = evidence, detector.score(evidence, settings, seeded(1))
            assert all(torch.equal(value, before[field]) for field, value in content(evidence).items())
        return found[name]

    return of


@pytest.mark.parametrize(("name", "cut"), list(itertools.product(DETECTORS, CUTS)))
def test_every_detector_with_every_cut_on_a_real_network(name, cut, gathered):
    skip_without(name)
    detector, rule = DETECTORS[name], CUTS[cut]
    evidence, score = gathered(name)
    assert score.shape == (40,) and score.is_floating_point() and torch.isfinite(score).all()
    if rule.signed_only and not detector.signed:
        with pytest.raises(InputError, match=f"--cut {cut} .*{name}"):
            choose_detection(name, cut=cut)
        return
    choose_detection(name, cut=cut)
    kept, results = score.clone(), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DetectionWarning)  # forty scores are seldom two clear groups
        if cut == "as-is" and not bool(((score >= 0) & (score <= 1)).all()):
            with pytest.raises(InputError, match="--cut as-is takes scores that are probabilities"):
                rule.cut(score, evidence.given_labels, rule.settings, seeded(2))
            return
        for _ in range(2):
            results.append(rule.cut(score, evidence.given_labels, rule.settings, seeded(2)))
    clean = results[0].clean
    assert clean.shape == (40,) and clean.is_floating_point() and bool(((clean >= 0) & (clean <= 1)).all())
    assert torch.equal(clean, results[1].clean) and results[0].components == results[1].components and torch.equal(score, kept)
    assert all(part.sd > 0 and 0 <= part.weight <= 1 for part in results[0].components)


@pytest.mark.parametrize(("detector", "cut"), [("feature-margin", "otsu"), ("gmm", "per-class"), ("views-margin", None)])
def test_a_detection_says_how_it_was_made(detector, cut, forty):
    images, truth, model, history = forty
    settings = short(DETECTORS[detector].settings)
    found, again = (find_label_issues(model, images, detector=detector, cut=cut, settings=settings, history=history, truth=truth, run=Run()) for _ in range(2))
    assert found.report["detector"] == detector and found.report["cut"] == (cut or DETECTORS[detector].cut)
    assert found.report["settings"] == dataclasses.asdict(settings) and found.report["cut_settings"] == dataclasses.asdict(CUTS[found.report["cut"]].settings)
    assert ("depth" in found.report) == (detector == "feature-margin") and found.report.get("views", 2) == 2
    assert torch.equal(found.score, again.score) and torch.equal(found.split.clean_probability, again.split.clean_probability)
    assert found.report | {"passes": 0} == again.report | {"passes": 0} and found.report["quality"]["auc"] is not None
