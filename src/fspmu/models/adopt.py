"""Somebody else's classifier, taken in as it is: its features are what its last linear layer is given.

The module keeps its type, names and weights; what is wrapped around it only listens, and the module comes back out as `.module`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fspmu.errors import InputError
from fspmu.models.classifier import Classifier, Output, evaluating
from fspmu.preprocessing import Geometry

SHOWN = 12
"""How many layers a message lists."""


@dataclass(frozen=True)
class WeightsLayout:
    """How a file of weights spelt its names, so that repaired weights are written the same way."""

    suffix: str = ".safetensors"
    """Suffix of the file: .safetensors, or what torch.save was given."""
    wrapper: str = ""
    """Key of the file's dict that held the state dict; empty: it was the whole file."""
    prefix: str = ""
    """What every name began with, such as `module.`."""
    dtypes: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Such as {"head.weight": "float16"}: the tensors that the module keeps in another type than the file, by the module's names."""


@dataclass(frozen=True)
class Origin:
    """Where an adopted module came from, so that it can go back there."""

    kind: str = "module"
    """module (handed over in Python), timm, hf, code (built by an import path)."""
    name: str = ""
    """What follows `timm:` or `hf:`, or `package.module:build`."""
    layout: WeightsLayout | None = None
    """Of the file its weights came from, None where there was none."""
    processor: dict[str, Any] | None = field(default=None, repr=False)
    """The preprocessor config of a Hugging Face model, None elsewhere."""
    weights: Path | None = None
    """The file its weights came from."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """What it was built with beside the number of classes."""


class NotTaken(InputError):
    """Images of a shape that a module cannot work on."""


class Adopted(Classifier):
    """images (B, C, H, W) -> Output(logits (B, K), features (B, D)) of a module that knows nothing of this.

    Raises InputError when the module has no linear layer `head`, or does not use it as a head.
    """

    module: nn.Module
    origin: Origin
    geometry: Geometry | None
    """How the module wants its images sized; None: as they come."""
    mean: tuple[float, ...] | None = None
    """Per channel, of pixels from 0 to 1, as the module was trained with; None: not known."""
    std: tuple[float, ...] | None = None
    """Per channel."""
    rebuild: Callable[[], nn.Module] | None = None
    """Builds the module anew with weights that nobody trained, where that is known."""

    def __init__(self, module: nn.Module, head: str) -> None:
        nn.Module.__init__(self)
        _linear(module, head)
        self.module, self.head_name = module, head
        self.origin, self.geometry = Origin(), None
        self.names: tuple[str, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        """The K classes by name; empty when nobody named them."""
        return self.description.class_names if self.description else self.names

    @property
    def num_classes(self) -> int:
        """K."""
        return self.head_layer.out_features

    @property
    def feature_width(self) -> int:
        """D."""
        return self.head_layer.in_features

    @property
    def head_layer(self) -> nn.Linear:
        """The module's own linear layer that makes the logits."""
        return _linear(self.module, self.head_name)

    def forward(self, images: Tensor) -> Output:
        """Return the logits of the module and what its head was given."""
        layer, given = self.head_layer, []

        def keep(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            given.append(_first(arguments, named))

        listening = layer.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            logits = logits_of(_call(self.module, images))
        finally:
            listening.remove()
        if logits.shape != (len(images), layer.out_features):
            raise InputError(
                f"the module returned {tuple(logits.shape)} for {len(images)} images, and its head {self.head_name} makes {layer.out_features} classes; "
                f"{_candidates(self.module)}"
            )
        return Output(logits, _features(given, len(images), layer, self.head_name, self.module))


def adopt(module: nn.Module, example: Tensor, num_classes: int | None = None, *, head: str | None = None, class_names: Sequence[str] = ()) -> Adopted:
    """Return `module` wrapped; `example` (B, C, H, W), B >= 2, is a batch it takes.

    Raises InputError when no linear layer makes its logits, or the classes are not `num_classes`.
    """
    inner = "module" if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel) else "_orig_mod" if hasattr(module, "_orig_mod") else ""
    if inner:
        raise InputError(f"a {type(module).__name__} is wrapped around the network; hand over what is inside: its .{inner}")
    weight = next((parameter for parameter in module.parameters() if parameter.is_floating_point()), None)
    if weight is not None and weight.device.type != "meta":
        example = example.to(weight.device, weight.dtype)
    with torch.no_grad(), evaluating(module):
        chosen = head if head is not None else _find_head(module, example)
        _check_head(module, chosen, example)
        adopted = Adopted(module, chosen)
    _check_classes(adopted.num_classes, num_classes, class_names)
    adopted.training, adopted.names = module.training, tuple(class_names)
    return adopted


def logits_of(returned: Any) -> Tensor:
    """Return the logits in whatever a classifier returned: a tensor, something with `.logits`, a dict with "logits", a tuple that begins with them."""
    found = returned
    if not isinstance(returned, Tensor):
        if isinstance(returned, Mapping):
            found = returned.get("logits")
        elif getattr(returned, "logits", None) is not None:
            found = returned.logits
        elif isinstance(returned, list | tuple) and returned:
            found = returned[0]
    if not isinstance(found, Tensor):
        raise InputError(f"the module returned a {type(returned).__name__} without logits; wrap it in a module that returns its logits (B, K)")
    return found


def input_channels(module: nn.Module) -> int | None:
    """Return how many channels the first convolution takes; None without one."""
    return next((layer.in_channels for layer in module.modules() if isinstance(layer, nn.Conv2d)), None)


def _call(module: nn.Module, images: Tensor) -> Any:
    if getattr(module, "main_input_name", None) == "pixel_values":  # transformers: the first argument by place is not the images' everywhere
        return module(pixel_values=images)
    return module(images)


def _first(arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    return arguments[0] if arguments else next(iter(named.values()), None)


def _linear(module: nn.Module, name: str) -> nn.Linear:
    try:
        layer = module.get_submodule(name)
    except AttributeError:
        raise InputError(f"the module has no layer {name!r}; {_candidates(module)}") from None
    if not isinstance(layer, nn.Linear):
        raise InputError(f"{name or 'the module itself'} is a {type(layer).__name__} and no linear layer; {_candidates(module)}")
    return layer


def _candidates(module: nn.Module) -> str:
    """Return the end of a sentence: every linear layer, the last ones where they are many."""
    found = [f"{name} ({layer.in_features} -> {layer.out_features})" for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    if not found:
        return "it has no nn.Linear at all"
    return f"its linear layers: {'... ' if len(found) > SHOWN else ''}{', '.join(found[-SHOWN:])}; name the one that makes the logits with --head"


def _features(given: list[Any], rows: int, layer: nn.Linear, head: str, module: nn.Module) -> Tensor:
    """Return the one thing the head was given as (B, D)."""
    if len(given) != 1:
        often = "never" if not given else f"{len(given)} times"
        raise InputError(f"the layer {head} was called {often} for one batch, and a head is called once; {_candidates(module)}")
    features = given[0]
    if not isinstance(features, Tensor) or features.ndim < 2 or features.shape[0] != rows or features.numel() != rows * layer.in_features:
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise InputError(
            f"the layer {head} was given {shape} for {rows} images, and a head is given {layer.in_features} numbers for each; {_candidates(module)}"
        )
    return features.flatten(1)


def _try(module: nn.Module, example: Tensor) -> Tensor:
    """Return the logits of `example` (B, K)."""
    try:
        returned = _call(module, example)
    except Exception as error:  # somebody else's forward may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        shape = " x ".join(map(str, example.shape[1:]))
        raise NotTaken(f"the module does not work on images of {shape} (channels x height x width): {reason:.200}; give its --size") from error
    logits = logits_of(returned)
    if logits.ndim != 2 or len(logits) != len(example):
        raise InputError(f"the module returned {tuple(logits.shape)} for {len(example)} images, not one row of logits each; {_candidates(module)}")
    if not bool(logits.isfinite().all()):
        raise InputError("the module's outputs are not finite: its weights are damaged")
    return logits


def _find_head(module: nn.Module, example: Tensor) -> str:
    """Return the name of the linear layer called last of those whose output is the logits."""
    calls: list[tuple[str, Tensor]] = []

    def listen_to(name: str) -> Callable[..., None]:
        return lambda layer, given, made: calls.append((name, made))

    linears = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    listening = [layer.register_forward_hook(listen_to(name)) for name, layer in linears]
    try:
        logits = _try(module, example)
    finally:
        for handle in listening:
            handle.remove()
    found = next((name for name, made in reversed(calls) if made.numel() == logits.numel() and _same_choice(made.reshape(logits.shape), logits)), None)
    if found is None:
        raise InputError(
            f"the {logits.shape[1]} logits are not what any linear layer of the module makes (a convolution, several heads or something after the last layer "
            f"makes them), so its features are not known; {_candidates(module)}"
        )
    return found


def _check_head(module: nn.Module, head: str, example: Tensor) -> None:
    """Raise InputError unless what the layer says goes into the logits whole and alone: a change of its output is the same change of the logits."""
    layer, given, made = _linear(module, head), list[Any](), list[Tensor]()

    def disturb(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> Tensor:
        noise = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output.device, output.dtype)
        given.append(_first(arguments, named))
        made.append(output + noise * (1 + output.abs().max()))  # equal values could be chance: heads that begin as zeros all say the same
        return made[-1]

    listening = layer.register_forward_hook(disturb, with_kwargs=True)
    try:
        logits = _try(module, example)
    finally:
        listening.remove()
    _features(given, len(example), layer, head, module)
    if made[0].numel() != logits.numel() or not _same_choice(made[0].reshape(logits.shape), logits):
        raise InputError(
            f"the logits are not what {head} ({layer.in_features} -> {layer.out_features}) makes: several heads are averaged, or something follows it; "
            f"{_candidates(module)}, or wrap the module so that it returns one layer's output"
        )


def _same_choice(made: Tensor, logits: Tensor) -> bool:
    """Whether two (B, K) differ by a constant per row at most, as log-probabilities do from logits: the softmax of both is the same."""
    offset = made.double() - logits.double()
    tolerance = 100 * torch.finfo(logits.dtype).eps * (1 + float(made.abs().max()))
    return float((offset - offset.mean(dim=1, keepdim=True)).abs().max()) <= tolerance


def _check_classes(found: int, num_classes: int | None, class_names: Sequence[str]) -> None:
    if num_classes is not None and num_classes != found:
        raise InputError(f"the model tells {found} classes apart, and {num_classes} were asked for; give the model that belongs to the data, or its own number")
    if class_names and len(class_names) != found:
        raise InputError(f"the model tells {found} classes apart, and {len(class_names)} names were given; give one for each")
