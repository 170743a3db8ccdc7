"""When two runs count as the same training, and ways to break one off."""

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from distilkit.observer import Observer
from distilkit.runs.run import Run

TIMING = ("seconds", "images_per_second")


def tensors(checkpoint: Path) -> dict[str, Tensor]:
    """Everything in a checkpoint: "group/trunk.conv1.weight", "optimizer/...", and so on."""
    return {
        f"{file.stem}/{key}": tensor
        for file in sorted(checkpoint.glob("*.safetensors"))
        for key, tensor in load_file(file).items()
    }


def untimed(line: Mapping[str, Any]) -> dict[str, Any]:
    """An epoch's line, or final figures, without what a clock measured."""
    return {key: value for key, value in line.items() if key not in TIMING}


def assert_same_run(first: Path, second: Path) -> None:
    """Bit for bit: weights, their average, optimizer, gradient scaler, sums, metrics, final figures, pointers."""
    ours, theirs = Run.open(first), Run.open(second)
    for pointer in ("last", "best"):
        folders = [run.checkpoints / pointer for run in (ours, theirs)]
        names = [folder.read_text() if folder.exists() else None for folder in folders]
        assert names[0] == names[1], f"{pointer}: {names}"
        if names[0] is None:
            continue
        one, other = (tensors(run.checkpoint(pointer)) for run in (ours, theirs))
        assert one.keys() == other.keys()
        different = [key for key in one if not torch.equal(one[key], other[key])]
        assert not different, f"{pointer}: {len(different)} of {len(one)} tensors differ, for one {different[0]}"
        states = [json.loads((run.checkpoint(pointer) / "state.json").read_text()) for run in (ours, theirs)]
        assert states[0] == states[1], pointer
    assert [untimed(line) for line in ours.metrics()] == [untimed(line) for line in theirs.metrics()]
    assert ours.record["state"] == theirs.record["state"]
    assert untimed(ours.record.get("final", {})) == untimed(theirs.record.get("final", {}))


def largest_difference(first: Path, second: Path, part: str = "group") -> float:
    """Over all tensors of one file of the newest checkpoints of two runs, in absolute value."""
    one, other = (load_file(Run.open(run).checkpoint("last") / f"{part}.safetensors") for run in (first, second))
    assert one.keys() == other.keys()
    return max(float((one[key].double() - other[key].double()).abs().max()) for key in one)


class StopAt(Observer):
    """Sends this process a signal when a certain step (from 1) of a certain epoch (from 1) is done."""

    def __init__(self, epoch: int, step: int, signum: int = signal.SIGINT) -> None:
        self.epoch, self.step, self.signum = epoch, step, signum

    def steps_finished(self, epoch: int, step_in_epoch: int, losses: Mapping[str, float]) -> None:
        if (epoch, step_in_epoch) == (self.epoch, self.step):
            signal.raise_signal(self.signum)


class Crash(Exception):  # noqa: N818 - it stands for a death
    """As a death of the process, but survived by the test."""


class CrashAt(StopAt):
    """Ends a training at a certain step without leaving it time to save."""

    def steps_finished(self, epoch: int, step_in_epoch: int, losses: Mapping[str, float]) -> None:
        if (epoch, step_in_epoch) == (self.epoch, self.step):
            raise Crash


class Notes(Observer):
    """Keeps what was told to people."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)
