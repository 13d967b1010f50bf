"""What a repair keeps of its images for a page: pictures, neighbours, the map."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from safetensors.numpy import load_file

from fspmu.data.images import Images
from fspmu.data.sources import DataOptions, load_source
from fspmu.detection import DETECTORS
from fspmu.detection.cuts import CUTS
from fspmu.detection.splitting import SplitSettings
from fspmu.engine.inference import Predictions
from fspmu.report.run_files import read_issues
from fspmu.stages import feature_map, page_material
from fspmu.stages.feature_map import map_features, quantise
from fspmu.stages.finding import score_at
from fspmu.stages.page_material import given_settings, neighbours
from fspmu.stages.sprites import picture_of, pictures_of, tile_of, write_large, write_sheets
from repaired_digits import repaired, trained

FLOATS = st.floats(-1e6, 1e6, width=32)


@given(arrays(np.float32, (7, 2), elements=FLOATS), arrays(np.float32, (4, 2), elements=FLOATS))
@settings(max_examples=60)
def test_places_keep_their_order_in_one_box(before, after):
    whole = np.concatenate(quantise(before, after)).astype(int)
    both = np.concatenate([before, after]).astype(float)
    assert quantise(before, after)[0].dtype == np.uint16 and whole.min() >= 0 and whole.max() <= 65535
    side = (both.max(0) - both.min(0)).max()
    for axis in (0, 1):
        order = np.argsort(both[:, axis], kind="stable")
        assert (np.diff(whole[order, axis]) >= 0).all()
    if side > 0:
        gaps = both[:, None] - both[None]
        assert np.abs((whole[:, None] - whole[None]) / 65535 * side - gaps).max() <= side / 65535 * 1.001 + 1e-9
        assert (whole.max(0) - whole.min(0)).max() == 65535
    else:
        assert (whole == whole[0]).all()


def features(count, width=12, seed=0):
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(3, width, generator=draw) * 4
    return centres[torch.arange(count) % 3] + torch.randn(count, width, generator=draw)


def test_short_runs_get_principal_components_and_say_so():
    made = map_features(features(300), features(300, seed=1), torch.arange(5), seconds=1, seed=0)
    assert made.rows.tolist() == list(range(300)) and made.before.shape == made.after.shape == (300, 2)
    assert "principal components" in made.method and "too short" in made.method
    again = map_features(features(300), features(300, seed=1), torch.arange(5), seconds=1, seed=0)
    assert np.array_equal(made.before, again.before) and np.array_equal(made.after, again.after)


@pytest.mark.parametrize("library", ["openTSNE", "scikit-learn"])
def test_more_points_than_tsne_places_stand_among_their_neighbours(library, monkeypatch):
    monkeypatch.setattr(feature_map, "find_spec", lambda name: object() if library == "openTSNE" else None)
    monkeypatch.setitem(feature_map.MOST_FITTED, library, 160)
    before = features(240)
    made = map_features(before, before.clone(), torch.arange(0), seconds=1000, seed=0)
    assert f"{library}, on 12 principal components) placed 160 of them" in made.method and "the other 80" in made.method
    for place in (made.before, made.after):
        group = [place[k::3].astype(float) for k in range(3)]
        middle = [points.mean(0) for points in group]
        nearest = [[int(np.argmin([np.linalg.norm(point - other) for other in middle])) for point in points] for points in group]
        assert all(np.mean(np.array(found) == k) > 0.95 for k, found in enumerate(nearest))


def test_of_too_many_points_those_that_are_wanted_are_shown(monkeypatch):
    monkeypatch.setattr(feature_map, "MOST_POINTS", 40)
    wanted = torch.tensor([3, 77, 99])
    made = map_features(features(100), features(100, seed=1), wanted, seconds=0, seed=0)
    assert len(made.rows) == 40 and set(wanted.tolist()) <= set(made.rows.tolist()) and made.rows.tolist() == sorted(set(made.rows.tolist()))
    assert made.method.startswith("40 of 100 training images")
    assert map_features(features(2), features(2), torch.arange(0), seconds=9, seed=0) is None


@given(st.integers(2, 30), st.integers(0, 5))
@settings(max_examples=25)
def test_neighbours_are_those_of_plain_arithmetic(count, seed):
    values, labels = features(count, 4, seed), torch.arange(count) % 2
    near, same = neighbours(Predictions(torch.zeros(count, 2), values), labels, torch.arange(count))
    unit = values / values.norm(dim=1, keepdim=True)
    for row in range(count):
        order = [other for other in (unit @ unit[row]).argsort(descending=True, stable=True).tolist() if other != row]
        cosines = (unit @ unit[row])[near[row][near[row] >= 0]]
        assert row not in near[row] and len(cosines) == min(8, count - 1)
        assert torch.allclose(cosines, (unit @ unit[row])[order[:8]], atol=1e-5)
        assert float(same[row]) == pytest.approx(float((labels[order[:10]] == labels[row]).float().mean()), abs=1e-6)


def test_suspects_whose_features_were_not_kept_have_no_neighbours():
    near, same = neighbours(Predictions(torch.zeros(6, 2), features(3, 4), torch.tensor([0, 2, 4])), torch.zeros(6, dtype=torch.int64), torch.tensor([1, 2]))
    assert near[0].tolist() == [-1] * 8 and bool(same[0].isnan())
    assert set(near[1, :2].tolist()) == {0, 4} and float(same[1]) == 1


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_tiles_show_their_images(channels, tmp_path):
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (50, channels, 10, 6), generator=draw, dtype=torch.uint8)
    pixels[:, 3:] = 255
    images = Images(pixels, torch.zeros(50, dtype=torch.int64), ("a",), ids=[str(i) for i in range(50)])
    rows = list(range(49, -1, -1))
    (sheet,) = write_sheets(pictures_of(images, rows), tile_of(images), tmp_path)
    assert sheet == {"file": "thumbs-000.webp", "width": 450, "height": 20, "tile": 10, "columns": 45, "count": 50}
    shown = np.asarray(Image.open(tmp_path / sheet["file"]).convert("RGB"))
    for place in (0, 7, 47):
        x, y = place % 45 * 10 + 2, place // 45 * 10
        expected = pixels[rows[place], :3].permute(1, 2, 0).expand(-1, -1, 3).numpy()
        assert np.array_equal(shown[y : y + 10, x : x + 6], expected)


def test_alpha_is_over_white_and_other_channels_are_grey():
    assert picture_of(np.zeros((4, 2, 2), np.uint8)).getpixel((0, 0)) == (255, 255, 255)
    assert picture_of(np.full((7, 2, 2), 9, np.uint8)).getpixel((1, 1)) == (9, 9, 9)


def test_many_tiles_need_several_sheets(tmp_path):
    sheets = write_sheets((Image.new("RGB", (2, 2)) for _ in range(2100)), 2, tmp_path)
    assert [sheet["count"] for sheet in sheets] == [2025, 75] and max(sheets[0]["width"], sheets[0]["height"]) <= 4096


def test_larger_pictures_come_from_files_and_damaged_ones_from_pixels(tmp_path):
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.new("RGB", (1400, 700), "red").save(good)
    bad.write_bytes(b"no picture")
    pixels = torch.zeros(2, 3, 100, 100, dtype=torch.uint8)
    images = Images(pixels, torch.zeros(2, dtype=torch.int64), ("a",), ids=["g", "b"], paths=[str(good), str(bad)])
    assert write_large(images, [0, 1], 64, tmp_path, 60) == {"0": "large-0.webp", "1": "large-1.webp"}
    for name, size in (("large-0.webp", (512, 256)), ("large-1.webp", (100, 100))):
        with Image.open(tmp_path / name) as picture:
            assert picture.size == size
    Image.fromarray(np.full((300, 300), 77 * 257, np.uint16)).save(good)
    assert write_large(images, [0], 64, tmp_path, 60) == {"0": "large-0.webp"}
    with Image.open(tmp_path / "large-0.webp") as picture:
        assert all(abs(value - 77) <= 2 for extrema in picture.getextrema() for value in extrema), "16-bit grey is shown as it is, and not white"
    small = replace(images, pixels=pixels[:, :, :8, :8], paths=None)
    assert write_large(small, [0, 1], 8, tmp_path, 60) == {} and write_large(images, [0], 64, tmp_path, -1) == {}


def test_of_many_changed_predictions_every_class_shows_some(monkeypatch):
    monkeypatch.setattr(page_material, "MOST_FLIPS", 5)
    before, after = torch.zeros(100, dtype=torch.bool), torch.ones(100, dtype=torch.bool)
    before[:3], after[:3] = True, False
    flips = page_material._flips(SimpleNamespace(mended=SimpleNamespace(right=(before, after))))
    assert flips.fixed == [3, 22, 41, 61, 80] and flips.broken == [0, 1, 2] and (flips.fixed_total, flips.broken_total) == (97, 3)


def test_what_lies_beside_the_record_of_a_repair():
    folder = repaired()
    material, tensors = json.loads((folder / "page" / "material.json").read_text()), load_file(folder / "page" / "material.safetensors")
    issues = read_issues(folder / "label_issues.csv")
    rows, suspects = tensors["rows"], material["suspects"]
    scores = issues["label_score"].to_numpy()[rows[:suspects]]
    assert suspects == material["suspects_total"] == int(issues["is_label_issue"].sum()) and (np.diff(scores) >= -1e-5).all()
    assert sum(sheet["count"] for sheet in material["sheets"]) == len(rows) and material["large"] == {}
    assert tensors["near"].shape == (suspects, 8) and tensors["near"].max() < int((tensors["evaluation"] == 0).sum())
    flips, evaluation = material["flips"], load_file(folder / "labels.safetensors")["test"]
    assert all(tensors["evaluation"][item] for item in flips["fixed"] + flips["broken"])
    given_there = tensors["evaluation_given"]
    before, after = (tensors[f"evaluation_logits_{name}"].argmax(1) == given_there for name in ("before", "after"))
    assert before.tolist() == [False] * len(flips["fixed"]) + [True] * len(flips["broken"]) and after.tolist() == (~before).tolist()
    assert tensors["class_total"].tolist() == np.bincount(evaluation, minlength=10).tolist()
    record = json.loads((folder / "record.json").read_text())
    share = tensors["class_right_after"].sum() / tensors["class_total"].sum()
    assert share == pytest.approx(record["test_accuracy"]["last"])
    source = load_source("digits", DataOptions())
    sheet = np.asarray(Image.open(folder / "page" / "thumbs-000.webp").convert("RGB"))
    assert np.array_equal(sheet[:8, 8:16], source.train.pixels[int(rows[1])].permute(1, 2, 0).numpy())
    assert trained() != folder


def test_the_components_of_a_cut_give_its_probabilities():
    draw = torch.Generator().manual_seed(0)
    score = torch.cat([torch.randn(300, generator=draw) * 0.2 + 0.5, torch.randn(100, generator=draw) * 0.5 + 4])
    labels = torch.zeros(400, dtype=torch.int64)
    found = CUTS["mixture"].cut(score, labels, CUTS["mixture"].settings, torch.Generator().manual_seed(1))
    clean, wrong = found.components
    assert (clean.label, wrong.label) == ("clean", "wrong")
    assert (clean.weight, clean.mean, wrong.mean) == pytest.approx((0.75, 0.5, 4), abs=0.15)
    density = [part.weight / part.sd * torch.exp(-0.5 * ((score.double() - part.mean) / part.sd) ** 2) for part in found.components]
    assert torch.allclose(density[0] / (density[0] + density[1]), found.clean.double(), atol=1e-4)
    threshold = score_at(score, found.clean, 0.5)
    above = found.clean[score > threshold]
    assert bool((above <= 0.5).all()) and clean.mean < threshold < wrong.mean
    assert score_at(score, torch.ones(400), 0.5) is None


def test_settings_are_explained_by_their_source():
    whatever = given_settings(detector=DETECTORS["gmm-probe"].settings, cut=CUTS["mixture"].settings, split=SplitSettings())
    told = {name: (value, meaning) for name, value, meaning in whatever}
    assert told["cut.starts"] == ("10", "Starting points of the mixture fit; the likeliest wins.")
    assert told["split.threshold"][0] == "0.5" and list(told)[0] == "detector.probe_epochs"
    assert told["detector.probe_lr"][1].startswith("Learning rate of the probe")
