"""What a page says of numbers of any scale, of labels that nobody judged, of images that were held out, and where its files lie."""

import base64
from dataclasses import replace

import numpy as np
import pytest
import torch

from fspmu.data.corrections import read_corrections
from fspmu.data.images import Images
from fspmu.report.items import address_of, items, pictures
from fspmu.report.panels import bins_of, curves, feature_map, scores, threshold_between
from fspmu.report.payload import build_payload
from fspmu.report.reviews import corrections_csv
from fspmu.report.run_files import read_run
from fspmu.report.verdicts import cautions, verdict
from fspmu.results.cells import APART
from fspmu.stages.deciding import read_decided
from repaired_digits import copy_of, repaired


@pytest.fixture(scope="module")
def files():
    """Return the files of repaired digits."""
    return read_run(repaired())


def with_noise(files, noise):
    return replace(files, issues=files.issues.assign(noise_probability=noise))


def with_detection(files, **changes):
    return replace(files, record=files.record | {"detection": files.record["detection"] | changes})


@pytest.mark.parametrize("scale", [1e-3, 1e-7, 1e5])
def test_numbers_of_any_scale_keep_their_digits(files, scale):
    score = files.split["score"].astype(float)
    mixture = files.record["detection"]["mixture"]
    parts = [part | {"mean": part["mean"] * scale, "sd": part["sd"] * scale} for part in mixture["components"]]
    scaled = with_detection(files, mixture=mixture | {"threshold": mixture["threshold"] * scale, "components": parts})
    scaled = replace(scaled, split={**files.split, "score": score * scale})
    plain, shown = scores(files), scores(scaled)
    assert shown["threshold"] == pytest.approx(mixture["threshold"] * scale, rel=1e-5)
    for part, curve in zip(parts, shown["curves"], strict=True):
        assert (curve["mean"], curve["sd"]) == pytest.approx((part["mean"], part["sd"]), rel=1e-5)
    assert len(shown["counts"]) == len(plain["counts"]) > 1
    rows, told = files.tensors["rows"], items(scaled)["score"]
    train = ~files.tensors["evaluation"].astype(bool)
    assert [value for value in told if value is not None] == pytest.approx((score * scale)[rows[train]].tolist(), rel=1e-5)
    (loss,) = curves(replace(files, metrics=[{"stage": "s", "epoch": 1, "pull": 1.234567e-7 * scale}]))
    assert loss["series"][0]["y"] == pytest.approx([1.234567e-7 * scale], rel=1e-5)


def test_scores_that_are_all_the_same_have_one_bin_and_issues_lie_above_what_is_below_them():
    for value in (0.0, 1e-4, 7.0):
        edges, place = bins_of(np.full(5, value))
        assert len(edges) == 2 and edges[0] < value < edges[1] and (place == 0).all()
        assert threshold_between(np.full(5, value), np.ones(5, dtype=bool)) < value
    low = threshold_between(np.array([1e-4, 2e-4]), np.ones(2, dtype=bool))
    assert 0.99e-4 < low < 1e-4, "and not far below"


def test_points_that_nobody_judged_are_marked(files):
    noise = files.issues["noise_probability"].to_numpy(dtype=float).copy()
    rows = files.tensors["map_rows"]
    noise[rows[:3]] = np.nan
    flags = np.frombuffer(base64.b64decode(feature_map(with_noise(files, noise), {})["flags"]), "u1")
    assert (flags[:3] & 16 == 16).all() and (flags[3:] & 16 == 0).all()


def test_images_of_evaluation_and_those_held_out_of_training_are_told_apart(files):
    columns = items(files)
    apart = [place for place, identity in enumerate(columns["id"]) if identity.startswith(APART)]
    assert apart and all(columns["action"][place] == "" and columns["evaluation"][place] and not columns["aside"][place] for place in apart)
    held = np.zeros(len(files.issues), dtype=bool)
    held[files.tensors["rows"][:2]] = True
    trained = items(replace(files, labels={**files.labels, "held_out": held}))
    assert trained["aside"][:3] == [True, True, False] and not any(trained["evaluation"][:3]) and all(trained["action"][:3])
    own = items(replace(files, labels={**files.labels, "held_out": held}, config=files.config | {"command": "repair"}))
    assert own["evaluation"][:3] == [True, True, False] and not any(own["aside"]) and own["action"][:2] == ["", ""] and own["action"][2]
    assert all("held out of the repair" in found["reasons"][0] for found in (own, trained))


def test_decisions_on_evaluation_images_are_left_aside_by_whoever_reads_them(files, tmp_path):
    columns = items(files)
    places = [place for place, identity in enumerate(columns["id"]) if identity.startswith(APART)]
    assert len(places) == len(files.material["evaluation_ids"]) > 0, "whatever the training images are called"
    row = {"path": "", "new_label": "", "decision": "keep", "reviewer": "", "time": ""}
    decided = [row | {"id": columns["id"][place], "given_label": files.classes[columns["given"][place]]} for place in [0, *places]]
    path = tmp_path / "corrections.csv"
    path.write_text(corrections_csv(decided))
    ids, given = files.issues["id"].tolist(), torch.from_numpy(files.codes("given_label").copy())
    assert [found.id for found in read_corrections(path, files.classes, ids, given)] == [columns["id"][0]]
    pixels = torch.zeros(len(ids), 1, 1, 1, dtype=torch.uint8)
    images = Images(pixels, given, tuple(files.classes), ids=ids)
    aside = Images(pixels[: len(places)], given[: len(places)], tuple(files.classes), ids=files.material["evaluation_ids"])
    for evaluation in (None, aside):
        assert read_decided(path, images, evaluation).counts["keep"] == 1


@pytest.mark.parametrize(
    ("detector", "noise", "words"),
    [
        ("gmm", 0.0, "no label looks wrong"),
        ("gmm", [0.0, 1.0], "the share that looks wrong; nothing says how sure that is"),
        ("gmm", 0.5, "if its probabilities hold"),
        ("known", [0.0, 1.0], "as the detector was told"),
        ("random", 0.0, "as the detector was told"),
        ("given", 0.0, "as the detector was told"),
    ],
)
def test_the_noise_is_what_a_detector_found_or_was_told(files, detector, noise, words):
    spread = np.resize(noise, len(files.issues)).astype(float)
    (number,) = (number for number in verdict(with_detection(with_noise(files, spread), detector=detector))["numbers"] if number["label"] == "Estimated noise")
    assert number["note"].endswith(words)


def test_one_is_not_many(files):
    def told(**changes):
        return " ".join(caution["text"] for caution in cautions(replace(files, record=files.record | {"data": files.record["data"] | changes})))

    counts = [5, *[100] * (len(files.classes) - 1)]
    assert "1 image could not be read and is left out; unreadable.csv names it." in told(unreadable=1)
    assert "2 images could not be read and are left out; unreadable.csv names them." in told(unreadable=2)
    assert "1 of 10 classes has fewer than 20" in told(class_counts=counts) and "2 of 10 classes have fewer" in told(class_counts=[5, *counts[:-1]])


def test_files_are_named_as_seen_from_the_page_and_for_an_address(files, tmp_path):
    folder = copy_of(repaired(), tmp_path / "a run#1%3F")
    found = {name: address for name, _, address in build_payload(folder)["files"]}
    assert found["record.json"] == "record.json" and "label_issues.csv" in found
    away = {name: address for name, _, address in build_payload(folder, base=tmp_path / "pages")["files"]}
    assert away["record.json"] == "../a%20run%231%253F/record.json"
    sheets, _ = pictures(replace(files, folder=folder), 10**9, tmp_path)
    assert sheets[0]["src"] == "a%20run%231%253F/page/thumbs-000.webp"
    assert address_of(tmp_path / "caf\udce9", tmp_path) == "caf%E9"
