"""Every detector and every cut on one model: its images are looked at once for all detectors, each scores them once, and every cut that fits is tried on that.

A score is the same that `find_label_issues` gives under the same settings, and so is every split. True labels judge what was found, when all is found.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from fspmu.data.images import Images
from fspmu.detection import DEFAULT, DETECTORS
from fspmu.detection.cuts import CUTS
from fspmu.detection.evidence import DepthSettings, Evidence, FoldSettings
from fspmu.detection.quality import detection_quality
from fspmu.detection.splitting import SplitSettings
from fspmu.engine.checkpoint import load_tensors, save_tensors
from fspmu.engine.run import Run
from fspmu.errors import InputError, check_settings, choose
from fspmu.models.classifier import Classifier
from fspmu.results.store import read_json, write_json
from fspmu.stages.choosing import Choice, choose_detection
from fspmu.stages.finding import prepared
from fspmu.stages.gathering import PASSES, PROBED, Beside, check_needs, gather, look
from fspmu.stages.scoring import Scored, cut_scores, final_score, score_evidence, split_judged

Json = dict[str, Any]

CROSS_FITTED = "confident-learning-cross-fit"
"""The name under which confident-learning by networks that never saw a sample stands beside that by the model's own probabilities."""
WITHOUT_HISTORY = "combined-without-history"
"""The name under which combined stands as it is for a model whose training nobody recorded, beside what it makes of the recorded training."""
ALIASES = {CROSS_FITTED: "confident-learning", WITHOUT_HISTORY: "combined"}
"""Detectors that stand twice in a survey, by their second name."""
AT_ITS_WORD = ("as-is", "log-odds")
"""Cuts by which a score means what it says: with any other score than theirs they would judge by its unit."""
ELSEWHERE = {
    "known": "is shown the true labels",
    "random": "looks at nothing",
    "gmm-probe-reference": "trains a probe that serves nobody else",
}
"""Detectors that are not surveyed, and why."""


@dataclass(frozen=True)
class SurveySettings(DepthSettings, FoldSettings):
    """Which detectors and cuts, and how the network is looked at, once for all of them."""

    detectors: str | None = None
    """Names with commas between them. None: all but known and random for which there is evidence, and those that train networks as said below."""
    cuts: str | None = None
    """Names with commas between them. None: all that fit a score."""
    probe: bool = True
    """--no-probe: train no fresh network, and leave out the detectors that judge by one, unless --detectors names them."""
    cross_fit: bool = False
    """Train a network for each fold too, for confident-learning by networks that never saw a sample; --detectors calls that confident-learning-cross-fit."""


@dataclass(frozen=True)
class Surveyed:
    """A row for each detector and cut, the scores (N,) by detector (NaN for samples that nobody may look at), and what a record says of it all."""

    rows: list[Json]
    scores: dict[str, Tensor] = field(repr=False)
    report: Json = field(repr=False)


def plan_survey(settings: SurveySettings, recorded: bool) -> tuple[dict[str, Choice], dict[str, str]]:
    """Return the detectors of a survey by their names, and why others are left out; recorded: whether the model's training was.

    Raises InputError for names that are none, for detectors that are not surveyed, and when no cut fits any score.
    """
    known = {name: detector.settings for name, detector in DETECTORS.items()}
    known |= {alias: known[name] for alias, name in ALIASES.items()}
    known[CROSS_FITTED] = replace(known[CROSS_FITTED], cross_fit=True)
    asked, left_out = _names(settings.detectors), {}
    for name in asked or ():
        choose(known, name, "detector")
        if name in ELSEWHERE:
            raise InputError(f"--detectors names {name!r}, which {ELSEWHERE[name]}, so it is not surveyed; `fspmu detect --detector {name}` asks it alone")
    for name in _names(settings.cuts) or ():
        choose(CUTS, name, "cut")
    found = {}
    for name in asked or [name for name in known if name not in ELSEWHERE]:
        choice = choose_detection(ALIASES.get(name, name), _as_looked(known[name], settings))
        needs = choice.how.needs_with(choice.settings)
        if asked is None and PROBED & needs and not settings.probe:
            left_out[name] = "it takes a probe"
        elif asked is None and "cross_fitted" in needs and not settings.cross_fit:
            left_out[name] = "it takes a network for each fold; --cross-fit trains them"
        elif asked is None and "history" in needs and not recorded:
            left_out[name] = "nobody kept how this model learned each sample"
        elif asked is None and name == WITHOUT_HISTORY and not recorded:
            left_out[name] = "nobody kept how this model learned each sample, so that it is combined"
        elif not fitting_cuts(choice, settings):
            left_out[name] = "no cut that is asked for fits its scores"
        else:
            found[name] = choice
    if not found:
        raise InputError(f"--cuts {settings.cuts} fits none of the scores of {', '.join(left_out)}; choose other cuts, or leave --cuts out")
    return found, left_out


def _names(text: str | None) -> list[str] | None:
    return None if text is None else list(dict.fromkeys(name.strip() for name in text.split(",")))


def _as_looked(settings: Any, looking: SurveySettings) -> Any:
    """Return the settings of a detector with what they say of how evidence is gathered as it is gathered for all."""
    names = {entry.name for entry in fields(settings)} & {entry.name for kind in (DepthSettings, FoldSettings) for entry in fields(kind)}
    return replace(settings, **{name: getattr(looking, name) for name in names})


def fitting_cuts(choice: Choice, settings: SurveySettings) -> list[Choice]:
    """Return the detector with every cut that is asked for and fits its scores: `sign` for margins alone, what takes scores at their word for its own alone."""
    signed, asked = choice.how.signed_with(choice.settings), _names(settings.cuts)
    fits = [name for name, rule in CUTS.items() if (signed or not rule.signed_only) and (name not in AT_ITS_WORD or choice.cut == name)]
    return [choose_detection(choice.detector, choice.settings, name) for name in fits if asked is None or name in asked]


def survey(
    model: Classifier,
    images: Images,
    settings: SurveySettings | None = None,
    *,
    split: SplitSettings | None = None,
    truth: Tensor | None = None,
    unseen: Tensor | None = None,
    history: Tensor | None = None,
    fresh: Images | Tensor | None = None,
    run: Run | None = None,
) -> Surveyed:
    """Return how every detector and every cut judges the labels of `images`; arguments as for `find_label_issues`.

    truth (N,) judges what was found and is shown to no detector; without it a row says how much is flagged, and how far it agrees with the default detector.
    A run with a folder keeps every score as soon as it is there, and goes on after the last one. Raises InputError for what cannot be surveyed.
    """
    settings, split, run = settings or SurveySettings(), split or SplitSettings(), run or Run.create()
    for part in (settings, split):
        check_settings(part)
    Beside(truth).check(images)
    beside = Beside(None, unseen, history, fresh)
    choices, left_out = plan_survey(settings, history is not None)
    for name, choice in choices.items():
        check_needs(_needs(name, choice, beside), choice.settings, images, beside)
    images, model = prepared(model, images, run)
    with run.timed("detection"):
        scored, report = _score_all(choices, left_out, model, images, settings, beside, run)
    seen = beside.seen
    given, judged_by = images.given_labels.cpu(), truth
    if seen is not None:
        given, judged_by = given[seen], None if truth is None else truth.cpu()[seen]
    kept = {name: choice for name, choice in choices.items() if name in scored}
    with run.timed("cuts"):
        rows, scores, refused = run.processes.from_main(lambda: _rows(kept, scored, given, judged_by, images.num_classes, settings, split, run))
    if not rows:
        raise InputError(f"nothing could be surveyed: {'; '.join({**left_out, **refused}.values())}")
    wrong = None if judged_by is None else float((given != judged_by).float().mean())
    report |= {"samples": len(given), "wrong_share": wrong, "left_out": left_out, "refused": refused, "rows": rows}
    return Surveyed(rows, {name: _whole(values, seen, len(images)) for name, values in scores.items()}, report)


def _needs(name: str, choice: Choice, beside: Beside) -> frozenset[str]:
    """Return what a detector needs, and what it uses where it is there already, unless it goes by the name of doing without."""
    there = frozenset() if beside.history is None or name == WITHOUT_HISTORY else frozenset({"history"})
    return choice.how.needs_with(choice.settings) | (choice.how.optional & there)


def _score_all(
    choices: Mapping[str, Choice], left_out: dict[str, str], model: Classifier, images: Images, settings: SurveySettings, beside: Beside, run: Run
) -> tuple[dict[str, Scored], Json]:
    """Return what each detector says, from evidence that is gathered once, and what that cost; one that refuses is left out, unless it was asked for."""
    scored, seconds, shared, looked_at = run.processes.from_main(lambda: _read_kept(run))
    todo = {name: choice for name, choice in choices.items() if name not in scored}
    if todo:
        needs = frozenset[str]().union(*(_needs(name, choice, beside) for name, choice in todo.items()))
        looked = look(needs, model, images, settings, beside, run)
        evidence = gather(needs, model, images, looked, beside, settings, run, shared)
        shared |= looked.seconds
        if "probe" in run.seconds:
            shared["probe"] = max(shared["probe"], run.seconds["probe"])  # one that was stopped took longer than its end
        looked_at |= looked.report
    for name, choice in todo.items():
        started = time.perf_counter()
        found = run.processes.from_main(lambda name=name, choice=choice: _score_one(choice, _only(evidence, _needs(name, choice, beside)), run))  # type: ignore[misc]
        if isinstance(found, str):
            if settings.detectors is not None:
                raise InputError(found)
            left_out[name] = found
            continue
        scored[name], seconds[name] = found, time.perf_counter() - started
        run.processes.from_main(lambda: _keep(scored, {"scores": seconds, "shared": shared, "looked": looked_at}, run))
    told = {}
    for name, choice in choices.items():
        if name in scored:
            passes = sorted({made for need in _needs(name, choice, beside) for made in PASSES.get(need, ())})
            told[name] = {"seconds": seconds[name], "passes": passes, "seconds_with_passes": seconds[name] + sum(shared.get(made, 0.0) for made in passes)}
    ordered = {name: scored[name] for name in told}
    return ordered, {"detectors": told, "shared_seconds": shared, "looked": looked_at}


def _score_one(choice: Choice, evidence: Evidence, run: Run) -> Scored | str:
    """Return what a detector says, or why it says nothing."""
    try:
        return score_evidence(choice, evidence, run.generator("score", choice.detector))
    except InputError as error:
        return str(error)


def _only(evidence: Evidence, needs: Iterable[str]) -> Evidence:
    """Return the evidence as one detector may see it: nothing that was gathered for others."""
    hidden = {entry.name for entry in fields(Evidence)} - {"given_labels", "num_classes", *needs}
    nothing: dict[str, Any] = dict.fromkeys(hidden)
    return replace(evidence, **nothing)


def _rows(
    choices: Mapping[str, Choice],
    scored: Mapping[str, Scored],
    given: Tensor,
    truth: Tensor | None,
    num_classes: int,
    settings: SurveySettings,
    split: SplitSettings,
    run: Run,
) -> tuple[list[Json], dict[str, Tensor], dict[str, str]]:
    """Return a row for each detector and cut, the score (M,) of each detector as its own cut leaves it, and why a cut refused a score."""
    rows: list[Json] = []
    scores: dict[str, Tensor] = {}
    flagged: list[Tensor] = []
    refused: dict[str, str] = {}
    for name, own in choices.items():
        for choice in fitting_cuts(own, settings):
            started = time.perf_counter()
            try:
                judged = cut_scores(choice, scored[name], given, run.generator("cut", choice.detector))
            except InputError as error:
                refused[f"{name}, {choice.cut}"] = str(error)
                continue
            seconds = time.perf_counter() - started
            found = split_judged(judged, given, num_classes, choice, split)
            flagged.append(found.forget | ~found.retain)
            score = final_score(judged, found)
            if choice.cut == own.cut:
                scores[name] = score
            row: Json = {"detector": name, "cut": choice.cut, "own": choice.cut == own.cut, "flagged": float(flagged[-1].float().mean()), "seconds": seconds}
            if truth is not None:
                quality = detection_quality(score, found, given, truth)
                row |= {key: value for key, value in quality.items() if key != "wrong_share"}
            rows.append(row | {"remarks": list(judged.remarks)})
    usual = next((mask for row, mask in zip(rows, flagged, strict=True) if row["detector"] == DEFAULT and row["own"]), None)
    for row, mask in zip(rows, flagged, strict=True):
        row["agreement"] = None if usual is None else float((mask == usual).float().mean())
    for name in scored.keys() - scores.keys():  # whose own cut was not asked for, or refused
        scores[name] = _whole_score(choices[name], scored[name], given, num_classes, split, run)
    return rows, {name: scores[name] for name in scored}, refused


def _whole_score(own: Choice, found: Scored, given: Tensor, num_classes: int, split: SplitSettings, run: Run) -> Tensor:
    """Return the score (M,) of a detector; one that judges by an early score too says by its own cut what both come to."""
    if found.early is None:
        return found.score
    try:
        judged = cut_scores(own, found, given, run.generator("cut", own.detector))
    except InputError:  # its own cut refuses it: then there is nothing that both come to
        return found.score
    return final_score(judged, split_judged(judged, given, num_classes, own, split))


def _whole(values: Tensor, seen: Tensor | None, total: int) -> Tensor:
    """Return values (M,) of the samples that were looked at among all, (N,) float32."""
    if seen is None:
        return values.float()
    return torch.full((total,), float("nan")).index_copy_(0, seen, values.float())


def _keep(scored: Mapping[str, Scored], told: Json, run: Run) -> None:
    """Write the scores so far where a stopped survey finds them."""
    if run.folder is None:
        return
    tensors = {f"{name}/score": found.score for name, found in scored.items()}
    tensors |= {f"{name}/early": found.early for name, found in scored.items() if found.early is not None}
    save_tensors(run.folder.state / "scores.safetensors", tensors)
    write_json(run.folder.state / "scores.json", told | {"remarks": {name: list(found.remarks) for name, found in scored.items()}})


def _read_kept(run: Run) -> tuple[dict[str, Scored], dict[str, float], dict[str, float], Json]:
    """Return the scores that a stopped survey kept, their seconds, those of what they share, and where the network was looked at."""
    if run.folder is None or not (run.folder.state / "scores.json").exists():
        return {}, {}, {}, {}
    told, tensors = read_json(run.folder.state / "scores.json"), load_tensors(run.folder.state / "scores.safetensors")
    scored = {name: Scored(tensors[f"{name}/score"], tensors.get(f"{name}/early"), tuple(remarks)) for name, remarks in told["remarks"].items()}
    return scored, told["scores"], told["shared"], told["looked"]
