"""One run of a grid in a process of its own, so that its end is not that of the grid and its memory is returned.

`python -m fspmu.experiments.grid_worker` reads the options as one line of JSON from standard input, and ends at once when that closes: the grid is gone.
"""

import json
import os
import sys
import threading

from fspmu.errors import EXPECTED, leave_after


def main() -> None:
    """Run what the first line of standard input asks for; exit codes as those of the commands."""
    payload = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_the_grid, daemon=True).start()
    from fspmu.experiments.experiment import Pretrain
    from fspmu.experiments.grid_jobs import rebuild
    from fspmu.experiments.pipeline import pretrain
    from fspmu.experiments.repair_run import unlearn
    from fspmu.experiments.survey_options import Survey
    from fspmu.experiments.surveying import survey_run

    try:
        options = rebuild(payload)
        if isinstance(options, Pretrain):
            outcome = pretrain(options)
        else:
            outcome = survey_run(options) if isinstance(options, Survey) else unlearn(options)
    except EXPECTED as error:
        leave_after(error)
    print(f"written: {outcome.folder}", file=sys.stderr)


def _end_with_the_grid() -> None:
    while os.read(0, 1):
        pass
    os._exit(143)  # whatever is being written stays under its temporary name, and the lock of the folder falls with this process


if __name__ == "__main__":
    main()
