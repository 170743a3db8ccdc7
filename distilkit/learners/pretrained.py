"""Weights from a file, for a training to start from, and for a teacher."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from distilkit.errors import SettingError, UserError, is_plain_file, require_plain_file
from distilkit.groups.group import Group
from distilkit.memory import free_memory
from distilkit.models.weights import read_tensors
from distilkit.reading import opened_archive

KEY = "model.pretrained"
_SHOWN_DIFFERENCES = 10
_SAVE_ALONE = "save the state dict alone, best with safetensors.torch.save_file"

# What published weight files have and networks without auxiliary heads have not (GoogLeNet, Inception).
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
# torchvision's published DenseNets bear their layers' names of before 2018: "norm.1.weight" for "norm1.weight".
_DENSENET_OF_OLD = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")


def read_weights(file: Path) -> dict[str, Tensor]:
    """Tensors of a `.safetensors` file, or of a state dict in any other (`.pth`, `.pt`); nothing in it is executed.

    What published files have around a network's own names is taken away: a "state_dict" or "model" that holds all, a
    "module." before every name, auxiliary heads, DenseNet's names of old. Raises `UserError` when the file is missing,
    damaged, or anything else than names and tensors.
    """
    if not is_plain_file(file):
        what = "are a folder" if file.is_dir() else "are no plain file" if file.exists() else "are not there"
        raise UserError(f"the weights {file} {what}", "name a .safetensors file, or a state dict's .pth")
    state = _safetensors(file) if file.suffix == ".safetensors" else _state_dict(file)
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return {
        _DENSENET_OF_OLD.sub(r"\1\2", name): value for name, value in state.items() if not name.startswith(_AUXILIARY)
    }


def start_from(group: Group, file: Path) -> dict[str, Any]:
    """Have every member of a freshly built `group` start from the weights in `file`, whose names are the backbone's.

    All weights must fit but those of the classifier, the last linear layer. Of a group of several it starts fresh in
    every member, since students with equal weights would stay equal; of a single network, if the file's has another
    shape or there is none.

    Returns what a run remembers of it: the file, its SHA-256, and whether the classifier is "fresh" or "loaded". Raises
    `SettingError` on "model.pretrained" listing what does not fit, and then has changed nothing.
    """
    try:
        state = read_weights(file)
    except UserError as error:
        raise SettingError(KEY, error.problem, error.hint) from error
    single = len(group.members) == 1
    classifier = "fresh"
    for name in group.members:
        _check_fit(file, state, group.member_state_dict(name), group.head(name))
    for name in group.members:
        own, head = group.member_state_dict(name), f"{group.head(name)}."
        heads = {key for key in own if key.startswith(head)}
        if single and all(key in state and state[key].shape == own[key].shape for key in heads):
            classifier, heads = "loaded", set()
        with torch.no_grad():
            for key, tensor in own.items():
                if key not in heads and key in state:
                    tensor.copy_(state[key])
    with file.open("rb") as contents:
        digest = hashlib.file_digest(contents, "sha256").hexdigest()
    return {"file": str(file), "sha256": digest, "classifier": classifier}


def _check_fit(file: Path, state: Mapping[str, Tensor], own: Mapping[str, Tensor], head: str) -> None:
    def needed(keys: Iterable[str]) -> list[str]:
        return [key for key in keys if not key.startswith(f"{head}.")]

    other = needed(key for key in own if key in state and state[key].shape != own[key].shape)
    faults = [
        # Batch norm counts its batches since PyTorch 0.4.1; older files do not know how many there were.
        *(f"missing {key}" for key in needed(own) if key not in state and not key.endswith("num_batches_tracked")),
        *(f"unexpected {key}" for key in needed(state) if key not in own),
        *(f"{key} is {list(state[key].shape)} instead of {list(own[key].shape)}" for key in other),
        *(
            f"{key} is {str(state[key].dtype).removeprefix('torch.')}, which holds no weights"
            for key in needed(key for key in own if key in state and own[key].is_floating_point())
            if not _holds_weights(state[key].dtype)
        ),
        # Of those that fit: another may have more numbers than there is memory.
        *(
            f"{key} is not all finite numbers"
            for key in needed(key for key in own if key in state and state[key].shape == own[key].shape)
            if _holds_weights(state[key].dtype) and not state[key].isfinite().all()
        ),
    ]
    if not faults:
        return
    hint = "name the weights of this very architecture"
    stem = next((key for key in other if own[key].dim() == 4), None)
    if stem is not None and _differ_in_channels(state[stem], own[stem]):
        theirs, ours = state[stem].shape[1], own[stem].shape[1]
        hint = (
            f"the file's network takes images of {theirs} channels, the data have {ours}: choose weights for "
            f"{ours}, or leave pretrained out"
        )
    more = f"; and {len(faults) - _SHOWN_DIFFERENCES} more" if len(faults) > _SHOWN_DIFFERENCES else ""
    raise SettingError(
        KEY,
        f"the weights {file} do not fit the architecture: {'; '.join(faults[:_SHOWN_DIFFERENCES])}{more}",
        hint,
    )


def _holds_weights(dtype: torch.dtype) -> bool:
    # Eight bits need a scale beside them, and PyTorch can hardly compute with them.
    return dtype.is_floating_point and dtype.itemsize > 1


def _differ_in_channels(theirs: Tensor, ours: Tensor) -> bool:
    return theirs.dim() == 4 and theirs.shape[0] == ours.shape[0] and theirs.shape[2:] == ours.shape[2:]


def _safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return read_tensors(file)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"the weights {file} cannot be read: {reason}", "the file is damaged; fetch it again"
        ) from error


def _state_dict(file: Path) -> dict[str, Tensor]:
    try:
        _require_unpacked(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch's unpickler refuses in many ways what could execute code, and reads damaged files in as many.
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise UserError(
            f"the weights {file} cannot be read without executing what is in them: {reason}", _SAVE_ALONE
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(map(_is_plain, state.values())):
        raise UserError(f"the weights {file} are not a state dict: names and plain tensors, nothing else", _SAVE_ALONE)
    return {str(name): value for name, value in state.items()}


def _is_plain(value: object) -> bool:
    """Whether it is a tensor as networks have them: neither sparse nor nested, nor without numbers ("meta")."""
    if not isinstance(value, Tensor) or value.is_nested:
        return False
    return value.layout == torch.strided and value.device.type == "cpu"


def _require_unpacked(file: Path) -> None:
    """Raise an error where a file of `torch.save` would take more memory than it has bytes, or than is free."""
    require_plain_file(file, free_memory())
    with file.open("rb") as stream:
        end = stream.read(4)
        if end == b"PK\x03\x04":
            with opened_archive(file) as archive:
                unpacked = sum(member.file_size for member in archive.infolist())
            # An archive may have two directories, of which Python takes one and PyTorch the other.
            reader = torch._C.PyTorchFileReader(str(file))
            unpacked = max(unpacked, sum(map(reader.get_record_size, reader.get_all_records())))
            if unpacked > file.stat().st_size:
                raise ValueError(f"its records take {unpacked:,} bytes unpacked, more than the file has")
        while part := stream.read(2**20):
            # Of all that the unpickler allows, this alone makes any number of bytes out of nothing.
            if b"bytearray" in end + part:
                raise ValueError("it holds a bytearray, which is no weights")
            end = part[-8:]
