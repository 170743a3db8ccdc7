"""Writes ONNX files: one small, self-contained, reproducible file that says nothing of the machine it was made on.

torch's exporter does the translation, and its optimizer folds batch norm into the convolution before it. Releases of
both have produced wrong graphs (pytorch issues 166797, 168224, 169178), so a file from here is not done until
`distilkit.export.parity` has compared it with PyTorch.
"""

import contextlib
import copy
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

import distilkit
from distilkit.errors import UserError
from distilkit.export.runtime import RUNTIME_ERRORS, open_session

INPUT_NAME = "images"
BATCH_DIMENSION = "N"

OLDEST_OPSET = 18
"""What PyTorch's exporter writes by itself; asked for an older one it writes this one all the same."""

# A protobuf message holds no more than 2 GiB; below it stays room for the graph.
_MAX_WEIGHT_BYTES = 2**31 - 2**24


class SingleForExport(nn.Module):
    """A classifier (images -> logits [N, C]) with the outputs that a deployed one has: logits and probabilities."""

    output_names = ("logits", "probabilities")

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images [N, C, H, W] -> logits, probabilities, each [N, classes]."""
        logits_NC = self.classifier(images)
        return logits_NC, logits_NC.softmax(-1)


class EnsembleForExport(nn.Module):
    """A group that answers as one.

    `ensemble`: a module, images -> (the ensemble's logits [N, C], the members' logits [S, N, C]); a module and not a
    function, so that its parameters are found. `member_names`: the S members in the order of their logits. `members`:
    whether each member's logits are an output too, named `logits_<member>`.
    """

    def __init__(self, ensemble: nn.Module, member_names: Sequence[str], *, members: bool) -> None:
        super().__init__()
        self.ensemble = ensemble
        self.members = members
        extra = tuple(f"logits_{name}" for name in member_names) if members else ()
        self.output_names = ("logits", "probabilities", *extra)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images -> logits, probabilities and, if asked for, each member's logits, all [N, classes]."""
        logits_NC, logits_SNC = self.ensemble(images)
        extra = logits_SNC.unbind(0) if self.members else ()
        return (logits_NC, logits_NC.softmax(-1), *extra)


def export_onnx(
    module: nn.Module,
    file: Path,
    *,
    size: tuple[int, int, int],
    output_names: Sequence[str],
    metadata: Mapping[str, str],
    opset: int | None = None,
    input_dtype: torch.dtype = torch.float32,
    batch: int | None = None,
    half: bool = False,
    free_axes: Mapping[int, str] | None = None,
) -> None:
    """Write `module` to `file` as ONNX.

    `module`: images [N, *size] of `input_dtype` (float32 in [0, 1], or uint8) -> a tuple of tensors, one for each of
    `output_names`. `size`: (C, H, W), or (H, W, C) for a module that takes that. `metadata`: what the file says of
    itself. `opset`: None leaves it to torch. `batch`: the only N that the file takes, None for any. `half`: weights and
    computation in float16, between an input and outputs that stay what they are. `free_axes`: those of the input whose
    length is free, with their names; None: N alone, where `batch` does not say it.

    The input is called `images`. A float32 copy on the CPU in eval mode is exported; the
    module stays as it is. Batch norm that follows a convolution directly is folded into it. The same weights give the
    same bytes under the same versions of torch and onnxscript. The file appears complete or not at all, and nothing is
    printed. Raises `UserError` if the network cannot be expressed in ONNX or is too large for one file, or if there is
    no such opset.
    """
    if opset is not None:
        check_opset(opset)
    if sum(t.numel() * 4 for t in module.state_dict().values()) > _MAX_WEIGHT_BYTES:
        raise UserError("this network is larger than the 2 GiB that one ONNX file can hold")
    free = ({0: BATCH_DIMENSION} if batch is None else {}) if free_axes is None else dict(free_axes)
    model = _translate(module, size, tuple(output_names), opset, input_dtype, batch, free)
    if half:
        # After batch norm was folded, for the product is rounded once then, and a small variance does not become 0.
        model = _in_half_precision(model)
    write_model(model, file, metadata)


def check_opset(opset: int) -> None:
    """Raise `UserError` for an opset that the exporter does not write or ONNX Runtime does not run."""
    newest = newest_opset()
    if not OLDEST_OPSET <= opset <= newest:
        raise UserError(
            f"--opset must be {OLDEST_OPSET} to {newest}, not {opset}: PyTorch's exporter writes none older, and the "
            "installed onnx and ONNX Runtime know none newer",
            "leave --opset out for the exporter's own",
        )


def newest_opset() -> int:
    """The newest opset that the installed onnx can write and ONNX Runtime opens."""
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])],
        "probe",
        [value("x", onnx.TensorProto.FLOAT, [1])],
        [value("y", onnx.TensorProto.FLOAT, [1])],
    )
    with tempfile.TemporaryDirectory() as folder:
        for opset in range(onnx.defs.onnx_opset_version(), OLDEST_OPSET, -1):
            file = Path(folder) / f"{opset}.onnx"
            onnx.save(
                onnx.helper.make_model_gen_version(graph, opset_imports=[onnx.helper.make_opsetid("", opset)]), file
            )
            try:
                open_session(file)
            except RUNTIME_ERRORS:
                continue
            return opset
    return OLDEST_OPSET


# The first ONNX Runtime that opens each opset with that IR version, of those that can be installed beside Python 3.11;
# each was installed and tried. A newer opset needs what writes it.
_OLDEST_RUNTIME = {
    18: "1.15",
    19: "1.15",
    20: "1.17",
    21: "1.18",
    22: "1.21",
    23: "1.23",
    24: "1.24",
    25: "1.24",
    26: "1.25",
}


def oldest_runtime(file: Path) -> str:
    """The oldest ONNX Runtime that opens a file of ours, "1.17" say; the installed one where nobody has tried."""
    opsets = onnx.load(file, load_external_data=False).opset_import
    opset = max(entry.version for entry in opsets if not entry.domain)
    return _OLDEST_RUNTIME.get(opset, ".".join(onnxruntime.__version__.split(".")[:2]))


def write_model(model: onnx.ModelProto, file: Path, metadata: Mapping[str, str]) -> None:
    """Check `model` and write it, with this metadata alone and nothing of the machine it was made on; it is changed.

    The file appears complete or not at all. Raises `onnx.checker.ValidationError` for a graph that is not ONNX.
    """
    _anonymise(model)
    # torch writes the newest IR version that it knows, and ONNX Runtime's quantiser names operators that nothing uses:
    # older runtimes refuse both.
    used = {"", *(node.domain for nodes in (model.graph, *model.functions) for node in nodes.node)}
    for entry in [entry for entry in model.opset_import if entry.domain not in used]:
        model.opset_import.remove(entry)
    model.ir_version = onnx.helper.find_min_ir_version_for(list(model.opset_import), ignore_unknown=True)
    model.producer_name = "distilkit"
    model.producer_version = distilkit.__version__
    model.ClearField("metadata_props")
    onnx.helper.set_model_props(model, dict(sorted(metadata.items())))
    onnx.checker.check_model(model, full_check=True)
    write_atomically(file, model.SerializeToString(deterministic=True))


def _translate(
    module: nn.Module,
    size: tuple[int, int, int],
    output_names: tuple[str, ...],
    opset: int | None,
    input_dtype: torch.dtype,
    batch: int | None,
    free: Mapping[int, str],
) -> onnx.ModelProto:
    exported, images = prepared(module, size, output_names, input_dtype, batch)
    with quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                exported,
                (images,),
                dynamo=True,
                verbose=False,
                input_names=[INPUT_NAME],
                output_names=list(output_names),
                # Of height and width there is a smallest that a network can take: a name leaves that to torch, where a
                # `Dim` would promise any length.
                dynamic_shapes=({a: torch.export.Dim(n) if n == BATCH_DIMENSION else n for a, n in free.items()},),
                opset_version=opset,
                external_data=False,
                optimize=True,
            )
        except torch.onnx.OnnxExporterError as error:
            raise refused("ONNX", free, error.__cause__ or error) from error
    assert program is not None  # dynamo=True always gives one
    model: onnx.ModelProto = program.model_proto
    if opset is not None and [entry.version for entry in model.opset_import if not entry.domain] != [opset]:
        raise UserError(f"PyTorch {torch.__version__} cannot write opset {opset}", "leave --opset out")
    return model


def prepared(
    module: nn.Module, size: tuple[int, int, int], output_names: Sequence[str], dtype: torch.dtype, batch: int | None
) -> tuple[nn.Module, Tensor]:
    """A copy of a module as it is exported, float32 on the CPU in eval mode, and images to trace it with.

    Raises `ValueError` if it does not give as many outputs as there are names.
    """
    exported = copy.deepcopy(module).to("cpu", torch.float32).to(memory_format=torch.contiguous_format).eval()
    # Two images: a free dimension of one would be taken for a constant. Their contents do not matter.
    images = torch.zeros(batch or 2, *size, dtype=dtype)
    with quiet(), torch.no_grad():
        outputs = exported(images)
    if len(outputs) != len(output_names):
        raise ValueError(f"the network has {len(outputs)} outputs, not {', '.join(output_names)}")
    return exported, images


def refused(format: str, free: Mapping[int, str], cause: BaseException) -> UserError:
    """Why a network cannot be exported, in one line, and what to do."""
    reason = next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
    if len(free) > 1:
        return UserError(
            f"this network does not take images of any size: {reason}",
            "a fully convolutional network with global pooling does; --size N is another fixed size",
        )
    return UserError(
        f"this network cannot be exported to {format}: {reason}",
        "its forward must work for any number of images, without branching on values",
    )


def _in_half_precision(model: onnx.ModelProto) -> onnx.ModelProto:
    path = list(sys.path)
    with quiet():
        from onnxruntime.quantization.onnx_model import ONNXModel
        from onnxruntime.transformers.float16 import convert_float_to_float16

        # Importing the package adds its folder, whose modules have names like `benchmark`, to the search path.
        sys.path[:] = path
        # It appends its casts at the end of the list of nodes, where ONNX wants every node after its inputs.
        halved = ONNXModel(convert_float_to_float16(model, keep_io_types=True))
        halved.topological_sort()
    return halved.model  # type: ignore[no-any-return]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's progress, logs and warnings from the user: none of them is the user's to act on."""
    sink = io.StringIO()
    disabled = logging.root.manager.disable
    with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink), warnings.catch_warnings():
        # Only what these packages warn of in their own code.
        warnings.filterwarnings("ignore", module=r"(torch|onnxscript|onnx_ir|onnxruntime)(\.|$)")
        # torch's log handlers hold on to the stderr of their birth, so redirecting does not reach them.
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(disabled)


def _anonymise(model: onnx.ModelProto) -> None:
    """Remove what the exporter notes for debugging, and name nodes by their place.

    The notes hold stack traces with paths of this machine. The exporter's names of nodes count across exports, so the
    second one in a process would get other bytes than the first.
    """
    _strip(model)
    for i, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{i}"


def _strip(message: Any) -> None:
    """Clear the notes of a protobuf message and of every message inside it."""
    for name in ("metadata_props", "doc_string"):
        if name in message.DESCRIPTOR.fields_by_name:
            message.ClearField(name)
    for field, value in message.ListFields():
        if field.message_type is not None:
            for item in [value] if hasattr(value, "ListFields") else value:
                _strip(item)


def write_atomically(file: Path, content: bytes) -> None:
    """The file appears complete or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, for a rename is atomic only within one file system.
    handle, temporary = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes files that only their owner can read.
        Path(temporary).chmod(0o644)
        Path(temporary).replace(file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
