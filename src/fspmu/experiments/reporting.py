"""The page of a run: written on demand, and at the end of a repair."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fspmu.errors import InputError
from fspmu.experiments.report_options import Report
from fspmu.report.page import render_page
from fspmu.report.payload import build_payload
from fspmu.results.store import write_text

if TYPE_CHECKING:  # looking at a run imports nothing of what made it
    from fspmu.engine.run import Run
    from fspmu.experiments.folders import Outcome

NAME = "report.html"


def write_report(folder: Path, compare: Sequence[Path] = (), out: Path | None = None) -> Path:
    """Write the page of the repair in `folder`; return its path.

    Raises InputError for a folder that holds none, and for a place where nothing can be written.
    """
    folder = folder.expanduser().resolve()
    target = folder / NAME if out is None else out.expanduser().resolve()
    if target.is_dir():
        raise InputError(f"--out {out} is a folder; name the file to write, such as {target / NAME}")
    html = render_page(build_payload(folder, compare, base=target.parent))
    try:
        write_text(target, html)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror}; give another --out") from None
    return target


def make_report(options: Report) -> tuple[dict[str, Any], list[str]]:
    """Return what `fspmu report` wrote, and the lines that say so."""
    written = write_report(options.run, options.compare, options.out)
    return {"report": str(written), "bytes": written.stat().st_size, "run": str(options.run.expanduser().resolve())}, [f"report: {written}"]


def report_after(outcome: "Outcome", run: "Run") -> "Outcome":
    """Write the page of a repair that has just been finished; what stands in the way is said, and costs the run nothing."""
    if run.processes.main and not outcome.already_done:
        try:
            write_report(outcome.folder)
        except Exception as error:  # whatever it is, the repair is done
            reason = next(iter(str(error).splitlines()), "")
            run.notice(f"no report was written ({type(error).__name__}: {reason[:200]}); `fspmu report {outcome.folder}` tries again")
    return outcome


def report_line(folder: Path) -> list[str]:
    """Return the line that says where the page of a run lies, if it has one."""
    return [f"report: {folder / NAME}"] if (folder / NAME).is_file() else []
