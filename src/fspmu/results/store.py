"""Files of a run: atomic writes, JSON lines, and the folder that can be left at any moment and entered again."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fspmu.errors import InputError
from fspmu.results.record import SCHEMA, check_schema, versions

Json = dict[str, Any]

PARTIAL = ".partial-"
"""Begins the names of files that are being written; one that outlives its process is swept away when its folder is entered again."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success its content takes the place of `path` in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=PARTIAL, suffix=path.suffix)
    os.close(handle)
    try:
        yield Path(name)
        with open(name, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(name, default_mode())  # mkstemp makes files private; a run folder is shared like any other output
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def default_mode(*, folder: bool = False) -> int:
    """Return the permissions that files, or folders, get where nobody says otherwise."""
    mask = os.umask(0)
    os.umask(mask)
    return (0o777 if folder else 0o666) & ~mask


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Json) -> None:
    """Write sorted, indented JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Json:
    """Read one JSON object.

    Raises InputError when the file is absent or no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no JSON file: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object")
    return content


def append_line(path: Path, content: Json) -> None:
    """Append one JSON object as a line, on the disk when this returns: a state that is saved after it never knows of an epoch that has no line."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(content, sort_keys=True) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[Json]:
    """Read the JSON lines of `path`; what a kill or a full disk cut short does not count."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines


def config_hash(config: Json) -> str:
    """Return 12 hexadecimal digits that name `config`."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]


def differences(ours: Json, theirs: Json, prefix: str = "") -> list[str]:
    """Return one phrase for each key in which two configs differ."""
    phrases = []
    for key in sorted(ours.keys() | theirs.keys()):
        mine, other = ours.get(key), theirs.get(key)
        if isinstance(mine, dict) and isinstance(other, dict):
            phrases += differences(mine, other, f"{prefix}{key}.")
        elif mine != other:
            phrases.append(f"{prefix}{key} is {mine!r} here and {other!r} there")
    return phrases


def common(config: Json, other: Json) -> Json:
    """Return what a config says of whatever another one speaks of too."""
    both = {key: value for key, value in config.items() if key in other}
    return {key: common(value, other[key]) if isinstance(value, dict) and isinstance(other[key], dict) else value for key, value in both.items()}


def lock(path: Path, busy: str, remedy: str) -> FileLock:
    """Return the file `path` as a lock that is held, its folder made where there is none; the system's, so it falls with the process that holds it.

    Raises InputError: `busy` when somebody else holds it, or that its folder cannot be written, with a remedy.
    """
    held = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held.acquire(timeout=0)
    except Timeout:
        raise InputError(busy) from None
    except OSError as error:
        raise InputError(f"cannot write to {path.parent}: {error.strerror}; {remedy}") from None
    return held


def unlock(held: FileLock) -> None:
    """Let others have a lock, and leave no file behind."""
    with contextlib.suppress(OSError):  # while it is still held: whoever comes next makes a new one
        Path(held.lock_file).unlink()
    held.release()


class RunFolder:
    """One folder, one config: locked while in use, resumable until it is done.

    The lock is the operating system's and falls with the process that holds it, so a dead process never blocks.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).expanduser().resolve()
        self.finished = False
        """Whether the run had written its last file when the folder was opened."""
        self._lock: FileLock | None = None
        self._new = False

    @property
    def state(self) -> Path:
        """The folder of what `--resume` needs; gone once the run is done."""
        return self.path / "state"

    def check(self) -> None:
        """Raise InputError for what no run may enter, whatever its config: a file, or a folder that holds something and no run."""
        try:
            if self.path.exists() and not self.path.is_dir():
                raise InputError(f"cannot write to {self.path}: it is a file; give another --out")
            inside = {entry.name for entry in self.path.iterdir() if not entry.name.startswith(PARTIAL)} if self.path.is_dir() else set()
        except OSError as error:
            raise InputError(f"cannot write to {self.path}: {error.strerror}; give another --out") from None
        if inside - {".lock"} and "config.json" not in inside:
            raise InputError(f"{self.path} is not empty and holds no run; give another --out")

    def open(self, config: Json, *, resume: bool) -> None:
        """Make the folder, or enter it again when it holds `config`.

        Raises InputError when it holds another config, belongs to a running process, or is in use and `resume` is off.
        """
        busy = f"{self.path} is being written by another process; wait for it or give another --out"
        self._lock = lock(self.path / ".lock", busy, "give another --out")
        try:
            self._enter(json.loads(json.dumps(config)), resume)
        except InputError:
            self.close()
            raise

    def _enter(self, config: Json, resume: bool) -> None:
        for left in (*self.path.glob(f"{PARTIAL}*"), *self.state.glob(f"{PARTIAL}*")):
            left.unlink(missing_ok=True)
        existing = self.path / "config.json"
        if existing.exists():
            theirs = read_json(existing)
            check_schema(theirs, existing)
            if changed := differences(config, theirs.get("config", {})):
                raise InputError(f"{self.path} holds another configuration ({'; '.join(changed[:4])}); give another --out")
            if not resume:
                raise InputError(f"{self.path} already holds this run; add --resume to go on with it, or give another --out")
            self.finished = (self.path / "done").exists()
        else:
            self.check()
            self._new = True
            write_json(existing, {"schema": SCHEMA, "hash": config_hash(config), "config": config, "versions": versions()})

    def close(self) -> None:
        """Let others use the folder."""
        if self._lock is not None:
            unlock(self._lock)
            self._lock = None

    def abandon(self) -> None:
        """Leave nothing behind of a run that could not begin; what has begun stays."""
        if self._new and {entry.name for entry in self.path.iterdir()} <= {"config.json", ".lock"}:
            (self.path / "config.json").unlink()
            self.close()
            with contextlib.suppress(OSError):
                self.path.rmdir()

    def finish(self) -> None:
        """Set the done mark and drop what only a resume needs."""
        write_text(self.path / "done", "")
        shutil.rmtree(self.state, ignore_errors=True)

    def log(self, content: Json) -> None:
        """Append a line to `metrics.jsonl`."""
        append_line(self.path / "metrics.jsonl", content)

    def metrics(self, stage: str) -> list[Json]:
        """Return the lines of one stage, an epoch each."""
        return [line for line in read_lines(self.path / "metrics.jsonl") if line.get("stage") == stage]

    def forget_metrics(self, stage: str, after_epoch: int) -> None:
        """Drop the lines of epochs that are about to be run again."""
        path = self.path / "metrics.jsonl"
        kept = [line for line in read_lines(path) if line.get("stage") != stage or line["epoch"] <= after_epoch]
        write_text(path, "".join(json.dumps(line, sort_keys=True) + "\n" for line in kept))
