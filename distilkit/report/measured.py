"""What other commands left beside a run: robustness curves, exported files, latencies. Absent or damaged is a reason.

Everything here may have been written by a stranger: it is checked before any of it is drawn.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from distilkit.errors import UserError
from distilkit.reading import LARGEST_MEASURED, UnreadableError, read_json, read_json_bytes
from distilkit.runs.run import Run

Percent = FiniteFloat | None


class _Read(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class ReliabilityBin(_Read):
    """See `analysis.metrics.ReliabilityBin`."""

    images: Annotated[int, Field(ge=0)]
    confidence: Percent
    accuracy: Percent


class TestedClassifier(_Read):
    """One classifier on the test images. `confusion`: (class, taken for, images), those that are not 0."""

    top1_error: FiniteFloat
    top5_error: FiniteFloat
    cross_entropy: Percent
    calibration_error: Percent
    per_class_error: list[Percent]
    confusion: list[tuple[int, int, int]]
    reliability: list[ReliabilityBin]


class TestedRun(_Read):
    """A run's classifiers on the test images, and what they depend on: `weights` is a checkpoint's digest."""

    format: Literal[1] = 1
    weights: str
    images: int
    fingerprint: str | None
    same_data: bool
    data_root: str | None
    classifiers: dict[str, TestedClassifier]

    def fits(self, names: Iterable[str], classes: int) -> bool:
        """Whether these are the figures of such a run: all its classifiers, all its classes."""
        return set(names) == set(self.classifiers) and all(
            len(tested.per_class_error) == classes
            and all(0 <= row < classes and 0 <= column < classes for row, column, _ in tested.confusion)
            for tested in self.classifiers.values()
        )


class InputErrors(_Read):
    """Top-1 test errors of perturbed images, percent, by kind and severity; `clean`: of the images as they are."""

    clean: FiniteFloat
    errors: dict[str, list[Percent]]


class _Settings(_Read):
    statistics: str
    directions_kind: str
    images: int
    seed: int


class Robustness(_Read):
    """One model's curves, see `workflows.robustness`; `curves` and `cross_entropy` by split, direction, magnitude."""

    run: str
    member: str
    magnitudes: list[FiniteFloat] = []
    curves: dict[str, list[list[Percent]]] = {}
    cross_entropy: dict[str, list[list[Percent]]] = {}
    inputs: InputErrors | None = None
    settings: _Settings | None = None

    @model_validator(mode="after")
    def _every_curve_has_every_magnitude(self) -> Self:
        for kind in (self.curves, self.cross_entropy):
            for split, curves in kind.items():
                if any(len(curve) != len(self.magnitudes) for curve in curves):
                    raise ValueError(f"a {split} curve has not one value for each magnitude")
        return self

    @property
    def conditions(self) -> str:
        """How it was measured, in words; curves under different conditions do not compare."""
        found = self.settings
        return (
            ""
            if found is None
            else (
                f"{found.images:,} images, {found.directions_kind} directions, batch norm statistics {found.statistics}"
            )
        )


class _RobustnessFile(_Read):
    settings: _Settings
    runs: list[Robustness]


def robustness_of(runs: Sequence[Run]) -> tuple[dict[Path, Robustness], dict[Path, str]]:
    """The deployed model's curves, by run, from all `robustness/*.json` of these runs; and what could not be read.

    One file may hold the curves of several runs; a file that holds those of a single one belongs to its folder, even
    if the folder was renamed. Of several for one run the newest counts.
    """
    files = sorted((file for run in runs for file in (run.path / "robustness").glob("*.json")), key=_written)
    by_name = Counter(run.path.name for run in runs)
    found: dict[Path, Robustness] = {}
    damaged: dict[Path, str] = {}
    for file in files:
        try:
            read = _RobustnessFile.model_validate_json(read_json_bytes(file, LARGEST_MEASURED))
        except (UnreadableError, ValidationError):
            damaged[file.parent.parent] = f"robustness/{file.name} is damaged"
            continue
        for entry in read.runs:
            for run in runs:
                named = Path(entry.run).name == run.path.name and by_name[run.path.name] == 1
                here = file.parent.parent == run.path and len(read.runs) == 1
                if (named or here) and entry.member == run.record["leader"]:
                    found[run.path] = entry.model_copy(update={"settings": read.settings})
    return found, damaged


def _written(file: Path) -> float:
    """When a file was written; first of all what cannot be looked at, as a link that leads nowhere."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


@dataclass(frozen=True)
class Exported:
    """An exported file and its size."""

    file: Path
    bytes: int


def exported(run: Run, stem: str) -> Exported | None:
    """The ONNX file of one deployable classifier, if it was exported and passed its checks."""
    file = run.path / "exports" / f"{stem}.onnx"
    return Exported(file, file.stat().st_size) if file.is_file() else None


@dataclass(frozen=True)
class Latencies:
    """Medians of one image in ONNX Runtime on one thread, milliseconds, from `distilkit benchmark --json`.

    `machine`: where, in words.
    """

    medians: Mapping[tuple[str, str, str], float]
    machine: str

    def of(self, file: Path) -> float | None:
        """Of a run's exported file; None where it was not timed."""
        return self.medians.get((file.parent.parent.name, file.parent.name, file.name))


def _milliseconds(value: object) -> float:
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{value!r} is no time")
    return float(value)


def latencies(file: Path) -> Latencies:
    """Read what `distilkit benchmark --json` printed. Raises `UserError` for anything else."""
    hint = "write one with: distilkit benchmark RUN... --json > latency.json"
    try:
        document: Any = read_json(file, LARGEST_MEASURED)
        medians = {}
        for entry in document["results"]:
            if entry["kind"] == "onnxruntime" and entry["batch"] == 1 and entry["threads"] == 1:
                place = Path(str(entry["name"]).removesuffix(" (not kept)"))
                medians[(place.parent.parent.name, place.parent.name, place.name)] = _milliseconds(entry["median_ms"])
        cores = document.get("machine", {}).get("cores")
        described = f"{cores} cores" if isinstance(cores, int) else "unknown cores"
    except UnreadableError as error:
        raise UserError(error.problem, hint) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is not what distilkit benchmark --json prints", hint) from error
    if not medians:
        raise UserError(
            f"{file} has no time of a single image on one thread in ONNX Runtime", f"{hint} (--batch 1 --threads 1)"
        )
    return Latencies(medians, described)
