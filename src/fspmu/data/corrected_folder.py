"""A folder per class under corrected labels: where every file goes, and putting it there; the originals are only read."""

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fspmu.data.folders import SUFFIXES, is_training_name
from fspmu.errors import InputError
from fspmu.results.store import PARTIAL, replacing

LONGEST_NAME = 200  # bytes; file systems allow 255, and temporary names are longer than the final ones


@dataclass(frozen=True)
class File:
    """A labelled file of a data set."""

    path: str
    """Where it lies."""
    part: str
    """The folder of its part, such as train; empty where there are no parts."""
    name: str
    """Its place in the part, with `/`."""
    given: str
    label: str
    """The class it goes to: `given`, or a corrected one."""


@dataclass(frozen=True)
class Move:
    """A file, and its place below the new folder, with `/`."""

    source: str
    target: str


def plan_folder(files: Sequence[File]) -> list[Move]:
    """Return where each file goes, (N,): part/class/name, the class folder that a name began with taken off.

    A file of another class whose name is taken gets a suffix made from its old place, the same at every time.
    Raises InputError when a class or a file would not be found again in a folder per class.
    """
    _check_names(files)
    layered = {part for part in {file.part for file in files} if all(_in_class_folder(file) for file in files if file.part == part)}
    taken, targets = _Taken(), [""] * len(files)
    for row, file in sorted(enumerate(files), key=lambda entry: entry[1].label != entry[1].given):  # what stays keeps its name
        name = PurePosixPath(file.name).relative_to(file.given).as_posix() if file.part in layered else file.name
        home = "/".join(filter(None, (file.part, file.label)))
        targets[row] = next(f"{home}/{candidate}" for candidate in _candidates(file, name) if taken.take(home, candidate))
    classes = {file.label for file in files if not file.part}
    for name in sorted(name for name in classes if is_training_name(name, classes - {name})):
        if all(target.count("/") > 1 for target, file in zip(targets, files, strict=True) if not file.part and file.label == name):
            raise InputError(f"the class {name!r} has its images in folders and would be read as the training part; use --mode csv")
    return [Move(file.path, target) for file, target in zip(files, targets, strict=True)]


def _in_class_folder(file: File) -> bool:
    parts = PurePosixPath(file.name).parts
    return len(parts) > 1 and parts[0] == file.given


def _candidates(file: File, name: str) -> Iterator[str]:
    """Yield names for a file within its class: its own, then ones that nobody else has."""
    yield name
    path = PurePosixPath(name)
    digest = hashlib.sha256(os.fsencode(f"{file.part}/{file.name}")).hexdigest()
    for length in (8, 16, 64):
        unlike = f"{path.stem[:40]}-{digest[:length]}{path.suffix}"
        yield path.with_name(unlike).as_posix()
        yield unlike


class _Taken:
    """Names that are taken within each class, told apart as by a file system that ignores case."""

    def __init__(self) -> None:
        self._files: set[tuple[str, str]] = set()
        self._folders: set[tuple[str, str]] = set()

    def take(self, home: str, name: str) -> bool:
        """Whether `name` was free in the folder `home`; it is taken now."""
        key = PurePosixPath(name.casefold())
        above = {(home, str(folder)) for folder in key.parents}
        place = (home, str(key))
        if place in self._files or place in self._folders or above & self._files:
            return False
        self._files.add(place)
        self._folders |= above
        return True


def _check_names(files: Sequence[File]) -> None:
    """Raise InputError for a class that is no plain folder name, which could lead elsewhere, and for a file that no listing would show."""
    for name in sorted({file.label for file in files}):
        if not name or name.startswith(".") or not name.isprintable() or set(name) & {"/", "\\"} or len(os.fsencode(name)) > LONGEST_NAME:
            raise InputError(f"the class {name!r:.80} cannot be the name of a folder; use --mode csv, which writes the labels as tables")
    for file in files:
        path = PurePosixPath(file.name)
        if path.is_absolute() or ".." in path.parts or any(part.startswith(".") for part in path.parts) or path.suffix.lower() not in SUFFIXES:
            raise InputError(f"{file.name!r:.120} would not be found as an image in a folder per class; rename it, or use --mode csv")


def check_room(moves: Sequence[Move], out: Path, mode: str) -> int:
    """Return the bytes that `mode` (copy, hardlink, symlink) needs below `out` beside what an interrupted call has copied already, 0 for links.

    Raises InputError when they are not free, when a file is not there, or when a hard link would have to cross file systems.
    """
    place = next(folder for folder in (out, *out.parents) if folder.exists())
    needed = 0
    for move in moves:
        try:
            found = os.stat(move.source)
        except OSError as error:
            raise InputError(f"{move.source} cannot be read: {error.strerror}; put it back, or leave it out of the data set") from None
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"{move.source} is no file; leave it out of the data set")
        if mode == "hardlink" and found.st_dev != os.stat(place).st_dev:
            raise InputError(_crossing(out))
        needed += found.st_size if mode == "copy" and not _is_copy(Path(move.source), out / move.target) else 0
    free = shutil.disk_usage(place).free
    if needed > free:
        raise InputError(f"{out} has room for {free:,} bytes and {needed:,} are needed; give an --out on another disk, or --mode hardlink or symlink")
    return needed


def _crossing(out: Path) -> str:
    return f"{out} lies on another file system than the images, and hard links cannot cross; use --mode copy, or an --out beside the images"


def build_folder(moves: Sequence[Move], out: Path, mode: str) -> None:
    """Put every file into its place below `out` by `mode`; what an interrupted call has done already is left as it is.

    Raises InputError when a place holds something else.
    """
    put: Callable[[Path, Path], None] = {"copy": _copy, "hardlink": _hardlink, "symlink": _symlink}[mode]
    is_done: Callable[[Path, Path], bool] = {"copy": _is_copy, "hardlink": _is_same_file, "symlink": _leads_to}[mode]
    for left in out.rglob(f"{PARTIAL}*"):
        left.unlink(missing_ok=True)
    for move in moves:
        source, target = Path(move.source), out / move.target
        if os.path.lexists(target):
            if not is_done(source, target):
                raise InputError(f"{target} is there already and is not {source}; give another --out")
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        put(source, target)


def _copy(source: Path, target: Path) -> None:
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)


def _hardlink(source: Path, target: Path) -> None:
    try:
        os.link(os.path.realpath(source), target)
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise InputError(_crossing(target.parent)) from None
        if error.errno in (errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            raise InputError(f"no hard link to {source} can be made ({error.strerror}); use --mode copy") from None
        raise


def _symlink(source: Path, target: Path) -> None:
    os.symlink(os.path.abspath(source), target)


def _is_copy(source: Path, target: Path) -> bool:
    return target.is_file() and not target.is_symlink() and target.stat().st_size == source.stat().st_size


def _is_same_file(source: Path, target: Path) -> bool:
    return not target.is_symlink() and os.path.samefile(source, target)


def _leads_to(source: Path, target: Path) -> bool:
    return target.is_symlink() and os.readlink(target) == os.path.abspath(source)
