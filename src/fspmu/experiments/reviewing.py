"""`fspmu review`: the page of a repair on this machine, its decisions saved as they are made."""

import contextlib
import webbrowser

from fspmu.errors import InputError
from fspmu.experiments.report_options import Review
from fspmu.report.serving import open_review


def review(options: Review) -> None:
    """Serve the page until Ctrl-C.

    Raises InputError for a folder that holds no repair, a port that is taken, and a run that is reviewed already.
    """
    if not 0 <= options.port <= 65535:
        raise InputError(f"--port is {options.port}; give a number from 0 to 65535, 0 for any that is free")
    with open_review(options.run, options.compare, options.port) as server, contextlib.suppress(KeyboardInterrupt):
        print(f"review: {server.address}", flush=True)
        print(f"decisions are saved in {server.folder}; Ctrl-C stops", flush=True)
        if not options.no_browser:
            webbrowser.open(server.address)
        server.serve_forever()
    print("stopped; everything that was decided is saved", flush=True)
