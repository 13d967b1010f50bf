"""A survey says what its detectors and cuts say one by one, shows them no true label, and goes on where it was stopped."""

import dataclasses
from dataclasses import replace

import pytest
import torch

from fspmu.data.images import Images
from fspmu.detection import DEFAULT, DETECTORS
from fspmu.detection.cuts import CUTS
from fspmu.detection.evidence import Evidence
from fspmu.engine.run import Run
from fspmu.errors import InputError
from fspmu.models import MODELS
from fspmu.preprocessing import Preprocessing
from fspmu.results.store import RunFolder
from fspmu.stages import surveying
from fspmu.stages.finding import find_label_issues
from fspmu.stages.surveying import ALIASES, CROSS_FITTED, ELSEWHERE, WITHOUT_HISTORY, SurveySettings, plan_survey, survey
from memorised_digits import NAMES, digits

FEW = SurveySettings(views=2, probe_epochs=2, folds=2)


@pytest.fixture(scope="module")
def images():
    data = digits()
    preprocessing = Preprocessing((0.5,), (0.25,), "crop", 1)
    return Images(torch.from_numpy(data.pixels[:150])[:, None], data.given[:150], NAMES, [str(row) for row in range(150)], preprocessing=preprocessing)


@pytest.fixture(scope="module")
def truth():
    return digits().truth[:150]


@pytest.fixture(scope="module")
def model():
    """Return a network that has learned a little of digits with wrong labels."""
    data = digits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = MODELS["smallcnn"](10, width=4, channels=1)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
        pixels = (torch.from_numpy(data.pixels[:150]).float()[:, None] / 255 - 0.5) / 0.25
        for _ in range(30):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network.train()(pixels).logits, data.given[:150]).backward()
            optimizer.step()
    return network.eval()


@pytest.fixture(scope="module")
def history():
    return torch.randn(3, 150, generator=torch.Generator().manual_seed(5)).half()


@pytest.fixture(scope="module")
def surveyed(images, model, truth, history):
    unseen = torch.arange(150) % 15 == 7
    run = Run(seed=4)
    settings = replace(FEW, cross_fit=True, cuts="mixture,sign,otsu")
    return survey(model, images, settings, truth=truth, history=history, unseen=unseen, run=run), run, unseen


def settings_of(name):
    known = DETECTORS[ALIASES.get(name, name)].settings
    shared = {key: getattr(FEW, key) for key in ("views", "probe_epochs", "folds") if hasattr(known, key)}
    return replace(known, **shared, **({"cross_fit": True} if name == CROSS_FITTED else {}))


@pytest.mark.parametrize("name", [name for name in (*DETECTORS, CROSS_FITTED) if name not in ELSEWHERE])
def test_every_figure_is_that_of_the_detector_asked_alone(name, surveyed, images, model, truth, history):
    together, _, unseen = surveyed
    rows = [row for row in together.rows if row["detector"] == name]
    wanted = [cut for cut in ("mixture", "sign", "otsu") if cut != "sign" or DETECTORS[ALIASES.get(name, name)].signed]
    assert [row["cut"] for row in rows] == [cut for cut in CUTS if cut in wanted]
    for row in rows:
        how = {"detector": ALIASES.get(name, name), "settings": settings_of(name), "cut": row["cut"]}
        alone = find_label_issues(model, images, **how, truth=truth, history=history, unseen=unseen, run=Run(seed=4))
        quality = alone.report["quality"]
        assert {key: row[key] for key in quality if key != "wrong_share"} == {key: value for key, value in quality.items() if key != "wrong_share"}
        assert row["flagged"] == pytest.approx(float((alone.split.forget | ~alone.split.retain)[~unseen].float().mean()))
        assert row["own"] == (row["cut"] == DETECTORS[ALIASES.get(name, name)].cut)
        if row["own"] or DETECTORS[ALIASES.get(name, name)].early is None:
            assert torch.equal(together.scores[name][~unseen], alone.score[~unseen].float()) and together.scores[name][unseen].isnan().all()


def test_evidence_is_gathered_once_for_all(surveyed, images):
    together, run, unseen = surveyed
    seen = int((~unseen).sum())
    folds = 2 * seen
    looks = 150 * (1 + 2) + seen * (1 + 1)  # plain and views of all; the published pass, and the probe's losses
    assert run.passes["detection"]["forward"] == looks + seen  # and the features of every depth
    assert run.passes["probe"]["backward"] == 2 * seen
    assert sum(run.passes[f"fold-{number}"]["backward"] for number in (1, 2)) == folds // 2 * 2
    told, shared = together.report["detectors"], together.report["shared_seconds"]
    assert set(shared) == {"plain", "depth", "views", "reference", "probe", "folds"}
    assert told["combined"]["passes"] == ["depth", "views"] and told["trajectory"]["passes"] == [] and told["gmm-probe"]["passes"] == ["plain", "probe"]
    for entry in told.values():
        assert entry["seconds_with_passes"] == pytest.approx(entry["seconds"] + sum(shared[name] for name in entry["passes"]))
    assert together.report["wrong_share"] == pytest.approx(float((images.given_labels != digits().truth[:150])[~unseen].float().mean()))


def test_no_detector_is_shown_the_truth_or_what_others_need(images, model, truth, history, monkeypatch):
    shown = []
    original = surveying.score_evidence

    def spy(choice, evidence, generator):
        shown.append((choice.detector, {entry.name for entry in dataclasses.fields(Evidence) if getattr(evidence, entry.name) is not None}))
        return original(choice, evidence, generator)

    monkeypatch.setattr(surveying, "score_evidence", spy)
    wish = replace(FEW, cuts="mixture,otsu,log-odds", probe=False)
    right = survey(model, images, wish, truth=truth, history=history, run=Run())
    for name, found in shown:
        detector = DETECTORS[name]
        needed = {"given_labels", "num_classes"} | detector.needs_with(detector.settings)
        assert found == needed | detector.optional or (name == "combined" and found == needed), "once with the history, once without"
    assert len(shown) == len(right.scores) and not torch.equal(right.scores["combined"], right.scores["combined-without-history"])
    assert "truth" not in set().union(*(found for _, found in shown)) and "probe" in right.report["left_out"]
    wrong = survey(model, images, wish, truth=(truth + 1) % 10, history=history, run=Run())
    without = survey(model, images, wish, history=history, run=Run())
    for name, score in right.scores.items():
        assert torch.equal(score, wrong.scores[name]) and torch.equal(score, without.scores[name])
    assert [row["flagged"] for row in right.rows] == [row["flagged"] for row in wrong.rows] == [row["flagged"] for row in without.rows]
    assert [row["auc"] for row in right.rows] != [row["auc"] for row in wrong.rows]
    assert without.report["wrong_share"] is None and all("auc" not in row and 0 <= row["agreement"] <= 1 for row in without.rows)
    assert all(row["agreement"] == 1 for row in without.rows if row["detector"] == DEFAULT and row["own"])


def test_agreement_is_the_share_on_which_both_are_of_one_mind(images, model, truth):
    wish = SurveySettings(detectors=f"{DEFAULT},fine", cuts=f"{DETECTORS[DEFAULT].cut},mixture")
    rows = survey(model, images, wish, truth=truth, run=Run()).rows
    masks = []
    for name, cut in ((DEFAULT, None), ("fine", "mixture")):
        split = find_label_issues(model, images, detector=name, cut=cut, run=Run()).split
        masks.append(split.forget | ~split.retain)
    (row,) = (row for row in rows if (row["detector"], row["cut"]) == ("fine", "mixture"))
    assert row["agreement"] == pytest.approx(float((masks[0] == masks[1]).float().mean()))


def test_a_stopped_survey_asks_again_only_who_has_not_spoken(images, model, truth, tmp_path, monkeypatch):
    wish = replace(FEW, detectors="gmm,gmm-probe,knn,fine", cuts="mixture")
    whole = survey(model, images, wish, truth=truth, run=Run())
    original, asked = surveying.score_evidence, []

    def until_knn(choice, evidence, generator):
        asked.append(choice.detector)
        if choice.detector == "knn" and asked.count("knn") == 1:
            raise KeyboardInterrupt
        return original(choice, evidence, generator)

    monkeypatch.setattr(surveying, "score_evidence", until_knn)
    with pytest.raises(KeyboardInterrupt):
        survey(model, images, wish, truth=truth, run=Run(folder=RunFolder(tmp_path)))
    run = Run(folder=RunFolder(tmp_path))
    again = survey(model, images, wish, truth=truth, run=run)
    assert asked == ["gmm", "gmm-probe", "knn", "knn", "fine"] and "probe" not in run.seconds, "no probe for those that are left"
    for row, expected in zip(again.rows, whole.rows, strict=True):
        assert row | {"seconds": 0} == expected | {"seconds": 0}
    assert list(again.scores) == list(whole.scores) and all(torch.equal(score, whole.scores[name]) for name, score in again.scores.items())
    assert set(again.report["shared_seconds"]) == set(whole.report["shared_seconds"]) and again.report["looked"] == whole.report["looked"]
    assert list(again.report["detectors"]) == list(whole.report["detectors"])


def test_a_detector_that_refuses_is_left_out_unless_it_was_asked_for(images, model, monkeypatch):
    def refuse(labels, probabilities, settings):
        raise InputError("the detector 'confident-learning' needs cleanlab: pip install -e '.[cleanlab]'")

    monkeypatch.setattr("fspmu.detection.confident.found_by_cleanlab", refuse)
    found = survey(model, images, replace(FEW, probe=False, cuts="otsu"), run=Run())
    assert "needs cleanlab" in found.report["left_out"]["confident-learning"] and "confident-learning" not in found.scores
    with pytest.raises(InputError, match="needs cleanlab"):
        survey(model, images, replace(FEW, detectors="gmm,confident-learning"), run=Run())


def test_a_cut_that_refuses_a_score_costs_its_row_alone(images, model, monkeypatch):
    def refuse(score, given_labels, settings, generator):
        raise InputError("not these scores")

    monkeypatch.setitem(CUTS, "beta", replace(CUTS["beta"], cut=refuse))
    found = survey(model, images, SurveySettings(detectors="gmm", cuts="beta,otsu"), run=Run())
    assert [row["cut"] for row in found.rows] == ["otsu"] and found.report["refused"] == {"gmm, beta": "not these scores"}
    with pytest.raises(InputError, match="nothing could be surveyed: not these scores"):
        survey(model, images, SurveySettings(detectors="gmm", cuts="beta"), run=Run())


def test_who_is_surveyed():
    everybody, left_out = plan_survey(SurveySettings(), recorded=True)
    assert set(everybody) == set(DETECTORS) - set(ELSEWHERE) | {WITHOUT_HISTORY} and set(left_out) == {CROSS_FITTED}
    few, left_out = plan_survey(SurveySettings(probe=False), recorded=False)
    missing = {"probe", "gmm-probe", "trajectory", WITHOUT_HISTORY}
    assert set(everybody) - set(few) == missing and set(left_out) == missing | {CROSS_FITTED}
    named, left_out = plan_survey(SurveySettings(detectors=f"probe, gmm,{CROSS_FITTED}", probe=False, cuts="sign"), recorded=False)
    assert set(named) == {"probe", CROSS_FITTED} and "fits" in left_out["gmm"] and named[CROSS_FITTED].settings.cross_fit
    looked = plan_survey(SurveySettings(views=3, depth="last", folds=5), recorded=True)[0]
    assert looked["combined"].settings.views == 3 and looked["knn"].settings.depth == "last" and looked["confident-learning"].settings.folds == 5


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        ({"detectors": "gnm"}, "did you mean 'gmm'"),
        ({"detectors": "gmm,known"}, "'known', which is shown the true labels.*fspmu detect --detector known"),
        ({"cuts": "otzu"}, "did you mean 'otsu'"),
        ({"detectors": "gmm,fine", "cuts": "sign"}, "--cuts sign fits none of the scores of gmm, fine"),
        ({"detectors": "trajectory"}, "nobody kept how this model learned"),
        ({"views": 0}, "--views is 0"),
        ({"cross_fit": True, "folds": 200}, "--folds is 200, but there are only 150 images"),
    ],
)
def test_bad_wishes_get_a_sentence(wish, sentence, images, model):
    with pytest.raises(InputError, match=sentence):
        survey(model, images, SurveySettings(**wish), run=Run())
