"""What is left of a training of two networks: which was kept, what both say together, and the settings that were chosen for the noise."""

import json

import pytest
import torch

from fspmu.data.label_noise import NoiseOptions
from fspmu.data.sources import DataOptions
from fspmu.engine.checkpoint import load
from fspmu.engine.inference import predict
from fspmu.engine.run import Run
from fspmu.experiments.experiment import Compute, Pretrain
from fspmu.experiments.pipeline import prepare, pretrain
from fspmu.pretraining import METHODS, two_networks
from fspmu.report.result_table import Layout, Result
from fspmu.report.slim_records import load_results, save_results
from fspmu.report.tables import run_table, show


@pytest.mark.parametrize("kept", ["net1", "net2"])
def test_the_record_has_the_accuracy_of_the_kept_network_and_of_both(kept, tmp_path, monkeypatch, capsys):
    figures = iter([0.5, 0.5] if kept == "net2" else [0.6, 0.5])  # a tie goes to net2, as published
    monkeypatch.setattr(two_networks, "accuracy", lambda *_: next(figures))
    settings = METHODS["dividemix"].settings.__class__(epochs=3, warm_up=2, batch_size=32, keep="better-on-test")
    noise = NoiseOptions(noise_mode="sym", noise_rate=0.4)
    options = Pretrain(dataset="digits", method="dividemix", width=4, data=DataOptions(limit=300), noise=noise, settings=settings)
    outcome = pretrain(Pretrain(**{**vars(options), "compute": Compute(device="cpu", precision="fp32", out=tmp_path / "run")}))
    test = prepare(options, 0).test
    logits = [predict(load(folder), test, Run()).logits for folder in (outcome.folder, outcome.folder / "other")]
    alone, both = (float((z.argmax(dim=1) == test.given_labels).float().mean()) for z in (logits[0], logits[0] + logits[1]))
    assert not torch.equal(logits[0], logits[1])
    pair, accuracy = outcome.record["pretraining"], outcome.record["test_accuracy"]
    assert pair["kept"] == kept and accuracy["last"] == pytest.approx(alone) and pair["ensemble"]["last"] == pytest.approx(both)
    assert pair["ensemble"]["best"] >= pair["ensemble"]["last"]
    chosen = next(text for text in outcome.record["warnings"] if "chose for" in text)
    assert chosen == "dividemix chose for sym noise of 0.4 and 10 classes: --tau 0.5, --lambda-u 0, --penalty 0, --loss-epochs 1"

    show(run_table(outcome.record), [], [])
    shown = capsys.readouterr()
    assert f"dividemix, {kept}" in shown.out + shown.err and f"both networks together   {100 * both:.2f}" in shown.out + shown.err
    layout, result = Layout("pair", "", ("digits",), ("DivideMix",), ("sym 40",)), Result(("digits", "DivideMix", "sym 40"), 0, outcome.record)
    save_results(tmp_path / "records.jsonl", layout, [result, result])
    (again,) = load_results([tmp_path / "records.jsonl"], layout)
    assert again.record["pretraining"]["ensemble"]["last"] == pytest.approx(both, abs=1e-6)
    assert len(json.loads((tmp_path / "records.jsonl").read_text().splitlines()[1])["ensemble"]) == 2


def test_what_is_assumed_of_unknown_noise_is_said(tmp_path):
    settings = METHODS["dividemix"].settings.__class__(epochs=1, warm_up=1)
    compute = Compute(device="cpu", precision="fp32", out=tmp_path / "run")
    options = Pretrain(dataset="digits", method="dividemix", width=4, data=DataOptions(limit=100), settings=settings, assumed_rate=0.2, compute=compute)
    assert any("dividemix chose for an assumed sym noise of 0.2 and 10 classes: --tau 0.5" in text for text in pretrain(options).record["warnings"])
