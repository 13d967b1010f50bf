"""The losses of unlearning: pure functions, any float dtype, (B, K) logits and (B, D) features.

Formulas: docs/method.md, "Forget" and "Recover".
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def unit_rows(rows: Tensor) -> Tensor:
    """Return `rows` (..., D) scaled to length 1; a zero row stays zero."""
    length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return rows / torch.where(length > 0, length, torch.ones_like(length))


def cosines(features: Tensor, centroids: Tensor) -> Tensor:
    """Return cos(f_i, mu_k), (B, K), for features (B, D) and centroids (K, D)."""
    return unit_rows(features) @ unit_rows(centroids).to(features.dtype).T


def distillation(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return T^2 * mean_i KL(softmax(teacher_i / T) || softmax(student_i / T)), a scalar; no gradient through the teacher."""
    student = F.log_softmax(logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits.detach() / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def divergences(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return T^2 * KL(softmax(teacher_i / T) || softmax(student_i / T)) of each row, (B,); `distillation` is their mean."""
    student = F.log_softmax(logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits.detach() / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1) * temperature**2


def repulsions(features: Tensor, centroids: Tensor, t: float) -> Tensor:
    """Return sum_k w_ik cos(f_i, mu_k) of each row, (B,).

    w_ik = max(c_ik, 0)^(1/t) / sum_j max(c_ij, 0)^(1/t), 0 where that sum is 0, without gradient: the closest centroid weighs most.
    """
    cosine = cosines(features, centroids)
    weight = cosine.detach().clamp(min=0) ** (1 / t)
    total = weight.sum(dim=1, keepdim=True)
    weight = torch.where(total > 0, weight / torch.where(total > 0, total, torch.ones_like(total)), torch.zeros_like(weight))
    return (weight * cosine).sum(dim=1)


def centroid_repulsion(features: Tensor, centroids: Tensor, t: float) -> Tensor:
    """Return mean_i sum_k w_ik cos(f_i, mu_k), a scalar: the mean of `repulsions`."""
    return repulsions(features, centroids, t).mean()


def attractions(features: Tensor, given_labels: Tensor, centroids: Tensor) -> Tensor:
    """Return cos(f_i, mu_{y_i}) of each row, (B,)."""
    own = unit_rows(centroids).to(features.dtype)[given_labels]
    return (unit_rows(features) * own).sum(dim=1)


def centroid_attraction(features: Tensor, given_labels: Tensor, centroids: Tensor) -> Tensor:
    """Return mean_i cos(f_i, mu_{y_i}), a scalar."""
    return attractions(features, given_labels, centroids).mean()


def forget_loss(
    logits: Tensor, teacher_logits: Tensor, features: Tensor, centroids: Tensor, *, eta: float, zeta: float, t: float, temperature: float
) -> Tensor:
    """Return L_forget = -eta KL_T(teacher || student) + zeta mean_i sum_k w_ik cos(f_i, mu_k), a scalar.

    logits and teacher_logits (B, K), features (B, D), centroids (K, D).
    """
    return -eta * distillation(logits, teacher_logits, temperature) + zeta * centroid_repulsion(features, centroids, t)


def retain_loss(logits: Tensor, features: Tensor, given_labels: Tensor, centroids: Tensor, *, gamma: float, delta: float) -> Tensor:
    """Return L_retain = gamma CE(z, y) - delta mean_i cos(f_i, mu_{y_i}), a scalar.

    logits (B, K), features (B, D), given_labels (B,) int64, centroids (K, D).
    """
    return gamma * F.cross_entropy(logits, given_labels) - delta * centroid_attraction(features, given_labels, centroids)


def forget_losses(
    logits: Tensor, teacher_logits: Tensor, features: Tensor, centroids: Tensor, *, eta: float, zeta: float, t: float, temperature: float
) -> Tensor:
    """Return what each row adds to L_forget, (B,): for means in which some rows count more than others."""
    return -eta * divergences(logits, teacher_logits, temperature) + zeta * repulsions(features, centroids, t)


def retain_losses(logits: Tensor, features: Tensor, given_labels: Tensor, centroids: Tensor, *, gamma: float, delta: float) -> Tensor:
    """Return what each row adds to L_retain, (B,): for means in which some rows count more than others."""
    return gamma * F.cross_entropy(logits, given_labels, reduction="none") - delta * attractions(features, given_labels, centroids)


def consistency(first: Tensor, second: Tensor, *, sharpening: float, confidence: float) -> Tensor:
    """Return for each image how far its two views, logits (B, K) each, are from what they say together, (B,); needs no label.

    q_i = the mean of both softmaxes, raised to the power 1/sharpening and normalised, without gradient; the value is the mean of KL(q_i || first_i) and
    KL(q_i || second_i), and 0 where the mean of both is nowhere above `confidence`.
    """
    with torch.no_grad():
        together = (first.softmax(dim=1) + second.softmax(dim=1)) / 2
        target = F.log_softmax(together.clamp(min=torch.finfo(together.dtype).tiny).log() / sharpening, dim=1)
        sure = together.amax(dim=1) > confidence
    apart = [F.kl_div(F.log_softmax(view, dim=1), target, reduction="none", log_target=True).sum(dim=1) for view in (first, second)]
    return torch.where(sure, (apart[0] + apart[1]) / 2, torch.zeros_like(apart[0]))


def margins(logits: Tensor, given_labels: Tensor) -> Tensor:
    """Return z_y - max_{c != y} z_c, (B,): negative where the model disagrees with the label; 0 where there is no other class."""
    if logits.shape[1] < 2:
        return torch.zeros_like(logits[:, 0])
    own = logits.gather(1, given_labels[:, None]).squeeze(1)
    others = logits.scatter(1, given_labels[:, None], -torch.inf)
    return own - others.amax(dim=1)
