"""AllCNN: convolutions alone, every one with batch norm; features of 2 * width."""

from torch import nn

from fspmu.models.classifier import Classifier, GlobalPool


def allcnn(num_classes: int, *, width: int = 96, channels: int = 3) -> Classifier:
    """Return the network: width, width, 2w/2, 2w, 2w, 2w/2, 2w, 2w (1x1), average pool, linear (/2: stride 2)."""
    plan = [(width, 3, 1), (width, 3, 1), (2 * width, 3, 2), (2 * width, 3, 1), (2 * width, 3, 1), (2 * width, 3, 2), (2 * width, 3, 1), (2 * width, 1, 1)]
    layers: list[nn.Module] = []
    inputs = channels
    for outputs, kernel, stride in plan:
        layers += [nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2), nn.BatchNorm2d(outputs), nn.ReLU()]
        inputs = outputs
    return Classifier(nn.Sequential(*layers, GlobalPool()), nn.Linear(inputs, num_classes))
