"""The doors of the two published commands: their flags as published, and how they end. The work is in `published`.

Underscores and dashes are the same in the name of a flag. Nothing heavy is imported before the flags are understood.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from fspmu.errors import EXPECTED, InputError, launched, leave_after, say_no_more

SPELLINGS = {
    "--noise-mode subclass": "--noise_mode SDN",
    "--tsne-perplexity": "--tsne_per",
    "--out": "--weight_dir",
}
"""Flags that have another name here than in the sentences of what lies below."""


def train(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run step 1 and leave with its exit code: 0 done, 1 failed, 2 bad input, 130 stopped."""
    _leave_after("train", training_flags(), arguments)


def unlearn(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run step 2 and leave with its exit code, as `train` does."""
    _leave_after("unlearn", unlearning_flags(), arguments)


def _leave_after(step: str, parser: "Flags", arguments: Sequence[str] | None) -> NoReturn:
    try:
        if launched()[1] > 1:
            raise InputError("the published commands run in one process; for several use `fspmu pretrain` and `fspmu unlearn`")
        flags = parser.read(sys.argv[1:] if arguments is None else list(arguments))
        from fspmu.experiments import published

        getattr(published, step)(flags)
        sys.stdout.flush()
    except InputError as error:
        text = str(error)
        for ours, theirs in SPELLINGS.items():
            text = text.replace(ours, theirs)
        leave_after(InputError(text))
    except BrokenPipeError:
        say_no_more()
    except EXPECTED as error:
        leave_after(error)
    sys.exit(0)


class Flags(argparse.ArgumentParser):
    """A parser that answers with one sentence."""

    def error(self, message: str) -> NoReturn:
        """Raise InputError in place of a usage text."""
        raise InputError(message.removeprefix("argument "))

    def read(self, arguments: list[str]) -> argparse.Namespace:
        """Return the values of all flags.

        Raises InputError for an unknown flag or an impossible value.
        """
        flags, rest = self.parse_known_args([underscored(word) for word in arguments])
        if rest:
            near = get_close_matches(rest[0], [f"--{name}" for name in vars(flags)], n=1)
            raise InputError(f"unknown argument {rest[0]!r}; {f'did you mean {near[0]!r}? ' if near else ''}--help lists all flags")
        return flags


def underscored(word: str) -> str:
    """Return `--step-size=5` as `--step_size=5`, and anything that is no flag as it is."""
    name, equals, value = word.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}" if name.startswith("--") else word


def truth(text: str) -> bool:
    """Return what a word for true or false means."""
    if text.lower() not in ("true", "1", "false", "0"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return text.lower() in ("true", "1")


def truth_or_two(text: str) -> bool:
    """Return the same, where 2 means true as well."""
    return text == "2" or truth(text)


def number(kind: Callable[[str], float], words: str, low: float, high: float = sys.float_info.max) -> Callable[[str], Any]:
    """Return a reader of numbers from `low` to `high`, described by `words`."""

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not {words}")
        return value

    return read


ANY = number(float, "a number", -sys.float_info.max)
POSITIVE = number(float, "a number above 0", sys.float_info.min)
SHARE = number(float, "a fraction from 0 to 1", 0, 1)
WHOLE = number(int, "a whole number from 0 on", 0)
COUNT = number(int, "a whole number from 1 on", 1)
SEED = number(int, "a whole number from 0 to 4294967295", 0, 2**32 - 1)


def training_flags() -> Flags:
    """Return the flags of step 1."""
    parser = Flags("main.py", description="Step 1: train a network on noisy labels, until it has memorised them.", allow_abbrev=False)
    _add_selectors(parser)
    _add_common(parser)
    return parser


def unlearning_flags() -> Flags:
    """Return the flags of step 2."""
    parser = Flags("unlearning.py", description="Step 2: make the network that step 1 saved forget its wrong labels.", allow_abbrev=False)
    _add_selectors(parser)
    group = parser.add_argument_group("what to forget")
    group.add_argument(
        "--pred", nargs="?", const="", metavar="NAME", help="gmm or GMM: found by a mixture over the losses; None or absent: the known wrong labels"
    )
    group.add_argument("--gmm_threshhold", "--gmm_threshold", type=SHARE, metavar="P", help="a label is clean when its probability is above this; default .5")
    group.add_argument("--random", nargs="?", const=True, type=truth, default=False, metavar="BOOL", help="forget each sample with probability --sample_rate")
    text = "with --random its probability; with known labels the quality q of a simulated detector: a share q of the wrong and 1 - q of the others"
    group.add_argument("--sample_rate", type=SHARE, metavar="Q", help=text)
    group = parser.add_argument_group("how to forget; without these the settings that suit how the network was trained")
    group.add_argument("--method", metavar="NAME", help="pro (FSPMU, the default), scrub (SCRUB as in the published tables), or a method of `fspmu methods`")
    text = "train a fresh network on what is kept instead, for as long as step 1: --epochs, --batch_size, --lr and --step_size are its own too"
    group.add_argument("--scratch", nargs="?", const=True, type=truth, default=False, metavar="BOOL", help=text)
    group.add_argument("--delta", type=ANY, metavar="X", help="pull of a kept sample to its own centroid")
    group.add_argument("--zeta", type=ANY, metavar="X", help="push of a forgotten sample from the centroids near it")
    group.add_argument("--gamma", type=ANY, metavar="X", help="weight of cross-entropy on kept samples")
    group.add_argument("--eta", type=ANY, metavar="X", help="push of a forgotten sample from the old prediction")
    group.add_argument("--kd_T", type=POSITIVE, metavar="T", help="temperature of that prediction")
    group.add_argument("--t", type=POSITIVE, metavar="T", help="temperature of the centroid weights (ours)")
    group.add_argument("--e_n", type=WHOLE, metavar="N", help="epochs that begin with a forget pass; published 5")
    group.add_argument("--e_r", type=COUNT, metavar="N", help="epochs, each ending with a pass over what is kept; published 15")
    group.add_argument("--forget_bs", type=COUNT, metavar="N", help="samples per step of a forget pass; published 512")
    group.add_argument("--retain_bs", type=COUNT, metavar="N", help="samples per step of the other pass; published 128")
    _add_common(parser)
    return parser


def _add_selectors(parser: Flags) -> None:
    """Add what names a run of step 1; step 2 finds it by the same flags."""
    group = parser.add_argument_group("the run of step 1: the same flags in both steps")
    group.add_argument("--dataset", metavar="NAME", help="cifar10, cifar100; ours: digits, hf:NAME_OR_PATH, or a folder of images")
    group.add_argument("--noise_rate", type=SHARE, metavar="R", help="share of the labels that noise may act on")
    group.add_argument("--noise_mode", metavar="MODE", help="sym, asym, SDN (CIFAR-100 as 20 superclasses); ours: instance, none")
    group.add_argument("--model", default="preactresnet18", metavar="NAME", help="preactresnet18 (the default), resnet18, allcnn, smallcnn")
    group.add_argument(
        "--pretrain_method", nargs="?", const="", metavar="NAME", help="a way to train of `fspmu methods`, in any spelling; None or absent: cross-entropy"
    )
    group.add_argument("--seed", type=SEED, default=1, help="seed of noise, weights and order; default 1")
    group.add_argument("--epochs", type=WHOLE, metavar="E", help="train in the epochs 0 to E; default 200, so 201 epochs")
    group.add_argument("--batch_size", type=COUNT, metavar="N", help="samples per step; default 128")
    group.add_argument("--lr", type=POSITIVE, help="learning rate; default .01")
    group.add_argument("--step_size", type=COUNT, metavar="N", help="epochs after which the learning rate falls to a tenth; default 100")
    group.add_argument("--limit", type=COUNT, metavar="N", help="only the first N training images (ours)")
    group.add_argument("--width", type=COUNT, metavar="N", help="channels of the first layer (ours)")


def _add_common(parser: Flags) -> None:
    """Add what to keep, and where."""
    group = parser.add_argument_group("what to keep, and where")
    group.add_argument(
        "--save", nargs="?", const=True, type=truth, default=False, metavar="BOOL", help="keep the weights; default False: only figures, and pictures"
    )
    text = "draw the features by t-SNE, as PNG and SVG in TSNE/ of the weight folder; 2 counts as True"
    group.add_argument("--tsne", nargs="?", const=True, type=truth_or_two, default=False, metavar="BOOL", help=text)
    group.add_argument("--tsne_lr", type=POSITIVE, default=350.0, metavar="X", help="its learning rate; default 350")
    group.add_argument("--tsne_per", type=POSITIVE, default=30.0, metavar="X", help="its perplexity; default 30")
    text = "the weight folder, with net/ and TSNE/; default: weight, two levels above the working directory"
    group.add_argument("--weight_dir", metavar="DIR", help=text)
    group.add_argument("--data_dir", metavar="DIR", help="folder that holds cifar10/ and cifar100/ (ours); default: the environment variable FSPMU_DATA_DIR")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (ours)")
    group.add_argument("--precision", default="auto", help="auto, fp32, bf16 (ours)")
    text = "accepted and not needed: a saved run that was stopped always goes on (ours)"
    group.add_argument("--resume", nargs="?", const=True, type=truth, default=True, metavar="BOOL", help=text)
