"""Does the exported file compute what PyTorch computes? On real images, for every output, at several batch sizes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distilkit.errors import UserError
from distilkit.export.opened import OpenedFileError, fixed_batch, input_array, open_file
from distilkit.export.runtime import Device

MAX_TOLERANCE = 1e-3
"""No pair of logits may differ by more, whatever their size."""

MAX_HALF_TOLERANCE = 0.5
"""The same for files that compute in float16, whose neighbouring numbers lie 0.06 apart at 100."""

_RELATIVE_TOLERANCE = 1e-4
_RELATIVE_HALF_TOLERANCE = 1e-2
_BATCHES_OF_SMALLER_SIZES = 8


@dataclass(frozen=True)
class Parity:
    """How well a file agrees with PyTorch.

    `images`: distinct images compared. `max_abs_difference`: the largest over all outputs, images and batch sizes; NaN
    if either side computed one, infinite if the file gave no comparable output. `top1_agreement`: percent of
    comparisons in which both see the same class in the first output. `tolerance`: absolute. `reason`: why it did not
    pass, None if it passed.
    """

    batch_sizes: tuple[int, ...]
    images: int
    max_abs_difference: float
    top1_agreement: float
    tolerance: float
    passed: bool
    reason: str | None


def check_file(
    file: Path,
    reference: Callable[[Tensor], tuple[Tensor, ...]],
    images: Tensor,
    output_names: Sequence[str],
    batch_sizes: Sequence[int] = (1, 7, 32),
    tolerance: float | None = None,
    half: bool = False,
    device: Device = "cpu",
) -> Parity:
    """Compare every output of `file`, in its own runtime on `device`, with PyTorch's.

    `reference`: the module that was exported, in eval mode on the CPU. `images`: [N, C, H, W], or as that module takes
    them, uint8 or float in [0, 1]; both sides get the same numbers. The largest batch size covers all N images, the
    others up to eight batches; where a batch is not full, and N is less than the batch size or the file takes full
    batches alone, images are repeated.

    `tolerance` None: 1e-4 times the largest output in absolute value (at least 1), but no more than 1e-3. Rounding in
    float32 comes to less: measured on ten architectures with fresh weights the two differed by 1e-6 to 2e-5 of the
    largest logit, which is also how far PyTorch's float32 is from its own float64. A graph that is wrong is off by far
    more. (A network that itself amplifies rounding beyond 1e-3, such as an untrained ResNet-164, fails.) `half`, for a
    file that computes in float16: 1e-2 times the largest output, no more than 0.5; on a trained ResNet-8 the two
    differed by 6e-4 of the largest logit.

    A file passes if no difference exceeds the tolerance, nothing is NaN, and both see the same class in every image,
    except where PyTorch's own two best are closer than twice the tolerance.

    Raises `UserError` if the file does not exist or has other outputs, `ValueError` for arguments that make no sense.
    """
    if not len(images) or not batch_sizes or min(batch_sizes) < 1:
        raise ValueError("a comparison needs at least one image and positive batch sizes")
    relative, limit = (_RELATIVE_HALF_TOLERANCE, MAX_HALF_TOLERANCE) if half else (_RELATIVE_TOLERANCE, MAX_TOLERANCE)
    if tolerance is not None and not 0 < tolerance <= limit:
        raise ValueError(f"the tolerance must lie in (0, {limit:g}], not {tolerance:g}")

    def failed(reason: str) -> Parity:
        return Parity(tuple(batch_sizes), len(images), math.inf, 0.0, tolerance or limit, passed=False, reason=reason)

    try:
        opened = open_file(file, device=device)
    except OpenedFileError as error:
        return failed(str(error))
    names = list(output_names)
    if missing := [name for name in names if name not in opened.outputs]:
        raise UserError(f"{file} has no output {', '.join(missing)}; it has {', '.join(opened.outputs)}")

    pixels = input_array(opened, images)
    largest = max(batch_sizes)
    expected = _reference_outputs(reference, torch.from_numpy(pixels), largest)
    if len(expected) != len(names):
        raise ValueError(f"the reference has {len(expected)} outputs, not {', '.join(names)}")
    if tolerance is None:
        # fmax: a NaN is no scale.
        scale = float(np.fmax.reduce([1.0, *(np.abs(values).max() for values in expected)]))
        tolerance = min(limit, relative * scale)

    differences: list[float] = []
    same: list[NDArray[np.bool_]] = []
    close: list[NDArray[np.bool_]] = []
    ambiguous = _margins(expected[0]) < 2 * tolerance
    for batch_size in dict.fromkeys(batch_sizes):
        wanted = len(images) if batch_size == largest else min(len(images), batch_size * _BATCHES_OF_SMALLER_SIZES)
        if fixed_batch(opened) is not None:
            wanted = math.ceil(wanted / batch_size) * batch_size
        positions = np.arange(max(wanted, batch_size)) % len(images)
        for start in range(0, len(positions), batch_size):
            batch = positions[start : start + batch_size]
            try:
                actual = opened.run(names, pixels[batch])
            except OpenedFileError as error:
                return failed(str(error))
            for name, ours, theirs in zip(names, expected, actual, strict=True):
                if theirs.shape != ours[batch].shape:
                    return failed(f"output {name} has shape {list(theirs.shape)}, not {list(ours[batch].shape)}")
                with np.errstate(invalid="ignore"):  # infinity minus infinity: the NaN is the answer
                    differences.append(float(np.abs(ours[batch] - theirs.astype(np.float64)).max()))
            same.append(expected[0][batch].argmax(-1) == actual[0].argmax(-1))
            close.append(ambiguous[batch])

    worst = float(np.max(differences))  # NaN if one of them is
    same_class = np.concatenate(same)
    contradicted = int((~same_class & ~np.concatenate(close)).sum())
    if not math.isfinite(worst):
        reason = "an output is not finite"
    elif worst > tolerance:
        reason = f"outputs differ by {worst:.2g}, more than {tolerance:.2g}"
    elif contradicted:
        reason = f"{contradicted} images are given another class"
    else:
        reason = None
    return Parity(
        batch_sizes=tuple(batch_sizes),
        images=len(images),
        max_abs_difference=worst,
        top1_agreement=100 * float(same_class.mean()),
        tolerance=tolerance,
        passed=reason is None,
        reason=reason,
    )


def _reference_outputs(
    reference: Callable[[Tensor], tuple[Tensor, ...]], images: Tensor, batch_size: int
) -> list[NDArray[np.float64]]:
    with torch.inference_mode():
        batches = [reference(batch) for batch in torch.split(images, batch_size)]
    return [torch.cat(outputs).double().numpy() for outputs in zip(*batches, strict=True)]


def _margins(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far the largest of each image's logits lies above the second."""
    if logits.shape[-1] < 2:
        return np.full(logits.shape[:-1], math.inf)
    ordered = np.sort(logits, axis=-1)
    with np.errstate(invalid="ignore"):
        margins: NDArray[np.float64] = ordered[..., -1] - ordered[..., -2]
    return margins
