"""What the commands can be asked for: frozen dataclasses, whose fields are the flags."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional

from fspmu.data.label_noise import NoiseOptions
from fspmu.data.sources import DataOptions
from fspmu.detection import DEFAULT
from fspmu.detection.splitting import SplitSettings
from fspmu.pretraining.trained import Situation
from fspmu.stages.rounds import Rounds


@dataclass(frozen=True)
class Compute:
    """Where, how exactly, and where to."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps. auto: a GPU if there is one."""
    precision: str = "auto"
    """auto, fp32, bf16. auto: bf16 where the device computes it natively, else fp32. Losses and statistics are always fp32."""
    compile: bool = False
    """Compile networks by torch.compile, with CUDA graphs on a GPU: minutes at first, faster steps then. Where it fails the run goes on without."""
    sync_bn: bool = False
    """With several processes on GPUs: batch norm over the rows of all of them. Without it each normalises by its own rows."""
    test_every: int = 1
    """Epochs from one look at the evaluation images to the next; the last epoch is always looked at, and best is the best of those."""
    track: str | None = None
    """Send the figures of every epoch to tensorboard, wandb, mlflow or trackio too."""
    seed: int | None = None
    """Seed of weights, order, views and noise. None: that of the run worked on, else 0."""
    out: Path | None = None
    """Folder to write. None: below runs/, or inside the run worked on, named by method, detector and cut; evaluate and predict write nothing then."""
    json: bool = False
    """Print one JSON object on standard output and nothing else there."""
    resume: bool = False
    """Go on with an unfinished folder of the same options; a finished one is left as it is."""


@dataclass(frozen=True)
class Tsne:
    """The picture of the features."""

    tsne: bool = False
    """Draw the features by t-SNE, as PNG and SVG, for up to 20 classes."""
    tsne_perplexity: float = 30.0
    """Perplexity of t-SNE."""
    tsne_lr: float = 350.0
    """Learning rate of t-SNE."""
    tsne_points: int = 2000
    """Samples drawn, at most; a seeded choice of them when there are more."""


@dataclass(frozen=True)
class Inspect:
    """Print what is understood of a data set, before any compute."""

    dataset: Positional[str]
    """digits, cifar10, cifar100, hf:NAME_OR_PATH, or a folder of images."""
    data: DataOptions = field(default_factory=DataOptions)
    noise: NoiseOptions = field(default_factory=NoiseOptions)
    seed: int = 0
    """Seed of the noise."""
    json: bool = False
    """Print one JSON object on standard output and nothing else there."""


@dataclass(frozen=True)
class Pretrain:
    """Train a network on labels that may be wrong."""

    dataset: str = "digits"
    """digits, cifar10, cifar100, hf:NAME_OR_PATH, or a folder of images."""
    method: str = "ce"
    """How to train; see `fspmu methods`."""
    model: str | None = None
    """preactresnet18, resnet18, allcnn, smallcnn. None: smallcnn for images below 16 pixels, else preactresnet18."""
    width: int | None = None
    """Channels of the first layer; the others grow with it. None: that of the published network."""
    augment: str | None = None
    """none, crop, crop-flip: the random view of training. None: what suits the data set."""
    data: DataOptions = field(default_factory=DataOptions)
    noise: NoiseOptions = field(default_factory=NoiseOptions)
    assumed_rate: float = 0.4
    """Share of wrong labels for which methods choose settings that depend on it, where no sym or asym noise was injected."""
    weights: Path | None = None
    """Take the trained network from this file, safetensors or as the public repositories of --method write it, instead of training one."""
    weights_key: str | None = None
    """Which of several networks in --weights, such as state_dict2."""
    settings: Any = None
    picture: Tsne = field(default_factory=Tsne)
    compute: Compute = field(default_factory=Compute)

    @property
    def assumes_noise(self) -> bool:
        """Whether methods choose settings for an assumed noise, not for what was injected."""
        return self.noise.noise_mode not in ("sym", "asym")

    def situation(self, num_classes: int) -> Situation:
        """Return what methods are told of the labels."""
        mode, rate = ("sym", self.assumed_rate) if self.assumes_noise else (self.noise.noise_mode, self.noise.noise_rate)
        return Situation(num_classes, mode, rate)


@dataclass(frozen=True)
class OnRun:
    """A command that works on the folder of an earlier run."""

    run: Annotated[Positional[Path], "RUN"]
    """Folder of a finished `fspmu pretrain` or `fspmu unlearn`."""
    dataset: str | None = None
    """Where the images lie now, when they have moved since."""
    data_dir: Path | None = None
    """Folder that holds cifar10/ and cifar100/. None: the environment variable FSPMU_DATA_DIR."""
    compute: Compute = field(default_factory=Compute)


@dataclass(frozen=True)
class Detect(OnRun):
    """Find the samples whose label looks wrong to the model of a run."""

    detector: str = DEFAULT
    """How to find them; see `fspmu methods`."""
    detector_settings: Any = None
    cut: str | None = None
    """How scores become probabilities; see `fspmu methods`. None: what suits the detector."""
    cut_settings: Any = None
    split: SplitSettings = field(default_factory=SplitSettings)


@dataclass(frozen=True)
class Unlearn(Detect):
    """Make the model of a run forget the labels that look wrong, and recover on the rest."""

    method: str = "fspmu"
    """How to unlearn; see `fspmu methods`."""
    preset: str | None = None
    """A named set of the method's settings. None: what suits how the model was trained. Explicit flags win."""
    settings: Any = None
    rounds: Rounds = field(default_factory=Rounds)
    corrections: Path | None = None
    """What a person decided of labels: the corrections.csv of a review. It beats the detector."""
    picture: Tsne = field(default_factory=Tsne)
    page: bool = True
    """--no-page: write neither the report nor the material for writing it again, as grids do."""


@dataclass(frozen=True)
class Evaluate(OnRun):
    """Measure the model of a run on its evaluation images and on its training images."""


@dataclass(frozen=True)
class Predict(OnRun):
    """Predict the class of every image below a folder with the model of a run."""

    run: Annotated[Positional[Path], "RUN"]
    """Folder of a finished `fspmu pretrain`, `fspmu unlearn` or `fspmu repair`."""
    images: Path = field(default=Path("."), kw_only=True)
    """Folder of images, or one image."""
    skip_unreadable: bool = False
    """Leave unreadable images out, and list them."""
    model: str | None = None
    """package.module:build, once more, of a model that your own code builds: nothing is imported that was not asked for."""


@dataclass(frozen=True)
class Methods:
    """List every dataset, model, method and detector, with what an absent extra would add."""

    json: bool = False
    """Print one JSON object on standard output and nothing else there."""


@dataclass(frozen=True)
class Demo:
    """Digits, 40% wrong labels, a network that memorises them, two repairs: the whole method in a minute."""

    epochs: int = 50
    """Epochs of training."""
    noise_rate: float = 0.4
    """Share of noise slots, a fraction."""
    compute: Compute = field(default_factory=lambda: Compute(precision="fp32"))


@dataclass(frozen=True)
class RunGrid:
    """Make the runs of a table: pretrainings, and the repairs and surveys that stand on them. The same command goes on where it was stopped."""

    name: Positional[str]
    """table-known, table-gmm, twins of both with -small; learning-small, baselines-small; detectors-small, -10k, -wide, -memorised; recipes-, routes-small."""
    where: str = "local"
    """local: one run after the other on this machine. ray: as tasks of a Ray cluster (RAY_ADDRESS), or of a Ray started here."""
    seeds: int | None = None
    """So many seeds from 0 on (recipes-small: from 7); some runs have fewer. None: 3 for table-known, table-gmm, detectors-small and detectors-10k, else 1."""
    records: Path | None = None
    """File of records as `fspmu table --save` writes it, there or not: what it holds is done, wherever it was made, and every run that ends is added to it."""
    dry_run: bool = False
    """Print what would run, what is done, and what that costs about; write nothing."""
    out: Path = Path("runs/grid")
    """Folder for the run folders; with Ray on several machines one that all of them see."""
    data_dir: Path | None = None
    """Folder that holds cifar10/ and cifar100/. None: the environment variable FSPMU_DATA_DIR."""
    only: str | None = None
    """Words, all of which a run's title has, such as 'cifar10 asym 40'; what it stands on comes with it."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps. auto: a GPU if there is one."""
    precision: str = "auto"
    """auto, fp32, bf16; one for all runs below a folder, since no table averages both. auto: bf16 where the device computes it natively, else fp32."""
    compile: bool = False
    """Compile networks by torch.compile, with CUDA graphs on a GPU: minutes at first for each run, faster steps then."""
    test_every: int = 1
    """Epochs from one look at the evaluation images to the next; the last epoch is always looked at, and best is the best of those."""
    gpu_share: float = 0.25
    """Share of a GPU that Ray gives each run."""
    retries: int = 2
    """How often a run that crashed is started again; it goes on from its last whole epoch."""
    json: bool = False
    """Print one JSON object on standard output and nothing else there."""


@dataclass(frozen=True)
class ShowTable:
    """Print a table from the records of its runs: mean and spread over seeds, and the published figures below ours."""

    name: Positional[str]
    """table-known, table-gmm, twins of both with -small; learning-small, baselines-small; detectors-small, -10k, -wide, -memorised; recipes-, routes-small."""
    out: Path = Path("runs/grid")
    """Folder of the run folders that `fspmu grid` wrote."""
    records: tuple[Path, ...] = ()
    """Files that --save wrote, read instead of the run folders."""
    seeds: int | None = None
    """The first so many seeds alone. None: all that there are."""
    format: str = "markdown"
    """markdown, csv (a line for each cell, in percent) or latex."""
    best: bool = False
    """Show the best epochs too, below the last ones; they are picked on test data."""
    save: Path | None = None
    """File to write the records of the table to, small enough to be committed."""
