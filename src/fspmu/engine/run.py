"""One run: its device, precision, random streams, progress, notices, timing, and the epochs that can be stopped and resumed."""

import contextlib
import hashlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fspmu.data.batches import Batch, Batches
from fspmu.data.images import Images
from fspmu.data.split import indices_of
from fspmu.engine.checkpoint import load_state, save_state
from fspmu.engine.compiling import Compiled
from fspmu.engine.device import DTYPES, choose_precision, is_slow_in, memory_format_for, tune
from fspmu.engine.processes import Processes, join
from fspmu.errors import InputError
from fspmu.models.classifier import Classifier, Output
from fspmu.results.store import RunFolder

Forward = Callable[[Tensor], Output]


class Stateful(Protocol):
    """Anything a checkpoint can hold: modules, optimisers, histories."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state as nested dicts, lists, tensors and plain values."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Take the state back."""


class Tracker(Protocol):
    """Whoever else wants to see the figures of each epoch."""

    def log(self, values: dict[str, float], epoch: int) -> None:
        """Take the figures of one epoch, by name."""


@dataclass
class Run:
    """Everything about a run that is not the method's own business."""

    device: torch.device = torch.device("cpu")
    precision: str = "fp32"
    seed: int = 0
    folder: RunFolder | None = None
    evaluation: Images | None = field(default=None, repr=False)
    """Images whose accuracy is measured after each epoch; never trained on."""
    progress: bool = False
    """Whether bars and notices go to standard error; the main process's alone."""
    processes: Processes = field(default_factory=Processes)
    sync_bn: bool = False
    """Whether batch norm takes its statistics from the rows of all processes; else each process from its own."""
    compile: bool = False
    """Whether networks go through torch.compile, with CUDA graphs on a GPU."""
    tracker: Tracker | None = field(default=None, repr=False)
    saving: float = 0.1
    """Share of the time that saving states may take; the first and the last epoch of a stage are saved whatever it takes."""
    test_every: int = 1
    """Epochs from one look at the evaluation images to the next; the last epoch is always looked at."""
    stage: str = ""
    notices: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    passes: dict[str, dict[str, int]] = field(default_factory=dict)
    """Per stage: how many samples went forward and backward through a network, over all processes."""
    lines: list[dict[str, Any]] = field(default_factory=list)
    """What was logged, an epoch each, as in `metrics.jsonl`."""
    _loaded: dict[str, float] = field(default_factory=dict, repr=False)
    """Seconds that a stopped run had spent, as in the state read last."""
    _tested: bool = True
    """Whether the present epoch is one of those after which the evaluation images are looked at."""
    _within: float = 0.0
    """Seconds of the stages that ended within the present one."""
    _compiled: dict[Classifier, Compiled] = field(default_factory=dict, repr=False)
    _uncounted: list[int] = field(default_factory=lambda: [0, 0])
    """Samples that went forward and backward in this process since the last `count_passes`."""

    @classmethod
    def create(cls, *, device: str = "auto", precision: str = "auto", **fields: Any) -> "Run":
        """Return a run on the named device and precision, together with the processes that a launcher started beside this one.

        Raises InputError when this machine has neither, or cannot do what is asked for.
        """
        processes, place = join(device)
        run = cls(device=place, precision=choose_precision(precision, place), processes=processes, **fields)
        run.progress &= processes.main
        if run.sync_bn and place.type != "cuda":
            raise InputError(f"--sync-bn works on GPUs alone, and this run is on {place.type}; leave it out: each process then normalises by its own rows")
        if is_slow_in(run.precision, place):
            run.notice("this CPU has no bf16 instructions: bf16 is a dozen times slower here than --precision fp32")
        tune(place)
        return run

    @property
    def machine(self) -> dict[str, Any]:
        """What the figures were computed on, and how often was tested: for the record, not for the config."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        described = {"device": name, "precision": self.precision, "threads": torch.get_num_threads(), "processes": self.processes.count}
        described["test_every"] = self.test_every
        return described | ({"compiled": True} if self.compile else {})

    def generator(self, *purpose: object) -> torch.Generator:
        """Return a CPU generator for one purpose, so that one more draw elsewhere does not move it.

        Nothing random needs saving: an epoch run again asks for the same purpose.
        """
        digest = hashlib.sha256(repr((self.seed, *purpose)).encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    def notice(self, text: str) -> None:
        """Say one line now, and keep it for the record."""
        if text not in self.notices:
            self.notices.append(text)
            if self.progress:
                tqdm.write(f"note: {text}", file=sys.stderr)

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Name the stage and add its wall time to `seconds`, without that of stages within it."""
        outer, self.stage, started, within = self.stage, stage, time.perf_counter(), self._within
        self.passes.setdefault(stage, {"forward": 0, "backward": 0})
        try:
            yield
        finally:
            elapsed = time.perf_counter() - started
            self.seconds[stage] = self.seconds.get(stage, 0.0) + elapsed - (self._within - within)
            self.stage, self._within = outer, within + elapsed
            if not outer:
                self._compiled.clear()  # with the memory that their graphs keep

    def place(self, model: Classifier) -> Classifier:
        """Return `model` on the device, in the memory layout that convolutions are fastest in, and with the batch norm that was asked for."""
        if self.sync_bn and self.processes.count > 1:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return model.to(device=self.device, memory_format=memory_format_for(model, self.device))  # type: ignore[call-overload, no-any-return]

    def forward(self, model: Classifier, *, compile: bool = True) -> Forward:
        """Return `model` as a function in the run's precision whose outputs are float32, counting samples; compiled where the run compiles."""
        dtype, layout = DTYPES[self.precision], memory_format_for(model, self.device)
        network: Callable[[Tensor], Output] = model
        if self.compile and compile:
            if model not in self._compiled:
                self._compiled[model] = Compiled(model, self.device, self._not_compiled)
            network = self._compiled[model]

        def call(images: Tensor) -> Output:
            short = dtype != torch.float32 and len(images) > 0  # synchronised norms send no rows in fp32, as they send statistics
            with torch.autocast(self.device.type, dtype, enabled=short):
                output = network(images.contiguous(memory_format=layout))
            self._uncounted[0] += len(images)
            self._uncounted[1] += len(images) * torch.is_grad_enabled()
            return Output(output.logits.float(), output.features.float())

        return call

    def _not_compiled(self, error: Exception) -> None:
        """Say that a compiled network failed; where the processes' norms wait for each other, no pass can be repeated: raise."""
        if self.sync_bn and self.processes.count > 1:
            raise InputError(f"--compile does not work here ({type(error).__name__}); leave it out") from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        self.notice(f"--compile does not work here ({type(error).__name__}: {reason[:120]}); going on without it")

    def stop_compiling(self, error: Exception) -> bool:
        """Go on without compiled networks after `error` in a backward pass; return whether there were any, so that the step is worth another try."""
        working = [network for network in self._compiled.values() if network.used]
        for network in working:
            network.give_up()
        if working:
            self._not_compiled(error)
        return bool(working)

    def begin_step(self) -> None:
        """Say that nobody looks any more at what networks returned before: CUDA graphs write to the same memory again."""
        if self.compile and self.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]

    def count_passes(self) -> None:
        """Add what went through networks since the last time to the stage, and learn what others noticed; all processes call it after each pass."""
        counts = self.passes.setdefault(self.stage, {"forward": 0, "backward": 0})
        for (forward, backward), notices in self.processes.gather((self._uncounted, self.notices)):
            counts["forward"] += forward
            counts["backward"] += backward
            for text in notices:  # of a process that cannot show them
                self.notice(text)
        self._uncounted = [0, 0]

    def batches(self, images: Images, chosen: Tensor | None, size: int, purpose: str, epoch: int) -> Batches:
        """Return the shuffled, augmented batches of one pass over the samples where `chosen` (N,) bool is set, None: all; of each this process's share."""
        indices = torch.arange(len(images)) if chosen is None else indices_of(chosen)
        batches = Batches(images, indices, size, self.generator(self.stage, purpose, epoch))
        return batches.share(self.processes.rank, self.processes.count)

    def bar(self, steps: Iterable[Batch], label: str) -> Iterable[Batch]:
        """Return `steps` under a progress bar that goes when it is done."""
        watched = self.progress and sys.stderr.isatty()  # a log file needs no bar within an epoch
        return tqdm(steps, desc=label, leave=False, disable=not watched, file=sys.stderr, mininterval=0.5, unit="batch")  # type: ignore[no-any-return]

    def epochs(self, total: int, **state: Stateful) -> Iterator[int]:
        """Yield the epochs 1 to `total`, and save `state` between them, so that a run stopped at any moment goes on from its last saved epoch.

        The first and the last epoch are saved, and the others as long as that takes no more than the share `saving` of the time: short epochs are sooner
        run again than saved. The number of processes may be another one when a run goes on.
        """
        path = None if self.folder is None else self.folder.state / f"{self.stage}.safetensors"
        done, spent, started, within = 0, 0.0, time.perf_counter(), self._within
        content = self.processes.from_main(lambda: path.read_bytes() if path is not None and path.exists() else None)
        if content is not None:
            saved = load_state(content, state)
            done, spent = saved["epoch"], saved["seconds"][self.stage]
            self.passes |= saved["passes"]
            before, self._loaded = self._loaded, saved["seconds"]  # a later stage's state repeats what an earlier one's said
            stages = self.seconds | self._loaded
            self.seconds = {stage: self.seconds.get(stage, 0.0) - before.get(stage, 0.0) + self._loaded.get(stage, 0.0) for stage in stages}
            for text in saved["notices"]:
                self.notice(text)
        if self.folder is not None:
            self.folder.forget_metrics(self.stage, done)
            self.lines += self.folder.metrics(self.stage)
        saved_at = cost = 0.0
        pause = 0.1 if sys.stderr.isatty() else 30.0
        with tqdm(total=total, initial=done, desc=self.stage, disable=not self.progress, file=sys.stderr, unit="epoch", mininterval=pause) as bar:
            for epoch in range(done + 1, total + 1):
                self._tested = epoch == total or epoch % self.test_every == 0
                with self._own_draws(epoch):
                    yield epoch
                if path is not None and (epoch == total or time.perf_counter() - saved_at >= cost / self.saving):
                    saved_at = time.perf_counter()
                    own = spent + time.perf_counter() - started - (self._within - within)
                    known = {"seconds": self.seconds | {self.stage: own}, "passes": self.passes, "notices": self.notices}
                    save_state(path, state, known | {"epoch": epoch})
                    saved_at, cost = time.perf_counter(), time.perf_counter() - saved_at
                bar.update()
                if self.lines:
                    bar.set_postfix({key: f"{value:.3g}" for key, value in self.lines[-1].items() if isinstance(value, float)}, refresh=False)

    @property
    def tested(self) -> Images | None:
        """The evaluation images, if they are to be looked at after this epoch."""
        return self.evaluation if self._tested else None

    @contextlib.contextmanager
    def _own_draws(self, epoch: int) -> Iterator[None]:
        """Let layers that draw without being given a generator, such as dropout, draw what belongs to this epoch; others' draws stay as they were."""
        seed = self.generator(self.stage, "layers", epoch, self.processes.rank).initial_seed()
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach every GPU there is
            if self.device.type == "cuda":
                with torch.cuda.device(self.device):
                    torch.cuda.manual_seed(seed)
            elif self.device.type == "mps":
                torch.mps.manual_seed(seed)
            yield

    def log(self, epoch: int, **values: float | None) -> None:
        """Keep the figures of one epoch, in memory and in `metrics.jsonl`."""
        line = {"stage": self.stage, "epoch": epoch} | {name: value for name, value in values.items() if value is not None}
        self.lines.append(line)
        if self.folder is not None:
            self.folder.log(line)
        if self.tracker is not None:
            self.tracker.log({f"{self.stage}/{name}": value for name, value in line.items() if isinstance(value, float)}, epoch)

    def accuracies(self, stage: str, name: str = "test_accuracy") -> list[float]:
        """Return the evaluation accuracy after each epoch of `stage` that was tested, fractions, as logged under `name`; empty without evaluation images."""
        return [line[name] for line in self.lines if line["stage"] == stage and name in line]
