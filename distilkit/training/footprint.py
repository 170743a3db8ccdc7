"""What a checkpoint takes on the disk, known before there is one."""

import torch
from torch import Tensor

from distilkit.analysis.cost import file_bytes
from distilkit.learners.learner import Learner
from distilkit.recipe import Recipe
from distilkit.recipe.sections import SgdSection


def checkpoint_bytes(recipe: Recipe, learner: Learner) -> int:
    """Size of a checkpoint's safetensors files after the first step, to the byte.

    Weights and buffers of group and method, the optimizer's state, and with a moving average the weights that train.
    `state.json`, some kilobytes, comes on top.
    """
    parts = [learner.group.state_dict(), learner.method.state_dict(), _optimizer_state(recipe, learner)]
    # The weights that train, where others are deployed; and the average, where it is recalibrated.
    parts += [learner.state_dict()] * (bool(recipe.train.ema) + bool(recipe.train.recalibrate))
    return sum(file_bytes(part) for part in parts)


def _optimizer_state(recipe: Recipe, learner: Learner) -> dict[str, Tensor]:
    section = recipe.optimizer
    if isinstance(section, SgdSection):
        like_parameter, scalars = (["momentum_buffer"] if section.momentum else []), []
    else:
        like_parameter, scalars = ["exp_avg", "exp_avg_sq"], ["step"]
    step = torch.zeros(())
    trained = [(name, parameter) for name, parameter in learner.named_parameters() if parameter.requires_grad]
    return {
        **{f"{name}/{key}": parameter for name, parameter in trained for key in like_parameter},
        **{f"{name}/{key}": step for name, _ in trained for key in scalars},
    }
