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


def centroid_repulsion(features: Tensor, centroids: Tensor, t: float) -> Tensor:
    """Return mean_i sum_k w_ik cos(f_i, mu_k), a scalar.

    w_ik = max(c_ik, 0)^(1/t) / sum_j max(c_ij, 0)^(1/t), 0 where that sum is 0, without gradient: the closest centroid weighs most.
    """
    cosine = cosines(features, centroids)
    weight = cosine.detach().clamp(min=0) ** (1 / t)
    total = weight.sum(dim=1, keepdim=True)
    weight = torch.where(total > 0, weight / torch.where(total > 0, total, torch.ones_like(total)), torch.zeros_like(weight))
    return (weight * cosine).sum(dim=1).mean()


def centroid_attraction(features: Tensor, given_labels: Tensor, centroids: Tensor) -> Tensor:
    """Return mean_i cos(f_i, mu_{y_i}), a scalar."""
    own = unit_rows(centroids).to(features.dtype)[given_labels]
    return (unit_rows(features) * own).sum(dim=1).mean()


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


def margins(logits: Tensor, given_labels: Tensor) -> Tensor:
    """Return z_y - max_{c != y} z_c, (B,): negative where the model disagrees with the label."""
    own = logits.gather(1, given_labels[:, None]).squeeze(1)
    others = logits.scatter(1, given_labels[:, None], -torch.inf)
    return own - others.amax(dim=1)
