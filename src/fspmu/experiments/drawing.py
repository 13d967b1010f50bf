"""What the picture of the features needs: the predictions on disk, and a check before anything long starts."""

from pathlib import Path

from torch import Tensor

from fspmu.centroids import class_centroids
from fspmu.data.images import Images
from fspmu.engine.checkpoint import save_tensors
from fspmu.engine.inference import Predictions
from fspmu.engine.run import Run
from fspmu.experiments.experiment import Tsne
from fspmu.report.figures import check_tsne, draw_tsne


def check_picture(picture: Tsne, images: Images) -> None:
    """Raise InputError when a picture is wanted that cannot be drawn."""
    if picture.tsne:
        check_tsne(len(images), images.num_classes, picture.tsne_points, picture.tsne_perplexity)


def write_predictions(folder: Path, before: Predictions, after: Predictions | None, retain: Tensor) -> None:
    """Write `predictions.safetensors`: logits (N, K) float32 and features (N, D) float16 before and after, class centroids (K, D) of the retain set."""
    tensors = {"centroids": class_centroids(before.features[retain], before.logits[retain].softmax(1))}
    for name, seen in (("before", before), ("after", after)):
        if seen is not None:
            tensors |= {f"logits_{name}": seen.logits, f"features_{name}": seen.features.half()}
    save_tensors(folder / "predictions.safetensors", tensors)


def draw(picture: Tsne, folder: Path, class_names: tuple[str, ...], seed: int, run: Run) -> None:
    """Draw the picture, where one is wanted, and say where it lies."""
    if picture.tsne:
        with run.timed("picture"):
            written = draw_tsne(folder, class_names, seed, perplexity=picture.tsne_perplexity, learning_rate=picture.tsne_lr, points=picture.tsne_points)
        run.notice(f"features drawn: {', '.join(map(str, written))}")
