"""Writes OpenVINO files: an .xml that describes the graph, and beside it a .bin with the weights.

The way leads over ONNX (`distilkit.export.onnx`), where batch norm is folded and all notes of this machine are removed.
OpenVINO is the extra `openvino`.
"""

import importlib.util
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distilkit.errors import UserError
from distilkit.export.onnx import export_onnx, quiet, write_atomically

SECTION = "distilkit"
"""Where in the file's `rt_info` its metadata are."""

_TELEMETRY = "openvino_telemetry"


def require_openvino() -> None:
    """Raise `UserError` that names the extra to install, if OpenVINO is not there."""
    if importlib.util.find_spec("openvino") is None:
        raise UserError(
            "OpenVINO files need the package openvino, which is not installed",
            'install it with the extra: pip install "distilkit[openvino]"',
        )


def import_openvino() -> Any:
    """The package, imported so that it tells nobody. Raises `UserError` if it is not there.

    OpenVINO reports its import and every conversion to a server of its maker unless its telemetry package cannot be
    imported; then it has a stand-in that does nothing.
    """
    require_openvino()
    if "openvino" not in sys.modules:
        missing = object()
        before = sys.modules.get(_TELEMETRY, missing)
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
        try:
            import openvino
        finally:
            if before is missing:
                del sys.modules[_TELEMETRY]
            else:
                sys.modules[_TELEMETRY] = before  # type: ignore[assignment]
    import openvino

    return openvino


def export_openvino(
    module: nn.Module,
    file: Path,
    *,
    size: tuple[int, int, int],
    output_names: Sequence[str],
    metadata: Mapping[str, str],
    input_dtype: torch.dtype = torch.float32,
    batch: int | None = None,
    half: bool = False,
    free_axes: Mapping[int, str] | None = None,
) -> None:
    """Write `module` to `file` (.xml) and the .bin beside it; arguments as of `onnx.export_onnx`.

    `half`: weights in float16, which OpenVINO's CPU device computes with in its own precision. The same weights give
    the same bytes under the same versions of torch, onnxscript and openvino. The .xml appears last. Raises `UserError`
    as `export_onnx`, and where OpenVINO is missing or cannot convert the network.
    """
    openvino = import_openvino()
    with tempfile.TemporaryDirectory() as folder:
        # OpenVINO writes down the file's name.
        onnx_file, xml_file = Path(folder) / "model.onnx", Path(folder) / "model.xml"
        export_onnx(
            module,
            onnx_file,
            size=size,
            output_names=output_names,
            metadata={},
            input_dtype=input_dtype,
            batch=batch,
            free_axes=free_axes,
        )
        try:
            with quiet():
                model = openvino.convert_model(str(onnx_file))
                _name_in_order(model)
                for key, value in sorted(metadata.items()):
                    model.set_rt_info(value, [SECTION, key])
                openvino.save_model(model, str(xml_file), compress_to_fp16=half)
        except Exception as error:  # OpenVINO's errors share no class of their own
            cause = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise UserError(f"OpenVINO cannot convert this network: {cause}", "--format onnx") from error
        write_atomically(weights_file(file), weights_file(xml_file).read_bytes())
        write_atomically(file, xml_file.read_bytes())


def _name_in_order(model: Any) -> None:
    """Number constants and what has no name of its own; OpenVINO counts all that the process has made so far."""
    for place, operator in enumerate(model.get_ordered_ops()):
        if operator.get_type_name() == "Constant" or operator.get_friendly_name() == operator.get_name():
            operator.set_friendly_name(f"{operator.get_type_name()}_{place}")


def weights_file(file: Path) -> Path:
    """The .bin that belongs to an .xml."""
    return file.with_suffix(".bin")
