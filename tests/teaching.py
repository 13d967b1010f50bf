"""What tests of repairs share: photos whose colour tells the class, and models that know it."""

import hashlib

import numpy as np
import torch
from PIL import Image
from torch import nn

CLASSES = ("cat", "dog", "owl")
SIDE = 32


def content(folder, but=()):
    """Return every file below a folder by its name, as a digest."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items() if name not in but}


def pixels_of(labels, seed, colours=((210, 60, 60), (60, 210, 60), (60, 60, 210))):
    """Return (N, 32, 32, 3) uint8 whose colour tells the class, under noise."""
    draw = np.random.default_rng(seed)
    return np.clip(np.array(colours)[labels][:, None, None] + draw.normal(0, 60, (len(labels), SIDE, SIDE, 3)), 0, 255).astype(np.uint8)


def write_photos(folder, pixels, labels, names=CLASSES):
    for place, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        path = folder / names[label] / f"{place:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def as_input(pixels, mean=0.5, std=0.5):
    return (torch.tensor(pixels).permute(0, 3, 1, 2).float() / 255 - mean) / std


@torch.no_grad()
def taught(module, pixels, labels, mean=0.5, std=0.5):
    """Return `module` knowing the true labels (N,): batch norm has seen the images, and the head is fitted to the features by least squares."""
    images, given = as_input(pixels, mean, std), []
    for norm in (part for part in module.modules() if isinstance(part, nn.BatchNorm2d)):
        norm.momentum = None  # the plain mean of what it sees
    module.train()(images)
    head = [part for part in module.modules() if isinstance(part, nn.Linear)][-1]
    with_features = head.register_forward_pre_hook(lambda layer, inputs: given.append(inputs[0].flatten(1)))
    module.eval()(images)
    with_features.remove()
    features = torch.cat([given[0], torch.ones(len(labels), 1)], 1).double()
    wanted = 6 * nn.functional.one_hot(torch.from_numpy(labels), len(CLASSES)).double()
    solution = torch.linalg.solve(features.T @ features + 1e-3 * len(labels) * torch.eye(features.shape[1]), features.T @ wanted).float()
    head.weight.copy_(solution[:-1].T)
    head.bias.copy_(solution[-1])
    return module
