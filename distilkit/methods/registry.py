"""The methods by name: a method's file registers it when it is imported.

A method is one file in this package. Every file of the package is imported the first time that anything is looked up,
so a new method takes one new file.
"""

import difflib
import functools
import importlib
import pkgutil
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from distilkit.methods.base import DistillationOptions, Method, MethodOptions

_M = TypeVar("_M", bound=type[Method])


class Entry(NamedTuple):
    """`options`: the pydantic model of the method's `[method]` section. `method`: the module's class."""

    options: type[MethodOptions]
    method: type[Method]


_methods: dict[str, Entry] = {}


def register(name: str, options: type[MethodOptions]) -> Callable[[_M], _M]:
    """Decorate a `Method` with this to register it under `name`, as a recipe spells it; also under several, in turn.

    `options`: what a recipe's `[method]` may say where it names this one.
    """

    _check_shared_keys(name, options)

    def add(method: _M) -> _M:
        if name in _methods:
            raise RuntimeError(f"two methods are called {name!r}")
        _methods[name] = Entry(options, method)
        return method

    return add


def _check_shared_keys(name: str, options: type[MethodOptions]) -> None:
    """Refuse keys that the base classes have and that the trainer would not find under another name or class."""
    for key in options.model_fields:
        if difflib.get_close_matches(key, ["label_smoothing"], cutoff=0.88):
            raise RuntimeError(
                f"method {name!r} has an option {key!r}; `train.label_smoothing` is handed to every method"
            )
        if issubclass(options, DistillationOptions) and key in DistillationOptions.model_fields:
            continue
        if difflib.get_close_matches(key, ["rampup_epochs"], cutoff=0.88):
            raise RuntimeError(
                f"method {name!r} has an option {key!r}; 'rampup_epochs' alone is heeded, which options have that "
                "inherit from methods.base.DistillationOptions"
            )


def entries() -> dict[str, Entry]:
    """Every method by its name, in the order of the alphabet."""
    _import_methods()
    return dict(sorted(_methods.items()))


def find(name: str) -> Entry:
    """What is registered as `name`. Raises `KeyError` where nothing is."""
    _import_methods()
    return _methods[name]


@functools.cache
def _import_methods() -> None:
    # Not while this file is being imported: the methods import `register` from it.
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
