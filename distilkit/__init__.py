"""Online knowledge distillation of image classifiers, from a recipe to a checked ONNX file."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from distilkit.workflows.load import LoadedClassifier

__all__ = ["load"]
__version__ = "0.1.0.dev0"


def load(
    path: Path | str, *, member: str | None = None, checkpoint: str | None = None, trust_code: bool = False
) -> LoadedClassifier:
    """Load a trained classifier: a `torch.nn.Module` in eval mode, from raw images to logits.

    `path`: the folder of a run, or of a pruned model. `member`: of a run, a student other than the leader.
    `checkpoint`: of a run, `last`, `best` or `step_N`; without it `best` where there is one, else `last`. `trust_code`:
    allows the module of a network of the user's own to be executed; nothing else that is loaded can execute code.

    The module takes images [N, C, H, W], uint8 or floating point in [0, 1], and has `classes`, `channels`, `size`,
    `architecture`, `member`, `read` (image files to such images) and more: see `LoadedClassifier`. Raises
    `distilkit.errors.UserError` for what is not there, is damaged, or does not fit.
    """
    # Not before it is needed: `import distilkit` and the command line's help import no torch.
    from distilkit.workflows.load import load as loaded

    return loaded(path, member=member, checkpoint=checkpoint, trust_code=trust_code)
