"""--track: the figures of every epoch also go to a tracker, and only when asked for."""

import pytest

from fspmu.data.label_noise import NoiseOptions
from fspmu.errors import InputError
from fspmu.experiments import tracking
from fspmu.experiments.experiment import Compute, Pretrain, Unlearn
from fspmu.experiments.pipeline import pretrain
from fspmu.experiments.repair_run import unlearn
from fspmu.pretraining.cross_entropy import Settings
from fspmu.results.store import read_lines


def options(folder, **compute):
    noise = NoiseOptions(noise_mode="sym", noise_rate=0.4)
    return Pretrain(noise=noise, settings=Settings(epochs=2), compute=Compute(device="cpu", precision="fp32", out=folder, **compute))


def scalars(folder):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = {}
    for file in folder.rglob("events.out.tfevents.*"):
        events = event_accumulator.EventAccumulator(str(file))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            found.setdefault(tag, []).extend((event.step, event.value) for event in events.Scalars(tag))
    return found


@pytest.mark.slow
def test_tensorboard_sees_every_epoch(tmp_path):
    pytest.importorskip("tensorboard")
    trained = pretrain(options(tmp_path / "run", track="tensorboard"))
    found = scalars(trained.folder / "tracking")
    lines = read_lines(trained.folder / "metrics.jsonl")
    for name in ("loss", "train_accuracy", "test_accuracy"):
        assert found[f"pretraining/{name}"] == [(line["epoch"], pytest.approx(line[name])) for line in lines]
    unlearn(Unlearn(run=trained.folder, detector="known", compute=Compute(device="cpu", out=tmp_path / "repaired", track="tensorboard")))
    found = scalars(tmp_path / "repaired" / "tracking")
    assert len(found["unlearning/retain"]) == 15 and len(found["unlearning/forget"]) == 5


def test_nothing_is_tracked_unless_asked_for(tmp_path):
    trained = pretrain(options(tmp_path / "run"))
    assert not (trained.folder / "tracking").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [("tensorbord", "did you mean 'tensorboard'"), ("comet_ml", "unknown tracker 'comet_ml'"), ("wandb", "pip install wandb, or leave --track out")],
)
def test_a_tracker_that_is_not_there_is_named_before_anything_is_written(tmp_path, monkeypatch, name, words):
    monkeypatch.setattr(tracking, "find_spec", lambda module: None)
    with pytest.raises(InputError, match=words):
        pretrain(options(tmp_path / "run", track=name))
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_fails_on_the_way_costs_a_notice(tmp_path, monkeypatch, capsys):
    pytest.importorskip("tensorboard")
    from accelerate import Accelerator

    def lose(*arguments, **options):
        print("a tracker that talks")
        raise ValueError("the server is gone")

    monkeypatch.setattr(Accelerator, "log", lose)
    monkeypatch.setattr("accelerate.tracking.TensorBoardTracker.finish", lose)
    trained = pretrain(options(tmp_path / "run", track="tensorboard"))
    assert trained.record["warnings"][-1] == "--track tensorboard lost figures (ValueError: the server is gone); they are all in metrics.jsonl"
    assert len(read_lines(trained.folder / "metrics.jsonl")) == 2 and (trained.folder / "done").exists()
    assert not (trained.folder / ".lock").exists()
    assert "a tracker that talks" not in capsys.readouterr().out


def test_a_tracker_that_cannot_start_leaves_nothing(tmp_path, monkeypatch):
    from accelerate import Accelerator

    def refuse(accelerator, *arguments, **options):
        place = tmp_path / "run" / "tracking"
        place.mkdir()
        (place / "half").write_text("")
        raise OSError("no account")

    monkeypatch.setattr(Accelerator, "init_trackers", refuse)
    with pytest.raises(InputError, match="--track tensorboard could not start .OSError: no account.; mend that, or leave --track out"):
        pretrain(options(tmp_path / "run", track="tensorboard"))
    assert not (tmp_path / "run").exists()
