"""Writes pt2 files: the graph that torch.export has traced, which PyTorch loads and runs without the network's code.

`torch.export.load(file).module()` takes images and gives a dictionary of outputs. What the file says of itself lies in
it as `METADATA`, a JSON object.

A pt2 file is code. PyTorch unpickles weights where the file says so, and evaluates text of the file as expressions; it
offers no way to read one without. So only bytes that this process has written itself are opened here, or any file
inside `models.own.code_trusted`.
"""

import copy
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._sympy.numbers import int_oo

from distilkit.errors import UserError
from distilkit.export.onnx import BATCH_DIMENSION, prepared, quiet, refused, write_atomically
from distilkit.models import own

METADATA = "distilkit.json"

# What is left of training in a traced graph, and hands its first argument on.
_PASSES = {"aten::dropout", "aten::feature_dropout", "aten::alpha_dropout", "aten::feature_alpha_dropout"}

# Of values inside, whose types cannot be others.
_TYPE_CHECK = "aten::_assert_tensor_metadata"


_written: set[tuple[int, bytes]] = set()
"""Length and SHA-256 of each program that this process has written."""


class UntrustedProgramError(UserError):
    """A program of which nobody has said that it may be opened, and which this process has not written."""

    def __init__(self, file: Path) -> None:
        super().__init__(
            f"{file} is a program of torch.export, and such a file can run code when it is opened",
            "if you trust whoever made it, add --trust-code to the command (it holds for this one command)",
        )


class _Program(nn.Module):
    """A network (images -> tensors) whose outputs have names, and whose numbers inside may be float16."""

    def __init__(self, network: nn.Module, output_names: Sequence[str], *, half: bool) -> None:
        super().__init__()
        self.network = network
        self.output_names = tuple(output_names)
        self.half_precision = half

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images -> outputs by name, all float32."""
        outputs = self.network(images)
        if self.half_precision:
            outputs = [output.float() for output in outputs]
        return dict(zip(self.output_names, outputs, strict=True))


def export_pt2(
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
    """Write `module` to `file` as a program of torch.export; arguments as of `onnx.export_onnx`.

    Batch norm that follows a convolution directly is folded into it, dropout is gone, and what the tracer notes of
    source files is not in the file. The same weights give the same bytes under the same version of torch. The file
    appears complete or not at all. Raises `UserError` if the network cannot be traced.
    """
    free = ({0: BATCH_DIMENSION} if batch is None else {}) if free_axes is None else dict(free_axes)
    network, images = prepared(module, size, output_names, input_dtype, batch)
    with quiet(), torch.no_grad():
        program = _trace(_Program(network, output_names, half=False), images, free)
        folded = _fold(network, program)
        if half or folded is not network:
            # After batch norm was folded, for the product is rounded once then, and a small variance does not become 0.
            program = _trace(_Program(folded.half() if half else folded, output_names, half=half), images, free)
        _require_any_size(program, free)
        _clean(program)
        content = io.BytesIO()
        torch.export.save(program, content, extra_files={METADATA: json.dumps(dict(sorted(metadata.items())))})
    write_atomically(file, content.getvalue())
    _written.add(_identity(content.getvalue()))


def may_open_pt2(file: Path) -> bool:
    """Whether a program may be opened: this process has written its bytes, or this is inside `code_trusted`."""
    return own.is_trusted() or _own_content(file) is not None


def load_pt2(file: Path) -> tuple[ExportedProgram, dict[str, str]]:
    """Load a program, and what it says of itself; nothing, if distilkit did not write it.

    Raises `UntrustedProgramError` where it may not be opened, and whatever PyTorch raises for what it cannot read.
    """
    # The very bytes that were compared are opened, whatever the file is by now.
    content = file.read_bytes() if own.is_trusted() else _own_content(file)
    if content is None:
        raise UntrustedProgramError(file)
    extra = {METADATA: ""}
    with quiet():
        program = torch.export.load(io.BytesIO(content), extra_files=extra)
    about = json.loads(extra[METADATA] or "{}")
    return program, {str(key): str(value) for key, value in about.items()}


def _identity(content: bytes) -> tuple[int, bytes]:
    return len(content), hashlib.sha256(content).digest()


def _own_content(file: Path) -> bytes | None:
    """What is in a file, if this process has written it; one of another length is not read."""
    if not file.is_file() or file.stat().st_size not in {length for length, _ in _written}:
        return None
    content = file.read_bytes()
    return content if _identity(content) in _written else None


def _trace(module: _Program, images: Tensor, free: Mapping[int, str]) -> ExportedProgram:
    # Of height and width there is a smallest that a network can take, which `DYNAMIC` leaves to torch to find.
    shapes = {axis: Dim(name) if name == BATCH_DIMENSION else Dim.DYNAMIC for axis, name in free.items()}
    try:
        return torch.export.export(module.eval(), (images,), dynamic_shapes=(shapes,), strict=False)
    except Exception as error:  # of many kinds: torch's own, and whatever a network's forward raises
        raise refused("a torch.export program", free, error) from error


def _fold(network: nn.Module, program: ExportedProgram) -> nn.Module:
    """A copy of the network with batch norm folded into the convolutions before it; itself, if there is none to fold.

    The traced program says which follows which. Left alone is what is used more than once, and what is not of
    `nn.Conv2d` and `nn.BatchNorm2d` themselves.
    """
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}

    def owner(argument: Any) -> str | None:
        """The path of the module whose tensor this is, if nothing else reads it."""
        name = names.get(getattr(argument, "name", ""))
        return name.removeprefix("network.").rpartition(".")[0] if name and len(argument.users) == 1 else None

    pairs = []
    for node in program.graph.nodes:
        if node.op != "call_function" or _operator(node) != "aten::batch_norm":
            continue
        before, weight = node.args[0], node.args[1]
        if before.op != "call_function" or _operator(before) != "aten::conv2d" or len(before.users) != 1:
            continue
        paths = owner(before.args[1]), owner(weight)
        if None not in paths:
            pairs.append(paths)
    if not pairs:
        return network
    folded = copy.deepcopy(network)
    for convolution, norm in pairs:
        first, second = folded.get_submodule(str(convolution)), folded.get_submodule(str(norm))
        if type(first) is nn.Conv2d and type(second) is nn.BatchNorm2d:
            folded.set_submodule(str(convolution), fuse_conv_bn_eval(first, second))
            folded.set_submodule(str(norm), nn.Identity())
    return folded.eval()


def _operator(node: torch.fx.Node) -> str:
    """Name what a node calls, whether it writes to its input or not: "aten::relu"."""
    name = getattr(node.target, "name", None)
    return str(name()).partition(".")[0].removesuffix("_") if callable(name) else str(node.target)


def _require_any_size(program: ExportedProgram, free: Mapping[int, str]) -> None:
    """Raise `UserError` if the tracer has found a largest height or width, or one that alone will do."""
    (images,) = (node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs)
    for axis, name in free.items():
        length = images.meta["val"].shape[axis]
        most = length if isinstance(length, int) else program.range_constraints[length.node.expr].upper
        if name != BATCH_DIMENSION and most != int_oo:
            raise UserError(
                f"PyTorch's tracer finds that {name} may be {most} at most, as it does where maps have shrunk to one "
                "pixel at the size of training",
                "try --format onnx; --size N is another fixed size",
            )


def _clean(program: ExportedProgram) -> None:
    """Remove what only training needs, what nothing reads, and what the tracer notes of this machine."""
    graph = program.graph
    for node in list(graph.nodes):
        if node.op == "call_function" and _operator(node) in _PASSES:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.op == "call_function" and _operator(node) == _TYPE_CHECK:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    for node in graph.nodes:
        node.meta = {"val": node.meta["val"]} if "val" in node.meta else {}
    program.graph_module.recompile()
    # The images that it was traced with: the file would hold them, and they are not needed to run it.
    program.example_inputs = None
