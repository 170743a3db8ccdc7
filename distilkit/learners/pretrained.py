"""Weights from a file, for a training to start from, and for a teacher."""

import hashlib
import pickle
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor

from distilkit.errors import SettingError, UserError, is_plain_file, require_plain_file
from distilkit.groups.group import Group
from distilkit.memory import free_memory
from distilkit.models import registry
from distilkit.models.outline import outline
from distilkit.models.weights import read_tensors
from distilkit.reading import opened_archive

KEY = "model.pretrained"
_SHOWN_OF_A_KIND = 5
_SAVE_ALONE = "save the state dict alone, best with safetensors.torch.save_file"

# What training scripts keep a state dict under, beside the epoch and the optimizer: the average first, as it is what
# they report (timm: state_dict_ema; torchvision: model_ema).
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "net")
# What wrappers of a module put before its names: DataParallel, torch.compile, Lightning and such, encoders, students.
_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "student.")
_AVERAGED = "n_averaged"  # torch.optim.swa_utils.AveragedModel counts there

# What published weight files have and networks without auxiliary heads have not (GoogLeNet, Inception).
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
# torchvision's published DenseNets bear their layers' names of before 2018: "norm.1.weight" for "norm1.weight".
_DENSENET_OF_OLD = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")


class Weights(NamedTuple):
    """What was found in a file. `wrapper`: the keys that led to it, such as "model_ema"; empty for a bare one."""

    file: Path
    tensors: dict[str, Tensor]
    wrapper: str


def read_weights(file: Path) -> Weights:
    """Tensors of a `.safetensors` file, or of a state dict in any other (`.pth`, `.pt`); nothing in it is executed.

    Of several state dicts in one file the first of `_WRAPPERS` is taken. Auxiliary heads are left out, and DenseNet's
    old names become today's. Raises `UserError` when the file is missing, damaged, or anything else than names and
    tensors.
    """
    if not is_plain_file(file):
        what = "are a folder" if file.is_dir() else "are no plain file" if file.exists() else "are not there"
        raise UserError(f"the weights {file} {what}", "name a .safetensors file, or a state dict's .pth")
    state, wrapper = (_safetensors(file), "") if file.suffix == ".safetensors" else _state_dict(file)
    tensors = {
        _DENSENET_OF_OLD.sub(r"\1\2", name): value
        for name, value in state.items()
        if name != _AVERAGED and not name.startswith(_AUXILIARY)
    }
    return Weights(file, tensors, wrapper)


def fit(
    weights: Weights, own: Mapping[str, Tensor], head: str = "", say: Callable[[str], None] | None = None
) -> dict[str, Tensor]:
    """The file's tensors under the names of a network whose `state_dict()` is `own`, in its number formats.

    Prefixes of `_PREFIXES`, nested as they may be, are taken away where that makes the names fit. `head`: the module
    whose weights may be missing or of another shape, and are given only where they fit. Only names and shapes of `own`
    are used, so it may be on the meta device. `say` gets a line on what was taken, where there was a choice.

    Raises `UserError` listing what does not fit, and what would.
    """
    found = [(prefix, _without(prefix, weights.tensors)) for prefix in _prefixes(weights.tensors)]
    # The shortest with the fewest names missing: what does not fit is reported in that form, too.
    prefix, state = min(found, key=lambda candidate: len(own.keys() - candidate[1].keys()))
    if faults := _unfit(state, own, head):
        raise UserError(
            f"the weights {weights.file} do not fit the architecture: {'; '.join(faults)}",
            _remedy(weights.tensors, own, head),
        )
    left_out = sorted(name for name in weights.tensors if not name.startswith(prefix))
    if say is not None and (weights.wrapper or prefix):
        parts = [f"those under {weights.wrapper!r}"] if weights.wrapper else []
        parts += [f"{prefix!r} taken away from their names"] if prefix else []
        parts += [f"{_some(left_out)} left out"] if left_out else []
        say(f"weights of {weights.file}: {', '.join(parts)}")
    fitted = {}
    for name, tensor in own.items():
        if name in state and (state[name].shape == tensor.shape):
            fitted[name] = state[name].to(tensor.dtype)
        elif name.endswith("num_batches_tracked"):
            fitted[name] = torch.zeros((), dtype=tensor.dtype)
    return fitted


def start_from(group: Group, file: Path, say: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Have every member of a freshly built `group` start from the weights in `file`, whose names are the backbone's.

    All weights must fit but those of the classifier, the last linear layer. Of a group of several it starts fresh in
    every member, since students with equal weights would stay equal; of a single network, if the file's has another
    shape or there is none. `say`: see `fit`.

    Returns what a run remembers of it: the file, its SHA-256, and whether the classifier is "fresh" or "loaded". Raises
    `SettingError` on "model.pretrained" listing what does not fit, and then has changed nothing.
    """
    try:
        weights = read_weights(file)
        fitted: dict[str, dict[str, Tensor]] = {}
        for name in group.members:
            fitted[name] = fit(weights, group.member_state_dict(name), group.head(name), None if fitted else say)
    except UserError as error:
        raise SettingError(KEY, error.problem, error.hint) from error
    single = len(group.members) == 1
    classifier = "fresh"
    for name, state in fitted.items():
        own, head = group.member_state_dict(name), f"{group.head(name)}."
        heads = {key for key in own if key.startswith(head)}
        if single and heads <= state.keys():
            classifier, heads = "loaded", set()
        with torch.no_grad():
            for key in own.keys() & state.keys() - heads:
                own[key].copy_(state[key])
    with file.open("rb") as contents:
        digest = hashlib.file_digest(contents, "sha256").hexdigest()
    return {"file": str(file), "sha256": digest, "classifier": classifier}


def _prefixes(names: Iterable[str]) -> list[str]:
    """Every nesting of `_PREFIXES` that some name begins with, the shortest first; the first is none at all."""
    names = list(names)
    found = [""]
    for outer in found:  # which grows meanwhile
        found += [outer + inner for inner in _PREFIXES if any(name.startswith(outer + inner) for name in names)]
    return found


def _without(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _unfit(state: Mapping[str, Tensor], own: Mapping[str, Tensor], head: str) -> list[str]:
    """What keeps `state` from being loaded into a network of `own`, in words; some of each kind."""

    def needed(keys: Iterable[str]) -> list[str]:
        return [key for key in keys if not head or not key.startswith(f"{head}.")]

    both = [key for key in needed(own) if key in state]
    kinds: Iterable[list[str]] = (
        # Batch norm counts its batches since PyTorch 0.4.1; older files do not know how many there were.
        [f"missing {key}" for key in needed(own) if key not in state and not key.endswith("num_batches_tracked")],
        [f"unexpected {key}" for key in sorted(needed(state)) if key not in own],
        [
            f"{key} is {list(state[key].shape)} instead of {list(own[key].shape)}"
            for key in both
            if state[key].shape != own[key].shape
        ],
        [
            f"{key} is {str(state[key].dtype).removeprefix('torch.')}, which holds no weights"
            for key in both
            if own[key].is_floating_point() and not _holds_weights(state[key].dtype)
        ],
        # Of those that fit: another may have more numbers than there is memory.
        [
            f"{key} is not all finite numbers"
            for key in both
            if state[key].shape == own[key].shape
            and _holds_weights(state[key].dtype)
            and not state[key].isfinite().all()
        ],
    )
    return list(chain.from_iterable(map(_first, kinds)))


def _first(faults: list[str]) -> list[str]:
    more = len(faults) - _SHOWN_OF_A_KIND
    return [*faults[:_SHOWN_OF_A_KIND], *([f"and {more:,} more {faults[0].partition(' ')[0]}"] if more > 0 else [])]


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1:,} more"


def _remedy(state: Mapping[str, Tensor], own: Mapping[str, Tensor], head: str) -> str:
    stem = next((key for key in own if key in state and _differ_in_channels(state[key], own[key])), None)
    if stem is not None:
        theirs, ours = state[stem].shape[1], own[stem].shape[1]
        return f"the file's network takes images of {theirs} channels, the data have {ours}: choose weights for {ours}"
    first = next(iter(own))
    for name in state:
        before = name.removesuffix(first)
        if before != name and not _unfit(_without(before, state), own, head):
            return f"the names fit without their {before!r}: save the file again with names that lack it"
    for name in own:
        before = name.removesuffix(next(iter(state), name))
        if before != name and not _unfit({before + key: value for key, value in state.items()}, own, head):
            return f"the names fit with {before!r} before them: save the file again with such names"
    if fitting := _architectures_of(state):
        return f"the file has the weights of {', '.join(fitting)}: name that architecture"
    return "name the weights of this very architecture"


def _architectures_of(state: Mapping[str, Tensor]) -> list[str]:
    """Registered architectures whose names and shapes are the file's but for the classifier's."""
    candidates = [_without(prefix, state) for prefix in _prefixes(state)]
    return [name for name in registry.names() if any(_is_of(candidate, name) for candidate in candidates)]


def _is_of(state: Mapping[str, Tensor], architecture: str) -> bool:
    found = outline(architecture, 10)
    if found is None:
        return False
    own = {name: value for name, value in found.state.items() if not name.endswith("num_batches_tracked")}
    if own.keys() != {name for name in state if not name.endswith("num_batches_tracked")}:
        return False
    # A classifier's weight and bias differ by the number of classes alone, and the images' channels in the first layer.
    others = [(own[name].shape, state[name].shape) for name in own if own[name].shape != state[name].shape]
    return len(others) <= 3 and all(len(ours) == len(theirs) for ours, theirs in others)


def _holds_weights(dtype: torch.dtype) -> bool:
    # Eight bits need a scale beside them, and PyTorch can hardly compute with them.
    return dtype.is_floating_point and dtype.itemsize > 1


def _differ_in_channels(theirs: Tensor, ours: Tensor) -> bool:
    if theirs.dim() != 4 or ours.dim() != 4 or theirs.shape[1] == ours.shape[1]:
        return False
    return theirs.shape[0] == ours.shape[0] and theirs.shape[2:] == ours.shape[2:]


def _safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return read_tensors(file)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"the weights {file} cannot be read: {reason}", "the file is damaged; fetch it again"
        ) from error


def _state_dict(file: Path) -> tuple[dict[str, Tensor], str]:
    """The state dict in a file of `torch.save`, and the keys that led to it."""
    try:
        _require_unpacked(file)
    except Exception as error:  # a damaged archive fails in many ways
        raise UserError(f"the weights {file} cannot be read: {_first_line(error)}", _SAVE_ALONE) from error
    try:
        with warnings.catch_warnings(action="ignore"):
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch's unpickler refuses in many ways what could execute code, and reads damaged files in as many.
        if kinds := _kinds_refused(file, error):
            raise UserError(
                f"the weights {file} cannot be read without executing what is in them: beside tensors they hold "
                f"{', '.join(kinds)}",
                _how_to_save_alone(file, any(kind.startswith("torch.nn.") for kind in kinds)),
            ) from error
        raise UserError(
            f"the weights {file} cannot be read: the file is damaged, or torch.save did not write it", _SAVE_ALONE
        ) from error
    path = []
    while isinstance(state, dict) and (key := next((k for k in _WRAPPERS if isinstance(state.get(k), dict)), None)):
        state = state[key]
        path.append(key)
    if not isinstance(state, dict) or not all(map(_is_plain, state.values())):
        raise UserError(f"the weights {file} are not a state dict: names and plain tensors, nothing else", _SAVE_ALONE)
    return {str(name): value for name, value in state.items()}, ".".join(path)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def _kinds_refused(file: Path, error: Exception) -> list[str]:
    """The classes and functions that a file's pickle names and PyTorch does not allow; none where it is damaged."""
    if not isinstance(error, pickle.UnpicklingError):
        return []
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except (RuntimeError, ValueError, pickle.UnpicklingError):  # of the form before PyTorch 1.6, or damaged
        return re.findall(r"Unsupported global: GLOBAL (\S+)", str(error))


def _how_to_save_alone(file: Path, is_module: bool) -> str:
    tensors = ".state_dict()" if is_module else '["state_dict"]'
    key = "" if is_module else ', "state_dict" being the key that holds the tensors'
    return (
        f"only if you trust its maker, for the first line executes what is in it{key}:\n"
        f"    whole = torch.load({str(file)!r}, map_location='cpu', weights_only=False)\n"
        f"    torch.save(whole{tensors}, {str(file.with_stem(file.stem + '_weights'))!r})"
    )


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
