"""Detect, repair, and detect again: a repaired model judges labels that it no longer knows by heart.

round 1      the detector looks at the model as it was; what it finds is forgotten
round r > 1  the repaired model of round r - 1 is looked at; the model AS IT WAS is repaired by what is found now, so that errors do not add up
What an earlier repair forgot it judges from outside; what it retained it learned once more, so a wrong label that was retained stays hard to find.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from fspmu.data.images import Images
from fspmu.data.split import Split, indices_of
from fspmu.detection import DEFAULT
from fspmu.detection.evidence import ViewSettings
from fspmu.detection.quality import detection_quality
from fspmu.detection.splitting import SplitSettings, split_at
from fspmu.engine.inference import predict_views
from fspmu.engine.run import Run
from fspmu.errors import InputError, check_settings
from fspmu.models.classifier import Classifier
from fspmu.results.store import RunFolder
from fspmu.stages.choosing import Choice, choose_detection
from fspmu.stages.deciding import Decided, decide_found
from fspmu.stages.finding import Detection, detection_of, find_label_issues, prepared, say_kept, score_at, split_among
from fspmu.stages.gathering import views_wanted
from fspmu.stages.mending import Mended, fitted_settings, mend, suitable_settings

_ROWS = 65_536
"""Samples whose predictions are divided at a time."""


@dataclass(frozen=True)
class Rounds:
    """How often to detect and repair; one round is the published method."""

    rounds: int = 1
    """Rounds of detecting and repairing. Each repair starts from the model as it was, each detection after the first looks at the repaired one."""
    second_look: Literal["views", "detector"] = "views"
    """views: a repaired model's own predictions on random views, each class measured by what is usual for it. detector: that of the first round."""
    look_views: int = 2
    """Random views of each image, for --second-look views and --relabel; drawn as the detector's."""
    relabel: float = 0.0
    """From the second round on, learn a forgotten image as another class that the repaired model gives more than this. 0: nothing is relabelled."""


def check_rounds(rounds: Rounds, choice: Choice) -> None:
    """Raise InputError for rounds that cannot be, or not with this detector."""
    check_settings(rounds)
    if rounds.relabel and rounds.rounds == 1:
        raise InputError(f"--relabel {rounds.relabel} takes new labels from a repaired model, and with one round there is none yet; add --rounds 2")
    if rounds.rounds == 1 and rounds != Rounds():
        raise InputError("--second-look and --look-views look at a repaired model, and with one round nobody does; add --rounds 2, or leave them out")
    if rounds.rounds > 1 and rounds.second_look == "detector" and "history" in choice.how.needs_with(choice.settings):
        raise InputError(f"--detector {choice.detector} reads how a model was trained, which says nothing of a repaired one; leave --second-look detector out")


def config_of_rounds(rounds: Rounds) -> dict[str, Any]:
    """Return what a config says of the rounds: nothing of one, which is what a run without this option does."""
    return {} if rounds == Rounds() else {"rounds": asdict(rounds)}


def repair_rounds(
    model: Classifier,
    images: Images,
    rounds: Rounds,
    *,
    method: str = "fspmu",
    settings: Any = None,
    finding: Mapping[str, Any] | None = None,
    found: Detection | None = None,
    decided: Decided | None = None,
    truth: Tensor | None = None,
    run: Run | None = None,
) -> Mended:
    """Return `model` mended by what the last round found; its report counts every round under "rounds".

    finding: how to find, as keywords of `find_label_issues`. found: what the first round found, where it is there already. decided: what a person said of
    labels; that beats every round. method, settings and truth: as for `mend`. It ends early when a round finds what the one before found.
    Raises what `find_label_issues` and `mend` raise, and InputError for rounds that cannot be.
    """
    run, how = run or Run.create(), dict(finding or {})
    check_rounds(rounds, choose_detection(how.get("detector", DEFAULT), *(how.get(name) for name in ("settings", "cut", "cut_settings"))))
    first = replace(found or find_label_issues(model, images, **how, truth=truth, run=run), looked=None)  # which may be as large as the images
    first = first if decided is None else decide_found(first, decided, images, truth)
    labels = None if decided is None else decided.new_labels
    if settings is None:
        settings = fitted_settings(suitable_settings(method, model), method, model, images, first.split, run)
    asked: dict[str, Any] = {"method": method, "settings": settings, "truth": truth}
    exactly = getattr(settings, "weighting", "masks") != "masks" or getattr(settings, "stop", "last") != "last"
    if rounds.rounds == 1:
        return mend(model, images, found=first, new_labels=labels, run=run, **asked)
    how = _of_repaired(how)
    mended, told, latest, latest_labels = None, [], first, labels
    for number in range(1, rounds.rounds + 1):
        own = _run_of_round(run, number, rounds.rounds)
        if mended is not None:
            looking = _looking(own, number)
            seen, labels = look_again(mended.model, images, rounds, first, how, decided, truth, looking)
            own.seconds, own._loaded = looking.seconds, looking._loaded
            if _same(seen.split, labels, latest.split, latest_labels, exactly):
                run.notice(f"round {number} finds what round {number - 1} found: the repair of that round is kept")
                _add_costs(run, own)
                break
        else:
            seen = first
        mended = mend(model, images, found=seen, new_labels=labels, run=own, **asked)
        told.append(_counts(number, seen, latest, labels, mended, own))
        _add_costs(run, own)
        run.evaluation = own.evaluation
        latest, latest_labels, lines = seen, labels, own.lines
    assert mended is not None
    _take_lines(run, lines)
    return replace(mended, report=mended.report | {"rounds": told})


def look_again(
    repaired: Classifier,
    images: Images,
    rounds: Rounds,
    first: Detection,
    finding: Mapping[str, Any],
    decided: Decided | None,
    truth: Tensor | None,
    run: Run,
) -> tuple[Detection, Tensor | None]:
    """Return what looks wrong to a repaired model, with the predictions of the model as it was, and new labels (N,), -1 where none; None: no new label."""
    given, unseen = images.given_labels.cpu(), finding.get("unseen")
    said = None
    if rounds.second_look == "views" or rounds.relabel:
        asked = finding.get("settings")
        shown, network = prepared(repaired, images, run)
        shown = shown.prepared_as(views_wanted(shown, asked if isinstance(asked, ViewSettings) else ViewSettings()))
        with run.timed("detection"):
            said = predict_views(network, shown, run, rounds.look_views).probabilities
    if rounds.second_look == "detector":
        again = find_label_issues(repaired, images, **finding, truth=truth, run=run)
    else:
        assert said is not None
        again = found_by_views(said, images, first, finding.get("split") or SplitSettings(), unseen, truth, run)
    again = again if decided is None else decide_found(again, decided, images, truth)
    labels = None if decided is None else decided.new_labels
    if rounds.relabel and said is not None:
        spoken = torch.zeros(len(given), dtype=torch.bool) if decided is None else decided.said >= 0
        late = run.processes.from_main(lambda: late_labels(said, again.split, given, rounds.relabel)).masked_fill(spoken, -1)
        labels = late if labels is None else torch.where(labels >= 0, labels, late)
    return replace(first, score=again.score, split=again.split, report=again.report), labels


def _of_repaired(finding: Mapping[str, Any]) -> dict[str, Any]:
    """Return how to find in a repaired model: without what is known of the model as it was, and of what it never saw without what the repair learned from."""
    fresh, unseen = finding.get("fresh"), finding.get("unseen")
    if isinstance(fresh, Tensor):
        fresh = None if unseen is None else fresh & unseen
    return {**finding, "fresh": fresh, "history": None, "looked": None}


def clean_by_views(probabilities: Tensor, given_labels: Tensor) -> Tensor:
    """Return r_y / (r_y + max_{c != y} r_c), (N,), of mean predictions (N, K): above a half where the given label is the likeliest.

    r_c = p_c / t_c, t_c the mean p_c over the samples that were given c: a class of which the repaired model predicts too little would else be forgotten
    altogether in the next round. A class that nobody was given has r_c = 0; where all are 0, P(clean) is a half.
    """
    own = probabilities.gather(1, given_labels[:, None]).squeeze(1)
    counts = torch.bincount(given_labels, minlength=probabilities.shape[1]).clamp(min=1)
    usual = (torch.zeros(len(counts), dtype=torch.float64).index_add(0, given_labels, own.double()) / counts).to(probabilities.dtype)
    parts = zip(torch.split(probabilities, _ROWS), torch.split(given_labels, _ROWS), strict=True)
    return torch.cat([_share_of_own(part, usual, labels) for part, labels in parts])


def _share_of_own(probabilities: Tensor, usual: Tensor, given_labels: Tensor) -> Tensor:
    """Return r_y / (r_y + max_{c != y} r_c), (B,), of predictions (B, K) over what is `usual` of each class (K,)."""
    ratios = torch.where(usual > 0, probabilities / torch.where(usual > 0, usual, torch.ones_like(usual)), torch.zeros_like(probabilities))
    own = ratios.gather(1, given_labels[:, None]).squeeze(1)
    total = own + ratios.scatter(1, given_labels[:, None], 0.0).amax(dim=1)
    return torch.where(total > 0, own / torch.where(total > 0, total, torch.ones_like(total)), torch.full_like(total, 0.5))


def found_by_views(
    probabilities: Tensor, images: Images, first: Detection, settings: SplitSettings, unseen: Tensor | None, truth: Tensor | None, run: Run
) -> Detection:
    """Return what looks wrong by mean predictions (N, K) over views: score and 1 - P(clean) are one; what is `unseen` (N,) is in neither mask."""
    given = images.given_labels.cpu()
    rows = torch.arange(len(given)) if unseen is None else indices_of(~unseen)
    clean = run.processes.from_main(lambda: clean_by_views(probabilities[rows], given[rows]))
    split = split_at(clean, 1 - clean, given[rows], images.num_classes, settings)
    say_kept(split, clean, given[rows], images, settings, run)
    quality = None if truth is None else detection_quality(1 - clean, split, given[rows], truth[rows])
    whole = split_among(split, rows, len(given))
    name = f"{first.report['detector']}, then views of the repaired model"
    mixture: dict[str, Any] = {"axis": "noise probability", "threshold": score_at(1 - clean, clean, settings.threshold), "components": []}
    report = {"detector": name, "settings": {}, "quality": quality, "mixture": mixture, "passes": dict(run.passes["detection"])}
    return detection_of(images, whole, first.predictions, 1 - whole.clean_probability, report)


def late_labels(probabilities: Tensor, split: Split, given_labels: Tensor, above: float) -> Tensor:
    """Return new labels (N,) int64, -1 where none: for what is forgotten and not retained, another class whose mean probability (N, K) is above a level."""
    sure, label = probabilities.max(dim=1)
    wanted = split.forget & ~split.retain & (label != given_labels) & (sure > above)
    return torch.where(wanted, label, torch.full_like(label, -1))


def _run_of_round(run: Run, number: int, total: int) -> Run:
    """Return a run for one round, with costs of its own: the last works in the run's folder, the others below what only a resume needs."""
    own: dict[str, Any] = {"seconds": {}, "passes": {}, "lines": [], "_loaded": {}, "_uncounted": [0, 0]}
    if number == total:
        return replace(run, **own)
    folder = None if run.folder is None else RunFolder(run.folder.state / f"round-{number}")
    return replace(run, folder=folder, tracker=None, **own)


def _looking(run: Run, number: int) -> Run:
    """Return the run for the look of a round, with a place of its own for what it trains: in the run's folder lies what the first look trained."""
    return run if run.folder is None else replace(run, folder=RunFolder(run.folder.state / f"look-{number}"), tracker=None, _uncounted=[0, 0])


def _add_costs(run: Run, own: Run) -> None:
    """Add what a round cost to the whole."""
    for stage, seconds in own.seconds.items():
        run.seconds[stage] = run.seconds.get(stage, 0.0) + seconds
    for stage, counts in own.passes.items():
        total = run.passes.setdefault(stage, {"forward": 0, "backward": 0})
        for way, count in counts.items():
            total[way] += count


def _take_lines(run: Run, lines: list[dict[str, Any]]) -> None:
    """Let the figures of the round that counts be those of the run; where it ended early they are not in its folder yet."""
    run.lines += lines
    if run.folder is not None and run.folder.metrics("unlearning") != [line for line in lines if line["stage"] == "unlearning"]:
        run.folder.forget_metrics("unlearning", 0)
        for line in lines:
            run.folder.log(line)


def _counts(number: int, seen: Detection, before: Detection, labels: Tensor | None, mended: Mended, run: Run) -> dict[str, Any]:
    """Return the figures of a round for the record."""
    moved = (seen.split.retain != before.split.retain) | (seen.split.forget != before.split.forget)
    return {
        "round": number,
        **seen.split.counts,
        "moved": int(moved.sum()),
        "relabelled": 0 if labels is None else int((labels >= 0).sum()),
        "quality": seen.report.get("quality"),
        "test_accuracy": mended.test_accuracy,
        "passes": {stage: dict(counts) for stage, counts in run.passes.items()},
    }


def _same(split: Split, labels: Tensor | None, other: Split, other_labels: Tensor | None, exactly: bool) -> bool:
    """Whether two rounds forget, retain and relabel the same; `exactly`: and are as sure of each sample, for a repair to which that matters."""
    pairs = [(split.retain, other.retain), (split.forget, other.forget)]
    if exactly:
        pairs.append((split.clean_probability.double().nan_to_num(-1), other.clean_probability.double().nan_to_num(-1)))
    none = torch.full((len(split.retain),), -1, dtype=torch.int64)
    pairs.append((none if labels is None else labels, none if other_labels is None else other_labels))
    return all(torch.equal(left, right) for left, right in pairs)
