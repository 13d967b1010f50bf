"""Several processes do what one does: the same work, started by torchrun, compared with this process."""

import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pandas as pd
import psutil
import pytest
import several
import torch
from hypothesis import given
from hypothesis import strategies as st

from fspmu.data.batches import Batch, Batches, bounds_of, join
from fspmu.data.label_noise import NoiseOptions
from fspmu.engine.checkpoint import load_tensors
from fspmu.engine.inference import predict
from fspmu.engine.processes import Processes
from fspmu.engine.run import Run
from fspmu.errors import InputError, launched
from fspmu.experiments.experiment import Compute, Detect, Pretrain
from fspmu.experiments.pipeline import pretrain
from fspmu.experiments.repair_run import detect
from fspmu.pretraining.cross_entropy import Settings
from fspmu.results.store import read_json, read_lines

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ALONE = os.environ | {"OMP_NUM_THREADS": "1"}


def launch(*arguments, **options):
    return subprocess.run([*LAUNCH, *map(str, arguments)], env=ALONE, capture_output=True, text=True, timeout=240, **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short training run on digits, in this process."""
    folder = tmp_path_factory.mktemp("several") / "run"
    noise = NoiseOptions(noise_mode="sym", noise_rate=0.4)
    pretrain(Pretrain(noise=noise, settings=Settings(epochs=2), compute=Compute(device="cpu", precision="fp32", out=folder)))
    return folder


def test_two_processes_find_what_one_finds(tmp_path):
    done = launch(Path(several.__file__), tmp_path)
    assert done.returncode == 0, done.stderr
    alone = several.work(Run())
    for rank in range(2):
        found = load_tensors(tmp_path / f"{rank}.safetensors")
        assert found.keys() == alone.keys()
        for name, value in alone.items():
            close = 1e-3 if name == "history" else 1e-5  # kept in float16
            assert torch.allclose(found[name].double(), value.double(), rtol=close, atol=close), name
        assert torch.equal(found["forget"], alone["forget"]) and torch.equal(found["retain"], alone["retain"])
        assert (tmp_path / f"{rank}.left").read_text() == "True", "a script that only calls fspmu takes leave of the other processes too"
    assert alone["forget"].any() and alone["retain"].any() and alone["history"].abs().sum() > 0
    assert (tmp_path / "0.txt").read_text() == "ValueError: the folder is full"
    assert (tmp_path / "1.txt").read_text() == "LostProcess: another process of this job ended; its own message says why"


@pytest.mark.slow
def test_two_processes_detect_the_same_labels(trained, tmp_path):
    done = launch("-m", "fspmu", "detect", trained, "--device", "cpu", "--precision", "fp32", "--out", tmp_path / "two", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1, "one process prints, once"
    alone = detect(Detect(run=trained, compute=Compute(device="cpu", precision="fp32", out=tmp_path / "one")))
    ours, theirs = (pd.read_csv(tmp_path / name / "label_issues.csv") for name in ("one", "two"))
    numbers = ["label_score", "noise_probability", "suggested_confidence"]
    pd.testing.assert_frame_equal(ours.drop(columns=numbers), theirs.drop(columns=numbers))
    assert (ours[numbers] - theirs[numbers]).abs().max().max() <= 1e-5
    one, two = (load_tensors(tmp_path / name / "split.safetensors") for name in ("one", "two"))
    assert torch.allclose(one["score"], two["score"], atol=1e-5) and torch.equal(one["forget"], two["forget"]) and torch.equal(one["retain"], two["retain"])
    record = read_json(tmp_path / "two" / "record.json")
    assert record["machine"]["processes"] == 2 and record["passes"] == alone.record["passes"]
    assert not list((tmp_path / "two").glob(".*")), "no lock and no half-written file is left"


@pytest.mark.slow
def test_a_process_that_dies_ends_the_job_and_another_number_goes_on(tmp_path):
    flags = [
        "pretrain",
        "--epochs",
        "400",
        "--device",
        "cpu",
        "--precision",
        "fp32",
        "--noise-mode",
        "sym",
        "--noise-rate",
        "0.4",
        "--out",
        str(tmp_path / "run"),
    ]
    job = subprocess.Popen([*LAUNCH, "-m", "fspmu", *flags], env=ALONE, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    state = tmp_path / "run" / "state" / "pretraining.safetensors"
    deadline = time.monotonic() + 120
    while not state.exists():
        assert job.poll() is None, job.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    second = next(child for child in psutil.Process(job.pid).children() if child.environ().get("RANK") == "1")
    second.send_signal(signal.SIGKILL)
    _, said = job.communicate(timeout=120)
    assert job.returncode != 0
    # whichever comes first: the other process misses the dead one, or the launcher ends it
    sentences = ("fspmu: stopped: another process of this job ended", "fspmu: stopped; a run folder keeps its last saved epoch")
    assert any(sentence in said for sentence in sentences) and "SIGKILL" in said
    done = len(read_lines(tmp_path / "run" / "metrics.jsonl"))
    assert 0 < done < 400 and not (tmp_path / "run" / "done").exists()
    again = subprocess.run([sys.executable, "-c", GO_ON.format(epochs=done + 2), *flags, "--resume"], env=ALONE, capture_output=True, text=True, timeout=120)
    assert again.returncode == 130, again.stderr
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [line["epoch"] for line in lines] == list(range(1, len(lines) + 1)) and len(lines) >= done + 2


GO_ON = """
import sys
from fspmu.engine.run import Run
log = Run.log
def stop(run, epoch, **values):
    log(run, epoch, **values)
    if epoch >= {epochs}:
        raise KeyboardInterrupt
Run.log = stop
from fspmu.cli import main
main(sys.argv[1:])
"""


def test_what_several_processes_cannot_have(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("fspmu.engine.processes.choose_device", lambda name: torch.device(name))
    with pytest.raises(InputError, match="names one GPU, but each of the 2 processes has its own"):
        Run.create(device="cuda:0")
    with pytest.raises(InputError, match="too few for its processes"):
        Run.create(device="cuda")
    with pytest.raises(InputError, match="not on mps"):
        Run.create(device="mps")
    from fspmu import cli
    from fspmu.experiments import published_doors

    with pytest.raises(SystemExit) as end:
        published_doors.train(["--dataset", "digits"])
    assert end.value.code == 2
    assert "fspmu (process 2 of 2): error: the published commands run in one process" in capsys.readouterr().err
    cli.emit({"a": 1}, True)
    with pytest.raises(SystemExit):
        cli.main(["pretrain", "--epochs", "many"])
    assert capsys.readouterr() == ("", ""), "the main process prints, once for all"


def test_synchronised_norms_need_gpus():
    with pytest.raises(InputError, match="--sync-bn works on GPUs alone, and this run is on cpu; leave it out"):
        Run.create(device="cpu", sync_bn=True)


@given(size=st.integers(0, 40), count=st.integers(1, 9))
def test_a_batch_is_cut_without_loss_and_without_single_rows(size, count):
    bounds = bounds_of(size, count)
    lengths = [stop - start for start, stop in zip(bounds, bounds[1:], strict=False)]
    assert sum(lengths) == size and len(lengths) <= count and max(lengths) - min(lengths) <= 1
    assert min(lengths) > 1 or len(lengths) == 1


@given(total=st.integers(1, 60), size=st.integers(2, 20), count=st.integers(1, 5), seed=st.integers(0, 3))
def test_processes_share_every_batch(total, size, count, seed):
    images = several.make_images(torch.Generator().manual_seed(0))
    whole = Batches(images, torch.arange(total), size, torch.Generator().manual_seed(seed))
    shares = [list(whole.share(rank, count)) for rank in range(count)]
    dealt = [batch for rank in range(count) for batch in whole.dealt(rank, count)]
    assert all(len(share) == len(whole) for share in shares), "every process takes every step"
    for batch, *parts in zip(whole, *shares, strict=True):
        assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
        assert torch.equal(torch.cat([part.index for part in parts]), batch.index)
        assert {part.total for part in parts} == {len(batch)}
    assert sorted(i for batch in dealt for i in batch.index.tolist()) == list(range(total))
    places = [whole.dealt(rank, count).places for rank in range(count)]
    assert torch.equal(torch.cat(places).sort().values, torch.arange(total))


def test_joint_batches_weigh_rows_by_the_whole_batch():
    def rows(first, count, size):
        return Batch(torch.zeros(count, 3, 8, 8), torch.zeros(count, dtype=torch.int64), torch.arange(first, first + count), size=size)

    shares = [join(rows(0, 3, 7), rows(50, 1, 2), 0.9, -0.1), join(rows(3, 4, 7), rows(51, 1, 2), 0.9, -0.1)]
    values = torch.arange(60.0)
    summed = sum(float((part.weight * values[part.index]).mean()) * len(part) / part.total for part in shares)
    assert summed == pytest.approx(0.9 * float(values[:7].mean()) - 0.1 * float(values[50:52].mean()))


def test_alone_nothing_is_exchanged():
    alone = Processes()
    rows = torch.randn(3, 2)
    assert alone.main and alone.gather("x") == ["x"] and alone.sum(rows) is rows and alone.from_main(lambda: 5) == 5
    assert alone.complete(rows, torch.tensor([2, 0, 1])) is rows
    for own in ([0, 1], [0, 1, 1], [0, 1, 2, 3]):
        with pytest.raises(RuntimeError, match="not counted exactly once"):
            alone.complete(rows, torch.tensor(own))


@pytest.mark.slow
def test_a_launcher_for_one_is_one_process(tmp_path):
    lines = (
        "import torch",
        "from fspmu.engine.run import Run",
        "run = Run.create(device='cpu')",
        "print(run.processes.count, torch.distributed.is_initialized())",
    )
    (tmp_path / "one.py").write_text("\n".join(lines))
    flags = ["--cpu", "--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *flags, str(tmp_path / "one.py")]
    done = subprocess.run(command, env=ALONE, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["1", "False"], done.stderr


def test_what_a_scheduler_leaves_in_the_environment(monkeypatch):
    for rank, size in (("0", "auto"), ("", "4"), ("0", "1"), ("x", "2")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", size)
        assert launched() == (0, 1)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launched() == (1, 2)
    monkeypatch.setattr("accelerate.PartialState", lambda **options: types.SimpleNamespace(process_index=0, num_processes=1, device=torch.device("cpu")))
    with pytest.raises(InputError, match="WORLD_SIZE says 2 processes, but they could not be joined; start them by torchrun"):
        Run.create(device="cpu")


def test_the_published_statistics_pass_keeps_its_batches_apart():
    images = several.make_images(torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match="normalises each batch by itself; leave --sync-bn out"):
        predict(several.without_norms(torch.Generator()), images, Run(sync_bn=True), reference=True)
