"""A deployed file of any format, open in its own runtime, so that one comparison and one stop-watch fit them all."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distilkit.data.preparation import Preparation
from distilkit.errors import UserError
from distilkit.export.form import ENDINGS
from distilkit.export.openvino import SECTION, import_openvino, weights_file
from distilkit.export.program import UntrustedProgramError, load_pt2, may_open_pt2
from distilkit.export.runtime import RUNTIME_ERRORS, Device, open_session, require_file

_PLACE = re.compile(r"(Check|Exception) ")
_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}


class OpenedFileError(Exception):
    """A runtime cannot open a file, or fails while it computes. The message is one line."""

    def __init__(self, problem: str, error: BaseException | None = None) -> None:
        said = "" if error is None else str(error).strip()
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        # OpenVINO begins with the places in its own source.
        plain = [line for line in lines if not _PLACE.match(line)]
        cause = next(iter([*plain, *lines]), type(error).__name__)
        super().__init__(problem if error is None else f"{problem}: {cause}")


class OpenedFile(Protocol):
    """A file in its runtime. `runtime`: what that is called.

    `dtype`: of the input, "float32" or "uint8", or what the runtime calls another one. `shape`: the input's, None for
    axes of any length. `outputs`: their names. `about`: what the file says of itself.
    """

    runtime: str
    dtype: str
    shape: tuple[int | None, ...]
    outputs: tuple[str, ...]
    about: dict[str, str]

    def run(self, names: Sequence[str], images: NDArray[Any]) -> list[NDArray[Any]]:
        """Compute these outputs. Raises `OpenedFileError`."""


class _OnnxFile:
    runtime = "ONNX Runtime"

    def __init__(self, file: Path, threads: int | None, device: Device) -> None:
        try:
            self.session = open_session(file, threads, device)
        except RUNTIME_ERRORS as error:
            raise OpenedFileError("ONNX Runtime cannot open the file", error) from error
        inputs = self.session.get_inputs()
        if len(inputs) != 1:
            raise OpenedFileError(f"the file has {len(inputs)} inputs, not images alone")
        self.name = inputs[0].name
        self.dtype = _TYPES.get(inputs[0].type, inputs[0].type)
        self.shape = tuple(length if isinstance(length, int) else None for length in inputs[0].shape)
        self.outputs = tuple(output.name for output in self.session.get_outputs())
        self.about = dict(self.session.get_modelmeta().custom_metadata_map)

    def run(self, names: Sequence[str], images: NDArray[Any]) -> list[NDArray[Any]]:
        try:
            return list(self.session.run(list(names), {self.name: images}))
        except RUNTIME_ERRORS as error:
            raise OpenedFileError(f"ONNX Runtime fails on a batch of {len(images)}", error) from error


class _Pt2File:
    """`threads` is not for one file to say: PyTorch has one number of threads for the process."""

    runtime = "PyTorch"

    def __init__(self, file: Path) -> None:
        require_file(file)
        try:
            program, self.about = load_pt2(file)
            names = program.graph_signature.user_inputs
            (images,) = (node for node in program.graph.nodes if node.op == "placeholder" and node.name in names)
            value = images.meta["val"]
            self.module = program.module()
            self.outputs = tuple(program.call_spec.out_spec.context)
        except UntrustedProgramError:
            raise
        except Exception as error:  # PyTorch's reader raises whatever its parts do
            raise OpenedFileError("PyTorch cannot load the file", error) from error
        self.dtype = str(value.dtype).removeprefix("torch.")
        self.shape = tuple(length if isinstance(length, int) else None for length in value.shape)

    def run(self, names: Sequence[str], images: NDArray[Any]) -> list[NDArray[Any]]:
        try:
            with torch.inference_mode():
                outputs = self.module(torch.from_numpy(images))
        except Exception as error:  # a program checks its input in ways of its own
            raise OpenedFileError(f"PyTorch fails on a batch of {len(images)}", error) from error
        return [outputs[name].numpy() for name in names]


class _OpenvinoFile:
    runtime = "OpenVINO"

    def __init__(self, file: Path, threads: int | None) -> None:
        openvino = import_openvino()
        for each in (file, weights_file(file)):
            require_file(each)
        # Else the CPU device may compute in bfloat16 where it is fast, and nobody could tell that from a wrong file.
        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
        try:
            core = openvino.Core()
            model = core.read_model(str(file), str(weights_file(file)))
            self.model = core.compile_model(model, "CPU", options)
            (images,) = self.model.inputs
            self.outputs = tuple(output.get_any_name() for output in self.model.outputs)
            about = model.get_rt_info([SECTION]).astype(dict) if model.has_rt_info([SECTION]) else {}
        except Exception as error:  # OpenVINO's errors share no class of their own
            raise OpenedFileError("OpenVINO cannot open the file", error) from error
        self.about = {str(key): str(getattr(value, "value", value)) for key, value in about.items()}
        element = images.element_type.get_type_name()
        self.dtype = {"f32": "float32", "u8": "uint8"}.get(element, element)
        lengths = images.get_partial_shape()
        self.shape = tuple(None if length.is_dynamic else length.get_length() for length in lengths)

    def run(self, names: Sequence[str], images: NDArray[Any]) -> list[NDArray[Any]]:
        try:
            outputs = self.model([images])
        except Exception as error:  # as above
            raise OpenedFileError(f"OpenVINO fails on a batch of {len(images)}", error) from error
        # The next run writes to the same memory.
        return [np.array(outputs[name]) for name in names]


def open_file(file: Path, threads: int | None = None, device: Device = "cpu") -> OpenedFile:
    """Open a deployed file by its ending; `threads` None uses every core. ONNX files alone open on a CUDA device.

    Raises `UserError` if there is no such file or device, or if it may not be opened (`may_open`), and
    `OpenedFileError` if its runtime cannot open it.
    """
    if device == "cuda" and not on_cuda(file):
        raise UserError(f"{file} is no ONNX file, and only those are computed on CUDA here", "leave --device out")
    if file.suffix == ENDINGS["pt2"]:
        return _Pt2File(file)
    if file.suffix == ENDINGS["openvino"]:
        return _OpenvinoFile(file, threads)
    return _OnnxFile(file, threads, device)


def may_open(file: Path) -> bool:
    """Whether a file may be opened: a pt2 file is code, the others are not."""
    return file.suffix != ENDINGS["pt2"] or may_open_pt2(file)


def on_cuda(file: Path) -> bool:
    """Whether files of this kind can be opened on a CUDA device."""
    return file.suffix not in (ENDINGS["pt2"], ENDINGS["openvino"])


def parts(file: Path) -> tuple[Path, ...]:
    """All files that make up a deployed one; it itself comes last."""
    return (weights_file(file), file) if file.suffix == ENDINGS["openvino"] else (file,)


def fixed_batch(opened: OpenedFile) -> int | None:
    """The only number of images that the file takes at once; None if it takes any."""
    return opened.shape[0]


def image_shape(opened: OpenedFile) -> tuple[int, ...]:
    """One image's: the file's own, and where it takes any size the one that it was trained with.

    Raises `OpenedFileError` if it does not take images alone, or nobody knows how large they are.
    """
    shape = opened.shape[1:]
    if len(opened.shape) == 4 and opened.dtype in ("float32", "uint8"):
        if all(length is not None for length in shape):
            return tuple(length for length in shape if length is not None)
        try:
            return Preparation.from_json(opened.about.get("preprocessing", "")).shape()
        except ValueError:
            pass
    described = [opened.dtype, *("any" if length is None else str(length) for length in opened.shape)]
    raise OpenedFileError(f"its input is {' '.join(described)}, not images of a known size")


def input_array(opened: OpenedFile, images: Tensor) -> NDArray[Any]:
    """Give images (uint8, or float in [0, 1]) the type that the file's one input has."""
    if opened.dtype == "uint8":
        pixels = images if images.dtype == torch.uint8 else images.mul(255).round().to(torch.uint8)
    else:
        pixels = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    array: NDArray[Any] = pixels.cpu().contiguous().numpy()
    return array
