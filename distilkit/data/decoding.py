"""Image files to pixels, cut for training, and many of them in worker processes; `pixels` reads a single one.

Workers are started with little (a fresh server process that has imported this module is forked), so this module
imports nothing that is slow to import but torch.

Shape suffixes: B images, C channels, H height, W width, K draws for one image.
"""

import multiprocessing
import signal
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from distilkit import hardware
from distilkit.data import augment
from distilkit.data.pixels import UNREADABLE, Framing, Pixels, as_array, decode, open_image, reason, to_mode
from distilkit.errors import UserError
from distilkit.working_folder import SAFE_PATH, environment

NAMED_FILES = 10
PREFETCH = 2
"""Batches that every worker makes ahead."""
MOST_WORKERS = 16
NO_WORKERS = "data.workers = 0 decodes in the training process itself"
LARGER = "give /dev/shm more room (docker run --shm-size 2g), or lower data.workers or train.batch_size"
# Files that a thread decodes at a time: one by one, handing them out costs as much as decoding 32 x 32 pixels.
RUN = 32
_EXIF_ORIENTATION = 0x0112
_QUARTER_TURNS = (5, 6, 7, 8)


def decode_crop(path: Path | str, framing: Framing, numbers_K1: Tensor) -> tuple[Pixels, Tensor]:
    """Cut a random box out of the original picture: uint8 [size, size, C], and the box that is left to be cut.

    `numbers_K1`: the image's `augment.draw_numbers`. Where the picture already is a square of `size`, all of it is
    returned with its box [5, 1], which `augment.resized_crops` cuts for a whole batch at once; otherwise the box
    covers all, and only mirroring is left. A JPEG of which the box is far larger than `size` is decoded at a half, a
    quarter or an eighth of its size. Raises one of `UNREADABLE`.
    """
    size = framing.size
    with open_image(path) as image:
        turned = image.getexif().get(_EXIF_ORIENTATION) in _QUARTER_TURNS
        width, height = reversed(image.size) if turned else image.size
        box_51 = augment.place_resized_crops(numbers_K1, height, width)
        if (width, height) == (size, size):
            return decode(path, framing), box_51
        top, left, box_height, box_width, mirrored = box_51[:, 0].tolist()
        least = (-(-width * size // box_width), -(-height * size // box_height))
        # Does nothing unless the file is a JPEG; never reduces below the size asked for.
        image.draft(None, (least[1], least[0]) if turned else least)
        ImageOps.exif_transpose(image, in_place=True)
        x, y = image.width / width, image.height / height
        edges = (left * x, top * y, (left + box_width) * x, (top + box_height) * y)
        whole = [round(edge) for edge in edges]
        cut = image.crop((whole[0], whole[1], max(whole[2], whole[0] + 1), max(whole[3], whole[1] + 1)))
    resized = to_mode(cut, framing.channels).resize((size, size), Image.Resampling.BILINEAR)
    return as_array(resized), torch.tensor([[0], [0], [size], [size], [mirrored]])


class ImagesLostError(UserError):
    """Images that were there cannot be had any more, or cannot be read."""


def unreadable(faults: Sequence[str], count: int) -> ImagesLostError:
    """One error for all files that cannot be read: each of `faults` is "path: reason"."""
    more = [f"and {len(faults) - NAMED_FILES} more"] if len(faults) > NAMED_FILES else []
    return ImagesLostError(
        f"{len(faults)} of {count} image files cannot be read:",
        "replace or remove these files",
        files=[*faults[:NAMED_FILES], *more],
    )


# ------------------------------------------------------------------------------------------------------- many files


class Request(NamedTuple):
    """Files to be decoded as one batch. `numbers_KB`: their `augment.draw_numbers` if boxes are to be cut, or None."""

    paths: list[str]
    numbers_KB: Tensor | None = None


class Decoded(NamedTuple):
    """`images_BHWC` uint8; `boxes_5B` int64, what is left to be cut, or None; `faults`: "path: reason" of each."""

    images_BHWC: Tensor
    boxes_5B: Tensor | None
    faults: list[str]


class Decoder(Dataset[Decoded]):
    """Requests in, decoded batches out: all that a worker process knows."""

    def __init__(self, framing: Framing) -> None:
        self.framing = framing

    def __getitem__(self, request: Request) -> Decoded:
        """Decode a batch; what cannot be read is black, and named in `faults`."""
        size, channels = self.framing.size, self.framing.channels
        numbers = request.numbers_KB
        images_BHWC = np.zeros((len(request.paths), size, size, channels), dtype=np.uint8)
        boxes = None if numbers is None else torch.zeros((5, len(request.paths)), dtype=torch.int64)
        faults = []
        for place, path in enumerate(request.paths):
            try:
                if numbers is None or boxes is None:
                    images_BHWC[place] = decode(path, self.framing)
                else:
                    images_BHWC[place], box_51 = decode_crop(path, self.framing, numbers[:, place : place + 1])
                    boxes[:, place] = box_51[:, 0]
            except UNREADABLE as error:
                faults.append(f"{path}: {reason(path, error)}")
        decoded = Decoded(torch.from_numpy(images_BHWC), boxes, faults)
        if get_worker_info() is not None:
            # As the batch is handed over. Were it left to the thread that does so, want of shared memory would end that
            # thread, and the training would wait for ever.
            for tensor in (decoded.images_BHWC, decoded.boxes_5B):
                if tensor is not None:
                    tensor.share_memory_()  # type: ignore[no-untyped-call]
        return decoded


def default_workers() -> int:
    """One worker for each core that this process may use and shares with no other of the training, 16 at most."""
    return max(1, min(MOST_WORKERS, hardware.usable_cores() // hardware.processes_here()))


def decode_here(framing: Framing, request: Request) -> Decoded:
    """Decode one batch at once, in threads: Pillow decodes and resizes outside Python's lock."""
    decoder, paths, numbers = Decoder(framing), request.paths, request.numbers_KB

    def decode_run(start: int) -> Decoded:
        drawn = None if numbers is None else numbers[:, start : start + RUN]
        return decoder[Request(paths[start : start + RUN], drawn)]

    # Leaving `map` early cancels what has not begun.
    with ThreadPoolExecutor(default_workers()) as pool:
        runs = list(pool.map(decode_run, range(0, len(paths), RUN))) or [decoder[request]]
    boxes = [run.boxes_5B for run in runs if run.boxes_5B is not None]
    return Decoded(
        torch.cat([run.images_BHWC for run in runs]),
        torch.cat(boxes, dim=1) if boxes else None,
        [fault for run in runs for fault in run.faults],
    )


def decode_batches(framing: Framing, requests: Iterable[Request], workers: int, *, pin: bool) -> Iterator[Decoded]:
    """Decode one batch after another, in order, in `workers` processes that run ahead; 0: in this one.

    `requests` is taken from as far ahead as the workers are. `pin`: into page-locked memory, for a CUDA device.
    Raises `UserError` if a worker dies, or none can be started.
    """
    if workers:
        try:
            with environment(SAFE_PATH):  # it starts Python's own process that tidies up
                _context().Lock()
        except OSError as error:  # which the loader's own iterator does not survive without complaints of its own
            raise ImagesLostError(
                f"no worker processes can be started to decode images: {error.strerror or error}; they talk through "
                "/dev/shm",
                NO_WORKERS,
            ) from error
    with warnings.catch_warnings():
        # More workers than cores are as the recipe says: reading may wait for the disk.
        warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
        loader = DataLoader(
            Decoder(framing),
            batch_size=None,
            sampler=cast(Any, requests),
            num_workers=workers,
            pin_memory=pin,
            multiprocessing_context=_context() if workers else None,
            worker_init_fn=_leave_signals_to_the_trainer if workers else None,
            prefetch_factor=PREFETCH if workers else None,
            # A seed for the workers would otherwise be drawn from the global stream.
            generator=torch.Generator(),
        )
        with environment(SAFE_PATH):
            batches = iter(loader)
    try:
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as error:
                if lost := _lost(batches, error):
                    raise lost from error
                raise
            yield batch
    finally:
        # An error keeps the iterator alive, and with it the other workers, for which the process would wait at its end.
        if hasattr(batches, "_shutdown_workers"):
            batches._shutdown_workers()


def _context() -> Any:
    """A way to start workers that forks no process with threads, where a lock that one holds would be held forever."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _leave_signals_to_the_trainer(_: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach the whole group; the trainer saves first and ends its workers then."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)


def _lost(batches: Any, error: Exception) -> ImagesLostError | None:
    """The error that names a dead worker; None if none is dead."""
    workers = getattr(batches, "_workers", ())
    if gone := isinstance(error, ConnectionError | EOFError):
        # It died while it handed a batch over, perhaps too lately to be known as dead.
        wait([worker.sentinel for worker in workers], timeout=1)
    codes = [code for code in (worker.exitcode for worker in workers) if code]
    if not (codes or gone) and "DataLoader worker" not in str(error) and "shared memory" not in str(error).lower():
        return None
    how = " and ".join(
        sorted(
            {f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}" for code in codes}
        )
    )
    said = (str(error).strip() or type(error).__name__).splitlines()  # a connection's end says nothing
    last = said[-1]
    if not codes and "shared memory" in last.lower():
        return ImagesLostError(f"worker processes have no room to hand over images: {last}", f"{LARGER}; {NO_WORKERS}")
    return ImagesLostError(
        f"a worker process that decodes images was lost ({how or said[0]})",
        "often the memory was too small for all workers (SIGKILL), or /dev/shm was (SIGBUS): lower data.workers or "
        f"train.batch_size; {NO_WORKERS}",
    )
