"""Images that wait in their files until they are asked for.

Shape suffixes: N images, B images of a batch, C channels, H height, W width, K draws for one image.
"""

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from distilkit.data.base import Pictures
from distilkit.data.decoding import (
    Decoded,
    Request,
    decode_batches,
    decode_here,
    default_workers,
    unreadable,
)
from distilkit.data.pixels import UNREADABLE, open_image, reason
from distilkit.errors import require_plain_file

CHECKED = 100_000
"""Of a split of up to so many files, every head is read before a training begins."""

HASHED = 1000
"""So many files of a split are in its fingerprint with all their bytes; the others with name and size."""


class StreamedImages:
    """A split's images in their files: sliced like a tensor, decoded when they are asked for.

    `workers`: processes that decode in `batches`; 0 decodes in this one. Raises `UserError`, in whatever reads, for
    files that cannot be decoded.
    """

    def __init__(self, pictures: Pictures, workers: int | None = None) -> None:
        self._pictures = pictures
        self._workers = default_workers() if workers is None else workers

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, C, H, W]."""
        framing = self._pictures.framing
        return len(self), framing.channels, framing.size, framing.size

    def __len__(self) -> int:
        return len(self._pictures.paths)

    def __getitem__(self, chosen: slice | Tensor, /) -> Tensor:
        """Decode those of a slice or of an int64 tensor of places, at once: uint8 [B, C, H, W] on the CPU."""
        return nchw(self.checked(decode_here(self._pictures.framing, self.request(torch.arange(len(self))[chosen]))))

    def batches(self, parts: Iterable[slice | Tensor], *, pin: bool = False) -> Iterator[Tensor]:
        """Decode parts of the split one after another, ahead of their use: uint8 [B, C, H, W] on the CPU."""
        places = torch.arange(len(self))
        requests = (self.request(places[part]) for part in parts)
        for decoded in decode_batches(self._pictures.framing, requests, self._workers, pin=pin):
            yield nchw(self.checked(decoded))

    def stream(self, requests: Iterable[Request], *, pin: bool) -> Iterator[Decoded]:
        """Decode whatever is requested, ahead of its use."""
        return decode_batches(self._pictures.framing, requests, self._workers, pin=pin)

    def request(self, places_B: Tensor, numbers_KB: Tensor | None = None) -> Request:
        """Name the files of these places. `numbers_KB`: see `decoding.Request`."""
        root, paths = self._pictures.root, self._pictures.paths
        return Request([os.path.join(root, paths[place]) for place in places_B.tolist()], numbers_KB)  # noqa: PTH118

    def now(self, request: Request) -> Decoded:
        """Decode what nobody has announced."""
        return decode_here(self._pictures.framing, request)

    def checked(self, decoded: Decoded) -> Tensor:
        """Return the images [B, H, W, C]. Raises `UserError` naming the files that cannot be read."""
        if decoded.faults:
            raise unreadable(decoded.faults, len(decoded.images_BHWC))
        return decoded.images_BHWC

    def take(self, mask_N: np.ndarray) -> "StreamedImages":
        """Return the images of a mask, in their order."""
        chosen = np.flatnonzero(mask_N)
        pictures = self._pictures
        paths = [pictures.paths[place] for place in chosen.tolist()]
        return StreamedImages(pictures._replace(paths=paths, labels=pictures.labels[chosen]), self._workers)

    def inspect(self) -> list[int]:
        """Look at every file without decoding it, and give their sizes in bytes.

        Empty and missing files are found in every split, what is no image in splits of up to `CHECKED`. Raises one
        `UserError` for all of them.
        """
        root, paths = self._pictures.root, self._pictures.paths
        heads = len(self) <= CHECKED

        def look(start: int) -> list[tuple[int, str]]:
            found = []
            for path in paths[start : start + 256]:
                full = os.path.join(root, path)  # noqa: PTH118
                try:
                    require_plain_file(full)
                    size, fault = os.stat(full).st_size, ""  # noqa: PTH116
                    if size == 0:
                        fault = f"{full}: empty"
                    elif heads:
                        open_image(full).close()
                except UNREADABLE as error:
                    size, fault = 0, f"{full}: {reason(full, error)}"
                found.append((size, fault))
            return found

        with ThreadPoolExecutor(default_workers()) as pool:
            seen = [each for run in pool.map(look, range(0, len(self), 256)) for each in run]
        if faults := [fault for _, fault in seen if fault]:
            raise unreadable(faults, len(self))
        return [size for size, _ in seen]

    def fingerprint(self, classes: Collection[str]) -> str:
        """Hash what can be hashed without reading everything: "files:" and SHA-256 as hex.

        Of shape and class names; of every file its name below the data folder, its size in bytes and its label; and of
        up to `HASHED` files, evenly spread over the split, all bytes. A changed picture of the same length that is not
        among these goes unnoticed.
        """
        pictures, sizes = self._pictures, self.inspect()
        head = {"shape": list(self.shape), "short side": pictures.framing.short_side, "classes": list(classes)}
        digest = hashlib.sha256(json.dumps(head).encode())
        for path, size, label in zip(pictures.paths, sizes, pictures.labels.tolist(), strict=True):
            digest.update(f"{path.replace(os.sep, '/')}\0{size}\0{label}\n".encode(errors="surrogateescape"))
        count = len(self)
        for place in sorted({place * count // HASHED for place in range(HASHED)} if count else ()):
            try:
                require_plain_file(pictures.root / pictures.paths[place])
                with (pictures.root / pictures.paths[place]).open("rb") as content:
                    while part := content.read(2**20):
                        digest.update(part)
            except OSError as error:
                full = pictures.root / pictures.paths[place]
                raise unreadable([f"{full}: {reason(full, error)}"], count) from error
        return f"files:{digest.hexdigest()}"


def evenly(count: int, most: int) -> Sequence[int]:
    """Places of up to `most` of `count` things, evenly spread."""
    return range(count) if count <= most else [place * count // most for place in range(most)]


def nchw(images_BHWC: Tensor) -> Tensor:
    """Show [B, H, W, C] as [B, C, H, W] in channels-last memory."""
    return images_BHWC.permute(0, 3, 1, 2)
