"""A labelled image set. A sample keeps its place for life; every per-sample quantity is in this order."""

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fspmu.data.paths import RootedPaths
from fspmu.data.stream import Pixels, StreamedPixels, read_batches
from fspmu.errors import InputError
from fspmu.preprocessing import Preprocessing


@dataclass(frozen=True)
class Images:
    """N images with one given label each.

    pixels (N, C, H, W) uint8, in memory or streamed from disk; given_labels (N,) int64 in [0, K); class_names K; ids N, unique; paths N, or None when
    the images came from no files.
    Raises InputError when lengths, dtypes or labels do not fit together.
    """

    pixels: Pixels
    given_labels: Tensor
    class_names: tuple[str, ...]
    ids: Sequence[str] = field(repr=False)
    paths: Sequence[str] | None = field(default=None, repr=False)
    preprocessing: Preprocessing = field(default=Preprocessing())

    def __post_init__(self) -> None:
        n = len(self.pixels)
        if self.pixels.dtype != torch.uint8 or self.pixels.ndim != 4:
            raise InputError(f"pixels must be uint8 (N, C, H, W), not {self.pixels.dtype} {tuple(self.pixels.shape)}")
        if self.given_labels.dtype != torch.int64 or self.given_labels.shape != (n,) or len(self.ids) != n:
            raise InputError(f"{n} images need {n} int64 labels and ids, not {tuple(self.given_labels.shape)} and {len(self.ids)}")
        if self.paths is not None and len(self.paths) != n:
            raise InputError(f"{n} images need {n} paths, not {len(self.paths)}")
        if len(set(self.class_names)) != len(self.class_names):
            raise InputError(f"class names repeat: {', '.join(self.class_names)}")
        if n and not 0 <= int(self.given_labels.min()) <= int(self.given_labels.max()) < len(self.class_names):
            raise InputError(f"labels run from {int(self.given_labels.min())} to {int(self.given_labels.max())}, but there are {len(self.class_names)} classes")

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def num_classes(self) -> int:
        """K: as many as there are names, whether or not each has a sample."""
        return len(self.class_names)

    @property
    def class_counts(self) -> list[int]:
        """How many samples were given each label, (K,)."""
        return torch.bincount(self.given_labels, minlength=self.num_classes).tolist()

    def with_labels(self, given_labels: Tensor, class_names: tuple[str, ...] | None = None) -> "Images":
        """Return the same images under other labels (N,)."""
        return replace(self, given_labels=given_labels, class_names=class_names or self.class_names)

    def prepared_as(self, preprocessing: Preprocessing) -> "Images":
        """Return the same images with another normalisation and augmentation."""
        return replace(self, preprocessing=preprocessing)

    def subset(self, indices: Tensor) -> "Images":
        """Return the images at `indices` (M,), in that order."""
        chosen = indices.tolist()
        paths = self.paths
        if paths is not None:
            paths = paths.subset(chosen) if isinstance(paths, RootedPaths) else [paths[i] for i in chosen]
        return replace(
            self,
            pixels=self.pixels.subset(indices) if isinstance(self.pixels, StreamedPixels) else self.pixels[indices],
            given_labels=self.given_labels[indices],
            ids=[self.ids[i] for i in chosen],
            paths=paths,
        )

    def to(self, device: torch.device) -> "Images":
        """Return the same set with pixels and labels on `device`."""
        return replace(self, pixels=self.pixels.to(device), given_labels=self.given_labels.to(device))

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits of the content: pixels, labels, class names and ids, not where they lay."""
        digest = hashlib.sha256(repr((tuple(self.pixels.shape), self.class_names, list(self.ids))).encode())
        digest.update(self.given_labels.cpu().numpy().tobytes())
        streamed = isinstance(self.pixels, StreamedPixels)
        known = self.pixels.digests if isinstance(self.pixels, StreamedPixels) else {}
        beside = digest.hexdigest()
        if beside not in known:
            with contextlib.closing(read_batches(self.pixels, torch.split(torch.arange(len(self)), 64 if streamed else 4096))) as parts:
                for part in parts:  # all at once would need their memory again
                    digest.update(part.cpu().contiguous().numpy().tobytes())
            known[beside] = digest.hexdigest()[:16]
        return known[beside]
