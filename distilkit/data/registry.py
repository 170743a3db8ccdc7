"""The data sets by name: a data set's file registers it when it is imported.

Every file of the package is imported the first time that anything is looked up, so a new data set takes one new file.
What reads the images (torchvision, scikit-learn) is imported inside functions there: looking up stays quick.
"""

import functools
import importlib
import pkgutil

from distilkit.data.base import Source

_sources: dict[str, Source] = {}


def register(name: str, source: Source) -> None:
    """Let a recipe's `data.dataset = name` mean the images of `source`."""
    if name in _sources:
        raise RuntimeError(f"two data sets are called {name!r}")
    _sources[name] = source


def sources() -> dict[str, Source]:
    """Every data set by its name, in the order of the alphabet."""
    _import_sources()
    return dict(sorted(_sources.items()))


@functools.cache
def _import_sources() -> None:
    # Not while this file is being imported: the data sets import `register` from it.
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
