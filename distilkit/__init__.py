"""Online knowledge distillation of image classifiers, from a recipe to a checked ONNX file.

What the library offers is what `__all__` names; docs/library.md shows it at work. Each part is imported when it is
first used: `import distilkit` imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from distilkit._version import __version__ as __version__

if TYPE_CHECKING:
    from pathlib import Path

    from distilkit.errors import UserError as UserError
    from distilkit.groups.build import branch_group as branch_group
    from distilkit.groups.build import network_group as network_group
    from distilkit.groups.group import BranchGroup as BranchGroup
    from distilkit.groups.group import NetworkGroup as NetworkGroup
    from distilkit.groups.outputs import GroupOutput as GroupOutput
    from distilkit.groups.split.cut import cut_points as cut_points
    from distilkit.learners.learner import Learner as Learner
    from distilkit.learners.learner import LearnerOutput as LearnerOutput
    from distilkit.methods import losses as losses
    from distilkit.methods.base import Method as Method
    from distilkit.methods.base import MethodLosses as MethodLosses
    from distilkit.observer import Observer as Observer
    from distilkit.recipe import Recipe as Recipe
    from distilkit.training.schedule import ramp as ramp
    from distilkit.workflows.deploy.load import LoadedClassifier as LoadedClassifier
    from distilkit.workflows.library import Trained as Trained
    from distilkit.workflows.library import create_method as create_method
    from distilkit.workflows.library import load_recipe as load_recipe
    from distilkit.workflows.library import make_learner as make_learner
    from distilkit.workflows.library import train as train

__all__ = [
    "BranchGroup",
    "GroupOutput",
    "Learner",
    "LearnerOutput",
    "LoadedClassifier",
    "Method",
    "MethodLosses",
    "NetworkGroup",
    "Observer",
    "Recipe",
    "Trained",
    "UserError",
    "branch_group",
    "create_method",
    "cut_points",
    "load",
    "load_recipe",
    "losses",
    "make_learner",
    "network_group",
    "ramp",
    "train",
]

_HOMES = {
    "BranchGroup": "groups.group",
    "GroupOutput": "groups.outputs",
    "Learner": "learners.learner",
    "LearnerOutput": "learners.learner",
    "LoadedClassifier": "workflows.deploy.load",
    "Method": "methods.base",
    "MethodLosses": "methods.base",
    "NetworkGroup": "groups.group",
    "Observer": "observer",
    "Recipe": "recipe",
    "Trained": "workflows.library",
    "UserError": "errors",
    "branch_group": "groups.build",
    "create_method": "workflows.library",
    "cut_points": "groups.split.cut",
    "load_recipe": "workflows.library",
    "make_learner": "workflows.library",
    "network_group": "groups.build",
    "ramp": "training.schedule",
    "train": "workflows.library",
}


def load(
    path: Path | str, *, member: str | None = None, checkpoint: str | None = None, trust_code: bool = False
) -> LoadedClassifier:
    """Load a trained classifier: a `torch.nn.Module` in eval mode, from raw images to logits.

    `path`: the folder of a run, or of a pruned model. `member`: of a run, a student other than the leader.
    `checkpoint`: of a run, `last`, `best` or `step_N`; without it `best` where there is one, else `last`. `trust_code`:
    allows the module of a network of the user's own to be executed; nothing else that is loaded can execute code.

    The module takes images [N, C, H, W], uint8 or floating point in [0, 1], and has `classes`, `channels`, `size`,
    `architecture`, `member`, `read` (image files to such images) and more: see `LoadedClassifier`. Raises
    `distilkit.UserError` for what is not there, is damaged, or does not fit.
    """
    # Not before it is needed: `import distilkit` and the command line's help import no torch.
    from distilkit.workflows.deploy.load import load as loaded

    return loaded(path, member=member, checkpoint=checkpoint, trust_code=trust_code)


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "losses":
        value: Any = import_module("distilkit.methods.losses")
    elif name in _HOMES:
        value = getattr(import_module(f"distilkit.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module 'distilkit' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
