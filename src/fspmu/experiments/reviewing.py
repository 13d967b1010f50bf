"""`fspmu review`: the page of a repair on this machine, its decisions saved as they are made."""

import contextlib
import signal
import threading
import types
import webbrowser
from collections.abc import Iterator

from fspmu.errors import InputError
from fspmu.experiments.report_options import Review
from fspmu.report.serving import ReviewServer, open_review


def review(options: Review) -> None:
    """Serve the page until Ctrl-C.

    Raises InputError for a folder that holds no repair, a port that is taken, and a run that is reviewed already.
    """
    if not 0 <= options.port <= 65535:
        raise InputError(f"--port is {options.port}; give a number from 0 to 65535, 0 for any that is free")
    with open_review(options.run, options.compare, options.port) as server, stopped_by_signals(server):
        print(f"review: {server.address}", flush=True)
        print(f"decisions are saved in {server.folder}; Ctrl-C stops", flush=True)
        if not options.no_browser:
            webbrowser.open(server.address)
        server.serve_forever()
    print("stopped; everything that was decided is saved", flush=True)


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
