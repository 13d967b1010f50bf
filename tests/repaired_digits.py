"""A network that memorised digits with wrong labels, and its repair, made once for all tests of a page."""

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

from fspmu.data.label_noise import NoiseOptions
from fspmu.experiments.experiment import Compute, Pretrain, Unlearn
from fspmu.experiments.pipeline import pretrain
from fspmu.experiments.repair_run import unlearn
from fspmu.pretraining import METHODS as PRETRAINING
from fspmu.unlearning import METHODS as UNLEARNING


@functools.cache
def trained():
    """Return the folder of a network trained for a few epochs on digits, a third of their labels wrong; nobody may change it."""
    place = Path(tempfile.mkdtemp(prefix="fspmu-test-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    settings = PRETRAINING["ce"].settings.__class__(epochs=3, lr_step=3)
    options = Pretrain(
        noise=NoiseOptions(noise_mode="sym", noise_rate=0.3), settings=settings, compute=Compute(device="cpu", precision="fp32", out=place / "run")
    )
    return pretrain(options).folder


def repair(out, **options):
    """Return the folder of a repair of it in two epochs, written into `out`, by a detector whose cut fits two groups."""
    options = {"detector": "gmm"} | options
    settings = UNLEARNING["fspmu"].settings.__class__(epochs=2, forget_epochs=1)
    return unlearn(Unlearn(run=trained(), settings=settings, compute=Compute(device="cpu", precision="fp32", out=out), **options)).folder


@functools.cache
def repaired():
    """Return the folder of a repair with everything that belongs to it; nobody may change it."""
    return repair(trained().parent / "repaired")


def copy_of(folder, place):
    """Return a copy of a folder that a test may change."""
    return Path(shutil.copytree(folder, place, ignore=shutil.ignore_patterns(".lock", "report.html")))
