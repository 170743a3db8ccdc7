"""The part of `distilkit export` that makes an 8-bit file of a checked one, and judges whether it was worth it."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from distilkit.data.datasets import Split
from distilkit.errors import UserError
from distilkit.export.evaluation import evaluate_file
from distilkit.export.form import Form
from distilkit.export.latency import interleaved_latency, is_busy, machine
from distilkit.export.quantize import (
    Calibration,
    Scheme,
    drawn_over_classes,
    has_integer_dot_products,
    quantize_dynamic,
    quantize_static,
)
from distilkit.observer import Observer

CALIBRATION_IMAGES = 512
LATENCY_BATCH_SIZES = (1, 32)
BUSY = "warning: this machine is busy with other things; the times are longer than it needs, and less certain"


@dataclass(frozen=True)
class Quantization:
    """What is asked for.

    `calibration`, `calibration_images`: of the static scheme, None for the defaults (min-max, 512). `max_drop`: points
    by which the top-1 test error may rise; `min_speedup`: how many times as fast the file must be; None: not checked.
    `speedup_batch`: the batch size at which that counts; None: every one that is timed, 1 and 32 or the file's own.
    `reduce_range`: weights of seven bits, None where this CPU needs it.
    """

    scheme: Scheme
    calibration: Calibration | None = None
    calibration_images: int | None = None
    max_drop: float | None = None
    min_speedup: float | None = None
    reduce_range: bool | None = None
    speedup_batch: int | None = None

    def check(self, batch: int | None = None) -> None:
        """Raise `UserError` that names the option at fault; `batch`: the only size that the file takes."""
        if self.scheme == "dynamic" and (self.calibration is not None or self.calibration_images is not None):
            raise UserError("--quantize dynamic is not calibrated", "leave --calibration and --calibration-images out")
        if self.max_drop is not None and not (math.isfinite(self.max_drop) and self.max_drop >= 0):
            raise UserError(f"--max-drop must be a number of points, 0 or more, not {self.max_drop}", "--max-drop 0.5")
        if self.min_speedup is not None and not (math.isfinite(self.min_speedup) and self.min_speedup > 0):
            raise UserError(f"--min-speedup must be a factor above 0, not {self.min_speedup}", "--min-speedup 1.2")
        if self.speedup_batch is not None and self.min_speedup is None:
            raise UserError("--speedup-batch says where --min-speedup counts", "add --min-speedup 1.2")
        if self.speedup_batch is not None and batch not in (None, self.speedup_batch):
            raise UserError(
                f"--speedup-batch {self.speedup_batch} cannot be timed: with --batch {batch} the file takes no other",
                "leave --speedup-batch out",
            )

    def batches(self, batch: int | None) -> tuple[int, ...]:
        """Those that are timed; `batch`: the only size that the file takes."""
        if batch is not None:
            return (batch,)
        return tuple(sorted({*LATENCY_BATCH_SIZES, *([self.speedup_batch] if self.speedup_batch else [])}))


def quantize(
    file: Path,
    asked: Quantization,
    *,
    train: Split,
    test: Split,
    seed: int,
    form: Form,
    observer: Observer,
) -> dict[str, Any]:
    """Quantise `file` into `<name>-<scheme>` beside it and compare the two on every test image and in one timing.

    `file` stays as it is. Where a check fails, the quantised file's name says so, and `passed` is False.
    """
    vnni = has_integer_dot_products()
    reduce_range = not vnni if asked.reduce_range is None else asked.reduce_range
    target = file.with_name(f"{file.stem}-{asked.scheme}{file.suffix}")
    unchecked, failed = (target.with_name(f"{target.stem}.{word}{target.suffix}") for word in ("unchecked", "failed"))
    result: dict[str, Any] = {"scheme": asked.scheme, "reduce_range": reduce_range, "integer_dot_products": vnni}
    try:
        if asked.scheme == "int8":
            calibration = asked.calibration or "minmax"
            chosen = drawn_over_classes(train.labels, asked.calibration_images or CALIBRATION_IMAGES, seed)
            images = calibration_images(train, chosen)
            observer.note(f"quantising to 8 bits, calibrating ({calibration}) on {len(images)} training images")
            arranged = form.arrange(images)
            quantize_static(file, unchecked, arranged, {}, calibration=calibration, reduce_range=reduce_range)
            result |= {"calibration": calibration, "calibration_images": len(images)}
        else:
            observer.note("quantising the weights to 8 bits")
            quantize_dynamic(file, unchecked, {}, reduce_range=reduce_range)
            result |= {"calibration": None, "calibration_images": 0}
        observer.note(f"comparing both files on {len(test.labels)} test images")
        sides = {
            name: _judged(path, test, form, f"test images, {name}", observer)
            for name, path in (("before", file), ("after", unchecked))
        }
        observer.note("timing both files, in turn")
        around = machine()
        if is_busy(around):
            observer.note(BUSY)
        batches = asked.batches(form.batch)
        latency = interleaved_latency({"before": file, "after": unchecked}, batches)
        for name, side in sides.items():
            side["latency_ms"] = {f"batch_{batch}": dict(times) for batch, times in latency[name].items()}
        speedup = {
            f"batch_{batch}": latency["before"][batch]["median_ms"] / latency["after"][batch]["median_ms"]
            for batch in batches
        }
        drop = sides["after"]["top1_error"] - sides["before"]["top1_error"]
        checks = _checks(asked, drop, speedup)
        passed = all(check["passed"] for check in checks)
        if not passed:
            target = failed
        else:
            failed.unlink(missing_ok=True)
        unchecked.replace(target)
        sides["after"]["file"] = str(target)
    finally:
        unchecked.unlink(missing_ok=True)
    return {
        **result,
        "file": str(target),
        "images": len(test.labels),
        **sides,
        "bytes_ratio": sides["after"]["bytes"] / sides["before"]["bytes"],
        "drop": drop,
        "speedup": speedup,
        "machine": dict(around),
        "slower_at": [batch for batch, factor in speedup.items() if factor < 1],
        "checks": checks,
        "passed": passed,
        "reason": "; ".join(check["message"] for check in checks if not check["passed"]) or None,
    }


def calibration_images(train: Split, chosen: Tensor) -> Tensor:
    """The images at these places of the training set, as they are: uint8 [N, C, H, W]."""
    return train.images[chosen]


def _judged(file: Path, test: Split, form: Form, what: str, observer: Observer) -> dict[str, Any]:
    figures = evaluate_file(file, test, form, lambda done, total: observer.progress(what, done, total))
    return {
        "file": str(file),
        "bytes": file.stat().st_size,
        "top1_error": figures.top1_error,
        "interval95": list(figures.interval95),
    }


def _checks(asked: Quantization, drop: float, speedup: dict[str, float]) -> list[dict[str, Any]]:
    checks: list[dict[str, Any]] = []
    if asked.max_drop is not None:
        checks.append(
            {
                "kind": "drop",
                "max_drop": asked.max_drop,
                "drop": drop,
                "message": f"the test error rises by {drop:.2f} points ({asked.max_drop:g} are allowed)",
                "passed": drop <= asked.max_drop,
            }
        )
    if asked.min_speedup is not None:
        only = asked.speedup_batch
        counted = speedup if only is None else {f"batch_{only}": speedup[f"batch_{only}"]}
        batch, worst = min(counted.items(), key=lambda item: item[1])
        checks.append(
            {
                "kind": "speedup",
                "min_speedup": asked.min_speedup,
                "batches": list(counted),
                "speedup": worst,
                "message": f"it is {worst:.2f} times as fast at {batch.replace('_', ' ')} on this machine "
                f"({asked.min_speedup:g} is wanted)",
                "passed": worst >= asked.min_speedup,
            }
        )
    return checks
