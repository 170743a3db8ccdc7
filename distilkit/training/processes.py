"""One process or many: joining the others, agreeing with them, and what happens when one of them dies.

`accelerate launch` and `torchrun` start one process for each device and say so in the environment; Accelerate reads it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin, broadcast_object_list

from distilkit.errors import UserError, first_line


def join(device: str) -> PartialState:
    """Join the other processes of this training, if it was launched as several. `device`: auto, cpu or cuda.

    Raises `UserError` if there is no CUDA device although one was asked for.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no CUDA device here", "leave --device out to use what there is")
    if not torch.distributed.is_initialized():
        # A second training in the same Python process may want another device, which the state kept by Accelerate for
        # the whole process would refuse.
        AcceleratorState._reset_state(reset_partial_state=True)
    # cuBLAS looks at this once, when it is first used, which may be before a deterministic training begins.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        return PartialState(cpu=_on_cpu(device))
    except (ValueError, KeyError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not several():
            raise
        raise UserError(
            f"Accelerate cannot join the processes of this training: {first_line(error)}",
            "start several with `accelerate launch` or `torchrun`; for one alone, unset the environment variables "
            "WORLD_SIZE, RANK and LOCAL_RANK",
        ) from error


def make_accelerator(precision: str, device: str) -> Accelerator:
    """Accelerate for this process; `precision`: fp32, bf16 or fp16."""
    join(device)
    # The precision may be another than a previous training's, too.
    AcceleratorState._reset_state()
    try:
        return Accelerator(
            # The recipe alone decides, not the environment that `accelerate launch` or a configuration file left.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            mixed_precision="no" if precision == "fp32" else precision,
            cpu=_on_cpu(device),
            dynamo_backend="no",
        )
    except (ValueError, ImportError) as error:
        settings = ", ".join(name for name in sorted(os.environ) if name.startswith("ACCELERATE_"))
        raise UserError(
            f"Accelerate cannot do what its settings ask for: {first_line(error)}",
            f"distilkit uses it for one device or several, and nothing more; unset: {settings}",
        ) from error


def _on_cpu(device: str) -> bool:
    # CUDA or the CPU, as --device says, and nothing else that Accelerate might find. Launched as several processes
    # without CUDA, Accelerate would moreover leave each on its own unless told to use the CPU.
    return device == "cpu" or not torch.cuda.is_available()


def from_main(value: Any) -> Any:
    """What the main process says, in every process."""
    return broadcast_object_list([value])[0]


def is_main() -> bool:
    """Whether this process is the one that writes and talks, as far as the launcher's environment tells."""
    return not several() or int(os.environ.get("RANK", "0")) == 0


def several() -> bool:
    """Whether this process is one of several, as far as the launcher's environment tells."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def lost_ones_named(run: Path | None = None) -> Iterator[None]:
    """Turn the failure of a collective operation, because another process is gone, into words that help."""
    try:
        yield
    except RuntimeError as error:
        gone = isinstance(error, torch.distributed.DistError) or "gloo" in str(error).lower()
        if not gone or not torch.distributed.is_initialized():
            raise
        hint = "look at the message of the process that ended first"
        raise UserError(
            f"another process of this training has ended or cannot be reached any more: {str(error).splitlines()[0]}",
            hint if run is None else f"{hint}; continue with: distilkit train --resume {run}",
        ) from error


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Inside the block, only algorithms that give the same bits every time, on CUDA as well."""
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]
