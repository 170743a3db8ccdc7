"""What an exported file says of how pictures become its input, and how they do. Imports no torch.

Shape suffixes: N images, C channels, H height, W width.
"""

import json
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from distilkit.data.pixels import Framing
from distilkit.errors import parse_json

Layout = Literal["nchw", "nhwc"]
Type = Literal["float32", "float16", "uint8"]

FORMAT = 1
LARGEST = 8192
"""Pixels to a side, beyond what any network is trained with: the square of it is memory."""


class Preparation(NamedTuple):
    """From a picture's file to the array that a network takes.

    `framing`: how a picture becomes a square of pixels. `layout`: the order of the array's axes. `dtype`: floating
    point is in [0, 1], uint8 in [0, 255]; the network itself normalises.
    """

    framing: Framing
    layout: Layout = "nchw"
    dtype: Type = "float32"

    def to_json(self) -> str:
        """Say all of it as a JSON object, for programs without distilkit; docs/deployment.md explains its keys."""
        return json.dumps(self._document())

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote. Raises `ValueError` for everything else: what is not understood is not guessed."""
        try:
            document = parse_json(text)
            sizes = (document["height"], document["resize"]["to"], document["channels"])
            found = cls(Framing(*sizes), document["layout"], document["dtype"])
            understood = (
                all(type(size) is int and 0 < size <= LARGEST for size in sizes) and found._document() == document
            )
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise ValueError("not a description of how pictures are prepared") from error
        if not understood:
            raise ValueError("it asks for steps that this distilkit does not know")
        return found

    def shape(self) -> tuple[int, int, int]:
        """Of one image's array, in the order of the layout."""
        size, _, channels = self.framing
        return (channels, size, size) if self.layout == "nchw" else (size, size, channels)

    def array(self, images_NHWC: NDArray[np.uint8]) -> NDArray[Any]:
        """Bring framed pictures to the network's layout and type."""
        images = images_NHWC.transpose(0, 3, 1, 2) if self.layout == "nchw" else images_NHWC
        if self.dtype == "uint8":
            return np.ascontiguousarray(images)
        # Divided in float32, as in training.
        pixels = np.ascontiguousarray(images, dtype=np.float32) / np.float32(255)
        return pixels.astype(self.dtype, copy=False)

    def _document(self) -> dict[str, Any]:
        size, short_side, channels = self.framing
        if channels not in (1, 3) or short_side < size:
            raise ValueError(f"pictures cannot be framed so: {self.framing}")
        if self.layout not in ("nchw", "nhwc") or self.dtype not in ("float32", "float16", "uint8"):
            raise ValueError(f"no such input: {self.layout}, {self.dtype}")
        return {
            "format": FORMAT,
            "channels": channels,
            "height": size,
            "width": size,
            "layout": self.layout,
            "dtype": self.dtype,
            "range": [0, 255] if self.dtype == "uint8" else [0, 1],
            "orientation": "exif",
            "transparency": "white",
            "colour": "rgb" if channels == 3 else "grey",
            "resize": {
                "rule": "central-square" if short_side == size else "shorter-side",
                "to": short_side,
                "filter": "bilinear",
                "antialias": True,
            },
            "crop": "centre",
        }
