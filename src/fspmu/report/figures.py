"""The features of a run in the plane, by t-SNE: coloured by class, forgotten samples starred, centroids crossed, before beside after.

Read from `predictions.safetensors`, `labels.safetensors` and `split.safetensors`; written as PNG and SVG. Before and after share one layout:
with openTSNE the features after are placed into the map of those before, without it both are embedded together.
"""

import textwrap
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from fspmu.errors import InputError
from fspmu.results.store import replacing

MOST_CLASSES = 20
MOST_POINTS = 5000
"""Points that scikit-learn embeds in reasonable time, those of both panels and the centroids together."""

_COLOURS = ("#3f90da", "#ffa90e", "#bd1f01", "#2f3437", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#8a8f99", "#92dadd")
"""Ten colours told apart by most people with a colour vision deficiency (after Petroff, 2021, with one of its two greys darkened)."""


def check_tsne(samples: int, classes: int, points: int, perplexity: float) -> None:
    """Raise InputError when the picture cannot be drawn; asked before any training starts."""
    if classes > MOST_CLASSES:
        raise InputError(f"the t-SNE picture shows at most {MOST_CLASSES} classes in colours one can tell apart, this data set has {classes}; leave --tsne out")
    if points < 10 or 2 * points + classes > MOST_POINTS:
        raise InputError(f"--tsne-points is {points}; give 10 to {(MOST_POINTS - classes) // 2}, so that both panels can be embedded together")
    if not 1 <= perplexity < min(samples, points):
        raise InputError(f"--tsne-perplexity is {perplexity:g}; with {min(samples, points)} points it must be at least 1 and below that number")


def draw_tsne(folder: Path, class_names: tuple[str, ...], seed: int, *, perplexity: float, learning_rate: float, points: int) -> list[Path]:
    """Write `tsne.png` and `tsne.svg` into `folder`; return their paths."""
    predictions, labels = load_file(folder / "predictions.safetensors"), load_file(folder / "labels.safetensors")
    split = load_file(folder / "split.safetensors") if (folder / "split.safetensors").exists() else {}
    shown = labels.get("true", labels["given"])
    generator = np.random.default_rng(seed)
    rows = predictions.get("feature_rows", np.arange(len(shown)))  # of a large set only some features are kept
    picked = np.sort(generator.permutation(len(rows))[:points])
    chosen = rows[picked]
    panels = {name: _unit(predictions[f"features_{name}"][picked]) for name in ("before", "after") if f"features_{name}" in predictions}
    places, centroids = _embed(panels, _unit(predictions["centroids"]), perplexity, learning_rate, seed)
    forgotten = split["forget"][chosen] if split else np.zeros(len(chosen), dtype=bool)
    kind = "true class" if "true" in labels else "given label"
    written = [folder / "tsne.png", folder / "tsne.svg"]
    _draw(places, centroids, shown[chosen], forgotten, class_names, f"{len(chosen):,} of {len(shown):,} training images, coloured by {kind}", written)
    return written


def _unit(rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows.astype(np.float32), axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(lengths, 1e-12), dtype=np.float32)


def _embed(panels: dict[str, np.ndarray], centroids: np.ndarray, perplexity: float, lr: float, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the places (M, 2) of each panel's points, and of the centroids (K, 2), in one layout."""
    first = panels["before"]
    if find_spec("openTSNE") is not None:
        from openTSNE import TSNE

        embedding = TSNE(perplexity=perplexity, learning_rate=lr, random_state=seed % 2**32, n_jobs=-1).fit(np.concatenate([first, centroids]))
        places = {"before": np.asarray(embedding[: len(first)])}
        if "after" in panels:
            places["after"] = np.asarray(embedding.transform(panels["after"]))
        return places, np.asarray(embedding[len(first) :])
    from sklearn.manifold import TSNE as SklearnTSNE

    together = np.concatenate([*panels.values(), centroids])
    flat = SklearnTSNE(perplexity=perplexity, learning_rate=lr, random_state=seed % 2**32, init="pca").fit_transform(together)
    bounds = np.cumsum([len(rows) for rows in panels.values()])
    parts = np.split(flat, bounds)
    return dict(zip(panels, parts, strict=False)), parts[-1]


def _draw(
    places: dict[str, np.ndarray], centroids: np.ndarray, labels: np.ndarray, forgotten: np.ndarray, class_names: tuple[str, ...], title: str, files: list[Path]
) -> None:
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "fspmu", "font.size": 11}):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.2 * len(places) + 2.2, 7.4), layout="constrained")
        FigureCanvasAgg(figure)
        many = [matplotlib.colors.to_hex(matplotlib.colormaps["tab20"](k)) for k in range(MOST_CLASSES)]
        colours = np.array(_COLOURS if len(class_names) <= len(_COLOURS) else many)
        axes = np.atleast_1d(figure.subplots(1, len(places), sharex=True, sharey=True))
        for axis, (name, points) in zip(axes, places.items(), strict=True):
            axis.scatter(*points[~forgotten].T, s=9, c=colours[labels[~forgotten]], linewidths=0, alpha=0.75)
            axis.scatter(*points[forgotten].T, s=46, c=colours[labels[forgotten]], marker="*", linewidths=0.4, edgecolors="black")
            axis.scatter(*centroids.T, s=120, c="white", marker="X", linewidths=1.4, edgecolors="black", zorder=3)
            axis.scatter(*centroids.T, s=52, c=colours[: len(centroids)], marker="X", linewidths=0, zorder=4)
            axis.set(title={"before": "before unlearning", "after": "after unlearning"}[name] if len(places) > 1 else "", xticks=[], yticks=[])
        figure.suptitle(title)
        figure.legend(handles=_legend(colours, class_names, bool(forgotten.any())), loc="outside right center", frameon=False)
        for path in files:
            with replacing(path) as temporary, warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Glyph")  # a script that the font lacks is drawn as boxes
                metadata: dict[str, Any] = {"Date": None} if path.suffix == ".svg" else {}
                figure.savefig(temporary, dpi=130, format=path.suffix[1:], metadata=metadata)


def _legend(colours: np.ndarray, class_names: tuple[str, ...], stars: bool) -> list[Any]:
    from matplotlib.lines import Line2D

    def mark(marker: str, colour: str, label: str, size: int) -> Line2D:
        return Line2D([], [], linestyle="", marker=marker, color=colour, markeredgecolor="black" if marker != "o" else colour, label=label, markersize=size)

    handles = [mark("o", colours[k], textwrap.shorten(name, 30, placeholder="…").replace("$", r"\$") or name[:30], 7) for k, name in enumerate(class_names)]
    handles += [mark("*", "white", "to be forgotten", 11)] if stars else []
    return [*handles, mark("X", "white", "class centroid", 11)]
