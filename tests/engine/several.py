"""The same work in one process or in several: `python several.py OUT` under torchrun writes what each process found."""

import atexit
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from fspmu.data.images import Images
from fspmu.data.split import Split
from fspmu.engine.checkpoint import save_tensors
from fspmu.engine.inference import accuracy, find_centroids, predict
from fspmu.engine.run import Run
from fspmu.errors import launched
from fspmu.models import preactresnet18
from fspmu.models.classifier import Classifier
from fspmu.preprocessing import Preprocessing
from fspmu.pretraining import METHODS as PRETRAINING
from fspmu.pretraining.cross_entropy import Settings
from fspmu.stages.finding import find_label_issues
from fspmu.unlearning import feature_preserving, neggrad_plus

COUNT = 259
"""Batches of 64 end with one of 3 rows, which two processes cannot share."""


def without_norms(generator: torch.Generator) -> Classifier:
    """Return a network whose steps do not depend on which rows meet in a process."""
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 16), nn.Tanh())
    model = Classifier(backbone, nn.Linear(16, 4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def make_images(generator: torch.Generator) -> Images:
    """Return images whose class shows, 30% of them with another label."""
    truth = torch.randint(0, 4, (COUNT,), generator=generator)
    pixels = torch.randint(0, 120, (COUNT, 3, 8, 8), generator=generator, dtype=torch.uint8)
    pixels[torch.arange(COUNT), :, 2 * truth] = 250
    given = torch.where(torch.rand(COUNT, generator=generator) < 0.3, torch.randint(0, 4, (COUNT,), generator=generator), truth)
    return Images(pixels, given, tuple("abcd"), [str(i) for i in range(COUNT)], preprocessing=Preprocessing((0.5,) * 3, (0.5,) * 3, "crop-flip", 1))


def work(run: Run) -> dict[str, torch.Tensor]:
    """Train, look, forget; return what came out."""
    generator = torch.Generator().manual_seed(0)
    images = make_images(generator)
    run.evaluation = images
    found: dict[str, torch.Tensor] = {}
    with run.timed("pretraining"):
        trained = PRETRAINING["ce"].pretrain(images, without_norms, Settings(epochs=3, batch_size=64, lr=0.05), run)
    model = trained.models[0]
    found |= {f"trained {name}": value for name, value in model.state_dict().items()}
    found["history"] = trained.history.margins.float()
    found["losses"] = torch.tensor([[line["loss"], line["train_accuracy"], line["test_accuracy"]] for line in run.lines])

    normed = preactresnet18(4, width=8)
    with torch.no_grad():
        for parameter in normed.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    detection = find_label_issues(normed, images, run=run)
    found["scores"], found["clean"] = detection.score, detection.split.clean_probability
    found["forget"], found["retain"] = detection.split.forget, detection.split.retain
    found["features"], found["logits"] = detection.predictions.features, detection.predictions.logits
    inside = find_label_issues(normed, images, detector="combined", cut="otsu", history=trained.history.margins, run=run)
    assert inside.looked is not None and inside.report["depth"]["fitted"] == COUNT
    found["combined scores"], found["combined clean"] = inside.score, inside.split.clean_probability
    found |= {f"combined {name}": value.float() for name, value in inside.looked.fields.items()}
    chosen = torch.rand(COUNT, generator=generator) < 0.4
    found["centroids"] = find_centroids(normed, images, run, chosen=chosen)
    found["reference centroids"] = find_centroids(normed, images, run, chosen=chosen, reference=True)
    found["reference logits"] = predict(normed, images, run, reference=True).logits
    found["accuracy"] = torch.tensor(accuracy(normed, images, run))

    split = Split(chosen, ~chosen, chosen.float())
    sure = torch.rand(COUNT, generator=generator)
    graded = Split(sure > 0.5, sure <= 0.5, sure)
    few = Split(torch.ones(COUNT, dtype=torch.bool), torch.arange(COUNT) < 3, torch.ones(COUNT))
    ours = feature_preserving.Settings(epochs=2, forget_epochs=1, forget_batch=50, retain_batch=64)
    beyond = replace(ours, epochs=3, weighting="clean-probability", schedule="cosine", unlabelled=0.5, tau_conf=0.1, stop="chance")
    repairs = {
        "fspmu": feature_preserving.unlearn(model, images, split, ours, run),
        "beyond": feature_preserving.unlearn(model, images, graded, beyond, run),
        "few": feature_preserving.unlearn(model, images, few, ours, run),
        "neggrad_plus": neggrad_plus.unlearn(model, images, few, neggrad_plus.Settings(epochs=1, batch_size=60, beta=0.9), run),
    }
    for method, repaired in repairs.items():
        found |= {f"{method} {name}": value for name, value in repaired.state_dict().items()}
    found["passes"] = torch.tensor([count for stage in sorted(run.passes) for count in run.passes[stage].values()])

    norm, rank, count = nn.BatchNorm1d(2), run.processes.rank, run.processes.count
    norm.running_mean += rank
    run.processes.average_statistics(norm, rows=1 + 2 * rank)
    weighed = sum(number * (1 + 2 * number) for number in range(count)) / sum(1 + 2 * number for number in range(count))
    found["statistics"] = norm.running_mean - weighed
    loss = F.cross_entropy(torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64))
    assert run.processes.from_main(lambda: (run.processes.rank, float(loss))) == (0, float(loss))
    return found


def fail_in_main(run: Run) -> str:
    """Return what this process hears of an error in the main one."""

    def bad() -> None:
        raise ValueError("the folder is full")

    try:
        run.processes.from_main(bad)
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def say_whether_left(out: Path) -> None:
    """Write whether this process took leave of the others."""
    (out / f"{launched()[0]}.left").write_text(str(not torch.distributed.is_initialized()))


if __name__ == "__main__":
    out = Path(sys.argv[1])
    atexit.register(say_whether_left, out)  # the first to register is called last
    run = Run.create(device="cpu", precision="fp32")
    save_tensors(out / f"{run.processes.rank}.safetensors", work(run))
    (out / f"{run.processes.rank}.txt").write_text(fail_in_main(run))
    run.processes.wait()
