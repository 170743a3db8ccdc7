"""In which form a deployed file takes its images, and in which precision it computes."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from distilkit.export.onnx import EnsembleForExport, SingleForExport

Pixels = Literal["float", "uint8"]
Layout = Literal["nchw", "nhwc"]


@dataclass(frozen=True)
class Form:
    """What a file looks like from outside, and its precision.

    `pixels`: "float", float32 in [0, 1], or "uint8", which the graph itself scales. `layout`: "nchw" [N, C, H, W] or
    "nhwc" [N, H, W, C]. `batch`: the only N that the file takes, None for any. `half`: float16 inside.
    """

    pixels: Pixels = "float"
    layout: Layout = "nchw"
    batch: int | None = None
    half: bool = False

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
            "fp16" if self.half else "",
        ]
        return "".join(f"-{part}" for part in parts if part)

    def size(self, channels: int, size: int) -> tuple[int, int, int]:
        """The shape of one image, `size` pixels high and wide."""
        return (size, size, channels) if self.layout == "nhwc" else (channels, size, size)

    def arrange(self, images: Tensor) -> Tensor:
        """Images [N, C, H, W] in the file's layout; their type stays."""
        return images.permute(0, 2, 3, 1) if self.layout == "nhwc" else images

    def metadata(self, channels: int, size: int) -> dict[str, str]:
        """What the file says of its input and its weights."""
        shape = ", ".join(str(length) for length in (self.batch or "N", *self.size(channels, size)))
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
