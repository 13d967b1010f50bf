"""Taking in what people have: any classifier, images from anywhere -> a Classifier and Images that fit each other, and something to measure on."""

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fspmu.data.arrays import Loaded, duplicates_between, load_images
from fspmu.data.augment import normalise
from fspmu.data.classes import match_classes, merged_classes, natural_order, order_for, read_class_map, relabel, string_order
from fspmu.data.images import Images
from fspmu.data.listing import some
from fspmu.data.sources import hold_out
from fspmu.engine.opening import OpenedModel, adopted_from
from fspmu.engine.run import Run
from fspmu.errors import InputError, choose
from fspmu.models.adopt import Adopted, input_channels
from fspmu.models.classifier import Classifier, Description
from fspmu.models.named import what_is_known
from fspmu.preprocessing import AUGMENTATIONS, Geometry, Preprocessing

MOST_HELD_OUT = 5000
"""Images beyond which a hold-out tells nothing more that would be worth not learning from."""
AnyModule = TypeVar("AnyModule", bound=nn.Module)
ORDERS = {"string": string_order, "natural": natural_order}
"""How other programs sort class folders: as strings, or with the digits in them by value."""


@dataclass(frozen=True)
class Intake:
    """How a model and images of one's own are to be understood; None: as they themselves say."""

    class_names: tuple[str, ...] | None = None
    """The model's classes, in the order of its outputs."""
    class_order: str | None = None
    """string or natural: how the folders were sorted in training, for a model that does not name its classes."""
    head: str | None = None
    """Name of the last linear layer within the model, where it is not found."""
    size: int | None = None
    """Side in pixels at which the model wants its images."""
    mean: tuple[float, ...] | None = None
    """Per channel, in pixel values from 0 to 1."""
    std: tuple[float, ...] | None = None
    """Per channel."""
    augment: str = "none"
    """The random view of unlearning: none (the images as they are), crop, or crop-flip."""
    hold_out: float = 0.1
    """Share of each class that neither detection nor unlearning sees, where no evaluation images are given, in [0, 1); 0: nothing is measured."""
    storage: str = "auto"
    """memory, disk (decode batch by batch), or auto: by size."""
    limit: int | None = None
    """At most so many images, evenly spaced."""


@dataclass(frozen=True)
class Taken:
    """A model, its images, and images to measure on.

    held (N,) bool: which of `images` neither detection nor unlearning may see. kind: where the evaluation images come from, `given` or `held out`; empty
    without any. unreadable: (id, reason) of every image that had to be left out. given: the module as it was handed over, which nothing changes.
    """

    model: Classifier
    images: Images
    held: Tensor
    name: str
    """What the images are called."""
    given: nn.Module
    evaluation: Images | None = None
    kind: str = ""
    unreadable: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    fingerprint: str = field(default="", repr=False)
    """16 hexadecimal digits of the images, their labels, and of what is measured on."""

    def described(self) -> dict[str, Any]:
        """Return the record's section on the data."""
        return {
            "name": self.name,
            "train": len(self.images),
            "held_out": int(self.held.sum()),
            "test": 0 if self.evaluation is None else len(self.evaluation),
            "unreadable": len(self.unreadable),
            "classes": list(self.images.class_names),
            "class_counts": self.images.class_counts,
            "shape": list(self.images.pixels.shape[1:]),
            "fingerprint": self.fingerprint,
            "notes": list(self.notes),
        }


def take_in(
    model: Any,
    images: Any,
    evaluation: Any = None,
    intake: Intake | None = None,
    run: Run | None = None,
    *,
    class_map: Path | str | Mapping[str, str] | None = None,
    data_dir: Path | None = None,
) -> Taken:
    """Return `model` as a Classifier and `images` as Images under its classes, all of it checked.

    model: a module, one of our networks, or what `open_model` returned. images, evaluation: whatever `load_images` takes. class_map: which class of the model
    a class of the data is, where their names differ: a mapping, or a JSON or CSV file of one.
    Raises InputError for what does not fit together.
    """
    intake, run = intake or Intake(), run or Run.create()
    _check(intake)
    options: dict[str, Any] = {"storage": intake.storage, "data_dir": data_dir}
    given = model.model.module if isinstance(model, OpenedModel) else model
    if not isinstance(given, nn.Module):
        raise InputError(f"the model is a {type(given).__name__}, but it must be a torch.nn.Module")
    opened: OpenedModel | None = None
    if isinstance(given, Classifier) and not isinstance(given, Adopted) and given.description is not None:
        network: Classifier = _in_float32(given)
        loaded, geometry = _load_for(given, given.description.preprocessing, images, intake, options | {"limit": intake.limit}), None
    else:  # a network of this package of which nothing is written down is like anybody else's
        opened, loaded = _open(model, images, intake, options | {"limit": intake.limit})
        network, geometry = opened.model, opened.geometry
    mapped = read_class_map(Path(class_map)) if isinstance(class_map, str | Path) else class_map
    names, notes = _names_of(network, opened, loaded, images, intake)
    train, merged = _under(names, loaded.train, mapped)
    other = None
    if evaluation is not None:
        shape = train.pixels.shape
        other = load_images(evaluation, geometry=geometry or Geometry((shape[2], shape[3]), shape[1]), preprocessing=train.preprocessing, **options)
    _check_map(mapped, loaded, other)
    measured = _set_apart(train, loaded, other, names, mapped, intake.hold_out)
    notes = (*loaded.notes, *notes, *merged, *measured.notes)
    for note in notes:
        run.notice(note)
    if opened is not None:
        network.description = Description(opened.model.origin.name, {}, names, train.preprocessing)
    unreadable = loaded.unreadable + (other.unreadable if other is not None else ())
    mark = _fingerprint(train, loaded.train_hashes, measured)
    return Taken(network, train, measured.held, loaded.name, given, measured.images, measured.kind, unreadable, notes, mark)


def _check(intake: Intake) -> None:
    choose(AUGMENTATIONS, intake.augment, "augmentation")
    if intake.class_order is not None:
        choose(ORDERS, intake.class_order, "class order")
    if not 0 <= intake.hold_out < 1:
        raise InputError(f"--hold-out is {intake.hold_out}, but it is a share of the images: give a number from 0 to below 1")


@dataclass(frozen=True)
class _SetApart:
    """What is measured on: M images, the hashes of their pixels (M,), where they come from, and which of the N others (N,) they were taken from."""

    held: Tensor
    images: Images | None = None
    hashes: Tensor | None = None
    kind: str = ""
    notes: tuple[str, ...] = ()


def _set_apart(
    train: Images, loaded: Loaded, other: Loaded | None, names: tuple[str, ...], class_map: Mapping[str, str] | None, hold_out_share: float
) -> _SetApart:
    """Return the evaluation images that were given, else the data set's own test part, else some of the training images."""
    held = torch.zeros(len(train), dtype=torch.bool)
    given = (other.train, other.train_hashes) if other is not None else (loaded.test, loaded.test_hashes)
    notes = other.notes if other is not None else ()
    if given[0] is not None and given[1] is not None:
        apart = _SetApart(held, _under(names, given[0], class_map)[0], given[1], "given", notes)
    else:
        if hold_out_share:
            held[hold_out(train.given_labels, min(hold_out_share, MOST_HELD_OUT / len(train)))[1]] = True
        if not bool(held.any()):
            return _SetApart(held, notes=("no evaluation images and no hold-out: nothing is measured",))
        count = int(held.sum())
        told = f"no evaluation images were given: {count:,} of {len(train):,} are held out; their labels may be as wrong as the others"
        apart = _SetApart(held, train.subset(held.nonzero().squeeze(1)), loaded.train_hashes[held], "held out", (told,))
    assert apart.hashes is not None
    if pairs := duplicates_between(loaded.train_hashes[~held], apart.hashes):
        rows = (~held).nonzero().squeeze(1).tolist()
        some_ids = some([train.ids[rows[first]] for first, _ in pairs], 3)
        told = f"{len(pairs):,} evaluation images are training images too ({some_ids}): what is measured on them proves little"
        apart = replace(apart, notes=(*apart.notes, told))
    return apart


def _check_map(class_map: Mapping[str, str] | None, loaded: Loaded, other: Loaded | None) -> None:
    """Raise InputError for a class of the map that no part of the data has: each part may lack some."""
    known = (*loaded.train.class_names, *(other.train.class_names if other is not None else ()))
    if unknown := sorted(set(class_map or ()) - set(known)):
        raise InputError(f"the class map names {some(unknown, 5)}, which no part of the data has; the data's classes: {some(known)}")


def _in_float32(module: AnyModule) -> AnyModule:
    """Return the module itself, or a copy where its numbers are of another type: half precision has too few digits to learn in."""
    tensors = [value for value in module.state_dict().values() if isinstance(value, Tensor) and value.is_floating_point()]
    return module if all(value.dtype == torch.float32 for value in tensors) else copy.deepcopy(module).float()


def _load_for(model: Classifier, preprocessing: Preprocessing, images: Any, intake: Intake, options: dict[str, Any]) -> Loaded:
    """Return the images as a network of this package wants them, which says itself how it was trained."""
    if told := [name for name in ("head", "mean", "std") if getattr(intake, name) is not None] + ["augment"] * (intake.augment != "none"):
        raise InputError(f"{told[0]} is given, but this {type(model).__name__} says itself how it was trained; leave it out")
    channels = len(preprocessing.mean)
    size = (intake.size, intake.size) if intake.size else model.description.size if model.description else None
    loaded = load_images(images, geometry=Geometry(size, channels) if size else None, preprocessing=preprocessing, **options)
    shape = loaded.train.pixels.shape
    if shape[1] != channels:
        loaded = load_images(images, geometry=Geometry((shape[2], shape[3]), channels), preprocessing=preprocessing, **options)
    return loaded


def _open(model: OpenedModel | nn.Module, images: Any, intake: Intake, options: dict[str, Any]) -> tuple[OpenedModel, Loaded]:
    """Return a module of somebody else's wrapped anew, in float32, and the images as it wants them."""
    asked: dict[str, Any] = {"size": intake.size, "mean": intake.mean, "std": intake.std}
    module, notes = (model.model, model.notes) if isinstance(model, OpenedModel) else (model, ())
    module = _in_float32(module)
    known = module.geometry if isinstance(module, Adopted) else what_is_known(module, know_pixels=None in asked.values())[1].geometry
    asked |= {"head": intake.head}
    if known is not None or intake.size is not None:
        opened = adopted_from(module, **asked)
        loaded = load_images(images, geometry=opened.geometry, preprocessing=_wanted(opened, intake, None), **options)
        return replace(opened, notes=(*notes, *opened.notes)), loaded
    plain = Preprocessing((0.0,), (1.0,))
    loaded = load_images(images, preprocessing=plain, **options)
    channels, shape = input_channels(module), loaded.train.pixels.shape
    if channels in (1, 3, 4) and channels != shape[1]:
        loaded = load_images(images, geometry=Geometry((shape[2], shape[3]), channels), preprocessing=plain, **options)
    first = loaded.train.pixels[torch.arange(2).clamp(max=len(loaded.train) - 1)]
    opened = adopted_from(module, normalise(first, plain), **asked)
    wanted = _wanted(opened, intake, loaded)
    test = None if loaded.test is None else loaded.test.prepared_as(wanted)
    return replace(opened, notes=(*notes, *opened.notes)), replace(loaded, train=loaded.train.prepared_as(wanted), test=test)


def _wanted(opened: OpenedModel, intake: Intake, loaded: Loaded | None) -> Preprocessing:
    """Return the normalisation of a model, none where nobody knows one, and the views that were asked for."""
    shape = opened.geometry.size if opened.geometry else tuple(loaded.train.pixels.shape[2:]) if loaded else (0,)
    channels = loaded.train.pixels.shape[1] if loaded else opened.channels
    return Preprocessing(opened.mean or (0.0,) * channels, opened.std or (1.0,) * channels).viewed(intake.augment, shape)


def _names_of(network: Classifier, opened: OpenedModel | None, loaded: Loaded, images: Any, intake: Intake) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the model's classes by name in the order of its outputs, and notes; a model that names none is taken to count as the data does."""
    notes: tuple[str, ...] = () if opened is None else opened.notes
    if opened is not None and opened.mean is None:
        notes += (
            "nobody says how this model wants its images: they go in as they are, pixel values from 0 to 1; give mean and std if it was trained otherwise",
        )
    if intake.class_names is not None and len(intake.class_names) != network.num_classes:
        raise InputError(f"{len(intake.class_names)} class names were given, and the model tells {network.num_classes} classes apart; give one for each")
    if names := intake.class_names or network.class_names:
        return tuple(names), notes
    found = loaded.train.class_names
    if len(found) != network.num_classes:
        raise InputError(
            f"the model tells {network.num_classes} classes apart and does not name them, the data has {len(found)} ({some(found)}); "
            "name the model's in their order with --class-names"
        )
    if intake.class_order is not None:
        return ORDERS[intake.class_order](found), notes
    if opened is not None and isinstance(images, str | Path) and found == string_order(found):  # else the data has an order of its own
        ordered, note = order_for(opened.model.origin.kind, found)
        return ordered, (*notes, note) if note else notes
    return found, notes


def _under(names: tuple[str, ...], images: Images, class_map: Mapping[str, str] | None) -> tuple[Images, tuple[str, ...]]:
    """Return the images with labels counted by the model, and notes."""
    present = {name: partner for name, partner in (class_map or {}).items() if name in images.class_names}
    places = match_classes(names, images.class_names, present)
    return relabel(images, places, names), merged_classes(places, images.class_names, names)


def _fingerprint(train: Images, hashes: Tensor, measured: _SetApart) -> str:
    """Return 16 hexadecimal digits of pixels, labels, ids and classes; no pass over the files is made for it."""
    digest = hashlib.sha256(repr((train.class_names, list(train.ids), tuple(train.pixels.shape))).encode("utf-8", "surrogateescape"))
    apart = () if measured.images is None or measured.hashes is None else (measured.hashes, measured.images.given_labels)
    for part in (hashes, train.given_labels, measured.held, *apart):
        digest.update(part.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
