"""The model card of a repaired model: Markdown under the Hub's YAML header, from facts alone."""

import json
import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LISTED_CLASSES = 10
"""Classes that the card lists, those that lost most first."""
LONGEST_NAME = 80
"""Characters of a name that the card shows."""
LIBRARIES = {"timm": "timm", "hf": "transformers"}


@dataclass(frozen=True)
class Measured:
    """Accuracy on images that the repair did not train on, before and after it, as fractions; intervals of 95 %."""

    before: float
    after: float
    samples: int
    trusted: bool = False
    """Whether the images were set apart for evaluation; else they are a hold-out, and their labels as wrong as the others."""
    difference_interval: tuple[float, float] | None = None
    """Of after - before."""
    before_interval: tuple[float, float] | None = None
    """None: Wilson's."""
    after_interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class CardFacts:
    """What a card says. The first part is known to whoever ran the repair, the second is filled in by `hand_back`."""

    title: str
    samples: int
    forgotten: int
    detector: str
    method: str
    retained: int | None = None
    unused: int = 0
    """How many labels were neither forgotten nor retained; some detectors have labels that are both."""
    forgotten_by_class: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Class -> how many of its labels were forgotten, and how many it had."""
    detector_settings: Mapping[str, Any] = field(default_factory=dict)
    cut: str = ""
    """How the detector's scores became probabilities; empty: somebody else said what is wrong."""
    cut_settings: Mapping[str, Any] = field(default_factory=dict)
    method_settings: Mapping[str, Any] = field(default_factory=dict)
    measured: Measured | None = None
    accepted: bool = True
    """Whether the weights are the repaired ones; False: those before, because the repair did not pay."""
    verdict: str = ""
    """Why the repair was accepted or not, as a sentence."""
    seed: int = 0
    data: str = ""
    """What the training images are called."""
    license: str = ""
    """As the Hub spells it; empty: not known."""

    kind: str = "module"
    """Kind of the origin: module, timm, hf or code."""
    origin: str = ""
    """Name of the origin; of a folder its last part."""
    base_model: str = ""
    """Repository on the Hub, if the weights came from one."""
    parent_hash: str = ""
    parent_file: str = ""
    """Name of the file that the weights came from."""
    weights_file: str = "model.safetensors"
    wrapper: str = ""
    prefix: str = ""
    pretrained: str = ""
    """Library that opens the folder `pretrained`: timm or hf; empty without one."""
    version: str = ""
    notes: tuple[str, ...] = ()


def model_card(facts: CardFacts) -> str:
    """Return the card as Markdown; names in it are shown as they are, never obeyed."""
    sections = (_opening, _forgotten, _found, _before_and_after, _limits, _undoing, _loading)
    return "\n\n".join([f"---\n{_header(facts)}\n---", *(section(facts) for section in sections)]) + "\n"


def escape(text: str) -> str:
    """Return `text` so that Markdown shows it on one line, as it is: no markup, no HTML, no end of a table's cell."""
    text = plain(text)
    text = text if len(text) <= LONGEST_NAME else text[: LONGEST_NAME - 1] + "…"
    return re.sub(r"^-|[]!\"#$&()*+.:<=>@[^_`{|}~]", r"\\\g<0>", text.replace("\\", "\0")).replace("\0", "&#92;") or '""'


def plain(text: str) -> str:
    """Return `text` on one line, spaces evened out, with control characters and what is no UTF-8 spelt out."""
    spelt = "".join(_spell(letter) for letter in re.sub(r"\s+", " ", text).strip())
    return spelt.encode("utf-8", "backslashreplace").decode()


def _spell(letter: str) -> str:
    joins_letters = letter in "\u200c\u200d"
    return letter if joins_letters or unicodedata.category(letter)[0] != "C" else letter.encode("unicode_escape").decode()


def wilson_interval(share: float, samples: int) -> tuple[float, float]:
    """Return the 95 % score interval of a share observed in `samples` draws, fractions."""
    z = 1.959964
    middle = (share + z * z / (2 * samples)) / (1 + z * z / samples)
    reach = z * math.sqrt(share * (1 - share) / samples + (z / (2 * samples)) ** 2) / (1 + z * z / samples)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _with_interval(share: float, interval: tuple[float, float] | None, samples: int) -> str:
    low, high = interval or wilson_interval(share, samples)
    return f"{_percent(share)} ({100 * low:.2f} to {_percent(high)})"


def _header(facts: CardFacts) -> str:
    from huggingface_hub import EvalResult, ModelCardData  # slow to import, and only cards need it

    results = None
    if facts.measured is not None:
        labels = "labels given for evaluation" if facts.measured.trusted else "held-out labels, which may be wrong"
        results = [
            EvalResult(
                task_type="image-classification",
                dataset_type="imagefolder",
                dataset_name=plain(facts.data) or "images",
                dataset_split=labels,
                metric_type="accuracy",
                metric_name="accuracy after the repair" if facts.accepted else "accuracy",
                metric_value=round(facts.measured.after if facts.accepted else facts.measured.before, 4),
            )
        ]
    card = ModelCardData(
        license=facts.license or None,
        library_name=LIBRARIES.get(facts.pretrained, "pytorch"),
        pipeline_tag="image-classification",
        base_model=facts.base_model or None,
        tags=["image-classification", "noisy-labels", "machine-unlearning", "fspmu"],
        model_name=(plain(facts.title) or "repaired model") if results else None,
        eval_results=results,
    )
    return str(card.to_yaml())


def _opening(facts: CardFacts) -> str:
    source = f" It was opened as {escape(f'{facts.kind}:{facts.origin}' if facts.kind in LIBRARIES else facts.origin)}." if facts.origin else ""
    data = f" of {escape(facts.data)}" if facts.data else ""
    if not facts.accepted:
        did = f"The repair did not pay, so the weights are those of the model before. It would have forgotten labels{data} that look wrong."
    elif not facts.forgotten:
        did = f"No label{data} looked wrong, so nothing was forgotten and the weights are those of the model before."
    else:
        did = f"It was made to forget what it had learnt from labels{data} that look wrong, and trained on the others to recover."
    return f"# {escape(facts.title)}\n\nAn image classifier repaired with fspmu {escape(facts.version or 'of an unknown version')}.{source} {did}"


def _forgotten(facts: CardFacts) -> str:
    share = f" ({_percent(facts.forgotten / facts.samples)})" if facts.samples else ""
    retained = "" if facts.retained is None else f", {facts.retained:,} retained, {facts.unused:,} used for neither"
    text = f"## What was forgotten\n\n{facts.forgotten:,} of {facts.samples:,} labels{share} were forgotten{retained}."
    rows = sorted(((lost, had, name) for name, (lost, had) in facts.forgotten_by_class.items() if lost), key=lambda row: (-row[0], row[2]))
    if rows:
        lines = [f"| {escape(name)} | {lost:,} | {had:,} |" for lost, had, name in rows[:LISTED_CLASSES]]
        text += "\n\n| class, as labelled | forgotten | of |\n| --- | ---: | ---: |\n" + "\n".join(lines)
    return text + (f"\n\nAnd {len(rows) - LISTED_CLASSES:,} more classes lost some." if len(rows) > LISTED_CLASSES else "")


def _found(facts: CardFacts) -> str:
    cut = f"Cut: {escape(facts.cut)}{_settings(facts.cut_settings)}. " if facts.cut else ""
    return (
        "## How the labels were found\n\n"
        f"Detector: {escape(facts.detector)}{_settings(facts.detector_settings)}. {cut}"
        f"Method of forgetting: {escape(facts.method)}{_settings(facts.method_settings)}. Seed: {facts.seed}."
    )


def _settings(settings: Mapping[str, Any]) -> str:
    shown = [f"{escape(str(name))} {escape(f'{value:g}' if isinstance(value, float) else str(value))}" for name, value in settings.items() if value is not None]
    return f" ({', '.join(shown)})" if shown else ""


def _before_and_after(facts: CardFacts) -> str:
    heading, measured = "## Before and after\n\n", facts.measured
    verdict = f"\n\n{escape_all(facts.verdict)}" if facts.verdict else ""
    if measured is None:
        return (
            heading
            + f"Not measured: there were no images to measure on. Compare both models on images whose labels you trust before you use this one.{verdict}"
        )
    if measured.trusted:
        kind = f"Measured on {measured.samples:,} images set apart for evaluation, against their labels as they were given; none was used in the repair."
    else:
        kind = f"Measured on {measured.samples:,} images held out of the repair, against labels that may be wrong like those of the others."
    shown = (("before", measured.before, measured.before_interval), ("after", measured.after, measured.after_interval))
    rows = [f"| {when} | {_with_interval(share, interval, measured.samples)} |" for when, share, interval in shown]
    text = heading + kind + "\n\n| | accuracy (95 % interval) |\n| --- | --- |\n" + "\n".join(rows)
    if measured.difference_interval is not None:
        low, high = measured.difference_interval
        text += f"\n\nDifference: {100 * (measured.after - measured.before):+.2f} points, 95 % interval {100 * low:+.2f} to {100 * high:+.2f}."
    if measured.after < measured.before:
        if measured.trusted:
            text += "\n\n**The repaired model is worse on these images: keep the one before.**"
        else:
            text += "\n\nA model that forgets wrong labels agrees less with wrong labels, so a fall here may be no loss: only labels that you trust can tell."
    return text + verdict


def _limits(facts: CardFacts) -> str:
    notes = "".join(f"\n- {escape_all(note)}" for note in facts.notes)
    return (
        "## Limits\n\n"
        "- This is no guarantee of privacy: nothing proves that the forgotten images left no trace in the weights.\n"
        "- A list of label issues is a suggestion: some of what was forgotten was labelled rightly, and some wrong labels were retained.\n"
        "- Measured figures hold for images like those they were measured on." + notes
    )


def escape_all(text: str) -> str:
    """Return `escape` of a whole sentence, however long."""
    return " ".join(escape(word) for word in plain(text).split(" "))


def _undoing(facts: CardFacts) -> str:
    file = f", read from {escape(facts.parent_file)}" if facts.parent_file else ""
    digest = f"SHA-256 over their names, types, shapes and values: `{escape(facts.parent_hash)}`" if facts.parent_hash else "they were not recorded"
    return f"## How to undo\n\nThe repair changed no file of the model before it; to undo it, use that model again. Its weights{file}: {digest}."


def _loading(facts: CardFacts) -> str:
    codes = [_PRETRAINED[facts.pretrained]] if facts.pretrained else []
    if not facts.pretrained or facts.weights_file != CardFacts.weights_file:
        codes.append(_weights_code(facts))
    text = "\n\n".join(["## How to load", *(f"```python\n{code}\n```" for code in codes), _again(facts)])
    if not facts.weights_file.endswith(".safetensors"):
        text += f" What else the file before held beside its weights (an optimiser, an epoch) is not in {escape(facts.weights_file)}."
    return text


_PRETRAINED = {
    "timm": 'import timm\n\nmodel = timm.create_model("local-dir:pretrained", pretrained=True).eval()',
    "hf": "from transformers import AutoModelForImageClassification\n\n"
    'model = AutoModelForImageClassification.from_pretrained("pretrained")  # in evaluation mode',
}


def _weights_code(facts: CardFacts) -> str:
    """Return how a program that builds the module itself takes the weights."""
    name, wrapper, prefix = (json.dumps(plain(text)) for text in (facts.weights_file, facts.wrapper, facts.prefix))
    if facts.weights_file.endswith(".safetensors"):
        lines = ["from safetensors.torch import load_file", "", f"weights = load_file({name})"]
    else:
        lines = ["import torch", "", f"weights = torch.load({name}, weights_only=True)" + (f"[{wrapper}]" if facts.wrapper else "")]
    if facts.prefix:
        lines.append(f"weights = {{name.removeprefix({prefix}): value for name, value in weights.items()}}")
    return "\n".join([*lines, "model.load_state_dict(weights)  # model: built as before"])


def _again(facts: CardFacts) -> str:
    if facts.kind == "code":
        return f"Or `fspmu.load(FOLDER, code=...)` with the folder of this card, naming {escape(facts.origin)} again: it is imported only then."
    if facts.pretrained:
        return "Or `fspmu.load(FOLDER)` with the folder of this card."
    return "Or `fspmu.load(FOLDER, module=model)` with the folder of this card and a module built as before."
