"""`fspmu review`: the page of a repair on this machine, its decisions saved as they are made."""

import contextlib
import os
import signal
import tempfile
import threading
import types
import webbrowser
from collections.abc import Iterator
from pathlib import Path

from fspmu.errors import InputError
from fspmu.experiments.report_options import Review
from fspmu.report.serving import ReviewServer, open_review

DOOR = """<!doctype html>
<meta charset="utf-8"><meta name="referrer" content="no-referrer"><meta http-equiv="refresh" content="0; url={0}">
<a href="{0}">Review</a>
"""


def review(options: Review) -> None:
    """Serve the page until Ctrl-C.

    Raises InputError for a folder that holds no repair or decisions that would be lost, a port that is taken, and a run that is reviewed already.
    """
    if not 0 <= options.port <= 65535:
        raise InputError(f"--port is {options.port}; give a number from 0 to 65535, 0 for any that is free")
    with open_review(options.run, options.compare, options.port) as server, stopped_by_signals(server):
        print(f"review: {server.address}", flush=True)
        print(f"decisions are saved in {server.folder}; Ctrl-C stops", flush=True)
        with contextlib.nullcontext() if options.no_browser else door_to(server) as door:
            if door:
                webbrowser.open(door)
            server.serve_forever()
    if server.whole:
        print("stopped; everything that the page sent is saved", flush=True)
    else:
        print("stopped; what the page sent last could not be saved: export review.json there, before it is closed", flush=True)


@contextlib.contextmanager
def door_to(server: ReviewServer) -> Iterator[str]:
    """Yield the address of a file that leads to the page and that its owner alone can read: everybody can read the command line of a browser.

    It lies in the folder of the run, as some browsers see no temporary files of others.
    """
    handle, name = tempfile.mkstemp(dir=server.folder, prefix=".review-", suffix=".html")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(DOOR.format(server.address))
        yield Path(name).as_uri()
    finally:
        Path(name).unlink(missing_ok=True)


@contextlib.contextmanager
def stopped_by_signals(server: ReviewServer) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the server between two requests, however early they come: raised anywhere, an interrupt may be lost."""

    def stop(number: int, frame: types.FrameType | None) -> None:
        threading.Thread(target=server.shutdown, daemon=True).start()  # it waits for the loop, which runs in this thread

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
