"""Words for image files that cannot be read."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from fspmu.errors import InputError


def reason_for(error: Exception) -> str:
    """Return a few words on why a picture cannot be read."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, UnicodeEncodeError):
        return "the file name is not UTF-8"
    if isinstance(error, Image.DecompressionBombError):
        return "too many pixels"
    if isinstance(error, UnidentifiedImageError):
        return "no image of a known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    lines = str(error).splitlines()
    return lines[0][:80] if lines else type(error).__name__


def what_is(path: Path) -> str:
    """Return a few words on what `path` is when it is no regular file."""
    if path.is_dir():
        return "a folder"
    if path.is_symlink() and not path.exists():
        return "a link that leads to no file"
    return "no regular file" if path.exists() else "no such file"


def tell_failures(failures: Mapping[int, str], names: Sequence[str], skip_unreadable: bool) -> tuple[str, ...]:
    """Return the note on what was left out, by row; raise InputError where that may not be."""
    if not failures:
        return ()
    rows = sorted(failures)
    first = "; ".join(f"{printable(names[row])} ({failures[row]})" for row in rows[:5])
    more = f"; and {len(rows) - 5:,} more" if len(rows) > 5 else ""
    told = f"{len(rows):,} of {len(names):,} images cannot be read: {first}{more}"
    if len(rows) == len(names):
        raise InputError(told)
    if not skip_unreadable:
        raise InputError(f"{told}; mend or remove them, or add --skip-unreadable to leave them out")
    listed = "; ".join(f"{printable(names[row])} ({failures[row]})" for row in rows)
    return (f"left out {len(rows):,} of {len(names):,} images that cannot be read: {listed}",)


def printable(name: str) -> str:
    """Return `name` with anything that is no UTF-8 spelt out."""
    return name.encode("utf-8", "backslashreplace").decode()
