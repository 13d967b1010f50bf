"""Centroids against the formula, in numpy, and the promises about order and batches."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fspmu.centroids import centroid_sums, class_centroids


def make_case(samples, classes, width, seed):
    draw = np.random.default_rng(seed)
    features = draw.normal(size=(samples, width)) * draw.uniform(0.01, 100, size=(samples, 1))
    raw = draw.exponential(size=(samples, classes))
    return features, raw / raw.sum(1, keepdims=True)


def test_by_hand():
    # unit features (1, 0), (.6, .8), (0, 1): class 0 takes the first whole and half of the second, class 1 the rest
    features = torch.tensor([[2.0, 0.0], [3.0, 4.0], [0.0, 0.5]])
    probabilities = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    sums = [[1.3, 0.4], [0.3, 1.4]]
    np.testing.assert_allclose(centroid_sums(features, probabilities), sums, rtol=1e-6)
    expected = np.array(sums) / np.hypot([1.3, 0.3], [0.4, 1.4])[:, None]
    np.testing.assert_allclose(class_centroids(features, probabilities), expected, rtol=1e-6)


@given(st.integers(1, 40), st.integers(1, 8), st.integers(2, 12), st.integers(0, 2**31))
@settings(max_examples=50)
def test_closed_form(samples, classes, width, seed):
    features, probabilities = make_case(samples, classes, width, seed)
    expected = np.zeros((classes, width))
    for feature, row in zip(features, probabilities, strict=True):
        for label in range(classes):
            expected[label] += row[label] * feature / np.sqrt((feature**2).sum())
    expected /= np.sqrt((expected**2).sum(1, keepdims=True))
    result = class_centroids(torch.tensor(features), torch.tensor(probabilities))
    assert result.dtype == torch.float64
    np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(np.sqrt((result.numpy() ** 2).sum(1)), 1, rtol=1e-12)


@given(st.integers(0, 2**31), st.integers(1, 60))
@settings(max_examples=25)
def test_order_and_batch_size_do_not_matter(seed, size):
    features, probabilities = (torch.tensor(part, dtype=torch.float32) for part in make_case(60, 5, 7, seed))
    whole = centroid_sums(features, probabilities)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
    batches = zip(features[order].split(size), probabilities[order].split(size), strict=True)
    summed = sum(centroid_sums(*batch) for batch in batches)
    np.testing.assert_allclose(summed, whole, rtol=0, atol=1e-12)
    assert torch.equal(class_centroids(features[order], probabilities[order]), class_centroids(features, probabilities))


def test_a_sample_without_length_adds_nothing():
    features, probabilities = torch.tensor([[0.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0], [0.25]])
    np.testing.assert_allclose(centroid_sums(features, probabilities), [[0.0, 0.25]])


def test_a_class_without_probability_keeps_a_zero_row():
    result = class_centroids(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0]]))
    np.testing.assert_allclose(result, [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)


@pytest.mark.parametrize("share", [1e-8, 1e-15, 1e-30])
def test_a_class_that_a_sure_model_almost_never_names_still_has_a_unit_row(share):
    result = class_centroids(torch.tensor([[3.0, 4.0], [4.0, 3.0]]), torch.tensor([[1.0, share], [1.0, share]]))
    np.testing.assert_allclose(result[1], [np.sqrt(0.5), np.sqrt(0.5)], rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_dtype_of_the_features_is_kept(dtype):
    features, probabilities = (torch.tensor(part).to(dtype) for part in make_case(30, 4, 6, 0))
    result = class_centroids(features, probabilities)
    assert result.dtype == dtype
    np.testing.assert_allclose(result.double(), class_centroids(features.double(), probabilities.double()), atol=torch.finfo(dtype).eps)


@pytest.mark.parametrize(("features", "probabilities"), [((3, 2), (4, 2)), ((3,), (3, 2)), ((3, 2), (3,)), ((3, 2, 1), (3, 2))])
def test_what_does_not_belong_together_is_refused(features, probabilities):
    with pytest.raises(ValueError, match=r"features \(N, D\) and probabilities \(N, K\) needed"):
        class_centroids(torch.ones(features), torch.ones(probabilities))


@given(st.integers(2, 40), st.integers(0, 2**31))
@settings(max_examples=25)
def test_weights_are_samples_that_stand_there_as_often(samples, seed):
    features, probabilities = (torch.tensor(part) for part in make_case(samples, 4, 6, seed))
    times = torch.randint(0, 4, (samples,), generator=torch.Generator().manual_seed(seed))
    rows = torch.arange(samples).repeat_interleave(times)
    np.testing.assert_allclose(centroid_sums(features, probabilities, times.float()), centroid_sums(features[rows], probabilities[rows]), rtol=1e-9, atol=1e-12)
    assert torch.equal(centroid_sums(features, probabilities, torch.ones(samples)), centroid_sums(features, probabilities))
