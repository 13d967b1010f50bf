"""What `fspmu survey` can be asked for."""

from dataclasses import dataclass, field

from fspmu.detection.splitting import SplitSettings
from fspmu.experiments.experiment import OnRun
from fspmu.stages.surveying import SurveySettings


@dataclass(frozen=True)
class Survey(OnRun):
    """Judge the labels of a run by every detector and every cut, with one look at its images for all of them."""

    survey: SurveySettings = field(default_factory=SurveySettings)
    split: SplitSettings = field(default_factory=SplitSettings)
