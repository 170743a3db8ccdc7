"""Contestants, each in a process of its own, that take turns on one machine.

Whatever else the machine does hits all of them alike, so the ratios of one round are worth more than any of its times.
Own processes, because allocators, thread pools and compiled kernels of one contestant would otherwise be another's, and
because memory can then be told apart.
"""

import contextlib
import datetime
import importlib
import json
import multiprocessing
import os
import platform
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "performance"
PACKAGES = ("torch", "torchvision", "accelerate", "onnxruntime", "numpy")

Work = Callable[[int], int | tuple[int, float]]
"""Do `count` units of work; returns how many images (or other things) that were, and the seconds where the work has
measured them itself."""


@dataclass(frozen=True)
class Contestant:
    """`make`: "module:function"; called in the new process with `arguments` it gives the `Work`."""

    name: str
    make: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    count: int = 1


@dataclass
class Times:
    """`seconds` of every round, `things` done in each, `megabytes`: peak of the process and all its children.

    `device_megabytes`: peak of what PyTorch has reserved on a CUDA device; 0 where it has nothing there.
    """

    things: int
    seconds: list[float]
    megabytes: float
    device_megabytes: float = 0.0

    @property
    def median(self) -> float:
        """Median seconds of a round."""
        return statistics.median(self.seconds)

    def document(self) -> dict[str, Any]:
        """What is kept: rates are things a second."""
        rates = [self.things / seconds for seconds in self.seconds]
        return {
            "per_second": {"median": statistics.median(rates), "low": min(rates), "high": max(rates)},
            "seconds": self.seconds,
            "things": self.things,
            "peak_megabytes": self.megabytes,
            **({"peak_device_megabytes": self.device_megabytes} if self.device_megabytes else {}),
        }


def race(contestants: Sequence[Contestant], rounds: int, tell: Callable[[str], None]) -> dict[str, Times]:
    """Let all do their work in turn, `rounds` times after one that does not count; every other round backwards."""
    with contextlib.ExitStack() as stack:
        runners = {each.name: stack.enter_context(_runner(each)) for each in contestants}
        times: dict[str, Times] = {}
        for number in range(rounds + 1):
            for each in contestants if number % 2 else contestants[::-1]:
                connection = runners[each.name]
                connection.send(each.count)
                things, seconds, megabytes, on_device, fault = connection.recv()
                if fault:
                    raise RuntimeError(f"{each.name}: {fault}")
                if number == 0:
                    times[each.name] = Times(things, [], megabytes)
                else:
                    times[each.name].seconds.append(seconds)
                    times[each.name].megabytes = max(times[each.name].megabytes, megabytes)
                    times[each.name].device_megabytes = max(times[each.name].device_megabytes, on_device)
                    memory = f"{megabytes:,.0f} MB" + (f", {on_device:,.0f} MB on the device" if on_device else "")
                    tell(f"round {number} of {rounds}  {each.name}: {things / seconds:,.0f}/s, {memory}")
        return times


def ratio(times: Mapping[str, Times], ours: str, theirs: str) -> dict[str, float]:
    """How many times as fast `ours` is, round by round: median, lowest and highest."""
    values = [
        (times[ours].things / mine) / (times[theirs].things / other)
        for mine, other in zip(times[ours].seconds, times[theirs].seconds, strict=True)
    ]
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


@contextlib.contextmanager
def _runner(contestant: Contestant) -> Iterator[Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    # Thread pools read their settings when they are loaded.
    before = {key: os.environ.get(key) for key in contestant.environment}
    os.environ.update(contestant.environment)
    try:
        process = context.Process(target=_serve, args=(theirs, contestant.make, dict(contestant.arguments)))
        process.start()
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
    theirs.close()
    try:
        yield ours
    finally:
        with contextlib.suppress(OSError):
            ours.send(None)
        process.join(30)
        if process.is_alive():
            process.kill()


def _serve(connection: Connection, make: str, arguments: dict[str, Any]) -> None:
    module, _, function = make.partition(":")
    try:
        work: Work = getattr(importlib.import_module(module), function)(**arguments)
        while (count := connection.recv()) is not None:
            with _awake():
                start = time.perf_counter()
                done = work(count)
                things, seconds = done if isinstance(done, tuple) else (done, time.perf_counter() - start)
            connection.send((things, seconds, peak_megabytes(), peak_device_megabytes(), ""))
    except (EOFError, KeyboardInterrupt):
        return
    except Exception as error:  # noqa: BLE001 - whatever it is, the race must hear of it
        connection.send((0, 0.0, 0.0, 0.0, f"{type(error).__name__}: {error}"))
    finally:
        _signal_children("SIGCONT")  # Who is to end must be awake.


@contextlib.contextmanager
def _awake() -> Iterator[None]:
    """Let this process's children work for the length of the block only.

    A loader's workers would fetch ahead in the others' turns: what they slow down there they would be spared here.
    """
    _signal_children("SIGCONT")
    try:
        yield
    finally:
        _signal_children("SIGSTOP")


def _signal_children(name: str) -> None:
    if hasattr(signal, name):
        for pid in _family() - {os.getpid()}:
            with contextlib.suppress(OSError):
                os.kill(pid, getattr(signal, name))


def _family() -> set[int]:
    """This process and all its living descendants."""
    parents = {}
    for entry in Path("/proc").iterdir() if Path("/proc").is_dir() else ():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    family, grown = {os.getpid()}, True
    while grown:
        children = {pid for pid, parent in parents.items() if parent in family}
        grown = not children <= family
        family |= children
    return family


def peak_megabytes() -> float:
    """Peak resident memory of this process and its living descendants, each at its own peak."""
    kilobytes = 0
    for pid in _family():
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    kilobytes += int(line.split()[1])
    return kilobytes / 1000


def peak_device_megabytes() -> float:
    """Peak of what PyTorch has reserved on the current CUDA device; 0 without one."""
    import torch

    return torch.cuda.max_memory_reserved() / 1e6 if torch.cuda.is_initialized() else 0.0  # type: ignore[no-untyped-call]


def machine(device: str = "cpu") -> dict[str, Any]:
    """What was measured on: never a figure without it."""
    model = platform.machine()
    with contextlib.suppress(OSError):
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        **_cuda(device),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _cuda(device: str) -> dict[str, str]:
    if device == "cpu":
        return {}
    import torch

    return {"device": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}


def write(name: str, command: str, figures: Mapping[str, Any], around: Mapping[str, Any], folder: Path) -> Path:
    """Keep the figures of one benchmark as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.json"
    document = {"benchmark": name, "command": command, "machine": around, **figures}
    file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return file
