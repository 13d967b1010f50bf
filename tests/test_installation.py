"""What `make test` installs fits together."""

import warnings

import pytest
import torch


def test_torch_torchvision_and_timm_load_together():
    timm, torchvision = pytest.importorskip("timm"), pytest.importorskip("torchvision")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other people's deprecations
        model = timm.create_model("resnet18", num_classes=3)
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    assert torchvision.ops.nms(torch.tensor([[0.0, 0, 1, 1]]), torch.ones(1), 0.5).tolist() == [0], "its compiled part fits this torch"
