"""The architectures by name: the decorated function's name is what a recipe says and what the command line takes.

A family is one file in this package; its functions register themselves when the file is imported, and every file of
the package is imported the first time that anything is looked up. So a new architecture takes one new file.

A name with a colon is another library's: see `external`.
"""

import functools
import importlib
import inspect
import pkgutil
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor, nn

from distilkit.errors import SettingError, did_you_mean
from distilkit.models import external, own

Norm = Literal["batch", "none"]
"""Which normalisation a network has inside; "none" is for those that batch norm hinders."""


class Builder(Protocol):
    """A function that builds one architecture with fresh weights drawn from torch's global stream."""

    __name__: str

    def __call__(self, num_classes: int, channels: int = 3) -> nn.Module:
        """Build a network from images [B, channels, H, W] to logits [B, num_classes].

        A family that can do without batch norm takes `norm: Norm = "batch"` as a third argument.
        """


@dataclass(frozen=True)
class _Architecture:
    build: Builder
    split_at: str
    size: int = 32


_architectures: dict[str, _Architecture] = {}


def register(*, split_at: str, size: int = 32) -> Callable[[Builder], Builder]:
    """Decorate a function with this to register what it builds under the function's own name.

    `split_at`: the first module that is each student's own in a branched group, unless a recipe says otherwise. `size`:
    of the images that it was made for, in pixels on a side; it takes others too.
    """

    def add(build: Builder) -> Builder:
        name = build.__name__
        if name in _architectures:
            # Two networks under one name is how papers came to mean different things by "ResNet-110".
            raise RuntimeError(f"two architectures are called {name!r}")
        _architectures[name] = _Architecture(build, split_at, size)
        return build

    return add


def names() -> tuple[str, ...]:
    """Every registered name: the families in the order of their files' names, each in its file's order.

    Other libraries' names are not among them: see `external.names`.
    """
    _import_families()
    # Whoever imports one family by itself has it registered first.
    return tuple(sorted(_architectures, key=lambda name: _architectures[name].build.__module__))


def create(name: str, num_classes: int, channels: int = 3, norm: Norm = "batch") -> nn.Module:
    """Build `name` with fresh weights drawn from torch's global stream.

    `name`: a registered one, or "package.module:builder" (see `models.own`). `channels`: of the input images. Returns a
    network from images [B, channels, H, W] to logits [B, num_classes]. Raises `SettingError` if no architecture has
    this name, or it does not have this `norm`; `own.UntrustedCodeError` if it would have to execute a user's code
    without leave.
    """
    if external.is_external(name):
        if norm != "batch":
            raise SettingError("norm", f"{name} has no form without batch norm", 'leave "norm" out')
        return external.create(name, num_classes, channels)
    build: Callable[..., nn.Module] = own.builder(name) if own.is_own(name) else _find(name).build
    if norm == "batch":
        return build(num_classes, channels)
    if "norm" not in inspect.signature(build).parameters:
        raise SettingError("norm", f"{name} has no form without batch norm", 'leave "norm" out')
    return build(num_classes, channels, norm=norm)


def default_split(name: str) -> str | None:
    """Name the module at which `name` is cut where a recipe does not say. Raises `SettingError` if it is unknown.

    None for another library's network and for a user's own, of which nothing is known: `split.default_point` looks for
    one.
    """
    check(name)
    return None if external.is_external(name) or own.is_own(name) else _find(name).split_at


def usual_size(name: str) -> int:
    """Size of the images that `name` was made for, in pixels on a side; of a user's own network nobody knows: 32.

    Raises `SettingError` if it is unknown.
    """
    if external.is_external(name):
        return external.usual_size(name)
    return 32 if own.is_own(name) else _find(name).size


def check(name: str) -> None:
    """Raise `SettingError` on "architecture" with the nearest name if no architecture has this one.

    Builds nothing, but imports the library whose list is asked; of a user's own network it looks at the form alone.
    """
    if external.is_external(name):
        external.check(name)
    elif own.is_own(name):
        wrong = own.fault(name)
        if wrong:
            raise SettingError("architecture", *wrong)
    else:
        _find(name)


def load_strict(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load `state` strictly, as weights that this version of `network` has written.

    A plain dictionary says no version, and MNASNet's own loader then refuses it.
    """
    versioned = OrderedDict(state)
    versioned._metadata = network.state_dict()._metadata  # type: ignore[attr-defined]
    network.load_state_dict(versioned, strict=True)


def _find(name: str) -> _Architecture:
    known = names()
    if name not in _architectures:
        raise SettingError(
            "architecture",
            f"there is no architecture {name!r}; there are {', '.join(known)}, and {external.FORMS}",
            did_you_mean(name, known),
        )
    return _architectures[name]


@functools.cache
def _import_families() -> None:
    # Not while this file is being imported: the families import `register` from it.
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
