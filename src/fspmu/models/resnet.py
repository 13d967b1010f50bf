"""ResNet18 in its CIFAR form, with activations after the convolutions: 11,173,962 parameters at width 64 and 10 classes.

Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016; the network that ProMix trains (docs/nll_methods.md, "ProMix").
"""

import torch.nn.functional as F
from torch import Tensor, nn

from fspmu.models.classifier import Classifier, GlobalPool


class Convolution(nn.Conv2d):
    """A convolution without bias whose weights are drawn from N(0, 2 / fan-out), as He et al. propose, whenever it is reset."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, batch norm after each; the skip carries the raw input, through a 1x1 convolution and batch norm where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = Convolution(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = Convolution(outputs, outputs, 3), nn.BatchNorm2d(outputs)
        same_shape = stride == 1 and inputs == outputs
        self.skip = nn.Identity() if same_shape else nn.Sequential(Convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, images: Tensor) -> Tensor:
        """Return relu(bn(conv(relu(bn(conv(images))))) + skip(images))."""
        inner: Tensor = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(images)))))
        skipped: Tensor = self.skip(images)
        return F.relu(inner + skipped)


def resnet18(num_classes: int, *, width: int = 64, channels: int = 3) -> Classifier:
    """Return the network with features of 8 * `width`: 3x3 stem, four stages of two blocks, average pool, linear."""
    layers: list[nn.Module] = [Convolution(channels, width, 3), nn.BatchNorm2d(width), nn.ReLU()]
    inputs = width
    for stage, stride in enumerate((1, 2, 2, 2)):
        outputs = width * 2**stage
        layers += [BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1)]
        inputs = outputs
    return Classifier(nn.Sequential(*layers, GlobalPool()), nn.Linear(inputs, num_classes))
