"""`train.compile`: the learner's losses through `torch.compile`, and what to say where that cannot be."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from distilkit.errors import SettingError, first_line
from distilkit.learners.learner import Learner
from distilkit.recipe import Recipe, placed

BACKEND = "inductor"


def check(recipe: Recipe, device: torch.device) -> None:
    """Raise `UserError` if the recipe wants compiled code and there is none to be had on this device.

    Compiles a sum, which takes seconds where the training's own compilation takes minutes.
    """
    with failures_named(recipe):
        if recipe.train.compile:
            torch.compile(torch.sum, backend=BACKEND)(torch.zeros(2, device=device))


def compile_losses(learner: Learner) -> None:
    """Replace the learner's forward pass by a compiled one, in place; weights keep their names.

    One graph, without breaks; a batch of another size, an epoch's last, is another graph.
    """
    # A second training in this process is other code, and there is a limit to how much of it is kept.
    torch.compiler.reset()
    learner.forward = torch.compile(  # type: ignore[method-assign]
        learner.forward, backend=BACKEND, fullgraph=True, dynamic=False
    )


@contextmanager
def failures_named(recipe: Recipe) -> Iterator[None]:
    """Turn a compiler's failure inside the block into a fault of "train.compile"."""
    if not recipe.train.compile:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException

    with placed(recipe):
        try:
            yield
        except TorchDynamoException as error:
            problem = f"torch.compile cannot compile this here: {first_line(error)}"
            raise SettingError(
                "train.compile",
                problem,
                "install a C++ compiler (on CUDA devices Triton too), or leave train.compile out",
            ) from error
