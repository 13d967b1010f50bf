"""Paths of many files in little memory."""

from collections.abc import Sequence
from typing import overload


class RootedPaths(Sequence[str]):
    """The paths of files below one folder; only their names are stored."""

    def __init__(self, root: str, names: Sequence[str]) -> None:
        self.root, self.names = root, names

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> "RootedPaths": ...
    def __getitem__(self, place: int | slice) -> "str | RootedPaths":
        if isinstance(place, slice):
            return RootedPaths(self.root, self.names[place])
        return f"{self.root.rstrip('/')}/{self.names[place]}"

    def subset(self, places: Sequence[int]) -> "RootedPaths":
        """Return the paths at `places`, in that order."""
        return RootedPaths(self.root, [self.names[place] for place in places])
