"""What the page of a run needs of its images, written while they are at hand: pictures, neighbours, the map, and images whose prediction changed."""

import ast
import copy
import inspect
import shlex
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fspmu.data.arrays import evenly
from fspmu.data.augment import normalise
from fspmu.data.images import Images
from fspmu.data.stream import StreamedPixels, read_batches
from fspmu.engine.checkpoint import save_tensors
from fspmu.engine.inference import Predictions
from fspmu.models.classifier import Classifier
from fspmu.results.store import write_json
from fspmu.stages.feature_map import map_features
from fspmu.stages.judging import compare
from fspmu.stages.mending import Mended
from fspmu.stages.sprites import pictures_of, tile_of, write_large, write_sheets

Json = dict[str, Any]

SCHEMA = 1
PAGE = "page"
"""Folder of this material, beside the record."""
MOST_SUSPECTS = 5_000
MOST_NEIGHBOURS = 5_000
"""Images that are shown only as neighbours of suspects."""
NEAR, COUNTED = 8, 10
"""Neighbours shown of a suspect, and those of which it is counted how many carry its label."""
MOST_FLIPS = 200
"""Images shown whose prediction became right, and as many whose became wrong."""


@dataclass(frozen=True)
class Seen:
    """What a stage had in its hands: N images and what was found and changed; evaluation images (E of them), or which of the N served as such (N,) bool."""

    images: Images
    mended: Mended
    issues: pd.DataFrame
    before: Classifier
    evaluation: Images | None = None
    held: Tensor | None = None
    settings: tuple[tuple[str, str, str], ...] = ()
    """Name, value and meaning of whatever was set."""
    seconds: float = 0.0
    """What the run took: a page takes a share of it."""
    seed: int = 0


@dataclass
class _Flips:
    """Places among the evaluation images: those that are shown, fixed ones first, and how many there are."""

    fixed: list[int]
    broken: list[int]
    fixed_total: int = 0
    broken_total: int = 0


def write_material(folder: Path, seen: Seen) -> None:
    """Write the folder `page` beside the record anew; `material.json`, its last file, says what the others are."""
    place = folder / PAGE
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    images, found = seen.images, seen.mended.detection
    suspects = worst_first(seen.issues)
    shown = suspects[:MOST_SUSPECTS]
    near, same = neighbours(found.predictions, images.given_labels.cpu(), torch.from_numpy(shown))
    rows = _with_neighbours(shown, near)
    flips = _flips(seen)
    held_rows = None if seen.held is None or not bool(seen.held.any()) else seen.held.nonzero().squeeze(1).tolist()
    apart = [*flips.fixed, *flips.broken]
    if held_rows is not None:  # they are images of the set itself, which may be shown already
        rows = list(dict.fromkeys([*rows, *(held_rows[at] for at in apart)]))
    item_of = {row: item for item, row in enumerate(rows)}
    places = {at: len(rows) + order if held_rows is None else item_of[held_rows[at]] for order, at in enumerate(apart)}
    others = apart if held_rows is None else []
    tensors = {
        "rows": torch.tensor([*rows, *others], dtype=torch.int64),
        "evaluation": torch.tensor([0] * len(rows) + [1] * len(others), dtype=torch.uint8),
        "near": torch.tensor([[item_of.get(row, -1) for row in line] for line in near.tolist()], dtype=torch.int32).reshape(-1, NEAR),
        "near_same": same,
    }
    if others and seen.evaluation is not None:
        tensors |= _evaluation_opinions(seen, others)
    tensors |= _right_by_class(seen)
    tensors, told = _with_map(tensors, seen, shown)
    save_tensors(place / "material.safetensors", tensors)
    content = {
        "schema": SCHEMA,
        "suspects": len(shown),
        "suspects_total": len(suspects),
        "map": told,
        "flips": None if seen.mended.right is None else _described(flips, places),
        "change": _change(seen),
        "evaluation_ids": [seen.evaluation.ids[at] for at in others] if seen.evaluation is not None else [],
        "settings": [list(entry) for entry in seen.settings],
        "streamed": isinstance(images.pixels, StreamedPixels),
        "command": typed_command(sys.argv),
    }
    write_json(place / "material.json", content | _write_pictures(place, seen, rows, others, shown.tolist()))


def typed_command(words: Sequence[str]) -> str:
    """Return the command as it was typed, without what only says how to go about it; empty where a program of somebody's own made the run."""
    own = Path(words[0])
    if own.stem != "fspmu" and own.parts[-2:] != ("fspmu", "__main__.py"):
        return ""
    return shlex.join(["fspmu", *(word for word in words[1:] if word not in ("--resume", "--json"))])


def worst_first(issues: pd.DataFrame) -> NDArray[np.int64]:
    """Return the places of the issues among the rows, those with the lowest label score first."""
    places = np.flatnonzero(issues["is_label_issue"].to_numpy(dtype=bool))
    return places[np.argsort(issues["label_score"].to_numpy(dtype=float)[places], kind="stable")].astype(np.int64)


def neighbours(seen: Predictions, given_labels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the places (S, NEAR) of the images whose features are nearest by cosine to those of `rows` (S,), and the share (S,) of more with the same label.

    Exact, among the images whose features were kept; -1, and NaN, where there are none.
    """
    kept = torch.arange(len(given_labels)) if seen.rows is None else seen.rows
    place_of = torch.full((len(given_labels),), -1)
    place_of[kept] = torch.arange(len(kept))
    near, same = torch.full((len(rows), NEAR), -1), torch.full((len(rows),), float("nan"))
    count = min(COUNTED, len(kept) - 1)
    if count < 1:
        return near, same
    unit = F.normalize(seen.features.float(), dim=1).nan_to_num()
    for chunk in torch.split((place_of[rows] >= 0).nonzero().squeeze(1), 512):
        own = place_of[rows[chunk]]
        cosines = unit[own] @ unit.T
        cosines[torch.arange(len(own)), own] = -2  # below any cosine: nobody is their own neighbour
        found = kept[cosines.topk(count, dim=1).indices]
        near[chunk, : min(NEAR, count)] = found[:, :NEAR]
        same[chunk] = (given_labels[found] == given_labels[rows[chunk]][:, None]).float().mean(dim=1)
    return near, same


def _with_neighbours(shown: NDArray[np.int64], near: Tensor) -> list[int]:
    """Return the rows of suspects, and after them those of so many of their neighbours as may be shown."""
    rows = dict.fromkeys(shown.tolist())
    for row in near.flatten().tolist():
        if row >= 0 and row not in rows:
            if len(rows) >= len(shown) + MOST_NEIGHBOURS:
                break
            rows[row] = None
    return list(rows)


def _flips(seen: Seen) -> _Flips:
    if seen.mended.right is None:
        return _Flips([], [])
    before, after = seen.mended.right
    fixed, broken = ((left & ~right).cpu().nonzero().squeeze(1) for left, right in ((after, before), (before, after)))
    some_fixed, some_broken = (found[evenly(len(found), MOST_FLIPS)].tolist() for found in (fixed, broken))  # the first ones would be of the first classes
    return _Flips(some_fixed, some_broken, len(fixed), len(broken))


def _right_by_class(seen: Seen) -> dict[str, Tensor]:
    """Return how many evaluation images each class has, (K,), and how many of them were predicted right before and after."""
    if seen.mended.right is None or seen.evaluation is None:
        return {}
    given, classes = seen.evaluation.given_labels.cpu(), seen.images.num_classes
    before, after = (torch.bincount(given[answers.cpu()], minlength=classes) for answers in seen.mended.right)
    return {"class_total": torch.bincount(given, minlength=classes), "class_right_before": before, "class_right_after": after}


def _described(flips: _Flips, places: dict[int, int]) -> Json:
    shown = {"fixed": [places[at] for at in flips.fixed], "broken": [places[at] for at in flips.broken]}
    return {**shown, "fixed_total": flips.fixed_total, "broken_total": flips.broken_total, "on": "evaluation images"}


def _change(seen: Seen) -> Json | None:
    """Return on how many evaluation images the model was right before and after, and what chance may add to the difference."""
    if seen.mended.right is None:
        return None
    before, after = seen.mended.right
    found = compare(before.cpu(), after.cpu(), torch.Generator().manual_seed(seen.seed))
    return {"samples": found.samples, "before": found.before, "after": found.after, "interval": list(found.difference_interval)}


@torch.no_grad()
def _evaluation_opinions(seen: Seen, places: list[int]) -> dict[str, Tensor]:
    """Return given labels (E,) and logits (E, K) before and after of the evaluation images at `places`; few, so each process can ask by itself."""
    assert seen.evaluation is not None
    device = next(seen.mended.model.parameters()).device
    preprocessing = seen.before.description.preprocessing if seen.before.description else seen.evaluation.preprocessing
    found = {"evaluation_given": seen.evaluation.given_labels.cpu()[places]}
    for name, whose in (("before", seen.before), ("after", seen.mended.model)):
        model = copy.deepcopy(whose).to(device).float().eval()  # theirs keep mode and number format: by now they may be in their owner's hand
        batches = read_batches(seen.evaluation.pixels, torch.split(torch.tensor(places), 50))
        parts = [model(normalise(pixels.to(device), preprocessing)).logits.float().cpu() for pixels in batches]
        found[f"evaluation_logits_{name}"] = torch.cat(parts)
    return found


def _with_map(tensors: dict[str, Tensor], seen: Seen, shown: NDArray[np.int64]) -> tuple[dict[str, Tensor], str | None]:
    """Return the tensors with those of the map, and how it was made."""
    before, after = seen.mended.detection.predictions, seen.mended.after
    kept = torch.arange(len(seen.images)) if before.rows is None else before.rows
    wanted = torch.isin(kept, torch.from_numpy(shown)).nonzero().squeeze(1)
    made = map_features(before.features, after.features, wanted, seconds=seen.seconds, seed=seen.seed)
    if made is None:
        return tensors, None
    places = {"map_rows": kept[torch.from_numpy(made.rows)], "map_before": torch.from_numpy(made.before), "map_after": torch.from_numpy(made.after)}
    return tensors | places, made.method


def _write_pictures(place: Path, seen: Seen, rows: list[int], others: list[int], shown: list[int]) -> Json:
    tile = tile_of(seen.images)

    def everything() -> Any:
        yield from pictures_of(seen.images, rows)
        if others and seen.evaluation is not None:
            yield from pictures_of(seen.evaluation, others)

    sheets = write_sheets(everything(), tile, place)
    large = write_large(seen.images, shown, tile, place, max(1.0, 0.04 * seen.seconds))
    return {"sheets": sheets, "large": large}


def explained(prefix: str, settings: Any) -> list[tuple[str, str, str]]:
    """Return name, value and meaning of each field of a settings dataclass; the meaning is the text below the field in its source."""
    meanings: dict[str, str] = {}
    for kind in reversed(type(settings).__mro__):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
        except (OSError, TypeError, SyntaxError):  # without its source a setting is shown without its meaning
            continue
        body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
        for named, text in zip(body, body[1:], strict=False):
            if isinstance(named, ast.AnnAssign) and isinstance(named.target, ast.Name):
                told = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
                meanings[named.target.id] = " ".join(text.value.value.split()) if told else ""  # type: ignore[attr-defined]
    return [(f"{prefix}.{entry.name}", str(getattr(settings, entry.name)), meanings.get(entry.name, "")) for entry in fields(settings)]


def given_settings(**parts: Any) -> tuple[tuple[str, str, str], ...]:
    """Return whatever was set, explained: a dataclass of settings for each of `parts`, by the name that comes before its own."""
    return tuple(entry for name, part in parts.items() for entry in explained(name, part))


def write_if_possible(folder: Path, seen: Seen) -> str | None:
    """Write the material; return in a sentence what stood in the way, if anything did: a page is not worth a run."""
    try:
        write_material(folder, seen)
    except Exception as error:
        shutil.rmtree(folder / PAGE, ignore_errors=True)
        return f"the report has no pictures, neighbours or map: {type(error).__name__}: {next(iter(str(error).splitlines()), '')[:200]}"
    return None
