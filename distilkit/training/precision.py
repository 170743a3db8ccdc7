"""`precision = "auto"`, decided by the hardware, so that every training of a recipe on one machine decides alike."""

import torch

from distilkit import hardware
from distilkit.errors import SettingError


def check(precision: str, device: torch.device) -> None:
    """Raise `SettingError` where the device cannot train in this precision."""
    if precision == "fp16" and device.type != "cuda":
        raise SettingError(
            "train.precision",
            f"fp16 trains on a CUDA device only, and this one is {device.type}",
            'use "bf16" or "fp32"',
        )


def choose(device: torch.device) -> tuple[str, str]:
    """bf16 where the device computes in it by itself, else fp32; and why, in a few words."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        native, why = (major, minor) >= (8, 0), f"the device's compute capability is {major}.{minor}"
    else:
        known, why = hardware.native_bf16()
        native = bool(known)
    return ("bf16" if native else "fp32"), why
