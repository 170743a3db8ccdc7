"""Checkpoints: complete folders of safetensors and JSON, named by small pointer files.

    checkpoints/step_N/  group.safetensors  method.safetensors  optimizer.safetensors  [raw.safetensors]  state.json
    checkpoints/last     the text "step_N"; `best` likewise

A folder is written beside its place, flushed, and renamed only when it is complete; after that the pointer is replaced
atomically. A process killed at any moment leaves the pointers on complete folders. `state.json` holds the SHA-256 of
every other file and of what it says itself, so that a damaged one is known before anything is loaded from it. No format
here can execute code.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from distilkit.errors import UserError, is_plain_file
from distilkit.models.weights import read_tensors
from distilkit.reading import UnreadableError, read_json
from distilkit.runs import layout as files

STATE = "state.json"
FORMAT = 1
_CHANGED = "its contents do not match their digest: it was cut short or changed"
LONGEST_POINTER = 200  # bytes
PARTS = ("group", "method", "optimizer", "raw", "average")
OPTIONAL = ("raw", "average")
# What an optimizer keeps for a parameter.
_ENTRIES: dict[type[torch.optim.Optimizer], set[str]] = {
    torch.optim.SGD: {"momentum_buffer"},
    torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"},
}


@dataclass(frozen=True)
class Checkpoint:
    """What a training needs to go on.

    `tensors`: by file. `group` and `method` are what is deployed; `optimizer` its state; with a moving average of the
    weights, or recalibrated batch norm, which is what is deployed then, `raw` holds the weights that train; with both
    `average` holds the average. `state`: where the run stands.
    """

    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def save(folder: Path, name: str, checkpoint: Checkpoint, pins: Mapping[str, str]) -> Path:
    """Write `folder/name` completely, then point `last` at it, and whichever of `pins` (pointer -> name) names it.

    Of the older ones the one that `last` named before stays, and those that a pointer names.

    Raises `UserError` when the folder cannot be written.
    """
    target, partial = folder / name, folder / f".partial-{name}"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        digests = {}
        for part, tensors in checkpoint.tensors.items():
            file = partial / f"{part}.safetensors"
            save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, file)
            # safetensors 0.8 leaves a file to its owner alone; who may read the folder may read what is in it.
            file.chmod(partial.stat().st_mode & 0o666)
            digests[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
            _flush(file)
        state = {"format": FORMAT, **checkpoint.state, "sha256": digests}
        state["digest"] = _digest(state)
        (partial / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
        _flush(partial / STATE)
        _flush(partial)
        if target.exists():
            # Only where an older, damaged one of this step is being replaced: nothing good is lost if we die here.
            shutil.rmtree(target)
        partial.rename(target)
        _flush(folder)
        before = pointed(folder, "last")
        point(folder, "last", name)
        for pointer in [pointer for pointer, target in pins.items() if target == name]:
            point(folder, pointer, name)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(
            f"the checkpoint {target} could not be written: {getattr(error, 'strerror', None) or error}",
            "free space or choose another folder with --runs; the checkpoints written before are intact",
        ) from error
    _remove_older(folder, name, before)
    return target


def point(folder: Path, pointer: str, name: str) -> None:
    """Let the pointer file `folder/pointer` name the checkpoint `name`, atomically."""
    partial = folder / f".partial-{pointer}"
    partial.write_text(name, encoding="utf-8")
    _flush(partial)
    partial.replace(folder / pointer)
    _flush(folder)


def repoint(folder: Path, pins: Mapping[str, str]) -> None:
    """Let every pointer name its checkpoint (pointer -> name), if that is still there, before a training goes on.

    A kill may have come between a checkpoint and its pointer, or the checkpoint that a pointer names be damaged.
    Raises `UserError` when the folder cannot be written.
    """
    try:
        for pointer, target in pins.items():
            if (folder / target).is_dir() and pointed(folder, pointer) != target:
                point(folder, pointer, target)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}", "make it writable first") from error


def pointed(folder: Path, pointer: str) -> str | None:
    """The name of the checkpoint that the pointer file names, or None where there is no such pointer."""
    file = folder / pointer
    if not is_plain_file(file):
        return None
    with file.open("rb") as content:  # of which no more than a name is looked at
        return content.read(LONGEST_POINTER).decode(errors="replace").strip()


def pointers(folder: Path) -> list[str]:
    """What is named in a folder: `last`, `best` where a validation split chooses, `cycle_1` and so on of snapshots."""
    if not folder.is_dir():
        return []
    found = [path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    return sorted(found, key=lambda name: (name.rstrip("0123456789"), len(name), name))


def names(folder: Path) -> list[str]:
    """The complete checkpoints of a folder, oldest first."""
    found = [path.name for path in folder.glob("step_*") if path.name.removeprefix("step_").isdecimal()]
    return sorted(found, key=lambda name: int(name.removeprefix("step_")))


def load(path: Path) -> Checkpoint:
    """Read a checkpoint folder after checking every digest. Raises `UserError` naming the damaged or missing file."""
    state = load_state(path)
    if not _is_whole(state):
        raise _damaged(path / STATE, "it does not say where the training stands")
    parts = [part for part in PARTS if part not in OPTIONAL or f"{part}.safetensors" in state["sha256"]]
    return Checkpoint({part: _load_tensors(path, f"{part}.safetensors", state) for part in parts}, state)


def load_part(path: Path, part: str) -> dict[str, Tensor]:
    """The tensors of one file of a checkpoint: "group", say. Raises `UserError` like `load`."""
    return _load_tensors(path, f"{part}.safetensors", load_state(path))


def has_part(path: Path, part: str) -> bool:
    """Whether a checkpoint has this file: "raw" and "average" are not in every one."""
    return is_plain_file(path / f"{part}.safetensors")


def load_state(path: Path) -> dict[str, Any]:
    """A checkpoint's `state.json`. Raises `UserError` when it is missing, damaged or of a newer format."""
    file = path / STATE
    try:
        state = read_json(file)
    except UnreadableError as error:
        if error.absent:
            raise UserError(f"there is no checkpoint {path}", _other(path)) from None
        raise _damaged(file, error.reason) from error
    if not isinstance(state, dict) or not isinstance(state.get("sha256"), dict):
        raise _damaged(file, "it is not a checkpoint's state")
    pins = state.get("pins", {})
    if not isinstance(pins, dict) or not all(_is_pin(pointer, target) for pointer, target in pins.items()):
        raise _damaged(file, "it names checkpoints in a way that distilkit does not")
    if state.get("format") != FORMAT:
        raise UserError(
            f"{file} {files.other_format(state)}; this distilkit reads {FORMAT}", "update distilkit to read it"
        )
    if state.pop("digest", None) != _digest(state):
        raise _damaged(file, _CHANGED)
    return state


def _digest(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _is_whole(state: Mapping[str, Any]) -> bool:
    """Whether a training can go on from a state that has its digest, which a stranger can make too."""

    def figures(table: object) -> bool:
        return isinstance(table, dict) and all(type(value) in (int, float) for value in table.values())

    step, per_epoch, scaler = state.get("step"), state.get("steps_per_epoch"), state.get("scaler")
    counts = type(step) is int and type(per_epoch) is int and 0 <= step < 10**15 and 0 < per_epoch < 10**15
    parts = figures(state.get("sums")) and figures(state.get("best")) and (scaler is None or isinstance(scaler, dict))
    averaged = "raw.safetensors" not in state["sha256"] or type(state.get("averaged_steps")) is int
    return counts and parts and averaged


def _is_pin(pointer: object, target: object) -> bool:
    """Whether a pointer's name and what it names are ours: a run may come from a stranger, and both become paths."""
    return bool(re.fullmatch(r"best|cycle_[0-9]{1,3}", str(pointer)) and re.fullmatch(r"step_[0-9]{1,18}", str(target)))


def _load_tensors(path: Path, name: str, state: Mapping[str, Any]) -> dict[str, Tensor]:
    file = path / name
    try:
        # Before its digest: a terabyte of zeros takes no room on a disk, and the head says how long it must be.
        tensors = read_tensors(file)
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise _damaged(file, error.strerror or str(error)) from error
    except SafetensorError as error:
        raise _damaged(file, _CHANGED) from error
    if digest != state["sha256"].get(name):
        raise _damaged(file, _CHANGED)
    return tensors


def _damaged(file: Path, why: str) -> UserError:
    return UserError(f"the checkpoint file {file} is damaged: {why}", _other(file.parent))


def _other(path: Path) -> str | None:
    others = [name for name in names(path.parent) if name != path.name]
    return f"whole ones may be: {', '.join(others)} (--checkpoint NAME)" if others else None


def _flush(path: Path) -> None:
    """Have the operating system write a file or a folder's entries to the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folder, and keeps its entries by itself
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)  # and flushes only what may be written
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_older(folder: Path, newest: str, before: str | None) -> None:
    # What lies between `before` and the newest is damaged: the training passed it over when it was resumed.
    spared = {before, *(pointed(folder, pointer) for pointer in pointers(folder))}
    every = names(folder)
    for name in every[: every.index(newest)]:
        if name not in spared:
            shutil.rmtree(folder / name, ignore_errors=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameter_names: Mapping[Tensor, str]) -> dict[str, Tensor]:
    """An optimizer's state as named tensors: "group.trunk.conv1.weight/momentum_buffer"."""
    return {
        f"{parameter_names[parameter]}/{key}": torch.as_tensor(value)
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
        if value is not None
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], parameter_names: Mapping[Tensor, str]
) -> None:
    """Put `optimizer_tensors` back, by parameter name. Hyper-parameters are the recipe's and stay as they are.

    Raises `UserError` if they are another optimizer's.
    """
    foreign = {key.rpartition("/")[2] for key in tensors} - _ENTRIES[type(optimizer)]
    if foreign:
        raise UserError(
            f"the checkpoint's optimizer keeps {', '.join(sorted(foreign))}, which {type(optimizer).__name__} does not",
            "resume with the optimizer that the run began with",
        )
    by_name = {name: parameter for parameter, name in parameter_names.items()}
    parts = [(key, *key.rpartition("/")[::2], tensor) for key, tensor in tensors.items()]
    misfits = [key for key, name, _, tensor in parts if name not in by_name]
    misfits += [
        key
        for key, name, entry, tensor in parts
        if name in by_name and tensor.shape != (() if entry == "step" else by_name[name].shape)
    ]
    if misfits:
        more = f" and {len(misfits) - 5} more" if len(misfits) > 5 else ""
        raise UserError(
            f"the checkpoint's optimizer keeps what fits no parameter: {', '.join(sorted(misfits)[:5])}{more}",
            "resume with the model and the group that the run began with",
        )
    packed: dict[int, dict[str, Tensor]] = {}
    order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    index: dict[Tensor, int] = {parameter: i for i, parameter in enumerate(order)}
    for key, tensor in tensors.items():
        name, _, entry = key.rpartition("/")
        parameter = by_name[name]
        if tensor.shape == parameter.shape:
            # In the parameter's own memory layout: fused kernels walk through both by address.
            tensor = torch.empty_like(parameter, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
        packed.setdefault(index[parameter], {})[entry] = tensor
    # load_state_dict casts to each parameter's device and dtype, and leaves Adam's step counters as they need to be.
    optimizer.load_state_dict({"state": packed, "param_groups": optimizer.state_dict()["param_groups"]})
