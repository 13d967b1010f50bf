"""Numbers and words in settings that are none."""

from dataclasses import replace

import numpy as np
import pytest

from fspmu.detection import DETECTORS
from fspmu.errors import InputError, check_settings
from fspmu.experiments.experiment import Tsne
from fspmu.unlearning import METHODS


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (replace(DETECTORS["probe"].settings, probe_lr=-1.0), "--probe-lr is -1.0, but it must be above 0"),
        (Tsne(tsne_lr=-5.0), "--tsne-lr is -5.0, but it must be above 0"),
        (replace(DETECTORS["feature-margin"].settings, refinements=1.5), "--refinements is 1.5, but it must be a whole number"),
        (replace(DETECTORS["feature-margin"].settings, views="2"), "--views is '2', but it must be a number"),
        (replace(DETECTORS["probe"].settings, probe_lr=None), "--probe-lr is None, but it must be a number"),
        (replace(METHODS["scrub"].settings, milestones=(5, 7.5)), "--milestones is 7.5, but it must be a whole number"),
        (replace(METHODS["scrub"].settings, optimizer="adamw"), "unknown --optimizer 'adamw'; did you mean 'adam'"),
    ],
)
def test_numbers_and_words_that_are_none(settings, sentence):
    with pytest.raises(InputError, match=sentence):
        check_settings(settings)


def test_numbers_of_other_libraries_are_numbers():
    check_settings(replace(METHODS["fspmu"].settings, epochs=np.int64(3), lr=np.float32(0.1), milestones=[2, 3]))
