"""Label noise: counts and shares against closed forms, the published draws against their anchors, the truth kept."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fspmu.data import label_noise as noise
from fspmu.data.cifar_classes import CIFAR10, CONFUSED10, SUPERCLASSES, confused_classes
from fspmu.data.images import Images
from fspmu.data.sources import Source
from fspmu.errors import InputError

CIFAR100 = tuple(sorted(name for members in SUPERCLASSES.values() for name in members))


def make_source(labels, class_names, total=None, side=2):
    labels = torch.as_tensor(labels)
    pixels = torch.randint(0, 256, (len(labels), 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    images = Images(pixels, labels, tuple(class_names), [f"train/{row}" for row in range(len(labels))])
    test = Images(pixels[:10], labels[:10], tuple(class_names), [f"test/{row}" for row in range(len(labels[:10]))])
    return Source("made", images, test, total or len(labels))


def balanced(count, class_names, **options):
    return make_source(torch.arange(count) % len(class_names), class_names, **options)


def inject(source, seed=0, **options):
    return noise.inject(source, noise.NoiseOptions(**options), torch.Generator().manual_seed(seed), seed)


@given(
    st.sampled_from(["sym", "asym", "instance", "subclass"]),
    st.sampled_from(["torch", "cpython-random"]),
    st.floats(0, 1),
    st.integers(0, 2**31),
    st.integers(1, 150),
)
@settings(max_examples=60)
def test_what_holds_for_every_mode(mode, generator, rate, seed, count):
    if mode in ("instance", "subclass"):
        generator, rate = "torch", rate / 5
    source = make_source(torch.arange(count) * 7 % 100, CIFAR100)
    before = source.train.given_labels.clone()
    options = {"noise_mode": mode, "noise_rate": rate, "noise_generator": generator}
    result = inject(source, seed, **options)
    changed = result.train.given_labels != result.true_labels
    assert torch.equal(source.train.given_labels, before)
    assert torch.equal(result.train.pixels, source.train.pixels) and result.train.ids == source.train.ids
    assert not (changed & ~result.slots).any()
    assert result.flip_rate == pytest.approx(float(changed.double().mean()))
    assert result.true_labels.dtype == result.train.given_labels.dtype == torch.int64
    if mode in ("sym", "asym"):
        assert int(result.slots.sum()) == noise.count_slots(count, rate)
    if mode == "asym":
        assert torch.equal(changed, result.slots)
    if mode != "subclass":
        assert torch.equal(result.true_labels, before)
    if rate == 0:
        assert not changed.any()
    assert torch.equal(inject(source, seed, **options).train.given_labels, result.train.given_labels)


@pytest.mark.parametrize(("count", "rate", "slots"), [(100, 0.29, 29), (50_000, 0.7, 35_000), (10, 0.1, 1), (3, 0.5, 1), (7, 1.0, 7), (9, 0.0, 0)])
def test_slot_counts(count, rate, slots):
    assert noise.count_slots(count, rate) == slots
    drawn = noise.draw_slots(count, rate, torch.Generator())
    assert len(drawn) == len(drawn.unique()) == slots


@pytest.mark.parametrize("generator", ["torch", "cpython-random"])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_symmetric_rate(rate, generator):
    result = inject(balanced(20_000, CIFAR10), noise_mode="sym", noise_rate=rate, noise_generator=generator)
    assert result.flip_rate == pytest.approx(rate * 0.9, abs=0.012)
    drawn = torch.bincount(result.train.given_labels[result.slots], minlength=10) / int(result.slots.sum())
    assert (drawn - 0.1).abs().max() < 0.03
    assert result.train.class_names == CIFAR10 and result.test is not None


def test_seeds_give_other_noise():
    source = balanced(1000, CIFAR10)
    for generator in noise.GENERATORS:
        one, two = (inject(source, seed, noise_mode="sym", noise_rate=0.5, noise_generator=generator) for seed in (1, 2))
        assert not torch.equal(one.slots, two.slots) and not torch.equal(one.train.given_labels, two.train.given_labels)


def test_slots_are_nested_across_rates():
    source = balanced(1000, CIFAR10)
    low, high = (inject(source, noise_mode="sym", noise_rate=rate) for rate in (0.2, 0.5))
    assert not (low.slots & ~high.slots).any()
    assert torch.equal(low.train.given_labels[low.slots], high.train.given_labels[low.slots])


def test_asymmetric_cifar10():
    names = tuple(reversed(CIFAR10))  # by name, whatever the order
    result = inject(balanced(20_000, names), noise_mode="asym", noise_rate=0.4)
    assert result.flip_rate == pytest.approx(0.2, abs=0.01)
    for true, given_label in {(int(a), int(b)) for a, b in zip(result.true_labels, result.train.given_labels, strict=True) if a != b}:
        assert CONFUSED10[names[true]] == names[given_label]


def test_asymmetric_cifar100():
    mapping = noise.class_map(CIFAR100, confused_classes(CIFAR100))
    assert {k: int(mapping[k]) for k in (19, 90, 98, 87, 28, 39)} == {19: 21, 90: 8, 98: 2, 87: 22, 28: 61, 39: 40}
    assert sorted(mapping.tolist()) == list(range(100)) and not (mapping == torch.arange(100)).any()
    result = inject(balanced(5000, CIFAR100), noise_mode="asym", noise_rate=0.4)
    assert result.flip_rate == 0.4 and any("protocol assumed" in note for note in result.notes)
    moved = result.train.given_labels != result.true_labels
    assert int(moved.sum()) == 2000 and torch.equal(result.train.given_labels[moved], mapping[result.true_labels[moved]]), "every slot moves, to its neighbour"


def test_asymmetric_elsewhere(tmp_path):
    source = make_source([0, 1, 2], ["x", "y", "z"])
    result = inject(source, noise_mode="asym", noise_rate=1.0)
    assert result.train.given_labels.tolist() == [1, 2, 0] and "k + 1" in " ".join(result.notes)
    (tmp_path / "map.json").write_text('{"x": "z"}')
    result = inject(source, noise_mode="asym", noise_rate=1.0, noise_map=tmp_path / "map.json")
    assert result.train.given_labels.tolist() == [2, 1, 2] and any("no label is left of the class x" in note for note in result.notes)
    for content, message in [
        ('{"x": "zz"}', "'zz', which is no class"),
        ('{"w": "z"}', "'w'"),
        ('{"x": 2}', "2, which is no class"),
        ("[]", "no JSON object"),
        ("{", "no JSON"),
    ]:
        (tmp_path / "map.json").write_text(content)
        with pytest.raises(InputError, match=message):
            inject(source, noise_mode="asym", noise_rate=1.0, noise_map=tmp_path / "map.json")


def test_superclasses():
    assert list(SUPERCLASSES) == sorted(SUPERCLASSES) and len(SUPERCLASSES) == 20 and len(set(CIFAR100)) == 100
    assert all(list(members) == sorted(members) and len(members) == 5 for members in SUPERCLASSES.values())


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.2])
def test_subclass(rate):
    source = balanced(20_000, CIFAR100)
    result = inject(source, noise_mode="subclass", noise_rate=rate)
    assert result.train.class_names == result.test.class_names == tuple(SUPERCLASSES)
    home = {fine: place for place, members in enumerate(SUPERCLASSES.values()) for fine in members}
    assert result.true_labels.tolist() == [home[CIFAR100[label]] for label in source.train.given_labels.tolist()]
    assert result.test.given_labels.tolist() == [home[CIFAR100[label]] for label in source.test.given_labels.tolist()]
    assert result.flip_rate == pytest.approx(rate, abs=0.005)
    changed = result.slots.nonzero().flatten()
    assert {CIFAR100[label] for label in source.train.given_labels[changed].tolist()} <= {members[-1] for members in SUPERCLASSES.values()}
    assert torch.equal(result.train.given_labels[changed], (result.true_labels[changed] + 1) % 20)


@pytest.mark.parametrize("rate", [0.05, 0.4, 0.95])
def test_flip_rates_follow_the_truncated_normal(rate):
    from scipy.stats import kstest, truncnorm

    drawn = noise.draw_flip_rates(20_000, rate, torch.Generator().manual_seed(0)).numpy()
    assert drawn.min() >= 0 and drawn.max() <= 1
    assert kstest(drawn, truncnorm(-rate / 0.1, (1 - rate) / 0.1, loc=rate, scale=0.1).cdf).pvalue > 1e-3


def test_instance():
    source = balanced(6000, [f"c{k}" for k in range(4)])
    result = inject(source, noise_mode="instance", noise_rate=0.3)
    assert result.flip_rate == pytest.approx(0.3, abs=0.02)
    # The same image under the same true label goes wrong the same way nearly always: the scores are far apart.
    pixels = source.train.pixels[:1].expand(2000, -1, -1, -1)
    alike = Images(pixels, torch.zeros(2000, dtype=torch.int64), source.train.class_names, [str(row) for row in range(2000)])
    given_labels = noise.flip_by_instance(alike, alike.given_labels, 0.3, torch.Generator().manual_seed(3))
    counts = torch.bincount(given_labels, minlength=4)
    assert counts[0] == pytest.approx(1400, abs=80)


def test_instance_matches_its_definition():
    source = balanced(40, ["x", "y", "z"])
    images, rate = source.train, 0.5
    given_labels = noise.flip_by_instance(images, images.given_labels, rate, torch.Generator().manual_seed(5))
    stream = torch.Generator().manual_seed(5)
    flip = noise.draw_flip_rates(40, rate, stream).float()
    values = (images.pixels.float() / 255 - 0.5) / 0.5
    for label in range(3):
        projection = torch.randn(12, 3, generator=stream)
        chances = []
        for row in (images.given_labels == label).nonzero().flatten().tolist():
            scores = (values[row].flatten() @ projection).exp()
            scores[label] = 0
            chance = scores / scores.sum() * flip[row]
            chance[label] = 1 - flip[row]
            chances.append(chance)
        expected = torch.multinomial(torch.stack(chances), 1, generator=stream).squeeze(1)
        assert torch.equal(given_labels[images.given_labels == label], expected)


def test_none():
    source = balanced(20, CIFAR10)
    result = inject(source, noise_mode="none")
    assert torch.equal(result.train.given_labels, result.true_labels) and result.flip_rate == 0 and not result.slots.any() and result.notes == ()


# The published generator.


def reference_noise(labels, rate, seed, num_classes):
    """The protocol as it is told: one shuffle, then a draw for each slot in ascending order."""
    stream = random.Random(seed)
    order = list(range(len(labels)))
    stream.shuffle(order)
    slots = set(order[: int(rate * len(labels))])
    return [stream.randint(0, num_classes - 1) if row in slots else label for row, label in enumerate(labels)], slots


def test_cpython_anchor_slots():
    slots = noise.draw_slots_cpython(50_000, 0.2, random.Random(123))
    assert slots[:4].tolist() == [38712, 34233, 25555, 46929] and len(slots) == 10_000


def test_cpython_protocol():
    source = balanced(500, CIFAR10)
    result = inject(source, 7, noise_mode="sym", noise_rate=0.5, noise_generator="cpython-random")
    expected, slots = reference_noise(source.train.given_labels.tolist(), 0.5, 7, 10)
    assert result.train.given_labels.tolist() == expected and set(result.slots.nonzero().flatten().tolist()) == slots


@pytest.mark.cifar
@pytest.mark.parametrize(("mode", "rate", "wrong"), [("sym", 0.2, 8972), ("sym", 0.5, 22484), ("sym", 0.8, 36036), ("sym", 0.9, 40393), ("asym", 0.4, 10010)])
def test_cpython_anchor_counts(data_dir, mode, rate, wrong):
    import pyarrow.parquet as pq

    labels = pq.read_table(data_dir / "cifar10/data/train-00000-of-00001.parquet", columns=["label"])["label"].to_numpy()
    result = inject(make_source(labels.astype(np.int64), CIFAR10, side=1), 123, noise_mode=mode, noise_rate=rate, noise_generator="cpython-random")
    assert int((result.train.given_labels != result.true_labels).sum()) == wrong


# Labels from people.


def save(path, content):
    path.write_text(json.dumps(content))
    return path


def test_human(tmp_path):
    source = make_source([0, 1, 1, 0, 1], ["x", "y"])
    result = inject(source, noise_mode="human", label_file=save(tmp_path / "l.json", [0, 1, 0, 0, 1]))
    assert result.train.given_labels.tolist() == [0, 1, 0, 0, 1] and result.slots.tolist() == [False, False, True, False, False]
    assert result.flip_rate == 0.2 and result.true_labels.tolist() == [0, 1, 1, 0, 1]


def test_human_file_for_all_images(tmp_path):
    file = save(tmp_path / "l.json", {"worse_label": [0, 1, 0, 1, 0, 1], "aggre_label": [1] * 6})
    source = make_source([0, 1, 1], ["x", "y"], total=6)
    assert inject(source, noise_mode="human", label_file=file, label_key="worse").train.given_labels.tolist() == [0, 1, 0]
    skipping = Source(source.name, source.train, None, 6, rows=torch.tensor([0, 3, 5]))
    assert inject(skipping, noise_mode="human", label_file=file, label_key="worse").train.given_labels.tolist() == [0, 1, 1]
    other = make_source([0, 1, 1], ["x", "y"], total=7)
    with pytest.raises(InputError, match=r"has 6 labels, but there are 3 training images \(of 7\)"):
        inject(other, noise_mode="human", label_file=file, label_key="worse")


def test_human_file_in_another_order(tmp_path):
    source = balanced(40, CIFAR10)
    truth = source.train.given_labels.tolist()
    right = save(tmp_path / "right.json", {"worse_label": truth[:30] + [0] * 10, "clean_label": truth})
    assert inject(source, noise_mode="human", label_file=right, label_key="worse").flip_rate == pytest.approx(9 / 40)
    wrong = save(tmp_path / "wrong.json", {"worse_label": truth, "clean_label": truth[::-1]})
    with pytest.raises(InputError, match="made for another order of the images"):
        inject(source, noise_mode="human", label_file=wrong, label_key="worse")
    chance = inject(source, noise_mode="human", label_file=save(tmp_path / "chance.json", [(label + 1) % 10 for label in truth]))
    assert any("as chance does" in note for note in chance.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise_mode": "symm"}, "unknown noise mode 'symm'; did you mean 'sym'"),
        ({"noise_mode": "sym", "noise_generator": "numpy"}, "unknown noise generator 'numpy'"),
        ({"noise_mode": "sym", "noise_rate": 1.5}, "--noise-rate is 1.5, but it is a fraction"),
        ({"noise_mode": "sym", "noise_rate": float("nan")}, "--noise-rate is nan"),
        ({"noise_mode": "sym", "noise_rate": -0.1}, "--noise-rate is -0.1"),
        ({"noise_rate": 0.2}, "no effect without --noise-mode"),
        ({"noise_mode": "instance", "noise_rate": 0.2, "noise_generator": "cpython-random"}, "sym and asym only, not instance"),
        ({"noise_mode": "sym", "noise_map": Path("m.json")}, "--noise-map is for --noise-mode asym, not sym"),
        ({"noise_mode": "asym", "noise_map": Path("gone.json")}, "gone.json does not exist"),
        ({"noise_mode": "sym", "label_file": Path("l.npy")}, "for --noise-mode human, not sym"),
        ({"noise_mode": "human"}, "needs --label-file"),
        ({"noise_mode": "human", "noise_rate": 0.2, "label_file": Path("l.npy")}, "the label file sets it"),
        ({"noise_mode": "human", "label_file": Path("gone.npy")}, "gone.npy does not exist"),
        ({"noise_mode": "subclass", "noise_rate": 0.1}, "needs the 100 classes of CIFAR-100"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        inject(balanced(20, CIFAR10), **options)


def test_subclass_reaches_a_fifth():
    with pytest.raises(InputError, match="reaches 0.2 at most"):
        inject(balanced(200, CIFAR100), noise_mode="subclass", noise_rate=0.21)
