"""What tests of several folders share."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# A slow machine is no counter-example.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Return the folder that holds cifar10/ and cifar100/; skip without one."""
    place = os.environ.get("FSPMU_DATA_DIR")
    if not place:
        pytest.skip("FSPMU_DATA_DIR is not set")
    return Path(place)
