"""What `fspmu repair` can be asked for."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Suppress

from fspmu.detection import DEFAULT
from fspmu.detection.splitting import SplitSettings
from fspmu.experiments.experiment import Compute
from fspmu.stages.rounds import Rounds
from fspmu.stages.taking_in import Intake


@dataclass(frozen=True)
class RepairModel:
    """Repair a classifier of your own: find the wrong labels it learned from, make it forget them, hand it back."""

    model: str
    """timm:NAME, hf:NAME_OR_PATH, or my_package.my_module:build for code of your own, which is imported and called."""
    dataset: str
    """The images it was trained on: a folder per class, a CSV file (file_name,label), hf:NAME_OR_PATH, digits, cifar10 or cifar100."""
    weights: Path | None = None
    """File of its weights: safetensors, or what torch.save made of a state_dict. None: those that belong to the name."""
    weights_key: str | None = None
    """Which of several state dicts in --weights."""
    model_arguments: str = "{}"
    """What the model is built with, as a JSON object, such as '{"in_chans": 1}'."""
    class_map: Path | None = None
    """JSON or CSV file: which class of the model each class of the data is, where their names differ."""
    evaluation: str | None = None
    """Images with labels that you trust, read as --dataset is. None: the data's own test part, else a hold-out whose labels may be wrong."""
    forget: Path | None = None
    """What is known to be wrong already: a table of issues (ours or cleanlab's), a mask, indices or ids, as .csv, .npy, .json or .parquet."""
    corrections: Path | None = None
    """What a person decided of labels: the corrections.csv of a review. It beats the detector."""
    intake: Intake = field(default_factory=Intake)
    detector: str = DEFAULT
    """How to find wrong labels; see `fspmu methods`."""
    detector_settings: Any = None
    cut: str | None = None
    """How scores become probabilities; see `fspmu methods`. None: what suits the detector."""
    cut_settings: Any = None
    split: SplitSettings = field(default_factory=SplitSettings)
    method: str = "fspmu"
    """How to unlearn; see `fspmu methods`."""
    preset: str | None = None
    """A named set of the method's settings. None: tuned-soft, or tuned where the forget set is given. Explicit flags win. A learning rate of your own
    is kept, another lowered where that suits the model."""
    settings: Any = None
    fit: Annotated[bool, Suppress] = True
    """Whether the learning rate may be lowered to fit the model; what --lr says is not touched."""
    rounds: Rounds = field(default_factory=Rounds)
    keep: str = "better"
    """better: a repair that does not pay hands back the model as it was. always: the repaired model, come what may."""
    data_dir: Path | None = None
    """Folder that holds cifar10/ and cifar100/. None: the environment variable FSPMU_DATA_DIR."""
    compute: Compute = field(default_factory=Compute)
