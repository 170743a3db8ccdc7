"""Keys that recipes had in earlier versions."""

from collections.abc import Mapping
from typing import NamedTuple

from distilkit.recipe.toml_lines import Key


class RemovedKey(NamedTuple):
    """`default`: the value that runs which did not set the key were trained with. `remedy`: what to write instead."""

    default: object
    remedy: str


REMOVED: Mapping[Key, RemovedKey] = {
    ("train", "branches"): RemovedKey("one-by-one", "leave it out: branches are computed one after another"),
}
