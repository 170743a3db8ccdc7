"""ONNX Runtime, opened quietly. Imports no torch: whoever deploys a file needs none."""

import contextlib
import io
from pathlib import Path
from typing import Any, Literal

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from distilkit.errors import UserError, is_plain_file

RUNTIME_ERRORS = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)

Device = Literal["cpu", "cuda"]
"""Where a file is computed."""

_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
# Its default rounds the factors of float32 products to ten bits, after which no comparison to 1e-3 would hold.
_CUDA_SETTINGS = {"use_tf32": "0"}


def open_session(file: Path, threads: int | None = None, device: Device = "cpu") -> Any:
    """Open `file` in ONNX Runtime with all graph optimisations; `threads` None uses every core.

    `device`: "cuda" is ONNX Runtime's CUDA provider, float32 without TF32; what that cannot do it leaves to the CPU.
    Raises `UserError` if there is no such file or no such device, one of `RUNTIME_ERRORS` if it cannot be opened.
    ONNX Runtime prints nothing: its errors are exceptions, too.
    """
    if device == "cuda":
        _require_cuda()
    require_file(file)
    try:
        str(file).encode()
    except UnicodeEncodeError:
        raise UserError(f"the name of {file} is not UTF-8, which ONNX Runtime needs", "rename it") from None
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4
    onnxruntime.set_default_logger_severity(4)
    # Else the idle threads of one session keep a core busy while other work, such as decoding, is to be done.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    wanted = [(_CUDA, _CUDA_SETTINGS), _CPU] if device == "cuda" else [_CPU]
    try:
        # It prints what it makes of some faults, where a document in JSON may be expected.
        with contextlib.redirect_stdout(io.StringIO()):
            session = onnxruntime.InferenceSession(str(file), options, providers=wanted, enable_fallback=0)
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is damaged: its names are not UTF-8", "name a file that is whole") from error
    # Where a provider cannot start, ONNX Runtime computes on the CPU without a word.
    if device == "cuda" and _CUDA not in session.get_providers():
        raise UserError(
            "ONNX Runtime cannot start its CUDA provider: there is no CUDA device, or the libraries of CUDA and "
            f"cuDNN that onnxruntime {onnxruntime.__version__} was built for are missing",
            "pip install 'onnxruntime-gpu[cuda,cudnn]' brings them; leave --device out to compute on the CPU",
        )
    return session


def require_file(file: Path) -> None:
    """Raise `UserError` where there is no file to be opened: nothing, a folder, a pipe, a device."""
    if not is_plain_file(file):
        raise UserError(f"{file} is not a plain file" if file.exists() else f"there is no file {file}")


def _require_cuda() -> None:
    """Raise `UserError` if the installed ONNX Runtime was built without CUDA; load CUDA's libraries otherwise."""
    if _CUDA not in onnxruntime.get_available_providers():
        raise UserError(
            "--device cuda needs ONNX Runtime's package for CUDA; the one installed computes on the CPU alone",
            "pip uninstall onnxruntime, then pip install 'onnxruntime-gpu[cuda,cudnn]'",
        )
    # Those that pip has installed, for PyTorch too, are not where the system looks. What is missing shows itself when
    # the provider starts; here it would be printed.
    with contextlib.redirect_stdout(io.StringIO()):
        onnxruntime.preload_dlls()
