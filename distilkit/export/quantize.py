"""Eight-bit integers in the place of floating point, by ONNX Runtime's own quantiser.

Static ("int8"): weights and activations are integers whose scales are fixed in the file; those of the activations come
from running the network on calibration images. Dynamic: weights alone are integers in the file, and every run finds the
scales of its activations anew, which on convolutions costs more than it saves.

Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference".
"""

import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from distilkit.errors import UserError
from distilkit.export.onnx import INPUT_NAME, quiet, write_model
from distilkit.export.opened import fixed_batch, input_array, open_file
from distilkit.export.runtime import open_session
from distilkit.randomness import generator

Scheme = Literal["int8", "dynamic"]
Calibration = Literal["minmax", "percentile"]

CALIBRATION_BATCH = 32

PERCENTILE = 99.99
"""Of an activation's values; as many are cut off below."""

# What carries an image through a classifier. Not Softmax: probabilities and attention need more than 256 levels.
_OPERATORS = [
    *("Conv", "Gemm", "MatMul", "Add", "Mul", "Concat", "Relu", "Clip", "Sigmoid", "HardSigmoid", "LeakyRelu"),
    *("MaxPool", "AveragePool", "GlobalAveragePool", "Pad"),
    *("Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split"),
]
# The logits stay floating point: of 256 levels two classes often get the same, and then the order is chance.
_FLOAT_OUTPUTS = ["Gemm", "MatMul"]


def has_integer_dot_products() -> bool:
    """Whether this CPU multiplies and adds 8-bit integers without saturating in between.

    On x86 those are the VNNI instructions; without them two products of an unsigned and a signed byte are added in 16
    bits, which overflow unless weights keep to seven bits (`reduce_range`). Other processors do not have the problem.
    Where nothing can be found out, False, which is safe and costs one bit.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return "avx512_vnni" in flags or "avx_vnni" in flags


def drawn_over_classes(labels_N: Tensor, count: int, seed: int) -> Tensor:
    """Places of `count` images (all, where there are fewer), as many of every class as there can be; int64, shuffled.

    A function of the labels, `count` and `seed`.
    """
    draws = generator(seed, "calibration images")
    shuffled = torch.randperm(len(labels_N), generator=draws)
    # The first of every class, then the second of every class, and so on.
    rank = torch.empty_like(labels_N)
    for label in set(labels_N.tolist()):
        of_class = shuffled[labels_N[shuffled] == label]
        rank[of_class] = torch.arange(len(of_class))
    return shuffled[rank[shuffled].argsort(stable=True)][:count]


def quantize_static(
    source: Path,
    target: Path,
    images: Tensor,
    metadata: Mapping[str, str],
    *,
    calibration: Calibration = "minmax",
    reduce_range: bool = False,
) -> None:
    """Write `source` with unsigned 8-bit activations and signed 8-bit weights, per channel, as a QDQ graph.

    `images`: those to calibrate on, [N, C, H, W] or as the file takes them, uint8 or float in [0, 1]. `calibration`:
    an activation's range is its smallest and largest value over them, or its 0.01st and 99.99th percentile.
    `reduce_range`: weights of seven bits. `metadata`: added to the source's own, which the file keeps.

    Logits and softmax stay floating point. The same arguments give the same bytes. Raises `UserError` where ONNX
    Runtime cannot quantise the network.
    """
    from onnxruntime import quantization

    opened = open_file(source)
    reader = _Reader(input_array(opened, images), INPUT_NAME, fixed_batch(opened))
    methods = {
        "minmax": quantization.CalibrationMethod.MinMax,
        "percentile": quantization.CalibrationMethod.Percentile,
    }

    def quantize(prepared: Path, raw: Path) -> None:
        quantization.quantize_static(
            str(prepared),
            str(raw),
            reader,
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=_OPERATORS,
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=methods[calibration],
            extra_options={
                "OpTypesToExcludeOutputQuantization": _FLOAT_OUTPUTS,
                # Else every intermediate tensor of all images is held at once.
                "CalibStridedMinMax": 1,
                **({"CalibPercentile": PERCENTILE} if calibration == "percentile" else {}),
            },
        )

    described = {
        "precision": "int8 (weights per channel, activations unsigned)",
        "calibration": f"{calibration} on {len(images)} images",
        "reduce_range": str(reduce_range).lower(),
    }
    _quantized(source, target, {**described, **metadata}, quantize)


def quantize_dynamic(source: Path, target: Path, metadata: Mapping[str, str], *, reduce_range: bool = False) -> None:
    """Write `source` with 8-bit weights, per channel; the scales of activations are found anew in every run.

    Weights are unsigned: ONNX Runtime has fast kernels for no other kind here. Raises as `quantize_static`.
    """
    from onnxruntime import quantization

    def quantize(prepared: Path, raw: Path) -> None:
        quantization.quantize_dynamic(
            str(prepared),
            str(raw),
            per_channel=True,
            reduce_range=reduce_range,
            weight_type=quantization.QuantType.QUInt8,
        )

    described = {"precision": "int8 (weights, dynamic)", "reduce_range": str(reduce_range).lower()}
    _quantized(source, target, {**described, **metadata}, quantize)


class _Reader:
    """Calibration images in batches, as ONNX Runtime's `CalibrationDataReader`; its length is counted in batches.

    A file of a fixed batch gets full ones: the last is filled with the first images.
    """

    def __init__(self, images: NDArray[Any], name: str, batch: int | None) -> None:
        self.images, self.name = images, name
        self.batch = CALIBRATION_BATCH if batch is None else batch
        self.fixed = batch is not None
        self.next, self.end = 0, len(self)

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Read these batches next."""
        self.next, self.end = start_index, end_index

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """The next batch, None after the last."""
        if self.next >= self.end:
            return None
        places = np.arange(self.next * self.batch, (self.next + 1) * self.batch)
        self.next += 1
        places = places % len(self.images) if self.fixed else places[places < len(self.images)]
        return {self.name: self.images[places]}


def _quantized(source: Path, target: Path, metadata: Mapping[str, str], quantize: Any) -> None:
    from onnxruntime.quantization import quant_pre_process

    plain = onnx.load(source)
    own = {entry.key: entry.value for entry in plain.metadata_props}
    # The exporter notes the shapes of weights too, which are wrong once the quantiser has transposed one.
    plain.graph.ClearField("value_info")
    with tempfile.TemporaryDirectory() as folder:
        bare, prepared, raw = Path(folder) / "bare.onnx", Path(folder) / "prepared.onnx", Path(folder) / "raw.onnx"
        onnx.save(plain, bare)
        try:
            with quiet():
                # ONNX's own shape inference is enough where every size but the batch is known.
                quant_pre_process(str(bare), str(prepared), skip_symbolic_shape=True)
                quantize(prepared, raw)
            model = onnx.load(raw)
            open_session(raw)
        except Exception as error:  # the quantiser and the runtime share no class of errors
            cause = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(f"ONNX Runtime cannot quantise this network: {cause[0]}", "leave --quantize out") from error
        write_model(model, target, {**own, **metadata})
