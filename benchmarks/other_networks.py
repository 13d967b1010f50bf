"""How large may the first step of a repair be? FSPMU on networks that it was not published for, at several learning rates.

    python benchmarks/other_networks.py > benchmarks/records/other-networks.jsonl

The digits with 40% symmetric noise slots, networks trained by AdamW until they have learned most of it, repaired with the wrong labels known. One JSON line a
network and rate: the share of the length of all weights that the first recovery step moves them by, and the accuracy on 359 clean test digits.
"""

import argparse
import json
import sys
import time
import warnings
from dataclasses import replace

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fspmu.data.augment import normalise
from fspmu.data.images import Images
from fspmu.data.label_noise import NoiseOptions, inject
from fspmu.data.sources import DataOptions, load_source
from fspmu.engine.inference import accuracy
from fspmu.engine.run import Run
from fspmu.models.adopt import adopt
from fspmu.models.classifier import Classifier
from fspmu.stages.finding import find_label_issues
from fspmu.stages.mending import unlearn
from fspmu.unlearning.feature_preserving import Settings, first_move

FACTORS = (0.1, 1.0, 4.0, 10.0, 40.0)


def transformer() -> nn.Module:
    """Return a small vision transformer: layer norm."""
    return timm.models.vision_transformer.VisionTransformer(img_size=8, patch_size=2, embed_dim=96, depth=4, num_heads=4, num_classes=10)


def batch_norm() -> nn.Module:
    """Return a small convolutional network with batch norm."""
    return nn.Sequential(*_block(3, 32), *_block(32, 64), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(1024, 128), nn.ReLU(), nn.Linear(128, 10))


def without_norm() -> nn.Module:
    """Return the same without any normaliser."""
    layers = [layer for layer in batch_norm() if not isinstance(layer, nn.BatchNorm2d)]
    return nn.Sequential(*layers)


def _block(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]


NETWORKS = {"vision transformer": transformer, "batch norm": batch_norm, "no normaliser": without_norm}


def main() -> None:
    """Print a line for each network and rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    source = load_source("digits", DataOptions())
    noisy = inject(source, NoiseOptions(noise_mode="sym", noise_rate=0.4), Run(seed=options.seed).generator("noise"), options.seed)
    plain = replace(source.train.preprocessing, augment="none")
    images, test = noisy.train.prepared_as(plain), source.test.prepared_as(plain)
    for name, build in NETWORKS.items():
        torch.manual_seed(options.seed)
        network = adopt(build(), torch.randn(2, 3, 8, 8), 10, class_names=images.class_names)
        agreement = learn(network, images, options.seed)
        run = Run(seed=options.seed)
        before = accuracy(network, test, run)
        split = find_label_issues(network, images, detector="known", truth=noisy.true_labels, run=run).split
        for factor in FACTORS:
            settings = replace(Settings(), lr=Settings().lr * factor)
            repair = Run(seed=options.seed, evaluation=test)
            started = time.perf_counter()
            unlearn(network, images, split, settings=settings, run=repair)
            after = repair.accuracies("unlearning")
            line = {"network": name, "lr": settings.lr, "delta": settings.delta, "first_move": first_move(settings, network, images, split, run)}
            line |= {"agreement": agreement, "before": before, "after_5_epochs": after[4], "after": after[-1], "seed": options.seed}
            print(json.dumps(line | {"seconds": round(time.perf_counter() - started, 1), "threads": torch.get_num_threads()}, sort_keys=True), flush=True)


def learn(network: Classifier, images: Images, seed: int, epochs: int = 80) -> float:
    """Train until 98% of the given labels are learned, or for 80 epochs; return that share."""
    pixels, labels = normalise(images.pixels, images.preprocessing), images.given_labels
    optimizer, draws = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0.05), torch.Generator().manual_seed(seed)
    agreement, epoch = 0.0, 0
    while agreement <= 0.98 and epoch < epochs:
        epoch += 1
        network.train()
        for rows in torch.randperm(len(labels), generator=draws).split(128):
            optimizer.zero_grad()
            F.cross_entropy(network(pixels[rows]).logits, labels[rows]).backward()
            optimizer.step()
        agreement = _agreement(network.eval(), pixels, labels)
    print(f"{epoch} epochs: agrees with {agreement:.1%} of the given labels", file=sys.stderr, flush=True)
    return agreement


@torch.no_grad()
def _agreement(network: Classifier, pixels: Tensor, labels: Tensor) -> float:
    return float((network(pixels).logits.argmax(1) == labels).float().mean())


if __name__ == "__main__":
    main()
