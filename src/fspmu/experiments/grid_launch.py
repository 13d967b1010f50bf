"""Making the runs of a grid: what is done is skipped, what was stopped goes on, what crashed is tried again, and what fails for good does not end the rest."""

import contextlib
import json
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Generator, Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fspmu.errors import InputError, choose, launched
from fspmu.experiments.experiment import Compute, RunGrid
from fspmu.experiments.grid_jobs import Job, chosen, estimate, jobs_of
from fspmu.experiments.grid_records import add_made, check_precision_of, joined, left_over, recorded
from fspmu.experiments.grids import GRIDS
from fspmu.experiments.tabulating import results_of
from fspmu.report.survey_table import render_all
from fspmu.results.store import lock, read_json, read_lines, unlock

Json = dict[str, Any]
Endings = Generator[tuple[Job, str | None]]
"""Each job as it ends, with what went wrong for good, if anything."""

WORKER = (sys.executable, "-m", "fspmu.experiments.grid_worker")
PLACES = {"local": "one run after the other on this machine", "ray": "as tasks of Ray"}
BLOCKED = "the pretraining that it stands on failed"
_BAD_INPUT = 2


def run_grid(options: RunGrid) -> tuple[Json, list[str]]:
    """Make the runs of a grid, or with `dry_run` say what would be made; return the result, and lines for a reader.

    `result["failed"]` names what failed for good. Raises InputError for what the options get wrong.
    """
    grid = choose(GRIDS, options.name, "grid")
    _check(options)
    out, seeds = options.out.expanduser().resolve(), grid.seeds_up_to(options.seeds)
    data_dir = None if options.data_dir is None else options.data_dir.expanduser().resolve()
    compute = Compute(device=options.device, precision=options.precision, compile=options.compile, test_every=options.test_every)
    wanted = chosen(jobs_of(grid.runs, seeds, compute, out, data_dir), options.only)
    known = recorded(options.records, grid)
    jobs = left_over(wanted, known)
    _check_precision(jobs, options.precision)
    check_precision_of(known, jobs, options.precision)
    result: Json = {"name": options.name, "folder": str(out), "failed": {}, "recorded": len(wanted) - len(jobs)}
    if options.dry_run:
        return _planned(jobs, result)
    unkept: list[str] = []

    def keep() -> None:
        try:
            if options.records is not None:
                add_made(options.records, grid, out)
        except InputError as error:  # what is made lies in its folder all the same
            unkept[:] = [str(error)]

    with _alone(out), _stoppable():
        failed = _make(jobs, options, keep)
    done = sum(job.state == "done" for job in jobs)
    result |= {"failed": {job.title: trouble for job, trouble in failed.items()}, "done": done, "runs": len(jobs), "unkept": unkept}
    lines = [f"{done:,} of {len(jobs):,} runs are done; they lie in {out}"]
    if options.records is not None:
        lines = [f"{len(wanted) - len(jobs):,} of {len(wanted):,} runs were in {options.records} already", *lines]
    lines += [f"failed for good: {job.title}: {trouble}; its words: {job.log}" for job, trouble in failed.items() if trouble != BLOCKED]
    lines += [f"not all that was made is in the records: {trouble}" for trouble in unkept]
    if blocked := [job.title for job, trouble in failed.items() if trouble == BLOCKED]:
        lines.append(f"not begun, because {BLOCKED}: {', '.join(blocked)}")
    results = joined(known, results_of(grid, out))
    return result, [*lines, *(["", render_all(grid.layout, results, ("last",), "markdown")] if results else [])]


def _check(options: RunGrid) -> None:
    choose(PLACES, options.where, "--where")
    for name, value, least in (("seeds", options.seeds, 1), ("retries", options.retries, 0), ("test-every", options.test_every, 1)):
        if value is not None and value < least:
            raise InputError(f"--{name} is {value}, but it must be at least {least}")
    if not 0 < options.gpu_share <= 1:
        raise InputError(f"--gpu-share is {options.gpu_share}, but it is a share of one GPU: above 0, at most 1")
    if options.data_dir is not None and not options.data_dir.expanduser().is_dir():
        raise InputError(f"--data-dir {options.data_dir} is no folder; give the one that holds cifar10/ and cifar100/")
    if launched()[1] > 1:
        raise InputError("a grid starts processes itself; leave the launcher out, or run one grid per machine with --only and an --out of its own")
    if options.where == "ray" and not options.dry_run and find_spec("ray") is None:
        raise InputError("--where ray needs the package ray; pip install 'ray>=2.40', or leave --where out")


def _check_precision(jobs: Sequence[Job], asked: str) -> None:
    """Raise InputError when a job's folder was begun in another precision: its figures would stand for this one's."""
    for job in jobs:
        if job.state != "new":
            theirs = read_json(job.folder / "config.json").get("config", {}).get("precision", "auto")
            if theirs != asked:
                raise InputError(f"{job.folder.parent} holds runs with --precision {theirs}, not {asked}; give that, or another --out")


def _planned(jobs: Sequence[Job], result: Json) -> tuple[Json, list[str]]:
    """Return what would be done, and about what it costs."""
    plan, lines, totals = [], [], [0, 0]
    width = max((len(job.title) for job in jobs), default=0)
    for job in jobs:
        state, passes = job.state, estimate(job)
        if state != "done" and passes is not None:
            totals = [total + count for total, count in zip(totals, passes, strict=True)]
        forward, backward = ("–", "–") if passes is None else (f"{count:,}" for count in passes)
        lines.append(f"{state:<10}  {job.title:<{width}}  {forward:>13}  {backward:>13}")
        plan.append({"title": job.title, "state": state, "folder": str(job.folder), "forward": passes and passes[0], "backward": passes and passes[1]})
    states = [entry["state"] for entry in plan]
    counts = f"{states.count('done'):,} done, {states.count('unfinished'):,} unfinished, {states.count('new'):,} new"
    lines = [f"{'state':<10}  {'run':<{width}}  {'about forward':>13}  {'backward':>13}", *lines, ""]
    if result["recorded"]:
        lines += [f"the records hold {result['recorded']:,} more"]
    lines += [f"{len(jobs):,} runs below {result['folder']}: {counts}; nothing was written"]
    lines += [f"left to do: about {totals[0]:,} samples forward and {totals[1]:,} backward"]
    return result | {"plan": plan, "forward": totals[0], "backward": totals[1]}, lines


# Making them.


def _make(jobs: Sequence[Job], options: RunGrid, keep: Callable[[], object]) -> dict[Job, str]:
    """Make the jobs that are not done, and `keep` each that ends; return what failed for good, and why."""
    todo = [job for job in jobs if job.state != "done"]
    failed: dict[Job, str] = {}
    pause = 0.1 if sys.stderr.isatty() else 30.0
    with tqdm(total=len(jobs), initial=len(jobs) - len(todo), desc=options.name, file=sys.stderr, unit="run", mininterval=pause, smoothing=0) as bar:
        with contextlib.closing((_by_ray if options.where == "ray" else _here)(todo, options, bar)) as endings:
            for job, trouble in endings:
                if trouble is None:
                    keep()
                    bar.update()
                else:
                    failed[job] = trouble
                    tqdm.write(f"failed for good: {job.title}: {trouble}", file=sys.stderr)
    return failed


def _here(jobs: Sequence[Job], options: RunGrid, bar: Any) -> Endings:
    """Make jobs one after the other, each in a process of its own."""
    failed: set[Path] = set()
    watched = sys.stderr.isatty()  # a log file needs no line every other second

    def watch(job: Job) -> None:
        bar.set_postfix_str(f"{job.title}, epoch {len(read_lines(job.folder / 'metrics.jsonl'))}", refresh=watched)

    for job in jobs:
        trouble = BLOCKED if job.needs in failed else None
        for attempt in range(1 + options.retries):
            if job.needs in failed:
                break
            bar.set_postfix_str(job.title, refresh=watched)
            code, words = work(job.payload, job.log, lambda job=job: watch(job))  # type: ignore[misc]
            trouble = None if code == 0 else f"{words} (exit code {code}, attempt {attempt + 1})"
            if code in (0, _BAD_INPUT):  # asked again, it would be refused again
                break
            tqdm.write(f"note: {job.title}: {trouble}", file=sys.stderr)
        if trouble is not None:
            failed.add(job.folder)
        yield job, trouble


def work(payload: Json, log: Path, watch: Callable[[], None] = lambda: None) -> tuple[int, str]:
    """Make one run in a process of its own; return its exit code and its last words, which `log` keeps with all others."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as words:
        words.write(f"--- {json.dumps(payload, sort_keys=True)}\n".encode())
        words.flush()
        # A session of its own: Ctrl-C reaches the grid, which passes it on. An open standard input tells the worker that the grid is alive.
        process = subprocess.Popen(WORKER, stdin=subprocess.PIPE, stdout=words, stderr=words, start_new_session=True)
        assert process.stdin is not None
        try:
            with contextlib.suppress(OSError):  # it may be gone already; its exit code says so
                process.stdin.write(json.dumps(payload).encode() + b"\n")
                process.stdin.flush()
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = process.wait(timeout=2)
                    break
                watch()
        finally:
            if process.poll() is None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=20)
                process.kill()
                process.wait()
            with contextlib.suppress(OSError):
                process.stdin.close()
    said = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines() if line.strip()]
    last = "" if said[-1].startswith("---") else said[-1].removeprefix("fspmu: ").removeprefix("error: ")
    return code, f"killed by signal {-code}" if code < 0 else last or "it said nothing"


def _by_ray(jobs: Sequence[Job], options: RunGrid, bar: Any) -> Endings:
    """Make jobs as Ray tasks: Ray knows which waits for which, and tries again what crashed."""
    ray = import_module("ray")
    ray.init(ignore_reinit_error=True)
    gpus = options.gpu_share if ray.cluster_resources().get("GPU") and options.device != "cpu" else 0
    task = ray.remote(num_gpus=gpus, max_retries=options.retries, retry_exceptions=True)(task_of_ray)
    refs: dict[Path, Any] = {}
    for job in jobs:
        refs[job.folder] = task.remote(job.payload, str(job.log), refs.get(job.needs) if job.needs else None)
    waiting = {refs[job.folder]: job for job in jobs}
    failed: set[Path] = set()
    try:
        while waiting:
            (ref, *_), _ = ray.wait(list(waiting), num_returns=1)
            job = waiting.pop(ref)
            try:
                trouble = ray.get(ref)
            except Exception as error:  # of any kind: ours, or Ray's about a process that ended
                words = [line.strip() for line in str(error).splitlines() if line.strip()]
                trouble = BLOCKED if job.needs in failed else f"{type(error).__name__}: {words[-1] if words else ''}"
            if trouble is not None:
                failed.add(job.folder)
            yield job, trouble
    finally:
        for ref in waiting:
            ray.cancel(ref)
        ray.shutdown()


def task_of_ray(payload: Json, log: str, trouble_before: str | None) -> str | None:
    """Make one run unless what it stands on failed; return why it must not be tried again, None when it is done.

    Raises RuntimeError after a crash: Ray then tries again.
    """
    if trouble_before is not None:
        return BLOCKED
    code, words = work(payload, Path(log))
    if code not in (0, _BAD_INPUT):
        raise RuntimeError(f"{words} (exit code {code})")
    return words if code else None


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the folder: two grids there would wait for each other's runs.

    Raises InputError when it cannot be written, belongs to another grid at work, or is itself a run.
    """
    if (out / "config.json").exists():
        raise InputError(f"{out} is the folder of a run; give an --out for many of them")
    held = lock(out / ".grid.lock", f"another `fspmu grid` is at work in {out}; wait for it, or give another --out", "give another --out")
    try:
        yield
    finally:
        unlock(held)


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the grid in order: its workers first, then a sentence and the usual exit code."""

    def stop(number: int, frame: types.FrameType | None) -> None:
        raise KeyboardInterrupt("terminated")

    previous = None
    with contextlib.suppress(ValueError):  # only a main thread may set handlers
        previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt as asked:
        print("\nfspmu: stopped; the same command goes on from here", file=sys.stderr, flush=True)
        sys.exit(143 if asked.args else 130)
    finally:
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)
