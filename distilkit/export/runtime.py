"""ONNX Runtime, opened quietly. Imports no torch: whoever deploys a file needs none."""

import contextlib
import io
from pathlib import Path
from typing import Any

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from distilkit.errors import UserError

RUNTIME_ERRORS = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)


def open_session(file: Path, threads: int | None = None) -> Any:
    """Open `file` in ONNX Runtime on the CPU with all graph optimisations; `threads` None uses every core.

    Raises `UserError` if there is no such file, one of `RUNTIME_ERRORS` if it cannot be opened. Warnings are not
    printed.
    """
    if not file.is_file():
        raise UserError(f"there is no file {file}" if not file.exists() else f"{file} is not a file")
    try:
        str(file).encode()
    except UnicodeEncodeError:
        raise UserError(f"the name of {file} is not UTF-8, which ONNX Runtime needs", "rename it") from None
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    # Errors only: the runtime also warns of GPUs that it looked for and did not find.
    onnxruntime.set_default_logger_severity(3)
    # Else the idle threads of one session keep a core busy while other work, such as decoding, is to be done.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        # It prints what it makes of some faults, where a document in JSON may be expected.
        with contextlib.redirect_stdout(io.StringIO()):
            return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is damaged: its names are not UTF-8", "name a file that is whole") from error
