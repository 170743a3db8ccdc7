"""`train.branches`: how a group's branches are computed in training, and where they cannot be computed so."""

import torch

from distilkit import grouped
from distilkit.analysis.cost import one_thread
from distilkit.data.datasets import DataSpec
from distilkit.errors import SettingError
from distilkit.group import BranchGroup, Group
from distilkit.randomness import generator
from distilkit.recipe import Recipe
from distilkit.streams import Streams

_HINT = "leave train.branches out"


def check_device(recipe: Recipe, device: torch.device, processes: int) -> None:
    """Raise `SettingError` for what this device, this number of processes, or another setting forbids."""
    form, settings = recipe.train.branches, recipe.train
    problem = None
    if form == "streams" and device.type != "cuda":
        problem = f"streams need a CUDA device, and this one is {device.type}"
    elif form == "streams" and processes > 1:
        problem = f"streams are for one process, and here are {processes}"
    elif form == "streams" and settings.compile:
        problem = "what runs on streams of its own is not compiled, and train.compile is set"
    elif form != "one-by-one" and settings.sync_batch_norm:
        problem = "batch norm is synchronised branch by branch, and train.sync_batch_norm is set"
    if problem:
        raise SettingError(grouped.KEY, problem, _HINT)


def check(recipe: Recipe, group: Group, spec: DataSpec) -> None:
    """Raise `SettingError` if the branches cannot be computed in the form that the recipe asks for.

    Grouped ones are tried: a step of a copy in float64, on two images, must be the plain one's.
    """
    if recipe.train.branches == "grouped" and isinstance(group, BranchGroup):
        images = torch.rand(2, spec.channels, spec.size, spec.size, generator=generator(0, "grouped"))
        with one_thread():
            grouped.check(group, images)


def arrange(recipe: Recipe, group: Group, device: torch.device) -> None:
    """Have the branches of a group, which is on its device, computed as the recipe says. Raises `SettingError`."""
    if not isinstance(group, BranchGroup):
        return
    if recipe.train.branches == "grouped":
        group.together = grouped.forward(group)
    elif recipe.train.branches == "streams":
        group.together = Streams(len(group.members), device)
