"""What copying a corrected folder needs, before it is done and when it was stopped."""

import pytest

from fspmu.data import corrected_folder
from fspmu.data.corrected_folder import Move, build_folder, check_room
from fspmu.errors import InputError


def test_what_is_copied_already_needs_no_room(tmp_path, monkeypatch):
    moves = [Move(str(tmp_path / name), f"a/{name}") for name in ("1.png", "2.png", "3.png")]
    for count, move in enumerate(moves, 1):
        with open(move.source, "wb") as file:
            file.write(bytes(100 * count))
    out = tmp_path / "out"
    assert check_room(moves, out, "copy") == 600 and check_room(moves, out, "symlink") == 0
    build_folder(moves[:2], out, "copy")
    (out / "a/3.png").write_bytes(b"half")
    monkeypatch.setattr(corrected_folder.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 350}))
    assert check_room(moves, out, "copy") == 300
    monkeypatch.setattr(corrected_folder.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 299}))
    with pytest.raises(InputError, match="room for 299 bytes and 300 are needed"):
        check_room(moves, out, "copy")
