"""Networks by name. Each builder takes (num_classes, width=..., channels=3) and returns a Classifier."""

from collections.abc import Callable

from fspmu.models.allcnn import allcnn
from fspmu.models.classifier import Classifier
from fspmu.models.preact_resnet import preactresnet18
from fspmu.models.resnet import resnet18
from fspmu.models.smallcnn import smallcnn

MODELS: dict[str, Callable[..., Classifier]] = {
    "preactresnet18": preactresnet18,
    "resnet18": resnet18,
    "allcnn": allcnn,
    "smallcnn": smallcnn,
}

WIDTHS = {"preactresnet18": 64, "resnet18": 64, "allcnn": 96, "smallcnn": 32}
"""The published width of the first layer; the others grow with it."""
