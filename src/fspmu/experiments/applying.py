"""Corrected data out: decisions on labels -> tables, a folder per class, or parquet; what was there is only read."""

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table

from fspmu.data.classes import match_classes, read_class_map
from fspmu.data.corrected_folder import Move, build_folder, check_room, plan_folder
from fspmu.data.corrected_parquet import class_names_in, label_column, values_by_name, with_labels, write_split
from fspmu.data.corrected_tables import write_changes, write_tables
from fspmu.data.corrections import Correction, read_corrections
from fspmu.data.folders import TABLE, list_folder
from fspmu.data.hub import TEST_SPLITS, load_splits
from fspmu.data.labelled import Labelled, files_of, list_labelled
from fspmu.data.listing import some
from fspmu.data.sources import NAMES, DataOptions, check_outside
from fspmu.data.unreadable import printable
from fspmu.errors import InputError, check_share, choose
from fspmu.experiments.apply_options import Apply
from fspmu.report.tables import new_table
from fspmu.results.store import RunFolder, read_json, write_json

Json = dict[str, Any]
Explained = tuple[list[Table], list[str]]
Shown = tuple[Json, list[Table], list[str]]

MODES = {"csv": "tables", "copy": "copies", "hardlink": "hard links", "symlink": "symbolic links", "parquet": "parquet files"}
LINKED = ("copy", "hardlink", "symlink")
SUMMARY = "applied.json"


def apply_corrections(options: Apply) -> Shown:
    """Write the data set under corrected labels as `options` ask, or say what would be written.

    An interrupted call is gone on with by the same one; `done` is the last file of a finished folder. Raises InputError for corrections
    that do not fit the data set, for a data set that the mode cannot write, and for an --out that holds something else.
    """
    choose(MODES, options.mode, "mode")
    check_share(options.min_confidence, "--min-confidence")
    if options.yes and options.dry_run:
        raise InputError("--yes and --dry-run contradict each other; give one of them")
    found = list_labelled(options.dataset, DataOptions(data_dir=options.data_dir, image_column=options.image_column, label_column=options.label_column))
    corrections = _read(options, found)
    labels = _corrected(found, corrections)
    _check_mode(options, found)
    moves = plan_folder(files_of(found, labels)) if options.mode in LINKED else []
    done = (_out(options) / "done").is_file()  # and needs nothing more
    needed = check_room(moves, _out(options), options.mode) if moves and not done else 0
    result = _result(options, found, labels, corrections) | {"bytes": needed}
    waiting = options.dry_run or (options.mode in LINKED and not options.yes)
    if not waiting:
        result = _write(options, found, labels, corrections, moves, result)
    tables, lines = _explain(options, found, labels, corrections, moves, result)
    return result, tables, lines


def _read(options: Apply, found: Labelled) -> list[Correction]:
    """Return the corrections of the samples that may be corrected."""
    told = {} if options.class_map is None else read_class_map(options.class_map)
    names = tuple(dict.fromkeys(told.get(name, name) for name in found.class_names))
    places = dict(zip(found.class_names, match_classes(names, found.class_names, told), strict=True))
    given = torch.tensor([places[label] for label in found.labels], dtype=torch.int64)
    corrections = read_corrections(options.issues, names, found.ids, given, paths=found.paths, min_confidence=options.min_confidence)
    if told:
        own_names = {name: [own for own, place in places.items() if names[place] == name] for name in names}
        corrections = [_under_own_name(correction, own_names, options) for correction in corrections]
    beyond = [correction for correction in corrections if correction.row >= found.train and correction.decision in ("accept", "drop")]
    if beyond and not options.include_test:
        ids = some([repr(correction.id) for correction in beyond], 3)
        raise InputError(f"{options.issues} corrects {len(beyond):,} samples of the test part ({ids}); it is left as it is unless you add --include-test")
    return corrections


def _under_own_name(correction: Correction, own_names: dict[str, list[str]], options: Apply) -> Correction:
    """Return the correction with its new label by the name that the data has for it."""
    if correction.new_label is None:
        return correction
    name, *others = own_names[correction.new_label]
    if others:
        told = f"{correction.new_label!r:.60} stands for {some([name, *others])} in the data, and {correction.id!r:.120} may be any of them"
        raise InputError(f"{options.issues}: {told}; leave out its row, or decide on it by hand without --class-map")
    return replace(correction, new_label=name)


def _corrected(found: Labelled, corrections: Sequence[Correction]) -> list[str | None]:
    """Return the labels after correction (N,), None for a sample that is dropped."""
    labels: list[str | None] = list(found.labels)
    for correction in corrections:
        if correction.decision in ("accept", "drop"):
            labels[correction.row] = correction.new_label
    if not any(label is not None for label in labels[: found.train]):
        raise InputError("the corrections drop every sample of the training part; nothing would be left")
    return labels


def _check_mode(options: Apply, found: Labelled) -> None:
    if options.mode in LINKED and found.root is None:
        raise InputError(f"--mode {options.mode} needs a folder of images, and {options.dataset} has no files; use --mode csv or parquet")
    if options.mode == "parquet" and (found.root is not None or options.dataset in NAMES):
        raise InputError(f"--mode parquet needs a data set that is read as hf:NAME_OR_PATH, which {options.dataset} is not; use --mode csv")
    if found.root is not None:
        check_outside(options.out, found.root)


def _out(options: Apply) -> Path:
    return options.out.expanduser().resolve()


def _result(options: Apply, found: Labelled, labels: Sequence[str | None], corrections: Sequence[Correction]) -> Json:
    pairs = Counter((before, after) for before, after in zip(found.labels, labels, strict=True) if before != after)
    counts = Counter(correction.decision for correction in corrections)
    return {
        "dataset": options.dataset,
        "mode": options.mode,
        "out": str(_out(options)),
        "samples": len(found.ids),
        "changed": sum(count for (_, after), count in pairs.items() if after is not None),
        "dropped": sum(count for (_, after), count in pairs.items() if after is None),
        "kept": counts["keep"],
        "unsure": counts["unsure"],
        "pairs": [{"from": before, "to": after, "count": count} for (before, after), count in sorted(pairs.items(), key=_by_count)],
        "written": False,
        "already_done": False,
        "files": [],
    }


def _by_count(entry: tuple[tuple[str, str | None], int]) -> tuple[int, str, str]:
    return -entry[1], entry[0][0], entry[0][1] or ""


def _write(options: Apply, found: Labelled, labels: Sequence[str | None], corrections: Sequence[Correction], moves: Sequence[Move], result: Json) -> Json:
    """Write the folder, `applied.json` and at last the done mark; a finished folder is left as it is."""
    content = json.dumps([found.ids, found.labels, labels, [move.target for move in moves]])
    config = {
        "command": "apply",
        "dataset": str(found.root or options.dataset),
        "mode": options.mode,
        "corrections": hashlib.sha256(content.encode()).hexdigest()[:16],
    }
    folder = RunFolder(_out(options))
    folder.open(config, resume=True)
    try:
        if folder.finished:
            return read_json(folder.path / SUMMARY) | {"already_done": True}
        if options.mode in LINKED:
            build_folder(moves, folder.path, options.mode)
            _check_built(folder.path, moves, [label for label in labels if label is not None])
        elif options.mode == "parquet":
            result["files"] += _write_parquet(options, found, labels, folder.path)
        else:
            result["files"] += write_tables(found, labels, folder.path)
        changes = [correction for correction in corrections if correction.decision in ("accept", "drop")]
        result["files"].append(write_changes(found, changes, folder.path))
        result["written"] = True
        write_json(folder.path / SUMMARY, result)
        folder.finish()
        return result
    except InputError:
        folder.abandon()
        raise
    finally:
        folder.close()


def _check_built(out: Path, moves: Sequence[Move], labels: Sequence[str]) -> None:
    """Raise InputError unless the new folder is read as it was meant."""
    train, test = list_folder(out)
    read = {name: part.class_names[label] for part in (train, test) if part is not None for name, label in zip(part.ids, part.labels.tolist(), strict=True)}
    if read != {move.target: label for move, label in zip(moves, labels, strict=True)}:
        raise InputError(f"{out} was written, but would be read with other labels or files; its names stand in the way, use --mode csv")


def _write_parquet(options: Apply, found: Labelled, labels: Sequence[str | None], out: Path) -> list[str]:
    """Write every split, the corrected ones and the others as they are."""
    name = options.dataset.removeprefix("hf:")
    place = Path(name).expanduser()
    home = None if not place.exists() else place if place.is_dir() else place.parent
    written = []
    with tempfile.TemporaryDirectory(prefix="fspmu-", ignore_cleanup_errors=True) as scratch:
        splits = dict(load_splits(name, Path(scratch)))
        train = "train" if "train" in splits else next(iter(splits))
        column = label_column(splits[train], found.labels[: found.train], options.label_column)
        held = found.labels[found.train :]
        test = next((key for key in TEST_SPLITS if held and key != train and key in splits and class_names_in(splits[key], column) == held), None)
        values = values_by_name([splits[key] for key in (train, test) if key is not None], column)
        splits[train] = with_labels(splits[train], column, labels[: found.train], values)
        if test is not None:
            splits[test] = with_labels(splits[test], column, labels[found.train :], values)
        for key, split in splits.items():
            path = out / "data" / f"{key}-00000-of-00001.parquet"
            write_split(split, path, home)
            written.append(path.relative_to(out).as_posix())
    return written


def _explain(
    options: Apply, found: Labelled, labels: Sequence[str | None], corrections: Sequence[Correction], moves: Sequence[Move], result: Json
) -> Explained:
    """Return a table of what changes, and what there is to know about it."""
    title = f"{result['changed']:,} labels to change, {result['dropped']:,} samples to leave out, of {result['samples']:,}"
    table = new_table(title, "from", "to", "samples")
    for pair in result["pairs"][:20]:
        table.add_row(escape(printable(pair["from"])), "(left out)" if pair["to"] is None else escape(printable(pair["to"])), f"{pair['count']:,}")
    lines = [f"note: {note}" for note in found.notes]
    if len(result["pairs"]) > 20:
        lines.append(f"note: {len(result['pairs']) - 20:,} more pairs of classes are not shown")
    if suggested := Counter(correction.decision for correction in corrections if correction.by_model):
        left_out = f"{suggested['unsure']:,} below {options.min_confidence} were left out"
        lines.append(f"note: of these corrections {suggested['accept']:,} are a model's suggestions, which nobody has looked at; {left_out}")
    elif result["unsure"]:
        lines.append(f"note: {result['unsure']:,} samples are undecided and keep their labels")
    lost = set(found.labels) - set(labels)
    if lost:
        lines.append(f"note: no sample of the class {some([printable(name) for name in sorted(lost)])} is left")
    if moves:
        lines += _explain_moves(options.mode, found, labels, moves, result["bytes"])
    return [table], lines + _last_lines(options, result)


def _explain_moves(mode: str, found: Labelled, labels: Sequence[str | None], moves: Sequence[Move], needed: int) -> list[str]:
    """Return the first files that change their class, and what the mode means for the originals."""
    kept = [row for row, label in enumerate(labels) if label is not None]
    moved = [(found.ids[row], move.target) for row, move in zip(kept, moves, strict=True) if labels[row] != found.labels[row]]
    lines = [f"{printable(name)} -> {printable(target)}" for name, target in moved[:5]]
    if len(moved) > 5:
        lines.append(f"and {len(moved) - 5:,} more")
    about = {
        "copy": f"{len(moves):,} copies, {needed:,} bytes to write",
        "hardlink": f"{len(moves):,} hard links: each is the original under another name, and editing one edits the original",
        "symlink": f"{len(moves):,} symbolic links: they break when the originals move, and editing one edits the original",
    }
    return [*lines, about[mode]]


def _last_lines(options: Apply, result: Json) -> list[str]:
    if result["already_done"]:
        return [f"already done, nothing changed: {result['out']}"]
    if not result["written"]:
        return ["nothing was written" + ("" if options.dry_run else f"; add --yes to write {MODES[options.mode]} to {result['out']}")]
    tables = [name for name in result["files"] if name.endswith("metadata.csv")]
    hint = [f"{some(tables)}: beside the images it is what `datasets` reads as an imagefolder, and under the name {TABLE} what fspmu reads"] if tables else []
    return [*hint, f"written: {result['out']}"]
