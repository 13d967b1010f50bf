"""What a page says first: the run, whether the repair paid, five numbers, and what to be careful about."""

import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np

from fspmu.report.run_files import RunFiles
from fspmu.results.record import held_out, up_to_date
from fspmu.results.store import read_json

Json = dict[str, Any]

RARE = 20
"""Images below which a class says little."""
TOLD = ("known", "random", "given")
"""Detectors that find nothing: they were told what is wrong, or how much."""


def percent(share: float | None) -> str:
    """Return a fraction as a percentage, or a dash where there is none."""
    return "–" if share is None else f"{100 * share:.1f}\u202f%"


def from_to(before: float, after: float) -> str:
    """Return a change of a fraction in percent."""
    return f"{100 * before:.1f} → {100 * after:.1f}\u202f%"


def spell_seconds(seconds: float) -> str:
    """Return a time in words."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds) // 60
    return f"{minutes} min {round(seconds) % 60} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def run_card(files: RunFiles) -> Json:
    """Return the title of a run, the command that repeats it, and the facts about it."""
    record, config = files.record, files.config
    data, machine = record["data"], record.get("machine") or {}
    versions = ", ".join(f"{name} {version}" for name, version in sorted(record["versions"].items()))
    model = config.get("model")
    if not isinstance(model, dict):
        model = {}
    pretraining = record.get("pretraining") or {}
    facts = [
        ("Data", data["name"]),
        ("Training images", f"{data['train']:,}"),
        ("Evaluation images", f"{data.get('test', 0):,}"),
        ("Classes", f"{len(files.classes):,}"),
        ("Pixels", " x ".join(map(str, data["shape"]))),
        ("Model", model.get("origin") or (f"trained by {pretraining['method']}" if pretraining else "")),
        ("Method", config.get("method", "")),
        ("Detector", record["detection"]["detector"]),
        ("Seed", str(config.get("seed", ""))),
        ("Device", machine.get("device", "")),
        ("Precision", machine.get("precision", "")),
        ("Fingerprint of the data", data.get("fingerprint", "")),
        ("Run", files.identity),
        ("Versions", versions),
    ]
    title = f"{data['name']}: {config.get('method', 'no repair')}, wrong labels by {record['detection']['detector']}"
    return {"title": title, "command": command_of(files), "facts": [[label, str(value)] for label, value in facts if value not in ("", None)]}


def command_of(files: RunFiles) -> str:
    """Return the command that repeats the run, each word quoted for a shell: as it was typed, else as the config tells; empty for a repair from Python."""
    config = files.config
    if typed := files.material.get("command"):
        return str(typed)
    if config.get("command") != "unlearn":
        return ""
    words = ["fspmu", "unlearn", _run_of(files), "--method", str(config["method"]), "--detector", str(config["detector"])]
    words += ["--cut", config["cut"]] if isinstance(config.get("cut"), str) else []
    for part in settings_of(config).values():
        for name, value in sorted(part.items()):
            flag = f"--{name.replace('_', '-')}"
            if isinstance(value, bool):
                words += [flag] if value else []
            elif value is not None:
                words += [flag, *map(str, value)] if isinstance(value, list) else [flag, str(value)]
    return shlex.join([*words, "--seed", str(config.get("seed", 0))])


def _run_of(files: RunFiles) -> str:
    """Return the name of the folder that was worked on, where it still is the one around this."""
    around = files.folder.parent / "config.json"
    return files.folder.parent.name if around.is_file() and read_json(around).get("hash") == files.config["run"] else "RUN"


def settings_of(config: Json) -> dict[str, Json]:
    """Return the settings in the config of a run, by what they are of."""
    split = up_to_date(config).get("split")
    cut = None if config.get("detector") == "given" else config.get("cut_settings")
    parts = {"detector": config.get("detector_settings"), "cut": cut, "split": split, "method": config.get("settings"), "rounds": config.get("rounds")}
    return {name: part or {} for name, part in parts.items()}


def verdict(files: RunFiles) -> Json:
    """Return whether the repair paid, in a sentence with its evidence, and five numbers."""
    kind, sentence, change = _judged(files)
    record = files.record
    detection, total = record["detection"], record["data"]["train"]
    forgotten, share, note = int(files.issues["forget"].sum()), *_noise_share(files)
    repaired = "method" in files.config
    time = "to find and to forget" if repaired else "to find"
    spent = sum(record["seconds"].get(stage) or 0.0 for stage in ("detection", "unlearning"))
    anew = record["seconds"].get("pretraining")
    suspects = int(files.issues["is_label_issue"].sum())
    numbers = [
        {"label": "Suspects", "value": f"{suspects:,}", "note": f"of {total:,} images, by {detection['detector']}"},
        {"label": "Estimated noise", "value": percent(share), "note": note},
        {"label": "Forgotten", "value": f"{forgotten:,}" if repaired else "–", "note": "labels" if repaired else f"{forgotten:,} would be"},
        {"label": "Accuracy", "value": change[0], "note": change[1]},
        {"label": "Time", "value": spell_seconds(spent), "note": f"training took {spell_seconds(anew)}" if anew else time},
    ]
    return {"sentence": sentence, "kind": kind, "numbers": numbers}


def _judged(files: RunFiles) -> tuple[str, str, tuple[str, str]]:
    """Return better, worse, same or unknown, the sentence, and the change with what it was measured on."""
    evaluation, accuracy = files.record.get("evaluation"), files.record.get("test_accuracy") or {}
    if evaluation:
        kind, words, change = _weighed(files, evaluation["before"], evaluation["after"], evaluation["samples"], evaluation["difference_interval"])
        return kind, words + (" The model is handed back as it was." if evaluation["handed_back"] == "original" else ""), change
    before, last = accuracy.get("before"), accuracy.get("last")
    if "method" not in files.config:
        return "unknown", "Nothing has been repaired: these are the labels that look wrong. `fspmu unlearn` repairs the model.", ("–", "not repaired")
    if before is None or last is None:
        return "unknown", "Nobody can tell whether the repair paid: there were no evaluation images.", ("–", "no evaluation images")
    known = files.material.get("change")
    return _weighed(files, before, last, files.record["data"].get("test", 0), known["interval"] if known else None)


def _weighed(files: RunFiles, before: float, after: float, images: int, interval: Sequence[float] | None) -> tuple[str, str, tuple[str, str]]:
    """Return what `_judged` does, for accuracies on so many images; a run without material says what it saw, and not how sure that is."""
    doubtful, change = held_out(files.record), from_to(before, after)
    on = f"on {images:,} evaluation images" + (" held out of the training set, whose labels may be wrong" if doubtful else "")
    low, high = interval or (after - before, after - before)
    kind = "better" if low > 0 else "worse" if high < 0 else "same"
    word = {"better": "Better", "worse": "Worse", "same": "No clear change"}[kind]
    if doubtful and kind != "worse":
        kind, word = "unknown", "Not proven"
    sure = f"; the difference is {100 * (after - before):+.1f} points (95\u202f%: {100 * low:+.1f} to {100 * high:+.1f})" if interval else ""
    return kind, f"{word}: {change} right {on}{sure}.", (change, on)


def _noise_share(files: RunFiles) -> tuple[float | None, str]:
    """Return the mean noise probability, and in words what chance may add to it."""
    noise = files.issues["noise_probability"].to_numpy(dtype=float)
    noise = noise[np.isfinite(noise)]
    if not len(noise):
        return None, "not estimated"
    share = float(noise.mean())
    spread = 1.96 * float(np.sqrt((noise * (1 - noise)).sum())) / len(noise)
    if spread == 0:  # nothing between 0 and 1
        told = "as the detector was told" if files.record["detection"]["detector"] in TOLD else ""
        return share, told or ("the share that looks wrong; nothing says how sure that is" if share else "no label looks wrong")
    return share, f"95\u202f%: {100 * max(0.0, share - spread):.1f} to {100 * min(1.0, share + spread):.1f}\u202f%, if its probabilities hold"


def cautions(files: RunFiles) -> list[Json]:
    """Return what to be careful about, the gravest first."""
    record, data = files.record, files.record["data"]
    found = [_caution(text) for text in record["warnings"]]
    if held_out(record):
        found.append(("warn", "The evaluation images are held out of the training set: their labels may be as wrong as the others.", "verdict"))
    rare = [name for name, count in zip(files.classes, data["class_counts"], strict=True) if count < RARE]
    if rare:
        told = ", ".join(rare[:5]) + (f" and {len(rare) - 5} more" if len(rare) > 5 else "")
        have = "has" if len(rare) == 1 else "have"
        found.append(("warn", f"Few images say little: {len(rare)} of {len(files.classes)} classes {have} fewer than {RARE} ({told}).", "classes"))
    if left := data.get("unreadable"):
        lost = "1 image could not be read and is left out; unreadable.csv names it." if left == 1 else ""
        found.append(("warn", lost or f"{left:,} images could not be read and are left out; unreadable.csv names them.", None))
    found += [("info", note, None) for note in data.get("notes", [])]
    if record["detection"].get("corrections"):
        done = {"accept": "with another label", "keep": "kept", "drop": "dropped", "unsure": "left open"}
        counts = ", ".join(f"{count:,} {done.get(word, word)}" for word, count in record["detection"]["corrections"].items() if count)
        found.append(("info", f"A person decided some labels, and their word beats the detector's: {counts or 'none'}.", "review"))
    if files.material.get("streamed"):
        found.append(("info", "Images were read from their files as they were needed.", None))
    if not files.material:
        again = "run the command above with another --out to have them"
        found.append(("info", f"This run has no pictures, neighbours, map or changed images, which are kept as a repair is made; {again}.", "review"))
    seen: dict[str, Json] = {}
    for level, text, panel in sorted(found, key=lambda entry: entry[0] != "warn"):
        seen.setdefault(text, {"level": level, "text": text, "panel": panel})
    return list(seen.values())


def _caution(text: str) -> tuple[str, str, str | None]:
    for words, level, panel in (
        ("two groups", "warn", "scores"),
        ("not converged", "warn", "scores"),
        ("all scores are equal", "warn", "scores"),
        ("WORSE", "warn", "verdict"),
        ("not better", "warn", "verdict"),
        ("fell further", "warn", "verdict"),
        ("training images too", "warn", "verdict"),
        ("implausible", "warn", None),
        ("looks wrong; the", "warn", "classes"),
    ):
        if words in text:
            return level, text, panel
    return "info", text, None


def numbers(files: RunFiles) -> list[list[str]]:
    """Return the numbers by which runs are set side by side."""
    quality = files.record["detection"].get("quality") or {}
    rows = [[number["label"], number["value"]] for number in verdict(files)["numbers"]]
    rows += [[f"Detection {name}", percent(quality[name])] for name in ("precision", "recall", "f1", "auc") if quality.get(name) is not None]
    rows += [["Method", str(files.config.get("method", ""))], ["Detector", str(files.record["detection"]["detector"])]]
    return [*rows, ["Seed", str(files.config.get("seed"))]]
