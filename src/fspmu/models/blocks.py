"""The depths of any network: where between its input and its head features can be taken.

Nothing is known of a network but what one batch shows: which parts are called, in which order, and whose output is whose input. Parts of one kind that hand
on to each other are its blocks: residual blocks, transformer layers, ConvNeXt blocks. A network without any is taken layer by layer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fspmu.errors import InputError, suggestion
from fspmu.models.adopt import Adopted
from fspmu.models.classifier import Classifier, Output, evaluating

MOST = 12
"""Depths of a network, at most; of more, so many evenly spaced ones."""
LAST = "features"
"""What the last depth is called: what the head is given."""
_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


class Block(NamedTuple):
    """A depth of a network: the output of a part, by the part's own name; None: what the head is given."""

    name: str
    module: nn.Module | None


@dataclass
class _Call:
    """A part of a network in one forward pass."""

    name: str
    module: nn.Module
    given: Tensor | None
    made: Tensor
    times: int = 1


def find_blocks(model: Classifier, example: Tensor) -> list[Block]:
    """Return the depths of `model` in forward order, at most MOST, its features last; `example` (B, C, H, W), B >= 2, is a batch it takes.

    A network in which nothing can be told apart has one depth, its features. The model and its modes stay as they were.
    """
    head = model.head_layer if isinstance(model, Adopted) else model.head
    calls, features = _watch(model, example, head)
    chosen = _repeated(calls) or _layers(calls)
    if chosen and _same(pooled(chosen[-1].made), features):
        chosen = chosen[:-1]
    taken = {LAST}
    blocks = [Block(call.name, call.module) for call in chosen if not (call.name in taken or taken.add(call.name))]  # type: ignore[func-returns-value]
    if len(blocks) > MOST - 1:
        blocks = [blocks[len(blocks) * (2 * place + 1) // (2 * (MOST - 1))] for place in range(MOST - 1)]
    return [*blocks, Block(LAST, None)]


def named_block(model: Classifier, name: str, blocks: Sequence[Block]) -> Block:
    """Return the depth of `model` that is called `name`: one of its `blocks`, or any other part of it.

    Raises InputError when it has no such part.
    """
    parts = {**dict(root_of(model).named_modules()), **{block.name: block.module for block in blocks}}
    if not name or name not in parts:
        raise InputError(f"the network has no part {name!r} to take features from; {suggestion(name, [block.name for block in blocks])}, or any other part")
    return Block(name, parts[name])


def root_of(model: Classifier) -> nn.Module:
    """Return the module whose parts are called as their owner knows them."""
    return model.module if isinstance(model, Adopted) else model


class AtDepths(Classifier):
    """images (B, C, H, W) -> Output(logits (B, K), features (B, D)): those of the network inside, pooled, at some depths, side by side.

    Raises InputError when a part is not called once for a batch, or makes no row for each image.
    """

    def __init__(self, model: Classifier, names: Sequence[str], widths: Sequence[int]) -> None:
        nn.Module.__init__(self)
        self.inner, self.names, self.widths = model, tuple(names), tuple(widths)
        self.training = model.training  # whoever puts it back into its mode puts the network inside into that

    @classmethod
    def of(cls, model: Classifier, blocks: Sequence[Block], example: Tensor) -> "AtDepths":
        """Return `model` at these depths; `example` (B, C, H, W) is a batch it takes."""
        with evaluating(model), torch.no_grad():
            made = _at(model, [block.name for block in blocks], example)[1]
        return cls(model, [block.name for block in blocks], [part.shape[1] for part in made])

    @property
    def class_names(self) -> tuple[str, ...]:
        """The K classes by name."""
        return self.inner.class_names

    @property
    def num_classes(self) -> int:
        """K."""
        return self.inner.num_classes

    @property
    def feature_width(self) -> int:
        """D, of all depths together."""
        return sum(self.widths)

    def forward(self, images: Tensor) -> Output:
        """Return the logits, and the pooled features of all depths side by side."""
        output, made = _at(self.inner, self.names, images)
        return Output(output.logits, torch.cat([part.float() for part in made], dim=1))


def pooled(made: Tensor) -> Tensor:
    """Return one row for each image: the mean over places (B, C, H, W) or tokens (B, T, C), and (B, C) as it is.

    Of four dimensions the last counts as channels where the two before it are equal and it is not: some transformers keep them there.
    """
    if made.ndim == 4:
        channels_last = made.shape[1] == made.shape[2] != made.shape[3]
        return made.mean(dim=(1, 2) if channels_last else (2, 3))
    return made.mean(dim=1) if made.ndim == 3 else made.flatten(1)


def _at(model: Classifier, names: Sequence[str], images: Tensor) -> tuple[Output, list[Tensor]]:
    """Return what `model` says of `images`, and what it makes at the named depths, pooled, (B, D) each."""
    root, made = root_of(model), dict[str, list[Tensor]]()

    def keep(name: str) -> Callable[..., None]:
        return lambda part, given, output: made.setdefault(name, []).append(pooled(_tensor_in(output, name)))

    listening = [root.get_submodule(name).register_forward_hook(keep(name)) for name in names if name != LAST]
    try:
        output: Output = model(images)
    finally:
        for handle in listening:
            handle.remove()
    found = []
    for name in names:
        parts = [output.features] if name == LAST else made.get(name, [])
        if len(parts) != 1 or len(parts[0]) != len(images):
            raise InputError(f"the part {name} of the network makes no row of features for each image, so it is no depth to look at; give --depth auto or last")
        found.append(parts[0])
    return output, found


def _tensor_in(output: Any, name: str) -> Tensor:
    found = _first_tensor(output)
    if found is None or found.ndim < 2:
        raise InputError(f"the part {name} of the network returns a {type(output).__name__}, and no features; give --depth auto or last")
    return found


def _first_tensor(value: Any) -> Tensor | None:
    """Return a tensor, or the first in whatever parts of networks return or are given."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, list | tuple) and value:
        return _first_tensor(value[0])
    return None


def _watch(model: Classifier, example: Tensor, head: nn.Module) -> tuple[list[_Call], Tensor]:
    """Return the parts of `model` that were called once and made a row for each image, in the order in which they ended, and the features (B, D)."""
    root, calls = root_of(model), dict[str, _Call]()

    def keep(name: str) -> Callable[..., None]:
        def note(part: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            made = _first_tensor(output)
            if name in calls:
                calls[name].times += 1
            elif made is not None and made.is_floating_point() and 2 <= made.ndim <= 4 and len(made) == len(example):
                calls[name] = _Call(name, part, _first_tensor(given or tuple(named.values())), made)

        return note

    parts = [(name, part) for name, part in root.named_modules() if name and part is not head]
    listening = [part.register_forward_hook(keep(name), with_kwargs=True) for name, part in parts]
    try:
        with evaluating(model), torch.no_grad():
            output: Output = model(example)
    finally:
        for handle in listening:
            handle.remove()
    return [call for call in calls.values() if call.times == 1], output.features


def _repeated(calls: Sequence[_Call]) -> list[_Call]:
    """Return the parts of the one kind that the network repeats: of those that hand on to each other, if there are any, the kind that does so most often."""
    kinds: dict[type, list[_Call]] = {}
    for call in calls:
        if any(True for _ in call.module.children()) and not isinstance(call.module, nn.Sequential):
            kinds.setdefault(type(call.module), []).append(call)
    kinds = {kind: found for kind, found in kinds.items() if len(found) > 1}
    links = {kind: sum(later.given is earlier.made for earlier, later in zip(found, found[1:], strict=False)) for kind, found in kinds.items()}
    if any(links.values()):
        kinds = {kind: found for kind, found in kinds.items() if links[kind]}
    within = {_lesser(outer, inner, kinds) for outer in kinds for inner in kinds if outer is not inner}
    best = max((kind for kind in kinds if kind not in within), key=lambda kind: (links[kind], len(kinds[kind])), default=None)
    return [] if best is None else kinds[best]


def _lesser(outer: type, inner: type, kinds: Mapping[type, list[_Call]]) -> type | None:
    """Return which of two kinds is no block where one is within the other: a stage, which only hands on what its last block makes, or else the part."""
    ends = [(call, [part for part in kinds[inner] if part.name.startswith(f"{call.name}.")]) for call in kinds[outer]]
    holding = [parts[-1].made is call.made for call, parts in ends if parts]
    if not holding:
        return None
    return outer if 2 * sum(holding) >= len(holding) else inner


def _layers(calls: Sequence[_Call]) -> list[_Call]:
    """Return for each convolution and each linear layer the last part before the next one that makes something of the same kind: its norm or activation."""
    found: list[_Call] = []
    for call in calls:
        if any(True for _ in call.module.children()):
            continue
        if isinstance(call.module, _LAYERS):
            found.append(call)
        elif found and call.made.ndim == found[-1].made.ndim and _channels(call.made) == _channels(found[-1].made):
            found[-1] = call
    return found


def _channels(made: Tensor) -> int:
    return made.shape[1] if made.ndim == 4 else made.shape[-1]


def _same(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and torch.allclose(left.float(), right.float(), rtol=1e-3, atol=1e-5)
