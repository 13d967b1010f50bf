"""A part of a data set before any image is decoded."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fspmu.data.decoding import Pictures
from fspmu.data.paths import RootedPaths
from fspmu.errors import InputError


@dataclass(frozen=True)
class Listing:
    """N pictures by row, with labels (N,) int64 in [0, K), K class names, N ids, and N paths where they are files.

    odd: what looked like a picture and could not be listed, by id, with the reason.
    """

    picture: Pictures
    labels: Tensor
    class_names: tuple[str, ...]
    ids: Sequence[str]
    paths: Sequence[str] | None = None
    notes: tuple[str, ...] = ()
    odd: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, rows: Tensor) -> "Listing":
        """Return the pictures at `rows` (M,), in that order."""
        if torch.equal(rows, torch.arange(len(self))):
            return self
        chosen, picture, paths = rows.tolist(), self.picture, self.paths
        if paths is not None:
            paths = paths.subset(chosen) if isinstance(paths, RootedPaths) else [paths[row] for row in chosen]
        ids = [self.ids[row] for row in chosen]
        return replace(self, picture=lambda place: picture(int(rows[place])), labels=self.labels[rows], ids=ids, paths=paths)


def align(test: Listing, class_names: tuple[str, ...]) -> Listing:
    """Return `test` with its labels counted by the training part's names.

    Raises InputError when it has a class that the training part lacks.
    """
    if test.class_names == class_names:
        return test
    if not set(test.class_names) <= set(class_names):
        raise InputError(f"the classes of the test part ({some(test.class_names)}) are not those of the training part ({some(class_names)})")
    place = test.labels.new_tensor([class_names.index(name) for name in test.class_names])
    return replace(test, labels=place[test.labels], class_names=class_names)


def some(names: Sequence[str], most: int = 20) -> str:
    """Return the first names as a phrase, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")
