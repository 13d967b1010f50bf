"""What `fspmu apply` can be asked for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional


@dataclass(frozen=True)
class Apply:
    """Write corrected labels, or a corrected copy of a data set; the originals are never changed."""

    issues: Annotated[Positional[Path], "ISSUES"]
    """A table of decisions (id, given_label, new_label, decision), or the label_issues.csv of a run."""
    dataset: str
    """digits, cifar10, cifar100, hf:NAME_OR_PATH, or a folder of images."""
    out: Path
    """Folder to write. The same command goes on where it was stopped."""
    mode: str = "csv"
    """csv: tables of labels. copy, hardlink, symlink: a folder per class. parquet: a data set of the Hub's layout, from an hf: one."""
    min_confidence: float = 0.9
    """Of a label_issues.csv only suggestions at least as sure are applied, a fraction; a person's decisions all are."""
    class_map: Path | None = None
    """Which class of the data is which of the model, as `fspmu repair` was told: the table then speaks of the model's classes."""
    include_test: bool = False
    """Correct the test part too, which is otherwise carried along as it is: what measures should not be changed by what it measures."""
    dry_run: bool = False
    """Print what would be done; write nothing. copy, hardlink and symlink do so unless --yes is given."""
    yes: bool = False
    """Carry out copy, hardlink or symlink."""
    data_dir: Path | None = None
    """Folder that holds cifar10/ and cifar100/. None: the environment variable FSPMU_DATA_DIR."""
    image_column: str | None = None
    """Image column of an hf: data set; found when not given."""
    label_column: str | None = None
    """Label column of an hf: data set; found when not given."""
    json: bool = False
    """Print one JSON object on standard output and nothing else there."""
