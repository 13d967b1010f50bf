"""What changes with many samples, and what must not: the mixture compares its starts on a part of them, opinions come in batches."""

import dataclasses
import importlib
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.mixture import GaussianMixture

from fspmu.data.images import Images
from fspmu.data.split import Split
from fspmu.detection.cuts import CUTS, mixture
from fspmu.detection.label_issues import join_opinions, label_issues, opinions_of, write_issues
from fspmu.errors import DetectionWarning

MANY = 120_000


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def losses(kind, count=MANY, seed=0):
    """Return losses of clean and wrong labels: far apart, overlapping, with next to no wrong ones, in three clumps, or as of one group."""
    draw = np.random.default_rng(seed)
    share = draw.random(count)
    drawn = {
        "apart": lambda: np.where(share < 0.3, draw.normal(5, 1, count), draw.exponential(0.4, count)),
        "overlapping": lambda: np.where(share < 0.3, draw.gamma(3, 0.7, count), draw.gamma(1, 0.7, count)),
        "rare": lambda: np.where(share < 0.002, draw.normal(6, 1, count), draw.exponential(0.3, count)),
        "clumps": lambda: np.where(share < 0.45, draw.normal(1, 0.3, count), np.where(share < 0.7, draw.normal(5, 0.4, count), draw.normal(10, 0.5, count))),
        "one": lambda: draw.normal(3, 0.3, count),
    }
    return torch.from_numpy(np.abs(drawn[kind]()))


def cut(values, seed=0, name="mixture", **changes):
    rule = CUTS[name]
    return rule.cut(values, torch.zeros(len(values), dtype=torch.int64), dataclasses.replace(rule.settings, **changes), seeded(seed)).clean


def fitted_to_all(values, random_state, starts=10):
    """Return P(clean) as scikit-learn has it, every start fitted to every value."""
    column = values.double().numpy()[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ten rounds may fall short of convergence
        theirs = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, n_init=starts, random_state=random_state).fit(column)
    return torch.from_numpy(theirs.predict_proba(column)[:, theirs.means_.argmin()]).float()


def scaled(values):
    return (values - values.min()) / (values.max() - values.min())


@pytest.mark.filterwarnings("ignore::fspmu.errors.DetectionWarning")
@pytest.mark.parametrize("kind", [pytest.param("apart", marks=pytest.mark.slow), "overlapping", "rare", pytest.param("clumps", marks=pytest.mark.slow)])
def test_starts_compared_on_a_part_lead_where_all_do(kind):
    values = losses(kind)
    clean, expected = cut(values), fitted_to_all(scaled(values), 1)
    assert float((clean - expected).abs().max()) < 1e-2
    assert float(((clean > 0.5) != (expected > 0.5)).float().mean()) < 1e-3
    assert torch.equal(clean, cut(values))


@pytest.mark.filterwarnings("ignore::fspmu.errors.DetectionWarning")
def test_few_scores_are_fitted_from_every_start(monkeypatch):
    monkeypatch.setattr(mixture, "_COMPARED", 3000)
    values = losses("overlapping", 3000)
    drawn = int(torch.randint(0, 2**31 - 1, (), generator=seeded(5)))
    assert torch.equal(cut(values, 5), fitted_to_all(scaled(values), drawn))


@pytest.mark.filterwarnings("ignore::fspmu.errors.DetectionWarning")
@pytest.mark.parametrize("name", ["mixture", "mixture-reference"])
def test_a_single_start_is_fitted_to_all_scores(name, monkeypatch):
    monkeypatch.setattr(mixture, "_COMPARED", 100)
    values = losses("overlapping", 3000)
    drawn = int(torch.randint(0, 2**31 - 1, (), generator=seeded(5)))
    expected = fitted_to_all(scaled(values), drawn, starts=1) if name == "mixture" else fitted_to_all(values, 0, starts=1)
    assert torch.equal(cut(values, 5, name, starts=1), expected)


def test_remarks_are_about_the_fit_to_all_scores(monkeypatch):
    monkeypatch.setattr(mixture, "_COMPARED", 500)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cut(losses("apart", 5000))
    with pytest.warns(DetectionWarning, match="do not form two groups"):
        cut(losses("one", 5000))
    with pytest.warns(DetectionWarning, match="not converged after 1 rounds") as said:
        cut(losses("apart", 5000), max_iterations=1)
    assert len(said) == 1


def test_scores_that_are_equal_but_for_a_few(monkeypatch):
    """The part on which starts are compared may hold one value alone."""
    monkeypatch.setattr(mixture, "_COMPARED", 500)
    values = torch.zeros(100_000)
    values[-3:] = torch.tensor([5.0, 6.0, 7.0])
    assert (cut(values) < 0.5).nonzero().flatten().tolist() == [99_997, 99_998, 99_999]


@settings(max_examples=60)
@given(st.data())
def test_a_stream_of_batches_gives_the_table_of_the_whole(tmp_path_factory, data):
    count, classes = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 5))
    few = st.sampled_from([0.0, 0.125, 0.25, 0.5])  # so that many are equal
    probabilities = torch.tensor([data.draw(st.lists(few, min_size=classes, max_size=classes)) for _ in range(count)])
    labels = torch.tensor(data.draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count)))
    retain, forget = (torch.tensor(data.draw(st.lists(st.booleans(), min_size=count, max_size=count))) for _ in range(2))
    bounds = sorted({0, count, *data.draw(st.lists(st.integers(0, count)))})
    whole = opinions_of(probabilities, labels)
    parts = [opinions_of(probabilities[a:b], labels[a:b]) for a, b in zip(bounds, bounds[1:], strict=False)]
    streamed = join_opinions(iter(parts), count)
    assert all(torch.equal(*pair) for pair in zip(whole, streamed, strict=True))
    for wrong in (count - 1, count + 1):
        with pytest.raises(ValueError, match=f"hold {count} samples, not {wrong}"):
            join_opinions(parts, wrong)

    names, ids = tuple(f"class {k}" for k in range(classes)), [str(i) for i in range(count)]
    images, split = Images(torch.zeros(count, 1, 1, 1, dtype=torch.uint8), labels, names, ids), Split(retain, forget, torch.rand(count, generator=seeded()))
    table = label_issues(images, split, streamed)
    for row, rows, label in zip(table.itertuples(), probabilities.tolist(), labels.tolist(), strict=True):
        others = [k for k in range(classes) if k != label] or [label]
        suggested = max(others, key=rows.__getitem__) if row.is_label_issue else label  # the first of the largest
        assert (row.predicted_label, row.suggested_label) == (names[rows.index(max(rows))], names[suggested])
        assert row.suggested_confidence == rows[suggested]
    files = [tmp_path_factory.mktemp("issues") / name for name in ("streamed.csv", "whole.csv")]
    for opinions, file in zip((streamed, whole), files, strict=True):
        write_issues(label_issues(images, split, opinions), file)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_benchmark_measures_every_stage(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    scale = importlib.import_module("scale")
    for name, stage in scale.STAGES.items():
        figures = stage(300, 8, 3, tmp_path)
        assert figures["seconds"] > 0 and figures["extra_bytes"] >= 0, name
        assert ("file" in name or "saved" in name) == ("file_bytes" in figures), name
