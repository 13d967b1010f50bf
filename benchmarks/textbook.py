"""The ordinary implementation of training, detection, centroids and both FSPMU passes: the yardstick that `benchmarks/run.py` measures against.

What a user would otherwise write, and what the published code does step for step: a DataLoader with worker processes, images decoded to PIL and cropped,
flipped and normalised one by one, float32 throughout, the student run forward twice and the teacher in both passes, one `.item()` per step, or per sample
where losses are collected. The statistics passes see plain images in evaluation mode, as in docs/method.md; the published ones do the same amount of work.
The losses are those of docs/method.md, written out again here so that nothing of fspmu's speed is borrowed; benchmarks/run.py checks that they agree.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
PADDING = 4


class LabelledImages(Dataset):
    """uint8 images (N, 3, H, W) and labels (N,), each image through PIL when it is asked for."""

    def __init__(self, pixels: Tensor, labels: Tensor, *, augment: bool) -> None:
        self._images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pixels]
        self._labels, self._augment = labels.tolist(), augment

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self._images[index]
        if self._augment:
            width, height = image.size
            left, top = (int(torch.randint(0, 2 * PADDING + 1, ())) for _ in range(2))
            image = ImageOps.expand(image, PADDING).crop((left, top, left + width, top + height))
            if torch.rand(()) < 0.5:
                image = ImageOps.mirror(image)
        values = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255
        return (values - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1), self._labels[index]


def make_loader(pixels: Tensor, labels: Tensor, batch_size: int, *, augment: bool = True, workers: int = 2) -> DataLoader:
    """Return a shuffling loader with worker processes that live on between passes."""
    data = LabelledImages(pixels, labels, augment=augment)
    return DataLoader(data, batch_size, shuffle=augment, num_workers=workers, persistent_workers=workers > 0)


def train_pass(loader: DataLoader, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> float:
    """Train one epoch with cross-entropy; return the mean loss."""
    model.train()
    total = 0.0
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images).logits, labels)
        loss.backward()
        optimizer.step()
        total += loss.item()
    return total / len(loader)


def unlearning_pass(
    loader: DataLoader, student: nn.Module, teacher: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[..., Tensor], device: torch.device
) -> float:
    """Make one forget or retain pass as published: student twice, teacher once, gradients clipped by value at 1; return the mean loss."""
    student.train()
    teacher.eval()
    total = 0.0
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        logits = student(images).logits
        features = student(images).features
        with torch.no_grad():
            teacher_logits = teacher(images).logits
        value = loss(logits, features, teacher_logits, labels)
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_value_(student.parameters(), 1.0)
        optimizer.step()
        total += value.item()
    return total / len(loader)


def forget_loss(centroids: Tensor, *, eta: float = 1.0, zeta: float = 0.5, t: float = 0.25, temperature: float = 0.5) -> Callable[..., Tensor]:
    """Return the loss of a forget pass for centroids (K, D) with unit rows."""

    def loss(logits: Tensor, features: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        teacher = F.softmax(teacher_logits / temperature, dim=1)
        divergence = F.kl_div(F.log_softmax(logits / temperature, dim=1), teacher, reduction="sum") * temperature**2 / len(logits)
        cosine = F.normalize(features, dim=1) @ centroids.T
        weight = cosine.detach().clamp(min=0) ** (1 / t)
        weight = torch.nan_to_num(weight / weight.sum(dim=1, keepdim=True))
        return -eta * divergence + zeta * (weight * cosine).sum(dim=1).mean()

    return loss


def retain_loss(centroids: Tensor, *, gamma: float = 1.0, delta: float = 500.0) -> Callable[..., Tensor]:
    """Return the loss of a retain pass for centroids (K, D) with unit rows; like the published one it looks at no teacher, though that has run."""

    def loss(logits: Tensor, features: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        attraction = F.cosine_similarity(features, centroids[labels], dim=1).mean()
        return gamma * F.cross_entropy(logits, labels) - delta * attraction

    return loss


@torch.no_grad()
def test_pass(loader: DataLoader, model: nn.Module, device: torch.device) -> float:
    """Return the accuracy over the loader, a batch at a time."""
    model.eval()
    right = seen = 0
    for images, labels in loader:
        right += int((model(images.to(device)).logits.argmax(dim=1) == labels.to(device)).sum())
        seen += len(labels)
    return right / seen


@torch.no_grad()
def detection_pass(loader: DataLoader, model: nn.Module, device: torch.device) -> np.ndarray:
    """Return P(clean) (N,): a Gaussian mixture on the losses of all samples, collected one by one."""
    model.eval()
    collected = []
    for images, labels in loader:
        logits = model(images.to(device)).logits
        for value in F.cross_entropy(logits, labels.to(device), reduction="none"):
            collected.append(value.item())
    values = np.array(collected).reshape(-1, 1)
    values = (values - values.min()) / (values.max() - values.min())
    mixture = GaussianMixture(n_components=2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=0)
    mixture.fit(values)
    return mixture.predict_proba(values)[:, mixture.means_.argmin()]


@torch.no_grad()
def centroid_pass(loader: DataLoader, model: nn.Module, device: torch.device) -> Tensor:
    """Return the class centroids (K, D): features and probabilities of all samples are collected, then summed class by class."""
    model.eval()
    features, probabilities = [], []
    for images, _ in loader:
        output = model(images.to(device))
        features.append(F.normalize(output.features, dim=1).cpu())
        probabilities.append(F.softmax(output.logits, dim=1).cpu())
    features, probabilities = torch.cat(features), torch.cat(probabilities)
    centroids = []
    for k in range(probabilities.shape[1]):
        centroids.append((probabilities[:, k : k + 1] * features).sum(dim=0))
    return F.normalize(torch.stack(centroids), dim=1)
