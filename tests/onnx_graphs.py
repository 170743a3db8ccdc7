"""What tests read off an ONNX graph."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx

FORBIDDEN = {"Dropout", "Identity", "BatchNormalization"}


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def dead(model: onnx.ModelProto) -> list[str]:
    """Nodes, weights and descriptions of values that nothing reads."""
    graph = model.graph
    read = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    made = {name for node in graph.node for name in node.output}
    made |= {each.name for each in (*graph.input, *graph.initializer)}
    return [
        *(node.name for node in graph.node if not read & set(node.output)),
        *(weight.name for weight in graph.initializer if weight.name not in read),
        *(value.name for value in graph.value_info if value.name not in made),
    ]


def unclean(file: Path, *, norms: int = 0) -> list[str]:
    """Everything about an exported file that should not be so. `norms`: of batch, that no convolution precedes."""
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    shapeless = [value.name for value in inferred.graph.output if not value.type.tensor_type.shape.dim]
    count = operators(model)
    faults = [f"{count[each]} {each}" for each in FORBIDDEN - {"BatchNormalization"} if count[each]]
    if count["BatchNormalization"] != norms:
        faults.append(f"{count['BatchNormalization']} batch norms, not {norms}")
    training = [
        node.name
        for node in model.graph.node
        for attribute in node.attribute
        if attribute.name == "training_mode" and attribute.i
    ]
    outside = [weight.name for weight in model.graph.initializer if weight.external_data]
    domains = [entry.domain for entry in model.opset_import if entry.domain]
    notes = [node.name for node in model.graph.node if node.metadata_props or node.doc_string]
    return [*faults, *dead(model), *shapeless, *training, *outside, *domains, *notes]


def multiply_adds(model: onnx.ModelProto) -> int:
    """Of one image, in convolutions and matrix products, from the shapes that are in the graph."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    values = [*inferred.value_info, *inferred.input, *inferred.output]
    shapes = {
        value.name: [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim] for value in values
    }  # a free dimension is the number of images: one
    shapes |= {weight.name: list(weight.dims) for weight in inferred.initializer}
    total = 0
    for node in inferred.node:
        if node.op_type == "Conv":
            # Every number that comes out is a sum over one filter.
            total += int(np.prod(shapes[node.output[0]])) * int(np.prod(shapes[node.input[1]][1:]))
        elif node.op_type == "MatMul":
            total += int(np.prod(shapes[node.output[0]])) * shapes[node.input[0]][-1]
        elif node.op_type == "Gemm":
            transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
            total += int(np.prod(shapes[node.output[0]])) * shapes[node.input[0]][0 if transposed else -1]
    return total
