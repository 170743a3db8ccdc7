"""One name for the weights that a folder or a file holds: the SHA-256 of the file that they lie in."""

import hashlib
from pathlib import Path

from distilkit.errors import UserError, is_plain_file
from distilkit.runs import checkpoint as checkpoints
from distilkit.runs.run import PrunedModel, find


def weights_digest(path: Path) -> str | None:
    """Of a file of weights, of a pruned model, or of what a run deploys; None where there are none."""
    try:
        if not path.is_dir():
            if not is_plain_file(path):
                return None
            with path.open("rb") as content:
                return hashlib.file_digest(content, "sha256").hexdigest()
        found = find(path, path.parent)
        if isinstance(found, PrunedModel):
            return str(found.config.get("sha256"))
        return str(checkpoints.load_state(found.checkpoint())["sha256"].get("group.safetensors"))
    except (OSError, UserError):
        return None
