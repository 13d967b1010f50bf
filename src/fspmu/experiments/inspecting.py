"""Looking without computing: what a data set holds, and what this installation offers."""

from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

from rich.markup import escape
from rich.table import Table

from fspmu.detection import DETECTORS
from fspmu.detection.cuts import CUTS
from fspmu.detection.evidence import Detector
from fspmu.experiments.experiment import Inspect
from fspmu.experiments.pipeline import describe_data, noisy_source
from fspmu.models import MODELS
from fspmu.pretraining import METHODS as PRETRAINING
from fspmu.report.tables import new_table
from fspmu.unlearning import METHODS as UNLEARNING

Shown = tuple[dict[str, Any], list[Table], list[str]]

DATASETS = {
    "digits": "1,797 real 8x8 digits that come with scikit-learn",
    "cifar10": "60,000 real 32x32 images, 10 classes, from --data-dir or the Hub",
    "cifar100": "60,000 real 32x32 images, 100 classes, from --data-dir or the Hub",
    "hf:NAME_OR_PATH": "an image data set of the Hub, or one on disk that `datasets` reads",
    "FOLDER": "a folder per class, or images with a labels.csv (file_name,label)",
}

EXTRAS = {
    "timm": ("timm", "fspmu repair --model timm:NAME: networks of timm, by name or from a folder"),
    "hf": ("transformers", "fspmu repair --model hf:NAME_OR_FOLDER: image classifiers that save_pretrained wrote, or of the Hub"),
    "cleanlab": ("cleanlab", "another opinion on what is wrong: fspmu repair --forget takes its tables"),
    "tsne": ("openTSNE", "features after unlearning placed into the map of those before, instead of both drawn together"),
    "ray": ("ray", "fspmu grid --where ray: the runs of a table on several GPUs or machines"),
    "tensorboard": ("tensorboard", "--track tensorboard: the figures of every epoch as event files in the run folder"),
}
"""What an optional package adds today."""


def inspect_dataset(options: Inspect) -> Shown:
    """Return what is understood of a data set, with the noise that the options would inject."""
    source, noisy = noisy_source(options.dataset, options.data, options.noise, options.seed)
    result = describe_data(source, noisy.train, noisy.test, {"preprocessing": asdict(noisy.train.preprocessing), "flip_rate": noisy.flip_rate})
    result["notes"] += noisy.notes
    table = new_table(escape(f"{source.name}: {len(noisy.train):,} training and {result['test']:,} test images"), "class", "training", "test")
    tests = noisy.test.class_counts if noisy.test is not None else [0] * noisy.train.num_classes
    for name, count, test in zip(noisy.train.class_names, noisy.train.class_counts, tests, strict=True):
        table.add_row(escape(name), f"{count:,}", f"{test:,}")
    channels, height, width = result["shape"]
    prepared = noisy.train.preprocessing
    lines = [
        f"images       {width} x {height} pixels, {channels} channels",
        f"mean, std    {' '.join(f'{x:.4f}' for x in prepared.mean)}, {' '.join(f'{x:.4f}' for x in prepared.std)}",
        f"augmentation {prepared.augment}" + (f", {prepared.padding} px padding" if prepared.padding else ""),
        f"fingerprint  {result['fingerprint']}",
        *([f"wrong labels {noisy.flip_rate:.2%} after noise {options.noise.noise_mode}"] if options.noise.noise_mode != "none" else []),
        *(f"note: {note}" for note in result["notes"]),
    ]
    return result, [table], lines


NEEDS = {
    "logits": "",
    "features": "",
    "block": "random views",
    "view_probabilities": "random views",
    "view_margins": "random views",
    "history": "what the training run recorded",
    "probe_history": "a probe's training",
    "cross_fitted": "a probe's training for each fold",
    "reference_losses": "",
    "probe_losses": "a probe's training",
    "reference_probe_losses": "a probe's training",
    "truth": "the true labels",
}
"""What each kind of evidence costs beside a pass over the images, or where it comes from."""


def _described(detector: Detector) -> str:
    """Return what a detector does, what it costs, whether 0 divides its scores, and its cut."""
    costs = list(dict.fromkeys(NEEDS[name] for name in sorted(detector.needs_with(detector.settings)) if NEEDS[name]))
    kind = ["margin"] if detector.signed else []
    return f"{detector.about} [{'; '.join([*kind, f'cut {detector.cut}', *(f'needs {cost}' for cost in costs)])}]"


def list_methods() -> Shown:
    """Return every choice by family, and the extras that are not installed with the line that adds them."""
    families = {
        "datasets": DATASETS,
        "models": {name: (builder.__doc__ or "").strip().split("\n")[0].removeprefix("Return ") for name, builder in MODELS.items()},
        "pretraining": {name: method.about for name, method in PRETRAINING.items()},
        "detectors": {name: _described(detector) for name, detector in DETECTORS.items()},
        "cuts": {name: rule.about for name, rule in CUTS.items()},
        "unlearning": {name: method.about for name, method in UNLEARNING.items()},
    }
    extras = {
        name: {"installed": find_spec(module) is not None, "adds": about, "install": f"pip install -e '.[{name}]'"} for name, (module, about) in EXTRAS.items()
    }
    result: dict[str, Any] = {
        "datasets": DATASETS,
        "models": families["models"],
        "pretraining": {name: {"about": method.about, "settings": asdict(method.settings)} for name, method in PRETRAINING.items()},
        "detectors": {
            name: {
                "about": detector.about,
                "needs": sorted(detector.needs_with(detector.settings)),
                "optional": sorted(detector.optional),
                "signed": detector.signed,
                "cut": detector.cut,
                "settings": asdict(detector.settings),
            }
            for name, detector in DETECTORS.items()
        },
        "cuts": {name: {"about": rule.about, "signed_only": rule.signed_only, "settings": asdict(rule.settings)} for name, rule in CUTS.items()},
        "unlearning": {
            name: {"about": method.about, "settings": asdict(method.settings), "presets": {key: asdict(value) for key, value in method.presets.items()}}
            for name, method in UNLEARNING.items()
        },
        "extras": extras,
    }
    tables = []
    for family, members in families.items():
        table = Table(title=family, title_justify="left", box=None, show_header=False, padding=(0, 2))
        for name, about in members.items():
            table.add_row(escape(name), escape(about))
        tables.append(table)
    lines = [f"absent extra {name}: {entry['adds']}; {entry['install']}" for name, entry in extras.items() if not entry["installed"]]
    return result, tables, ["", *lines]
