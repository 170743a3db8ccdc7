"""Compares every built group with the reference network, so that a wrong cut cannot pass."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from distilkit.errors import SettingError
from distilkit.groups import split
from distilkit.groups.group import Group
from distilkit.models import registry
from distilkit.randomness import seeded

PROBE_IMAGES = 2  # the fewest that batch norm can train on where maps have shrunk to one pixel


def check_fresh(networks: Iterable[tuple[str, nn.Module]]) -> None:
    """Tell the user if a builder gives a network, or a part of one, that it has given before."""
    seen: set[int] = set()
    for architecture, network in networks:
        tensors = {id(tensor) for tensor in (*network.parameters(), *network.buffers())}
        if not seen.isdisjoint(tensors):
            raise SettingError(
                "architecture",
                f"{architecture} is built of the same parameters again, where every student needs its own",
                "its builder must make a new network whenever it is called",
            )
        seen |= tensors


def check_reference(stock: nn.Module, architecture: str, normalized: Tensor, num_classes: int) -> None:
    """Tell the user, before anything is taken apart, if the architecture itself does not take these images."""
    size = f"{normalized.shape[2]}x{normalized.shape[3]}"
    for training in (False, True):
        try:
            with state_restored(stock), seeded(0, "check"):
                logits = stock.train(training)(normalized)
        except Exception as error:
            # Any kind of exception: each architecture has its own way to say that images are too small for it.
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise SettingError(
                "architecture",
                f"{architecture} cannot take images of {size} pixels with {normalized.shape[1]} channels: {reason}",
                "choose an architecture for images of this size, or another size of image",
            ) from error
        if not isinstance(logits, Tensor) or logits.shape != (PROBE_IMAGES, num_classes):
            what = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise SettingError(
                "architecture",
                f"{architecture} gives {what} for {PROBE_IMAGES} images, and not one logit for each of {num_classes} "
                "classes",
                "choose a classifier without auxiliary outputs",
            )


def feature_width(architecture: str, part: split.Part, x: Tensor) -> int:
    """D of the features [B, D] before the last linear layer. Raises `SettingError` if they are no vectors."""
    with state_restored(part):
        _, features = part.eval()(x)
    if features.dim() != 2:
        raise SettingError(
            "architecture",
            f"the input of {architecture}'s last linear layer is {features.dim()}-dimensional, where a vector for each "
            "image is needed",
            "choose an architecture that pools before its classifier",
        )
    return int(features.shape[1])


def writes_to_its_input(branch: split.Part, crossing: Tensor) -> bool:
    """Whether a branch begins with an operation in place on the trunk's tensor."""
    for training in (False, True):
        handed = crossing.clone()
        before = handed._version  # counts the writes to a tensor and to all its views
        with state_restored(branch), seeded(0, "check"):
            branch.train(training)(handed)
        if handed._version != before:
            return True
    return False


def compare(group: Group, stocks: Mapping[str, nn.Module], images: Tensor, how: str) -> None:
    """Raise `RuntimeError` unless every member computes what the stock network with its weights computes.

    `stocks`: one of every architecture. `how`: what was done to them, for the message.
    """
    normalized = group.normalize(images)
    with state_restored(group):
        together_SBC = group.eval()(images).logits_SBC
    for index, (name, architecture) in enumerate(zip(group.members, group.architectures, strict=True)):
        stock, what = stocks[architecture], f"{architecture}{how}"
        with state_restored(group):
            try:
                registry.load_strict(stock, group.member_state_dict(name))
            except RuntimeError as error:
                raise RuntimeError(f"{what}: {name!r} has not the names of the stock network") from error
            if not torch.equal(together_SBC[index], stock.eval()(normalized)):
                raise RuntimeError(f"{what}: {name!r} differs from the stock network in evaluation")
            # In training each member alone: in a group, what one branch draws for dropout moves the next one's draws.
            with seeded(0, "check"):
                expected = stock.train()(normalized)
            with seeded(0, "check"):
                alone = group.train()._member_logits(name, normalized)
            if not torch.equal(alone, expected):
                raise RuntimeError(f"{what}: {name!r} differs from the stock network in training")
            updated = group.member_state_dict(name)
            for key, value in stock.state_dict().items():
                if not torch.equal(updated[key], value):
                    raise RuntimeError(f"{what}: {name!r} updates {key!r} otherwise than the stock network")


@contextmanager
def state_restored(module: nn.Module) -> Iterator[None]:
    """Compute without gradients, and put buffers and modes back afterwards."""
    modes = {each: each.training for each in module.modules()}
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    try:
        with torch.no_grad():
            yield
    finally:
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                buffer.copy_(buffers[name])
        for each, mode in modes.items():
            each.training = mode
