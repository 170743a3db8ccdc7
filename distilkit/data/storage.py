"""Whether a data set's pixels stay in memory or are streamed: what they would take, and what there is."""

from typing import Literal

import torch

from distilkit.data import augment as augmentation
from distilkit.data.base import DataSpec
from distilkit.errors import SettingError
from distilkit.memory import free_memory

Storage = Literal["auto", "resident", "stream"]

SHARE = 0.5
"""Of the free memory, what the pixels may take: the rest is for the network, its activations and everybody else."""


def pixel_bytes(spec: DataSpec, augment: str) -> tuple[int, int]:
    """Bytes of all images as they are read, and of the training images as their device holds them.

    The latter includes the frames, and the mirrored images, that "crop" and "crop-flip" keep (`augment.padded`).
    """
    image = spec.size**2 * spec.channels
    train, test = spec.train_images or 0, spec.test_images or 0
    frames = 1.0
    if augment in ("crop", "crop-flip"):
        frames = (1 + 2 * augmentation.padding(spec.size) / spec.size) ** 2 * (2 if augment == "crop-flip" else 1)
    return (train + test) * image, round(train * image * frames)


def choose(wanted: Storage, spec: DataSpec, augment: str, device: torch.device, processes: int) -> tuple[Storage, str]:
    """Decide where the pixels stay: "resident" or "stream", and why, in one line.

    "auto" is resident where the pixels of all `processes` of this machine take at most `SHARE` of the free memory, the
    host's and the device's; on a CPU both are one. What is free is unknown on some systems: then it is resident.
    Raises `SettingError` ("storage") where "resident" is asked for and is more than all there is.
    """
    read, held = pixel_bytes(spec, augment)
    # On a CPU only framed images are held a second time.
    framed = held if augment in ("crop", "crop-flip") else 0
    on_host, on_device = (read, held) if device.type == "cuda" else (read + framed, 0)
    host, memory = free_memory(), torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    needs = [("memory", on_host * processes, host), ("device memory", on_device, memory)]
    sizes = "; ".join(f"{_gigabytes(need)} of {_gigabytes(free)} free {what}" for what, need, free in needs if free)
    known = [(need, free) for _, need, free in needs if free is not None]
    if wanted == "resident" and any(need > free for need, free in known):
        raise SettingError(
            "storage",
            f"the pixels of {spec.name} do not fit: they would take {sizes}",
            'write storage = "stream", or a smaller image_size',
        )
    if wanted != "auto":
        return wanted, f"the recipe says so; in memory the pixels would take {sizes}"
    fits = all(need <= SHARE * free for need, free in known)
    return ("resident" if fits else "stream"), f"in memory the pixels take {sizes}; up to half is taken"


def _gigabytes(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 1e9:.2f} GB"
