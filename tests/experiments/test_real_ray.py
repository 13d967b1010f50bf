"""A grid on a real Ray, started on this machine, one of whose workers is killed while it trains."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

EPOCHS = 30
CODE = """
import sys
sys.path.insert(0, {here!r})
import test_grid
from fspmu.cli import main
test_grid.GRIDS["tiny"] = test_grid.tiny({epochs}, "FSPMU")
main(["grid", "tiny", "--where", "ray", "--precision", "fp32", "--device", "cpu", "--out", {out!r}, "--records", {records!r}])
"""


def ray_workers(title):
    """Return the process ids of Ray's workers that are at such a task, by the titles that they give themselves."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = place.read_bytes()
        except OSError:  # it has ended
            continue
        if words.startswith(b"ray::") and title.encode() in words:
            found.append(int(place.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None or not Path("/proc/self/cmdline").exists(), reason="needs ray, and Linux")
def test_a_grid_is_completed_though_a_worker_of_ray_is_killed(tmp_path):
    out, records = tmp_path / "grid", tmp_path / "records.jsonl"
    code = CODE.format(here=str(Path(__file__).parent), epochs=EPOCHS, out=str(out), records=str(records))
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_IMPORT_WARNING": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        killed, until = [], time.monotonic() + 240
        while not killed:
            assert process.poll() is None and time.monotonic() < until, process.communicate()
            if any(path.read_text().count("\n") >= 3 for path in out.glob("*/metrics.jsonl")):
                killed = ray_workers("task_of_ray")
            time.sleep(0.05)
        os.kill(killed[0], signal.SIGKILL)
        printed, err = process.communicate(timeout=400)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert "2 of 2 runs are done" in printed and len(records.read_text().splitlines()) == 3
    (metrics,) = [path for path in out.glob("*/metrics.jsonl") if "fspmu" not in path.parent.name]
    assert [json.loads(line)["epoch"] for line in metrics.read_text().splitlines()] == list(range(1, EPOCHS + 1))
    log = (out / "logs" / f"{metrics.parent.name}.log").read_text()
    assert log.count("--- {") == 2, "begun twice: the second attempt goes on where the first was killed"
