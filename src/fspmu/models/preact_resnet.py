"""PreActResNet18 in its CIFAR form (docs/method.md, "The network"): 11,171,274 parameters at width 64 and 10 classes."""

import torch.nn.functional as F
from torch import Tensor, nn

from fspmu.models.classifier import Classifier, GlobalPool


def _conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


class PreActBlock(nn.Module):
    """Two 3x3 convolutions after their activations. The skip carries the ACTIVATED input, as published, never the raw one."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), _conv3x3(inputs, outputs, stride)
        self.norm2, self.conv2 = nn.BatchNorm2d(outputs), _conv3x3(outputs, outputs)
        same_shape = stride == 1 and inputs == outputs
        self.skip = nn.Identity() if same_shape else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return conv(relu(bn(conv(a)))) + skip(a), where a = relu(bn(images))."""
        active = F.relu(self.norm1(images))
        inner: Tensor = self.conv2(F.relu(self.norm2(self.conv1(active))))
        skipped: Tensor = self.skip(active)
        return inner + skipped


def preactresnet18(num_classes: int, *, width: int = 64, channels: int = 3) -> Classifier:
    """Return the network with features of 8 * `width`: stem, four stages of two blocks, no final batch norm, average pool."""
    layers: list[nn.Module] = [_conv3x3(channels, width), nn.BatchNorm2d(width), nn.ReLU()]
    inputs = width
    for stage, stride in enumerate((1, 2, 2, 2)):
        outputs = width * 2**stage
        layers += [PreActBlock(inputs, outputs, stride), PreActBlock(outputs, outputs, 1)]
        inputs = outputs
    return Classifier(nn.Sequential(*layers, GlobalPool()), nn.Linear(inputs, num_classes))
