"""A network of somebody's own that knows digits with some wrong labels nearly by heart: what the tests of a repair share."""

import functools
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

import fspmu
from fspmu.unlearning import METHODS

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FEW = replace(METHODS["fspmu"].settings, epochs=6, forget_epochs=3, forget_batch=64, retain_batch=64)


class Digits(NamedTuple):
    """pixels (N, 8, 8) uint8, labels (N,) as given and as they are, and the same of others to test with."""

    pixels: np.ndarray
    given: torch.Tensor
    truth: torch.Tensor
    test_pixels: np.ndarray
    test_truth: torch.Tensor


@functools.cache
def digits(count=360, share=0.2):
    """Return `count` digits of which `share` are wrongly labelled, and 240 others."""
    values, labels = load_digits(return_X_y=True)
    pixels = np.rint(values.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    draw = torch.Generator().manual_seed(0)
    order = torch.randperm(len(labels), generator=draw)
    rows, others = order[:count], order[count : count + 240]
    truth = torch.from_numpy(labels.astype(np.int64))
    wrong = torch.rand(count, generator=draw) < share
    given = torch.where(wrong, (truth[rows] + torch.randint(1, 10, (count,), generator=draw)) % 10, truth[rows])
    return Digits(pixels[rows.numpy()], given, truth[rows], pixels[others.numpy()], truth[others])


def build(seed=0):
    """Return a plain network for grey images of 8 x 8."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(), nn.Linear(768, 48), nn.ReLU(), nn.Linear(48, 10)
        ).eval()


@functools.cache
def memorised():
    """Return `build()` trained on the given labels until it knows many of the wrong ones too, in evaluation mode; nobody may change it."""
    data, model, draw = digits(), build(), torch.Generator().manual_seed(1)
    images = torch.from_numpy(data.pixels).float()[:, None] / 255
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model.train()
    for _ in range(14):
        for rows in torch.randperm(len(images), generator=draw).split(60):
            optimizer.zero_grad()
            F.cross_entropy(model(images[rows]), data.given[rows]).backward()
            optimizer.step()
    optimizer.zero_grad()
    return model.eval()


def repair(model=None, images=None, **options):
    """Repair on the CPU and without noise, by default the shared network and in a few epochs."""
    data = digits()
    images = (data.pixels, data.given) if images is None else images
    options = {"settings": FEW, "progress": False, "device": "cpu", "precision": "fp32", **options}
    return fspmu.repair(memorised() if model is None else model, images, **options)


def state_of(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(left, right):
    """Whether two modules, or state dicts, hold the same weights."""
    left, right = (part.state_dict() if isinstance(part, nn.Module) else part for part in (left, right))
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


def share_right(model, pixels, labels, dtype=torch.float32):
    """Return what a plain program would measure: the share of grey pixels (N, 8, 8) whose label the module predicts, in evaluation mode."""
    model.eval()
    with torch.no_grad():
        return float((model((torch.from_numpy(pixels).float()[:, None] / 255).to(dtype)).argmax(1) == labels).double().mean())


def write_folder(root, pixels, labels, names=NAMES):
    """Write PNG files, a folder for each class; return the folder."""
    for row, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
        place = root / names[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{row:04}.png")
    return root
