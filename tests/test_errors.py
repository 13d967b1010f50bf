"""Numbers and words in settings that are none."""

from dataclasses import replace

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
        (replace(METHODS["scrub"].settings, optimizer="adamw"), "unknown --optimizer 'adamw'; did you mean 'adam'"),
    ],
)
def test_rates_and_optimisers_that_are_none(settings, sentence):
    with pytest.raises(InputError, match=sentence):
        check_settings(settings)
