"""What run.json says of the deployed network beside the one that was trained, in words."""

from collections.abc import Mapping
from typing import Any


def describe(document: Mapping[str, Any]) -> str:
    """What run.json's `deployed_check` means, for people; empty where all is well."""
    if not document.get("lags"):
        return ""
    return (
        f"what is deployed has {document['deployed_error']:.1f} % error on {document['images']:,} training images, and "
        f"what was trained {document['trained_error']:.1f} % with each batch's own statistics: batch norm's running "
        "statistics, or the moving average, lag behind; set train.recalibrate = 2000, lower train.ema, or train longer"
    )
