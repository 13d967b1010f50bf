"""What the commands can be asked for: frozen dataclasses, whose fields are the flags."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional

from fspmu.data.label_noise import NoiseOptions
from fspmu.data.sources import DataOptions
from fspmu.detection.cuts import SplitSettings


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
    track: str | None = None
    """Send the figures of every epoch to tensorboard, wandb, mlflow or trackio too."""
    seed: int | None = None
    """Seed of weights, order, views and noise. None: that of the run worked on, else 0."""
    out: Path | None = None
    """Folder to write. None: a name made from the options, below runs/ or inside the run worked on."""
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
    """preactresnet18, allcnn, smallcnn. None: smallcnn for images below 16 pixels, else preactresnet18."""
    width: int | None = None
    """Channels of the first layer; the others grow with it. None: 64, 96, 32 for the three models."""
    augment: str | None = None
    """none, crop, crop-flip: the random view of training. None: what suits the data set."""
    data: DataOptions = field(default_factory=DataOptions)
    noise: NoiseOptions = field(default_factory=NoiseOptions)
    settings: Any = None
    picture: Tsne = field(default_factory=Tsne)
    compute: Compute = field(default_factory=Compute)


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

    detector: str = "gmm"
    """How to find them; see `fspmu methods`."""
    detector_settings: Any = None
    cut: SplitSettings = field(default_factory=SplitSettings)


@dataclass(frozen=True)
class Unlearn(Detect):
    """Make the model of a run forget the labels that look wrong, and recover on the rest."""

    method: str = "fspmu"
    """How to unlearn; see `fspmu methods`."""
    preset: str | None = None
    """A named set of the method's settings. None: what suits how the model was trained. Explicit flags win."""
    settings: Any = None
    picture: Tsne = field(default_factory=Tsne)


@dataclass(frozen=True)
class Evaluate(OnRun):
    """Measure the model of a run on its evaluation images and on its training images."""


@dataclass(frozen=True)
class Predict(OnRun):
    """Predict the class of every image below a folder with the model of a run."""

    images: Path = field(default=Path("."), kw_only=True)
    """Folder of images, or one image."""
    skip_unreadable: bool = False
    """Leave unreadable images out, and list them."""


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
