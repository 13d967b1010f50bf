"""A small network for small images, with a hidden layer that sees where things are: it memorises the digits in seconds on two cores."""

from torch import nn

from fspmu.models.classifier import Classifier


def smallcnn(num_classes: int, *, width: int = 32, channels: int = 3) -> Classifier:
    """Return two 3x3 convolutions of width and 2w, a pool to 4x4 places, a hidden layer of 4w features, linear; batch norm after each."""
    backbone = nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(32 * width, 4 * width, bias=False),
        nn.BatchNorm1d(4 * width),
        nn.ReLU(),
    )
    return Classifier(backbone, nn.Linear(4 * width, num_classes))
