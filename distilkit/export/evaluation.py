"""The error of a deployed file on test images, in its own runtime."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from distilkit.analysis.metrics import Evaluation, evaluate_logits
from distilkit.data.datasets import Split
from distilkit.export.form import Form
from distilkit.export.opened import fixed_batch, input_array, open_file
from distilkit.export.runtime import Device

BATCH = 250
"""Images at a time, for files that leave it open."""


def evaluate_file(
    file: Path,
    test: Split,
    form: Form,
    progress: Callable[[int, int], None],
    places_M: Tensor | None = None,
    device: Device = "cpu",
) -> Evaluation:
    """Evaluate a file on the images of a split, which it takes in `form`; `progress`: images done, images in all.

    `places_M`: of the images that count, int64; None: all. Raises as `open_file`.
    """
    opened = open_file(file, device=device)
    batch = fixed_batch(opened)
    labels = test.labels if places_M is None else test.labels[places_M]
    parts = []
    for start in range(0, len(labels), batch or BATCH):
        chosen = slice(start, start + (batch or BATCH))
        images = test.images[chosen if places_M is None else places_M[chosen]]
        count = len(images)
        if batch is not None and count < batch:
            images = torch.cat([images, images.new_zeros(batch - count, *images.shape[1:])])
        (logits,) = opened.run(["logits"], input_array(opened, form.arrange(images)))
        parts.append(torch.from_numpy(logits[:count]))
        progress(start + count, len(labels))
    return evaluate_logits(torch.cat(parts), labels)
