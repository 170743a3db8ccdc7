"""How fast exported files run, measured in turn so that a busy moment of the machine hits all of them alike."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch

from distilkit.export.parity import input_array, open_session
from distilkit.randomness import generator

_WARMUPS = 3


class Latency(TypedDict):
    """Milliseconds for one batch."""

    median_ms: float
    p95_ms: float


def interleaved_latency(
    files: Mapping[str, Path],
    batch_sizes: Sequence[int] = (1, 32),
    repetitions: int = 50,
    threads: int | None = None,
) -> dict[str, dict[int, Latency]]:
    """Time ONNX files against each other in ONNX Runtime on the CPU: name -> batch size -> milliseconds per batch.

    All sessions are open at once and run A, B, A, B, ..., `repetitions` times each, after three runs that are not
    counted. Images are random pixels. `threads` None uses every core. Raises `UserError` if a file does not exist.
    """
    if repetitions < 1:
        raise ValueError(f"the number of repetitions must be 1 or more, not {repetitions}")
    sessions = {name: open_session(file, threads) for name, file in files.items()}
    results: dict[str, dict[int, Latency]] = {name: {} for name in files}
    for batch_size in batch_sizes:
        feeds = {}
        for name, session in sessions.items():
            (image_input,) = session.get_inputs()
            shape = (batch_size, *image_input.shape[1:])
            pixels = torch.randint(256, shape, dtype=torch.uint8, generator=generator(0, "latency", batch_size))
            feeds[name] = {image_input.name: input_array(session, pixels)}
        milliseconds: dict[str, list[float]] = {name: [] for name in files}
        for repetition in range(_WARMUPS + repetitions):
            for name, session in sessions.items():
                start = time.perf_counter()
                session.run(None, feeds[name])
                elapsed = time.perf_counter() - start
                if repetition >= _WARMUPS:
                    milliseconds[name].append(1000 * elapsed)
        for name, values in milliseconds.items():
            median, p95 = np.percentile(values, [50, 95])
            results[name][batch_size] = Latency(median_ms=float(median), p95_ms=float(p95))
    return results
