"""Evaluation images that are looked at in some epochs only: the same network, sooner."""

import json
from dataclasses import replace

import pytest

from fspmu.data.sources import DataOptions
from fspmu.errors import InputError
from fspmu.experiments.experiment import Compute, Pretrain
from fspmu.experiments.pipeline import pretrain
from fspmu.pretraining import METHODS


@pytest.mark.parametrize(("method", "changes"), [("ce", {"epochs": 5, "lr_step": 5}), ("dividemix", {"epochs": 3, "warm_up": 2})])
def test_testing_now_and_then_changes_no_weight(method, changes, tmp_path):
    kind = type(METHODS[method].settings)
    runs = {}
    for every in (1, 2):
        compute = Compute(device="cpu", precision="fp32", out=tmp_path / f"{every}", test_every=every)
        runs[every] = pretrain(Pretrain(method=method, data=DataOptions(limit=300), settings=kind(**changes), compute=compute))
    logged = [[("test_accuracy" in json.loads(line)) for line in (run.folder / "metrics.jsonl").read_text().splitlines()] for run in runs.values()]
    epochs = changes["epochs"]
    assert logged == [[True] * epochs, [epoch % 2 == 0 or epoch == epochs for epoch in range(1, epochs + 1)]]
    assert (runs[1].folder / "model.safetensors").read_bytes() == (runs[2].folder / "model.safetensors").read_bytes()
    assert runs[1].record["test_accuracy"]["last"] == runs[2].record["test_accuracy"]["last"] > 0
    assert runs[1].record["passes"]["evaluation"]["forward"] > runs[2].record["passes"]["evaluation"]["forward"]
    assert [run.record["machine"]["test_every"] for run in runs.values()] == [1, 2]
    again = pretrain(Pretrain(method=method, data=DataOptions(limit=300), settings=kind(**changes), compute=replace(compute, out=tmp_path / "1", resume=True)))
    assert again.already_done, "it is no part of what a run is"


def test_never_is_no_answer(tmp_path):
    with pytest.raises(InputError, match="--test-every is 0, but it must be at least 1"):
        pretrain(Pretrain(compute=Compute(out=tmp_path / "run", test_every=0)))
