"""Classes by name: which class of the data is which class of a model that counts them in its own order."""

import csv
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fspmu.data.images import Images
from fspmu.data.listing import some
from fspmu.errors import InputError


def match_classes(model_names: Sequence[str], data_names: Sequence[str], class_map: Mapping[str, str] | None = None) -> tuple[int, ...]:
    """Return for each class of the data its place among the model's; `class_map` (name in the data -> name in the model) is asked first.

    Raises InputError when a class of the data has no partner, or the map names a class that nobody has.
    """
    mapped = dict(class_map or {})
    both = f"the data's classes: {some(data_names)}; the model's: {some(model_names)}"
    for used, names, whose in ((mapped.keys(), data_names, "data"), (mapped.values(), model_names, "model")):
        if unknown := sorted(set(used) - set(names)):
            raise InputError(f"the class map names {some(unknown, 5)}, which the {whose} does not have{_near(unknown, names)}; {both}")
    if twice := [name for name, count in Counter(model_names).items() if count > 1]:
        raise InputError(f"the model has several classes named {some(twice, 5)}; names must tell its classes apart")
    places = {name: place for place, name in enumerate(model_names)}
    partners = [mapped.get(name, name) for name in data_names]
    if absent := [name for name in partners if name not in places]:
        raise InputError(f"the model does not know the classes {some(absent, 5)}{_near(absent, model_names)}; {both}; give a --class-map for other names")
    return tuple(places[name] for name in partners)


def merged_classes(places: Sequence[int], data_names: Sequence[str], model_names: Sequence[str]) -> tuple[str, ...]:
    """Return a note for each class of the model that several classes of the data became."""
    counts = Counter(places)
    shared = [place for place in sorted(counts) if counts[place] > 1]
    return tuple(
        f"the classes {some([name for name, own in zip(data_names, places, strict=True) if own == place])} of the data are one class of the model: "
        f"{model_names[place]}"
        for place in shared
    )


def relabel(images: Images, places: Sequence[int], model_names: Sequence[str]) -> Images:
    """Return `images` with labels counted by the model, whose classes need not all have a sample; `places` as from `match_classes`."""
    if len(places) != images.num_classes:
        raise InputError(f"the images have {images.num_classes} classes, and places were given for {len(places)}; give one for each")
    place = images.given_labels.new_tensor(list(places))
    return images.with_labels(place[images.given_labels], tuple(model_names))


def read_class_map(path: Path) -> dict[str, str]:
    """Return the names in the model by the names in the data, from a JSON object or a CSV file of two columns under a header.

    Raises InputError for another file, and for a name of the data that has two partners.
    """
    if path.suffix.lower() not in (".json", ".csv"):
        raise InputError(f"{path} is no class map: give a .json file (an object) or a .csv file (a header and two columns)")
    try:
        text = path.read_text(encoding="utf-8-sig")
        pairs = _json_pairs(text, path) if path.suffix.lower() == ".json" else _csv_pairs(text, path)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; give a file with --class-map") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, ValueError, csv.Error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no class map in UTF-8: {error}") from None
    if twice := [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]:
        raise InputError(f"{path} maps {some(twice, 5)} more than once; give each class of the data one partner")
    return dict(pairs)


def natural_order(names: Sequence[str]) -> tuple[str, ...]:
    """Return names as timm sorts its folders: digits by their value, and no difference between capitals and small letters."""
    return tuple(sorted(names, key=lambda name: (_natural(name), name)))


def string_order(names: Sequence[str]) -> tuple[str, ...]:
    """Return names as torchvision and most other programs sort their folders: character by character."""
    return tuple(sorted(names))


def order_for(kind: str, names: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Return the classes of the data in the order in which a model of this kind (timm, hf, code, module) that names none was most likely trained.

    The second part is a note where the usual orders differ, else empty.
    """
    natural, plain = natural_order(names), string_order(names)
    chosen, other = (natural, plain) if kind == "timm" else (plain, natural)
    if natural == plain:
        return chosen, ""
    usual, unusual = ("natural", "string") if kind == "timm" else ("string", "natural")
    place = next(place for place, pair in enumerate(zip(chosen, other, strict=True)) if pair[0] != pair[1])
    return chosen, (
        f"the model does not name its classes; they are taken in {usual} order, where class {place} is {chosen[place]}, "
        f"while in {unusual} order it is {other[place]}: --class-order {unusual} if it was trained so"
    )


def _natural(name: str) -> list[Any]:
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", name.lower()))]


def _json_pairs(text: str, path: Path) -> list[tuple[str, str]]:
    content = json.loads(text, object_pairs_hook=list)  # as pairs: a dict would hide names that come twice
    if not text.lstrip().startswith("{") or not all(isinstance(value, str) for _, value in content):
        raise InputError(f"{path} holds no JSON object from the data's class names to the model's")
    return [(name, value) for name, value in content]


def _csv_pairs(text: str, path: Path) -> list[tuple[str, str]]:
    rows = [row for row in csv.reader(text.splitlines()) if row]
    if wrong := [row for row in rows if len(row) != 2 or not all(row)]:
        raise InputError(f"{path} needs two columns, a class of the data and a class of the model, and has {','.join(wrong[0])!r}")
    if not rows:
        raise InputError(f"{path} is empty; give a header and a row for each class whose name differs")
    return [(row[0], row[1]) for row in rows[1:]]


def _near(names: Sequence[str], known: Sequence[str]) -> str:
    """Return a question where a name is a known one but for capitals, spaces and the like."""
    plain = {_plain(name): name for name in known}
    pairs = [f"{plain[_plain(name)]!r} for {name!r}" for name in names if _plain(name) in plain]
    return f" (did you mean {', '.join(pairs[:5])}?)" if pairs else ""


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())
