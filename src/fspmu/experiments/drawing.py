"""The picture of the features: a check before anything long starts, and the drawing."""

from pathlib import Path

from fspmu.data.images import Images
from fspmu.engine.run import Run
from fspmu.experiments.experiment import Tsne
from fspmu.report.figures import check_tsne, draw_tsne


def check_picture(picture: Tsne, images: Images) -> None:
    """Raise InputError when a picture is wanted that cannot be drawn."""
    if picture.tsne:
        check_tsne(len(images), images.num_classes, picture.tsne_points, picture.tsne_perplexity)


def draw(picture: Tsne, folder: Path, class_names: tuple[str, ...], seed: int, run: Run) -> None:
    """Draw the picture, where one is wanted, and say where it lies."""
    if picture.tsne:
        with run.timed("picture"):
            written = draw_tsne(folder, class_names, seed, perplexity=picture.tsne_perplexity, learning_rate=picture.tsne_lr, points=picture.tsne_points)
        run.notice(f"features drawn: {', '.join(map(str, written))}")
