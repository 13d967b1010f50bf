"""Pixels that stay on disk: the same batches as from memory, read ahead but not far, and stopped at once."""

import gc
import os
import signal
import threading
import time
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fspmu.data import storage, stream
from fspmu.data.arrays import load_images
from fspmu.data.batches import Batches
from fspmu.data.images import Images
from fspmu.data.storage import choose_storage
from fspmu.data.stream import StreamedPixels, read_batches
from fspmu.engine.inference import predict
from fspmu.engine.run import Run
from fspmu.errors import InputError
from fspmu.models.smallcnn import smallcnn
from fspmu.preprocessing import Geometry, Preprocessing

GEOMETRY = Geometry((8, 8), resize="shortest", interpolation="bicubic")
VIEWS = Preprocessing((0.4, 0.5, 0.6), (0.2, 0.3, 0.1), "crop-flip", 2)
COUNT = 50


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root, draw = tmp_path_factory.mktemp("set"), np.random.default_rng(0)
    for row in range(COUNT):
        path = root / "abc"[row % 3] / f"{row}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (10 + row % 3, 12, 3), np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def both(folder):
    return tuple(load_images(folder, geometry=GEOMETRY, preprocessing=VIEWS, storage=where).train for where in ("memory", "disk"))


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    gc.collect()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("fspmu-read")]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def reading(picture, count=64, side=4):
    return StreamedPixels(picture, [f"image {row}" for row in range(count)], Geometry((side, side)))


def plain(row):
    return np.full((4, 4, 3), row, np.uint8)


def test_it_stands_where_a_tensor_stands(both):
    kept, streamed = (images.pixels for images in both)
    assert isinstance(streamed, StreamedPixels) and isinstance(kept, torch.Tensor)
    assert streamed.shape == kept.shape and len(streamed) == len(kept)
    assert (streamed.dtype, streamed.ndim, streamed.device) == (kept.dtype, kept.ndim, kept.device)
    for chosen in (3, -1, slice(5, 9), slice(None), torch.tensor([4, 4, 0]), torch.arange(COUNT) % 2 == 0, torch.tensor([], dtype=torch.int64)):
        assert torch.equal(streamed[chosen], kept[chosen]), chosen
    with pytest.raises(IndexError):
        streamed[COUNT]


@given(st.lists(st.integers(0, COUNT - 1), max_size=20), st.lists(st.integers(0, 10**6), max_size=10))
@settings(max_examples=20)
def test_subsets_of_subsets(both, chosen, again):
    kept, streamed = (images.subset(torch.tensor(chosen, dtype=torch.int64)) for images in both)
    again = torch.tensor([row % len(chosen) for row in again] if chosen else [], dtype=torch.int64)
    for left, right in ((kept, streamed), (kept.subset(again), streamed.subset(again))):
        assert isinstance(right.pixels, StreamedPixels) and torch.equal(left.pixels, right.pixels[:])
        assert list(left.ids) == list(right.ids) and list(left.paths) == list(right.paths)
        assert left.fingerprint() == right.fingerprint()


@pytest.mark.parametrize("shuffled", [False, True])
def test_batches_are_bit_for_bit_those_from_memory(both, shuffled):
    found = [list(Batches(images, torch.arange(COUNT), 7, seeded(3) if shuffled else None)) for images in both]
    assert len(found[0]) == len(found[1]) == 7
    for left, right in zip(*found, strict=True):
        assert torch.equal(left.images, right.images) and left.images.stride() == right.images.stride()
        assert torch.equal(left.given_labels, right.given_labels) and torch.equal(left.index, right.index)


@pytest.mark.parametrize("part", [("share", 1, 3), ("dealt", 1, 2), ("share", 40, 50)])
def test_parts_for_several_processes(both, part):
    name, rank, count = part
    left, right = (list(getattr(Batches(images, torch.arange(COUNT), 8, seeded(1)), name)(rank, count)) for images in both)
    assert [torch.equal(one.images, other.images) for one, other in zip(left, right, strict=True)] == [True] * len(left)


def test_predictions_are_the_same(both):
    torch.manual_seed(0)
    model = smallcnn(3, width=4)
    left, right = (predict(model, images, Run()) for images in both)
    assert torch.equal(left.logits, right.logits) and torch.equal(left.features, right.features)


def test_the_fingerprint_is_read_once(both, monkeypatch):
    kept, streamed = both
    streamed = streamed.subset(torch.arange(COUNT))
    passes = []
    read = StreamedPixels.read
    monkeypatch.setattr(StreamedPixels, "read", lambda self, *given: passes.append(1) or read(self, *given))
    assert streamed.fingerprint() == kept.fingerprint() == streamed.to(torch.device("cpu")).prepared_as(Preprocessing()).fingerprint()
    assert len(passes) == 1
    other = streamed.with_labels(streamed.given_labels.flip(0))
    assert other.fingerprint() == kept.with_labels(kept.given_labels.flip(0)).fingerprint() != kept.fingerprint()


def test_a_file_that_changed_is_named(folder, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "1.png")
    images = load_images(tmp_path, storage="disk").train
    (tmp_path / "b/1.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"/b/1.png changed or became unreadable since it was checked \(the file is empty\); put it back"):
        list(Batches(images, torch.arange(2), 2))
    (tmp_path / "b/1.png").unlink()
    with pytest.raises(InputError, match=r"/b/1.png changed .*\(no such file\)"):
        images.fingerprint()


@pytest.mark.parametrize("lookahead", [0, 1, 2, 5])
def test_memory_holds_one_batch_in_use_and_those_ahead(monkeypatch, lookahead):
    alive: list[weakref.ref] = []
    real = np.empty

    def counted(*shape):
        array = real(*shape)
        alive.append(weakref.ref(array))
        return array

    monkeypatch.setattr(stream.np, "empty", counted)
    most = 0
    pixels = reading(plain)
    batches = pixels.read(torch.arange(64).split(4), lookahead)
    for place in range(16):
        batch = next(batches)
        assert batch[:, 0, 0, 0].tolist() == list(range(4 * place, 4 * place + 4))
        most = max(most, sum(ref() is not None for ref in alive))
        del batch
    assert most == lookahead + 1
    batches.close()


def test_it_reads_ahead_while_a_batch_is_in_use():
    seen = set()

    def picture(row):
        seen.add(row)
        return plain(row)

    batches = reading(picture).read(torch.arange(64).split(4), 2)
    next(batches)
    waited = time.monotonic()
    while len(seen) < 12 and time.monotonic() - waited < 5:
        time.sleep(0.01)
    assert seen == set(range(12))
    batches.close()


def slow(row):
    time.sleep(0.02)
    return plain(row % 256)


def test_closing_stops_at_once():
    batches = reading(slow, 2000).read(torch.arange(2000).split([4, 998, 998]))
    next(batches)
    started = time.monotonic()
    batches.close()
    assert time.monotonic() - started < 10  # all of it would take 40 s


def test_a_pass_given_up_stops_its_threads():
    images = Images(reading(slow, 2000), torch.zeros(2000, dtype=torch.int64), ("a",), [str(row) for row in range(2000)])
    started = time.monotonic()
    for _ in Batches(images, torch.arange(2000), 4):
        break
    gc.collect()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fspmu-read")] and time.monotonic() - started < 10


def test_an_error_of_the_one_who_reads_stops_it():
    with pytest.raises(ZeroDivisionError):
        for _ in reading(slow, 2000).read(torch.arange(2000).split(10)):
            raise ZeroDivisionError


def test_ctrl_c_stops_it():
    started = time.monotonic()
    # Python swallows what is raised while it collects garbage: then one presses the keys again
    presses = [threading.Timer(seconds, lambda: os.kill(os.getpid(), signal.SIGINT)) for seconds in (0.3, 10)]
    for press in presses:
        press.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            list(reading(slow, 4000).read(torch.arange(4000).split(2000)))
    finally:
        presses[1].cancel()
    assert time.monotonic() - started < 20  # all of it would take 80 s


def test_a_bad_picture_comes_at_its_turn():
    def picture(row):
        return plain(row) if row != 9 else b"no image"

    batches = reading(picture).read(torch.arange(64).split(4))
    assert [int(next(batches)[0, 0, 0, 0]) for _ in range(2)] == [0, 4]
    with pytest.raises(InputError, match="^image 9 changed"):
        next(batches)


def test_a_tensor_is_read_by_the_same_door():
    pixels = torch.arange(12, dtype=torch.uint8).view(4, 3, 1, 1)
    assert [part.flatten().tolist() for part in read_batches(pixels, [torch.tensor([1]), torch.tensor([], dtype=torch.int64)])] == [[3, 4, 5], []]


def test_where_pixels_are_kept(monkeypatch):
    def free(amount):
        monkeypatch.setattr(storage, "available_memory", lambda: amount)

    large = Geometry((224, 224))
    free(400 * 2**20)
    assert choose_storage(690, large) == ("memory", ())
    where, (note,) = choose_storage(800, large)
    assert where == "disk" and note == "streamed from disk: 800 images of 224 x 224 pixels need 0.112 GiB of memory, and 0.391 GiB are free"
    free(2**40)
    assert choose_storage(28_000, large)[0] == "memory" and choose_storage(29_000, large)[0] == "disk"
    assert choose_storage(200_000, large)[1][0].startswith("streamed from disk: 200,000 images of 224 x 224 pixels need 28 GiB")
    assert choose_storage(29_000, large, "memory") == ("memory", ()) and choose_storage(1, large, "disk")[0] == "disk"
    free(None)
    assert choose_storage(28_000, large)[0] == "memory" and choose_storage(29_000, large)[0] == "disk"
    with pytest.raises(InputError, match="unknown storage 'disc'; did you mean 'disk'"):
        choose_storage(1, large, "disc")


def test_what_is_free(monkeypatch, tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    4000 kB\n")
    monkeypatch.setattr(storage, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(storage, "_CGROUP", tmp_path)
    assert storage.available_memory() == 4000 * 1024
    for name, content in (("memory.max", "max\n"), ("memory.current", "900000\n"), ("memory.stat", "anon 5\ninactive_file 300000\n")):
        (tmp_path / name).write_text(content)
    assert storage.available_memory() == 4000 * 1024
    (tmp_path / "memory.max").write_text("1000000\n")
    assert storage.available_memory() == 400_000
    monkeypatch.setattr(storage, "_MEMINFO", tmp_path / "gone")
    monkeypatch.setattr(storage, "_CGROUP", tmp_path / "gone")
    assert storage.available_memory() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_a_set_too_large_for_memory_is_streamed_by_itself(folder, monkeypatch):
    monkeypatch.setattr(storage, "available_memory", lambda: 1000)
    loaded = load_images(folder, geometry=GEOMETRY)
    assert isinstance(loaded.train.pixels, StreamedPixels) and any(note.startswith("streamed from disk: 50 images") for note in loaded.notes)
