"""The published tables as plain lists of runs, and small twins of them: a protocol of our own that two CPU cores can fill in a day."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from fspmu.data.label_noise import NoiseOptions
from fspmu.data.sources import DataOptions
from fspmu.detection import at_random, known
from fspmu.experiments.experiment import Pretrain, Unlearn
from fspmu.experiments.grid_jobs import LATER, Grid, GridRun
from fspmu.pretraining import METHODS as PRETRAINING
from fspmu.pretraining import cross_entropy
from fspmu.report.published import COLUMNS
from fspmu.report.result_table import Layout
from fspmu.unlearning import METHODS as UNLEARNING
from fspmu.unlearning import retrain

NLL = {"dividemix": "DivideMix", "promix": "ProMix", "longremix": "LongReMix"}
"""Methods that resist noise while they train, and the names of their rows."""

CE_ROWS = ("original", "scrub-reference", "FSPMU")
"""Rows of models trained by cross-entropy."""

DETECTOR = "gmm"
"""What predicts the forget set of models trained by cross-entropy, where it is not known, as published."""
NLL_DETECTOR = "gmm-probe"
"""What predicts it for NLL models."""

SMALL_DATA = DataOptions(limit=5000, test_limit=4000)
"""Two thirds of the passes would go into testing on all 10,000 images after each epoch."""
SMALL_CE = cross_entropy.Settings(epochs=50, lr_step=25)
"""Half of the epochs before the learning rate falls, as published."""

LEARNING = {
    "ce": cross_entropy.Settings(epochs=130, lr_step=65),
    "dividemix": replace(PRETRAINING["dividemix"].settings, warm_up=10, epochs=25, lr_step=19),
    "longremix": replace(PRETRAINING["longremix"].settings, warm_up=12, search_epochs=17, epochs=20, agreement=3, last_sets=5, ramp_up=6, lr_step=17),
    "promix": replace(PRETRAINING["promix"].settings, warm_up=14, epochs=22, ramp_up=16, pseudo_epochs=20, agreement_after=18, batch_size=32, lr=0.02),
}
"""Shortened schedules by which the training methods are set beside plain cross-entropy that may go backward as often as the costliest of them."""
SMALL_NLL = {"dividemix": LEARNING["dividemix"]}
"""NLL methods of the small tables, by the same schedule, so that both need one training: warm-up and 15 main epochs, the last 6 at a tenth of the rate."""

_ABOUT = {"known": "forget set = known wrong labels", "gmm": "forget set = predicted by the mixture model"}


def full(forget_set: str) -> Grid:
    """Return a table as published, but for what its notes say: both CIFARs, 10 columns of noise, every row."""
    runs = []
    for dataset in ("cifar10", "cifar100"):
        for column in COLUMNS:
            start = Pretrain(dataset=dataset, model="preactresnet18", noise=noise_of(column))
            runs += with_repairs(start, column, forget_set)
            for method in NLL:
                runs += with_repairs(replace(start, method=method), column, forget_set)
    notes = (
        "Published figures: one seed; a single one is taken for the last epoch, and the asymmetric rate for 40%.",
        "cifar100 asym: protocol assumed, the published generator has none.",
        "Of two networks ours is the first; the published one is that which did better on test data (--keep better-on-test).",
        "Statistics of samples and centroids are ours, in evaluation mode, where the published ones come from a pass in training mode"
        " (--detector gmm-reference, --reference-statistics).",
    )
    layout = Layout(f"table-{forget_set}", _ABOUT[forget_set], ("cifar10", "cifar100"), (*CE_ROWS, *nll_rows(NLL)), COLUMNS, notes, published=forget_set)
    return Grid(runs, layout)


def small(forget_set: str) -> Grid:
    """Return the small twin: CIFAR-10's first 5,000 images, a narrow network, 4 columns of noise, and of the NLL methods DivideMix alone."""
    runs = []
    columns = ("sym 20", "sym 50", "sym 80", "asym 40")
    for column in columns:
        start = Pretrain(dataset="cifar10", model="preactresnet18", width=16, data=SMALL_DATA, noise=noise_of(column), settings=SMALL_CE)
        runs += with_repairs(start, column, forget_set)
        for method, settings in SMALL_NLL.items():
            runs += with_repairs(replace(start, method=method, settings=settings), column, forget_set)
    notes = (
        f"Small protocol, which nobody has published: the first 5,000 images, PreActResNet18 of width 16, {SMALL_CE.epochs} epochs, 4,000 test images.",
        f"DivideMix: {SMALL_NLL['dividemix'].epochs} epochs, the first {SMALL_NLL['dividemix'].warm_up} of them warm-up,"
        f" the last {SMALL_NLL['dividemix'].epochs - SMALL_NLL['dividemix'].lr_step} at a tenth of the learning rate.",
    )
    layout = Layout(f"table-{forget_set}-small", _ABOUT[forget_set], ("cifar10",), (*CE_ROWS, *nll_rows(SMALL_NLL)), columns, notes)
    return Grid(runs, layout, seeds=1)


def learning() -> Grid:
    """Return every training method on the small data at 20% and 50% symmetric noise, without any repair."""
    rows = {"ce": "cross-entropy"} | NLL
    start = Pretrain(dataset="cifar10", model="preactresnet18", width=16, data=SMALL_DATA)
    columns = ("sym 20", "sym 50")
    runs = [
        GridRun(replace(start, noise=noise_of(column), method=method, settings=settings), ("cifar10", rows[method], column))
        for column in columns
        for method, settings in LEARNING.items()
    ]
    notes = (
        f"The first 5,000 images, PreActResNet18 of width 16, 4,000 test images. Cross-entropy trains for {LEARNING['ce'].epochs} epochs:"
        " as many samples go backward as in the costliest of the others, or more.",
    )
    layout = Layout("learning-small", "trained from the beginning, no repair", ("cifar10",), tuple(rows[method] for method in LEARNING), columns, notes)
    return Grid(runs, layout, seeds=1)


def baselines() -> Grid:
    """Return what a repair is measured against at equal cost: the same repair of a forget set drawn by chance, and fresh weights trained on the retain set."""
    published = UNLEARNING["fspmu"].presets["original"]
    start = Pretrain(dataset="cifar10", model="preactresnet18", width=16, data=SMALL_DATA, noise=noise_of("sym 50"), settings=SMALL_CE)
    original = GridRun(start, ("cifar10", "original", "sym 50"))
    shares = {
        "FSPMU, known": ("known", known.Settings()),
        "FSPMU, known at quality .8": ("known", known.Settings(quality=0.8)),
        "FSPMU, predicted": (DETECTOR, None),
        "FSPMU, each sample with probability .45": ("random", at_random.Settings(share=0.45)),
    }
    runs = [original, *(_repair(original, row, "fspmu", published, detector, wish) for row, (detector, wish) in shares.items())]
    for about, epochs in (("at the cost of a repair", published.epochs + published.forget_epochs), ("as long as the original", SMALL_CE.epochs)):
        settings = retrain.Settings(epochs=epochs, lr_step=epochs // 2)
        for words, detector in (("known", "known"), ("predicted", DETECTOR)):
            runs.append(_repair(original, f"retrained {about}, {words}", "retrain", settings, detector))
    notes = (
        f"The first 5,000 images, PreActResNet18 of width 16, {SMALL_CE.epochs} epochs, 4,000 test images.",
        f"Retrained at the cost of a repair: {published.epochs + published.forget_epochs} epochs on the retain set, as a repair makes {published.epochs}"
        f" passes over that and {published.forget_epochs} over the forget set; the learning rate falls to a tenth halfway.",
    )
    rows = tuple(run.cell[1] for run in runs)
    return Grid(runs, Layout("baselines-small", "repairs and retraining at equal cost", ("cifar10",), rows, ("sym 50",), notes), seeds=1)


def _repair(original: GridRun, row: str, method: str, settings: Any, detector: str, detector_settings: Any = None) -> GridRun:
    data, _, column = original.cell
    options = Unlearn(LATER, method=method, settings=settings, detector=detector, detector_settings=detector_settings)
    return GridRun(options, (data, row, column), original, words=row.replace(",", ""))


def nll_rows(methods: Iterable[str]) -> tuple[str, ...]:
    """Return the rows of NLL methods: alone, and with FSPMU."""
    return tuple(row for method in methods for row in (NLL[method], f"{NLL[method]} + FSPMU"))


def noise_of(column: str) -> NoiseOptions:
    """Return the noise that a column such as `sym 50` names, in percent."""
    mode, percent = column.split()
    return NoiseOptions(noise_mode=mode, noise_rate=int(percent) / 100)


def with_repairs(start: Pretrain, column: str, forget_set: str) -> list[GridRun]:
    """Return a pretraining, and beside it the repairs that stand on it: each fills a row of `column`."""
    nll = start.method in NLL
    detector = "known" if forget_set == "known" else NLL_DETECTOR if nll else DETECTOR
    repairs = {f"{NLL[start.method]} + FSPMU": "fspmu"} if nll else {"scrub-reference": "scrub-reference", "FSPMU": "fspmu"}
    original = GridRun(start, (start.dataset, NLL[start.method] if nll else "original", column))
    runs = [original]
    for row, method in repairs.items():
        settings = UNLEARNING[method].suited(PRETRAINING[start.method].published_preset)
        runs.append(GridRun(Unlearn(LATER, method=method, detector=detector, settings=settings), (start.dataset, row, column), original))
    return runs
