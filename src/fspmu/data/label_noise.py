"""Label noise made on purpose, or read from a file; the true labels are kept apart.

A rate r names floor(r * N) slots, drawn without replacement from all N (sym, asym); what a slot's label becomes is the mode's.
Definitions: docs/method.md, "Label noise".
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fspmu.data.augment import normalise
from fspmu.data.cifar_classes import SUPERCLASSES, confused_classes, is_cifar10, is_cifar100
from fspmu.data.images import Images
from fspmu.data.label_files import read_label_file, read_stored_truth
from fspmu.data.listing import some
from fspmu.data.sources import Source
from fspmu.errors import InputError, check_share, choose, suggestion
from fspmu.results.store import read_json

GENERATORS = {"torch": "PyTorch's", "cpython-random": "Python's own, as the published label files were drawn"}
INSTANCE_SPREAD = 0.1
"""Standard deviation of the flip rate from image to image."""


@dataclass(frozen=True)
class NoiseOptions:
    """Which labels go wrong, and how."""

    noise_mode: str = "none"
    """none, sym (any class), asym (a class that is easily confused; outside CIFAR class k becomes k + 1, the last becomes the first),
    subclass (CIFAR-100 as 20 superclasses), instance (depends on the image), human (from --label-file)."""
    noise_rate: float = 0.0
    """Share of all labels that noise may act on, in [0, 1]; a share of these can keep its label by chance (sym)."""
    noise_generator: str = "torch"
    """torch, or cpython-random: the draws of the published sym and asym files."""
    noise_seed: int | None = None
    """Seed of the noise alone; default: the run's --seed."""
    noise_map: Path | None = None
    """JSON file {class name: class name} for asym; a class that it does not name keeps its labels."""
    label_file: Path | None = None
    """For human: labels in data set order, .npy, .npz, .csv, .json or .pt (CIFAR-N)."""
    label_key: str | None = None
    """Which array or column of --label-file, such as worse or random1."""


@dataclass(frozen=True)
class NoisySource:
    """A data set under given labels, with the truth (N,) int64 beside it.

    slots (N,) bool: where noise could act; for modes without slots (subclass, instance, human) the labels that changed.
    flip_rate: share of given labels that differ from the truth.
    """

    train: Images
    test: Images | None
    true_labels: Tensor
    slots: Tensor
    flip_rate: float
    notes: tuple[str, ...] = ()


def inject(source: Source, options: NoiseOptions, generator: torch.Generator, seed: int) -> NoisySource:
    """Return `source` under noisy labels; `generator` draws them, for cpython-random `seed` does.

    Raises InputError when options do not fit each other or the data set.
    """
    mode = choose(MODES, options.noise_mode, "noise mode")
    _check_options(options)
    return mode(source, options, generator, seed)


def _check_options(options: NoiseOptions) -> None:
    mode = options.noise_mode
    check_share(options.noise_rate, "--noise-rate")
    choose(GENERATORS, options.noise_generator, "noise generator")
    if options.noise_rate and mode == "none":
        raise InputError("--noise-rate has no effect without --noise-mode: give sym, asym, subclass or instance")
    if options.noise_rate and mode == "human":
        raise InputError("--noise-rate has no effect with --noise-mode human: the label file sets it")
    if options.noise_generator == "cpython-random" and mode not in ("none", "sym", "asym"):
        raise InputError(f"--noise-generator cpython-random draws sym and asym only, not {mode}")
    if options.noise_map is not None and mode != "asym":
        raise InputError(f"--noise-map is for --noise-mode asym, not {mode}")
    if (options.label_file is not None or options.label_key is not None) and mode != "human":
        raise InputError(f"--label-file and --label-key are for --noise-mode human, not {mode}")
    if options.label_file is None and mode == "human":
        raise InputError("--noise-mode human needs --label-file")


# Each mode on tensors.


def count_slots(count: int, rate: float) -> int:
    """Return floor(rate * count), where a product such as 0.29 * 100 counts as 29."""
    return math.floor(rate * count + 1e-9)


def draw_slots(count: int, rate: float, generator: torch.Generator) -> Tensor:
    """Return floor(rate * count) indices without repetition; those of a lower rate come first."""
    return torch.randperm(count, generator=generator)[: count_slots(count, rate)]


def draw_slots_cpython(count: int, rate: float, stream: random.Random) -> Tensor:
    """Return the slots of the published generator: the head of one shuffle."""
    order = list(range(count))
    stream.shuffle(order)
    return torch.tensor(order[: count_slots(count, rate)], dtype=torch.int64)


def flip_symmetric(true_labels: Tensor, slots: Tensor, num_classes: int, generator: torch.Generator) -> Tensor:
    """Return labels (N,) where each slot has one drawn from ALL classes, so that rate * (1 - 1 / K) of them are wrong."""
    return true_labels.index_put((slots,), torch.randint(num_classes, slots.shape, generator=generator))


def flip_symmetric_cpython(true_labels: Tensor, slots: Tensor, num_classes: int, stream: random.Random) -> Tensor:
    """Return labels (N,) as the published generator draws them: slots in ascending order, one draw each, from the shuffle's stream."""
    ascending = slots.sort().values
    drawn = torch.tensor([stream.randint(0, num_classes - 1) for _ in range(len(ascending))], dtype=torch.int64)
    return true_labels.index_put((ascending,), drawn)


def flip_mapped(true_labels: Tensor, slots: Tensor, mapping: Tensor) -> Tensor:
    """Return labels (N,) where each slot of class k has mapping[k], mapping (K,) int64."""
    return true_labels.index_put((slots,), mapping[true_labels[slots]])


def flip_last_subclass(superclasses: Tensor, is_last: Tensor, rate: float, num_superclasses: int, generator: torch.Generator) -> Tensor:
    """Return superclasses (N,) where a sample of the last of five subclasses, is_last (N,) bool, goes to the next one with probability 5 * rate."""
    moves = is_last & (torch.rand(superclasses.shape, generator=generator) < 5 * rate)
    return torch.where(moves, (superclasses + 1) % num_superclasses, superclasses)


def draw_flip_rates(count: int, rate: float, generator: torch.Generator) -> Tensor:
    """Return (N,) float64 from a normal N(rate, 0.1^2) truncated to [0, 1], by its inverse distribution function."""
    low, high = torch.special.ndtr((torch.tensor([0.0, 1.0], dtype=torch.float64) - rate) / INSTANCE_SPREAD)
    uniform = torch.rand(count, dtype=torch.float64, generator=generator)
    normal: Tensor = torch.special.ndtri(low + uniform * (high - low))
    return (rate + INSTANCE_SPREAD * normal).clamp(0, 1)


def flip_by_instance(images: Images, true_labels: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """Return labels (N,) that go wrong by what the image shows.

    With S numbers in a normalised image x_i and a projection W_c (S, K) per true class c, entries N(0, 1): scores x_i W_c, own
    class masked out, softmax, times the image's flip rate q_i; the truth stays with 1 - q_i.
    """
    given, num_classes = true_labels.clone(), images.num_classes
    if not rate:
        return given
    flip_rates = draw_flip_rates(len(images), rate, generator).float()
    for label in range(num_classes):
        projection = torch.randn(images.pixels[0].numel(), num_classes, generator=generator)
        members = (true_labels == label).nonzero().flatten()
        for rows in torch.split(members, 1024):
            scores = normalise(images.pixels[rows], images.preprocessing).flatten(1) @ projection
            scores[:, label] = -torch.inf
            chances = scores.softmax(dim=1) * flip_rates[rows, None]
            chances[:, label] = 1 - flip_rates[rows]
            given[rows] = torch.multinomial(chances, 1, generator=generator).squeeze(1)
    return given


def class_map(class_names: Sequence[str], names: Mapping[str, str]) -> Tensor:
    """Return (K,) int64: where each class goes by name; one that `names` does not hold stays.

    Raises InputError for a name that is no class.
    """
    for name in (*names.keys(), *names.values()):
        if name not in class_names:
            raise InputError(f"the noise map names {name!r}, which is no class; {suggestion(str(name), class_names)}")
    return torch.tensor([class_names.index(names.get(name, name)) for name in class_names])


# Each mode on a source.


def _inject_none(source: Source, options: NoiseOptions, generator: torch.Generator, seed: int) -> NoisySource:
    return _finish(source.train, source.test, source.train.given_labels, None)


def _inject_sym(source: Source, options: NoiseOptions, generator: torch.Generator, seed: int) -> NoisySource:
    true_labels, num_classes = source.train.given_labels, source.train.num_classes
    if options.noise_generator == "torch":
        slots = draw_slots(len(true_labels), options.noise_rate, generator)
        given = flip_symmetric(true_labels, slots, num_classes, generator)
    else:
        stream = random.Random(seed)
        slots = draw_slots_cpython(len(true_labels), options.noise_rate, stream)
        given = flip_symmetric_cpython(true_labels, slots, num_classes, stream)
    return _finish(source.train, source.test, given, slots)


def _inject_asym(source: Source, options: NoiseOptions, generator: torch.Generator, seed: int) -> NoisySource:
    names, count = source.train.class_names, len(source.train)
    published = confused_classes(names)
    notes = []
    if options.noise_map is not None:
        mapping = class_map(names, read_json(options.noise_map))
    elif published is not None:
        mapping = class_map(names, published)
        notes = [] if is_cifar10(names) else ["protocol assumed: the published generator has no map for CIFAR-100"]
    else:
        mapping = torch.arange(1, len(names) + 1) % len(names)
        notes = ["no noise map is known for these classes: class k became k + 1, the last became the first"]
    cpython = options.noise_generator == "cpython-random"
    slots = draw_slots_cpython(count, options.noise_rate, random.Random(seed)) if cpython else draw_slots(count, options.noise_rate, generator)
    return _finish(source.train, source.test, flip_mapped(source.train.given_labels, slots, mapping), slots, notes)


def _inject_subclass(source: Source, options: NoiseOptions, generator: torch.Generator, seed: int) -> NoisySource:
    names, rate = source.train.class_names, options.noise_rate
    if not is_cifar100(names):
        raise InputError("--noise-mode subclass needs the 100 classes of CIFAR-100: it turns them into their 20 superclasses")
    if rate > 0.2:
        raise InputError(f"--noise-rate is {rate}, but subclass noise moves one of five subclasses and so reaches 0.2 at most")
    home = {fine: place for place, members in enumerate(SUPERCLASSES.values()) for fine in members}
    superclass = torch.tensor([home[name] for name in names])
    last = torch.tensor([name in {members[-1] for members in SUPERCLASSES.values()} for name in names])
    fine = source.train.given_labels
    train = source.train.with_labels(superclass[fine], tuple(SUPERCLASSES))
    test = source.test.with_labels(superclass[source.test.given_labels], tuple(SUPERCLASSES)) if source.test else None
    given = flip_last_subclass(train.given_labels, last[fine], rate, len(SUPERCLASSES), generator)
    return _finish(train, test, given, None, ["the 100 classes became their 20 superclasses, in the test part too"])


def _inject_instance(source: Source, options: NoiseOptions, generator: torch.Generator, seed: int) -> NoisySource:
    given = flip_by_instance(source.train, source.train.given_labels, options.noise_rate, generator)
    return _finish(source.train, source.test, given, None)


def _inject_human(source: Source, options: NoiseOptions, generator: torch.Generator, seed: int) -> NoisySource:
    assert options.label_file is not None
    train, names = source.train, source.train.class_names
    truth = read_stored_truth(options.label_file, names)
    if truth is not None and not torch.equal(_cut(truth, source), train.given_labels):
        raise InputError(f"the true labels in {options.label_file} are not those of {source.name}: the file was made for another order of the images")
    given = _cut(read_label_file(options.label_file, options.label_key, names), source)
    agreement = float((given == train.given_labels).double().mean())
    notes = []
    if agreement <= 1.5 / len(names):
        notes.append(f"the label file agrees with only {agreement:.1%} of the labels, as chance does: it may be made for another order of the images")
    return _finish(train, source.test, given, None, notes)


def _cut(labels: Tensor, source: Source) -> Tensor:
    """Return the labels (N,) of the images that `source` kept, from labels for these or for all.

    Raises InputError for any other number of labels.
    """
    kept = len(source.train)
    if len(labels) == source.train_total:
        return labels[source.rows] if source.rows is not None else labels[:kept]
    if len(labels) == kept:
        return labels
    of_all = f" (of {source.train_total:,})" if source.train_total != kept else ""
    raise InputError(f"the label file has {len(labels):,} labels, but there are {kept:,} training images{of_all}")


def _finish(train: Images, test: Images | None, given: Tensor, slots: Tensor | None, notes: Sequence[str] = ()) -> NoisySource:
    """Put the result together; `slots` are indices, None where the mode has none."""
    wrong = given != train.given_labels
    where = wrong.clone()
    told = f"{int(wrong.sum()):,} of {len(given):,} labels differ from the truth ({float(wrong.double().mean()):.2%})"
    if slots is not None:
        where = torch.zeros_like(wrong).index_fill(0, slots, True)
        told = f"noise could act on {len(slots):,} labels, {told}"
    noisy = train.with_labels(given)
    gone = [name for name, count in zip(noisy.class_names, noisy.class_counts, strict=True) if not count]
    lost = [f"no label is left of the class {some(gone)}"] if gone else []
    said = [told] if slots is not None or wrong.any() else []
    return NoisySource(noisy, test, train.given_labels, where, float(wrong.double().mean()), (*said, *notes, *lost))


MODES: dict[str, Callable[[Source, NoiseOptions, torch.Generator, int], NoisySource]] = {
    "none": _inject_none,
    "sym": _inject_sym,
    "asym": _inject_asym,
    "subclass": _inject_subclass,
    "instance": _inject_instance,
    "human": _inject_human,
}
