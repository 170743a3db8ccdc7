"""In which form a deployed file takes its images, and in which precision it computes."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from distilkit.export.onnx import BATCH_DIMENSION, EnsembleForExport, SingleForExport

Pixels = Literal["float", "uint8"]
Layout = Literal["nchw", "nhwc"]
Format = Literal["onnx", "pt2", "openvino"]

ENDINGS: dict[Format, str] = {"onnx": ".onnx", "pt2": ".pt2", "openvino": ".xml"}
"""What the names of files end in; an OpenVINO file's weights lie beside it, in one that ends in .bin."""


@dataclass(frozen=True)
class Form:
    """What a file looks like from outside, and its precision.

    `pixels`: "float", float32 in [0, 1], or "uint8", which the graph itself scales. `layout`: "nchw" [N, C, H, W] or
    "nhwc" [N, H, W, C]. `batch`: the only N that the file takes, None for any. `half`: float16 inside. `side`: the only
    H and W, None for those of training, "dynamic" for any.
    """

    pixels: Pixels = "float"
    layout: Layout = "nchw"
    batch: int | None = None
    half: bool = False
    side: int | Literal["dynamic"] | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The input's."""
        return torch.uint8 if self.pixels == "uint8" else torch.float32

    @property
    def input_type(self) -> Literal["float32", "uint8"]:
        """The input's, in words."""
        return "uint8" if self.pixels == "uint8" else "float32"

    @property
    def precision(self) -> str:
        """The weights'."""
        return "float16" if self.half else "float32"

    @property
    def suffix(self) -> str:
        """What distinguishes the file's name from that of the plain form, which adds nothing."""
        parts = [
            "uint8" if self.pixels == "uint8" else "",
            "nhwc" if self.layout == "nhwc" else "",
            f"batch{self.batch}" if self.batch else "",
            "dynamic" if self.any_size else f"size{self.side}" if self.side else "",
            "fp16" if self.half else "",
        ]
        return "".join(f"-{part}" for part in parts if part)

    @property
    def any_size(self) -> bool:
        """Whether H and W are free."""
        return self.side == "dynamic"

    @property
    def free_axes(self) -> dict[int, str]:
        """Those axes of the input whose length is free, and what they are called."""
        height = 2 if self.layout == "nchw" else 1
        return {
            **({0: BATCH_DIMENSION} if self.batch is None else {}),
            **({height: "H", height + 1: "W"} if self.any_size else {}),
        }

    def size(self, channels: int, size: int) -> tuple[int, int, int]:
        """The shape of one image of `size` pixels, or of those that the form insists on, high and wide."""
        size = self.side if isinstance(self.side, int) else size
        return (size, size, channels) if self.layout == "nhwc" else (channels, size, size)

    def arrange(self, images: Tensor) -> Tensor:
        """Images [N, C, H, W] in the file's layout; their type stays."""
        return images.permute(0, 2, 3, 1) if self.layout == "nhwc" else images

    def metadata(self, channels: int, size: int) -> dict[str, str]:
        """What the file says of its input and its weights."""
        lengths = enumerate((self.batch, *self.size(channels, size)))
        shape = ", ".join(self.free_axes.get(axis, str(length)) for axis, length in lengths)
        values = "pixels 0 to 255" if self.pixels == "uint8" else "pixels in [0, 1]"
        return {
            "input": f"{self.input_type} [{shape}], {values}, not normalised",
            "precision": self.precision,
        }


PLAIN = Form()


class Formed(nn.Module):
    """A network that takes images in `form` and hands them on as float32 [N, C, H, W] in [0, 1]."""

    def __init__(self, network: SingleForExport | EnsembleForExport, form: Form) -> None:
        super().__init__()
        self.network = network
        self.form = form
        self.output_names = network.output_names

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images in the form's type and layout -> the network's outputs."""
        if self.form.layout == "nhwc":
            images = images.permute(0, 3, 1, 2)
        if self.form.pixels == "uint8":
            images = images.to(torch.float32) / 255
        outputs: tuple[Tensor, ...] = self.network(images)
        return outputs
