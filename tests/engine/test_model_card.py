"""The model card: what it says, and that no name in it is ever obeyed."""

import re
from dataclasses import replace

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from fspmu.engine.model_card import LISTED_CLASSES, LONGEST_NAME, CardFacts, Measured, escape, escape_all, model_card, plain, wilson_interval

FACTS = CardFacts(
    title="my birds, repaired",
    samples=1000,
    forgotten=123,
    retained=850,
    unused=27,
    detector="gmm",
    method="fspmu",
    forgotten_by_class={"finch": (23, 400), "owl": (100, 500), "kiwi": (0, 100)},
    detector_settings={"threshold": 0.5, "margin": None},
    seed=3,
    data="birds",
    parent_hash="0123456789abcdef" * 4,
    version="0.1.0",
)
TRUSTED = Measured(0.7123, 0.8, 500, trusted=True)
HOSTILE = (
    "a|b",
    "<script>alert(1)</script>",
    "`code`",
    "[link](http://x)",
    "![x](y)",
    "two\nlines\n---\n# big",
    "back\\|slash\\",
    "**bold** _it_ ~~no~~",
    "&lt;",
    "```\n",
    "$x$",
    "www.evil.example",
    "\udcff\x00\x1b[31m",
    "\u202egnp.exe",
    ": - ? {a: b}",
    "",
    " ",
    "- item",
    "1. item",
)


def header(card):
    return yaml.safe_load(card.split("---\n")[1])


def rendered(card):
    """Return all tokens of the body, flat."""
    body = card.split("\n---\n", 1)[1]
    for token in MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(body):
        yield token
        yield from token.children or ()


def cells(card):
    found, inside = [], False
    for token in rendered(card):
        if token.type in ("td_open", "td_close"):
            inside = token.type == "td_open"
            if inside:
                found.append("")
        elif inside and token.type in ("text", "text_special", "html_inline", "code_inline", "softbreak"):
            found[-1] += token.content
    return found


def test_the_header_is_what_the_hub_reads():
    told = header(model_card(replace(FACTS, measured=TRUSTED, license="mit", pretrained="timm", base_model="timm/resnet18.a1_in1k")))
    assert told["license"] == "mit" and told["library_name"] == "timm" and told["pipeline_tag"] == "image-classification"
    assert told["base_model"] == "timm/resnet18.a1_in1k" and "image-classification" in told["tags"]
    result = told["model-index"][0]["results"][0]
    assert (
        result["task"]["type"] == "image-classification"
        and result["dataset"]["name"] == "birds"
        and result["dataset"]["split"] == "labels given for evaluation"
    )
    assert result["metrics"][0]["type"] == "accuracy" and result["metrics"][0]["value"] == 0.8


def test_the_header_says_nothing_that_is_not_known():
    told = header(model_card(FACTS))
    assert told["library_name"] == "pytorch" and not {"license", "model-index", "base_model"} & told.keys()


@pytest.mark.parametrize(("home", "library"), [("timm", "timm"), ("hf", "transformers"), ("", "pytorch")])
def test_the_library_is_the_one_that_opens_the_folder(home, library):
    card = model_card(replace(FACTS, pretrained=home))
    assert header(card)["library_name"] == library
    assert ("load_state_dict" in card) == (home == "")
    assert "load_state_dict" in model_card(replace(FACTS, pretrained=home, weights_file="repaired.safetensors"))
    assert ('"local-dir:pretrained"' in card) == (home == "timm") and ('from_pretrained("pretrained")' in card) == (home == "hf")


def test_counts_and_classes_are_listed_those_that_lost_most_first():
    card = model_card(FACTS)
    assert "123 of 1,000 labels (12.30 %) were forgotten, 850 retained, 27 used for neither" in card
    assert card.index("| owl | 100 | 500 |") < card.index("| finch | 23 | 400 |") and "kiwi" not in card
    assert "Detector: gmm (threshold 0\\.5)" in card and "Seed: 3." in card


def test_many_classes_are_cut_and_counted():
    card = model_card(replace(FACTS, forgotten_by_class={f"c{number:02}": (number + 1, 50) for number in range(14)}))
    assert cells(card)[0] == "c13" and "c04" in card and "c03" not in card and len(cells(card)) == 3 * LISTED_CLASSES
    assert "And 4 more classes lost some." in card


def test_figures_have_an_interval_and_say_what_they_were_measured_against():
    card = model_card(replace(FACTS, measured=TRUSTED))
    assert "500 images set apart for evaluation" in card and "may be wrong" not in card
    assert cells(card)[-4:] == ["before", "71.23 % (67.11 to 75.02 %)", "after", "80.00 % (76.27 to 83.27 %)"]
    told = Measured(0.7, 0.75, 500, before_interval=(0.66, 0.74), after_interval=(0.71, 0.79), difference_interval=(0.01, 0.09))
    held_out = model_card(replace(FACTS, measured=told))
    assert "against labels that may be wrong" in held_out and "set apart" not in held_out
    assert cells(held_out)[-4:] == ["before", "70.00 % (66.00 to 74.00 %)", "after", "75.00 % (71.00 to 79.00 %)"]
    assert "Difference: +5.00 points, 95 % interval +1.00 to +9.00." in held_out and "worse" not in held_out


def test_a_worse_model_is_called_so_and_an_unmeasured_one_too():
    card = model_card(replace(FACTS, measured=Measured(0.9, 0.8, 100, trusted=True)))
    assert "is worse on these images" in card and "may be no loss" not in card
    card = model_card(replace(FACTS, measured=Measured(0.9, 0.8, 100)))
    assert "is worse on these images" not in card and "may be no loss" in card
    assert "Not measured" in model_card(FACTS)


def test_a_repair_that_did_not_pay_is_no_repair():
    card = model_card(replace(FACTS, accepted=False, verdict="the repaired model is not better: 80.00% before, 79.00% after"))
    assert "the weights are those of the model before" in card and "It was made to forget" not in card and "is not better" in card


def test_limits_undoing_and_nothing_forgotten():
    card = model_card(replace(FACTS, parent_file="birds.pt", notes=("Rounded <b>down</b>.",)))
    assert "no guarantee of privacy" in card and "suggestion" in card and FACTS.parent_hash in card and "birds\\.pt" in card
    assert "Rounded <b>" not in card and "Rounded" in card
    nothing = model_card(replace(FACTS, forgotten=0, forgotten_by_class={}))
    assert "nothing was forgotten and the weights are those of the model before" in nothing and "made to forget" not in nothing


def test_the_code_takes_the_weights_out_as_they_were_put_in():
    card = model_card(replace(FACTS, kind="code", origin="birds.net:build", weights_file="repaired.pt", wrapper="state_dict", prefix="module."))
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    compile(code, "card", "exec")
    assert 'torch.load("repaired.pt", weights_only=True)["state_dict"]' in code and 'removeprefix("module.")' in code
    assert "an optimiser, an epoch" in card and "naming birds" in card


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_shown_and_not_obeyed(name):
    facts = replace(FACTS, title=name, data=name, origin=name, parent_file=name, wrapper=name, weights_file="repaired.pt", notes=(name,), verdict=name)
    card = model_card(replace(facts, forgotten_by_class={name: (5, 10), "owl": (1, 2)}, measured=TRUSTED, detector_settings={"file": name}))
    card.encode("utf-8")
    shown = header(card)["model-index"][0]
    assert shown["name"] == (plain(name) or "repaired model")
    assert cells(card)[:4] == [plain(name) or '""', "5", "10", "owl"]
    tokens = list(rendered(card))
    assert not {"html_block", "html_inline", "link_open", "image", "em_open", "s_open"} & {token.type for token in tokens}
    assert sum(token.type == "list_item_open" for token in tokens) == 4 and "ordered_list_open" not in {token.type for token in tokens}
    assert [token.content for token in tokens if token.type == "code_inline"] == [FACTS.parent_hash, "fspmu.load(FOLDER, module=model)"]
    assert sum(token.type == "heading_open" for token in tokens) == 7 and sum(token.type == "fence" for token in tokens) == 1
    for token in tokens:
        if token.type == "fence":
            compile(token.content, "card", "exec")


@settings(max_examples=60)
@given(st.text(st.characters(codec=None), max_size=30))
def test_any_name_survives_as_one_cell_and_as_yaml(name):
    card = model_card(replace(FACTS, title=name, data=name, forgotten_by_class={name: (5, 10)}, measured=TRUSTED))
    shown = plain(name) or '""'
    assert cells(card)[0] == (shown if len(shown) <= LONGEST_NAME else f"{shown[: LONGEST_NAME - 1]}…")
    told = header(card)["model-index"][0]
    assert told["name"] == (plain(name) or "repaired model") and told["results"][0]["dataset"]["name"] == (plain(name) or "images")


@settings(max_examples=60)
@given(st.text(st.characters(codec=None)))
def test_an_escaped_text_is_one_printable_line(text):
    for shown in (escape(text), escape_all(text)):
        assert shown and shown.isprintable() or {"\u200c", "\u200d"} & set(shown)
        shown.encode("utf-8")
    assert len(plain(escape("x" * 500))) == 80 and len(escape_all("x y " * 200)) > 700


def test_the_hub_accepts_the_card():
    card = ModelCard(model_card(replace(FACTS, measured=TRUSTED, license="apache-2.0")))
    assert card.data.eval_results[0].metric_value == 0.8 and card.data.license == "apache-2.0" and card.text.strip().startswith("# my birds")


@settings(max_examples=60)
@given(st.integers(1, 10_000), st.floats(0, 1))
def test_an_interval_holds_the_share_and_stays_within_zero_and_one(samples, share):
    low, high = wilson_interval(share, samples)
    assert 0 <= low <= share + 1e-12 and share - 1e-12 <= high <= 1
    wider = wilson_interval(share, max(1, samples // 2))
    assert high - low <= wider[1] - wider[0] + 1e-12


def test_figures_are_those_of_the_weights_beside_the_card():
    measured = Measured(0.8, 0.35, 500, trusted=True)
    for accepted, value, name in ((True, 0.35, "accuracy after the repair"), (False, 0.8, "accuracy")):
        metric = header(model_card(replace(FACTS, measured=measured, accepted=accepted)))["model-index"][0]["results"][0]["metrics"][0]
        assert (metric["value"], metric["name"]) == (value, name)


def test_labels_that_are_forgotten_and_retained_are_not_counted_below_nothing():
    assert "10 of 100 labels (10.00 %) were forgotten, 95 retained, 3 used for neither" in model_card(
        replace(FACTS, samples=100, forgotten=10, retained=95, unused=3)
    )
