"""`distilkit doctor`: what this machine has, what is missing or broken, and how fast it trains.

Nothing is imported but inside `_import`: every package may be missing or broken, and then the others are still told of.
"""

import contextlib
import importlib
import os
import platform
import re
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from distilkit import hardware
from distilkit._version import __version__

LEAST_DISK = 2_000_000_000
LEAST_SHARED = 500_000_000
"""Bytes of /dev/shm that workers need who hand batches to a training; containers have 64 MB unless told otherwise."""

RECIPES = ("quickstart", "one_resnet32")
"""What is timed: the quickstart's network, and the papers' usual one, both with ONE."""

SECONDS = 2.0
"""For each network and precision the timing stops after so long."""


class Package(NamedTuple):
    """`module`: what is imported. `brings`: the extra that installs it; None where distilkit cannot do without it."""

    name: str
    module: str
    brings: str | None = None


PACKAGES = (
    Package("torch", "torch"),
    Package("torchvision", "torchvision"),
    Package("accelerate", "accelerate"),
    Package("numpy", "numpy"),
    Package("pillow", "PIL.Image"),
    Package("pydantic", "pydantic"),
    Package("safetensors", "safetensors"),
    Package("fvcore", "fvcore.nn"),
    Package("onnx", "onnx"),
    Package("onnxruntime", "onnxruntime"),
    Package("onnxscript", "onnxscript"),
    Package("scikit-learn", "sklearn"),
    Package("scipy", "scipy"),
    Package("matplotlib", "matplotlib"),
    Package("tensorboard", "tensorboard"),
    Package("huggingface-hub", "huggingface_hub"),
    Package("jinja2", "jinja2"),
    Package("tomli-w", "tomli_w"),
    Package("filelock", "filelock"),
    Package("pyyaml", "yaml"),
    Package("timm", "timm", "timm"),
    Package("openvino", "openvino", "openvino"),
    Package("wandb", "wandb", "tracking"),
    Package("mlflow-skinny", "mlflow", "tracking"),
)
"""Without typer and rich the command line itself does not start, so they are not asked after."""

Note = dict[str, str | None]


class _Remarks:
    """What is broken, what is worth a warning, and what to do about each."""

    def __init__(self) -> None:
        self.problems: list[Note] = []
        self.warnings: list[Note] = []

    def broken(self, problem: str, hint: str | None) -> None:
        self.problems.append({"problem": problem, "hint": hint})

    def warn(self, problem: str, hint: str | None) -> None:
        self.warnings.append({"problem": problem, "hint": hint})


def doctor(runs: Path, *, quick: bool = False, tell: Callable[[str], None] = lambda message: None) -> dict[str, Any]:
    """Look at packages, devices, disks and threads and, unless `quick`, time training steps.

    `tell` hears what is being looked at. Images per second count forward and backward passes over images in memory.
    `problems`: what keeps distilkit from working; `passed` is whether there is none. `warnings`: the rest. Each has a
    hint that says what to do.
    """
    said = _Remarks()
    tell("packages")
    packages = [_package(package, said) for package in PACKAGES]
    loaded = {row["name"] for row in packages if row["state"] == "works"}
    _check_pair(loaded, said)
    document: dict[str, Any] = {
        "distilkit": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "system": f"{platform.system()} {platform.release()} ({platform.machine()})",
        "packages": packages,
        "onnxruntime_providers": _guarded(said, "onnxruntime", _providers) if "onnxruntime" in loaded else None,
        "cpu": _cpu(),
        "threads": _threads(said, "torch" in loaded),
        "auto": _guarded(said, "torch", _auto) if "torch" in loaded else None,
        "devices": _guarded(said, "torch", lambda: _devices(said)) if "torch" in loaded else None,
        "storage": _storage(runs, said),
        "speed": None,
    }
    if not quick and not said.problems:
        tell("how fast this machine trains, a few seconds")
        document["speed"] = _guarded(said, "the timing of a training step", _speed)
    return {**document, "problems": said.problems, "warnings": said.warnings, "passed": not said.problems}


def _guarded(said: _Remarks, what: str, ask: Callable[[], Any]) -> Any:
    """What `ask` says; None, and a problem, where it fails."""
    try:
        return ask()
    except Exception as error:  # noqa: BLE001 - a broken package may raise anything
        said.broken(f"{what} fails: {_brief(error)}", "install it anew, or report this")
        return None


def _brief(error: BaseException) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


# ------------------------------------------------------------------------------------------------------------ packages


def _import(module: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(module)


def _package(package: Package, said: _Remarks) -> dict[str, Any]:
    """Its version, and whether it works, is missing or is broken."""
    name, module, extra = package
    row: dict[str, Any] = {"name": name, "version": None, "needed": extra is None, "state": "works", "install": None}
    install = f"pip install '{name}'" if extra is None else f"pip install 'distilkit[{extra}]'"
    with contextlib.suppress(Exception):
        row["version"] = metadata.version(name)
    try:
        _import(module)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a broken package may raise anything
        absent = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
        missing = absent == module.partition(".")[0]
        if not missing and absent in {other.module.partition(".")[0] for other in PACKAGES}:
            # One that is not there is told of once, not for all that need it.
            return row | {"state": f"needs {absent}"}
        row |= {"state": "missing" if missing else "broken", "install": install}
        if missing and extra is None:
            said.broken(f"{name} is not installed", install)
        elif not missing:
            problem = f"{name} {row['version'] or ''} cannot be imported: {_brief(error)}".replace("  ", " ")
            hint = f"pip install --force-reinstall '{name}'"
            said.broken(problem, hint) if extra is None else said.warn(problem, hint)
        return row
    if older := _older(name, row["version"]):
        said.broken(f"{name} {row['version']} is older than distilkit needs ({older})", f"pip install '{name}{older}'")
    return row


def _requirements(distribution: str) -> dict[str, str]:
    """What a distribution asks of each other one: {"torch": ">=2.11"}; empty where nobody knows."""
    found: dict[str, str] = {}
    with contextlib.suppress(Exception):
        for line in metadata.requires(distribution) or []:
            requirement, _, marker = line.partition(";")
            match = re.match(r"([A-Za-z0-9._-]+)\s*(?:\[[^\]]*\])?\s*\(?([^)]*)\)?$", requirement.strip())
            if match and "extra" not in marker:
                found[match[1].lower().replace("_", "-")] = match[2].replace(" ", "")
    return found


def _older(name: str, version: str | None) -> str | None:
    """The least version that distilkit asks for, if this one is below it."""
    wanted = _requirements("distilkit").get(name, "")
    if version is None or not wanted.startswith(">="):
        return None
    return wanted if _numbers(version) < _numbers(wanted[2:]) else None


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()


def _check_pair(loaded: set[str], said: _Remarks) -> None:
    """Whether torchvision was built for this torch: where not, its own operators are not there."""
    if not {"torch", "torchvision"} <= loaded:
        return
    torch = _import("torch")
    hint = "install both together: pip install --upgrade torch torchvision"
    try:
        boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
        _import("torchvision").ops.nms(boxes, torch.ones(1), 0.5)
    except Exception as error:  # noqa: BLE001 - whatever a broken extension raises
        said.broken(f"torch and torchvision do not fit together: {_brief(error)}", hint)
        return
    wanted = _requirements("torchvision").get("torch", "")
    there = str(torch.__version__).partition("+")[0]
    if wanted.startswith("==") and _numbers(wanted[2:]) != _numbers(there):
        said.warn(f"this torchvision was made for torch {wanted[2:]}, and torch is {there}", hint)


def _providers() -> list[str]:
    return list(map(str, _import("onnxruntime").get_available_providers()))


# ------------------------------------------------------------------------------------------------------------- machine


def _cpu() -> dict[str, Any]:
    """The model, the cores that may be used, and whether it computes in bfloat16 by itself (None: nobody says)."""
    model, text = platform.processor() or platform.machine(), hardware.cpuinfo()
    if named := re.search(r"^model name\s*:\s*(.+)$", text or "", re.MULTILINE):
        model = named[1]
    native, why = hardware.native_bf16()
    cores = {"cores": os.cpu_count(), "usable_cores": hardware.usable_cores()}
    return {"model": model, **cores, "native_bf16": native, "native_bf16_reason": why}


def _threads(said: _Remarks, with_torch: bool) -> dict[str, Any]:
    variables = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    cores, count = hardware.usable_cores(), None
    if with_torch:
        with contextlib.suppress(Exception):
            count = int(_import("torch").get_num_threads())
    set_to = variables["OMP_NUM_THREADS"]
    if set_to is not None and (not set_to.isdecimal() or int(set_to) > cores):
        said.warn(
            f"OMP_NUM_THREADS is {set_to!r}, and {cores} cores may be used", f"unset it, or set it to {cores} or fewer"
        )
    elif set_to == "1" and cores > 1:
        said.warn(
            f"OMP_NUM_THREADS is 1, and {cores} cores may be used: one computes",
            "unset it; distilkit then takes as many as the network is worth",
        )
    return {**variables, "torch": count}


def _auto() -> dict[str, dict[str, Any]]:
    """What `auto` means here: for train.precision, and the most that it means for train.threads; with the reason."""
    torch, training = _import("torch"), "distilkit.training"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = _import(f"{training}.precision").choose(device)
    most = _import(f"{training}.threads").choose(None, device, hardware.processes_here())
    return {key: {"value": value, "reason": why} for key, (value, why) in (("precision", precision), ("threads", most))}


def _devices(said: _Remarks) -> list[dict[str, Any]]:
    """The accelerators that torch sees, with their memory in bytes."""
    torch = _import("torch")
    found: list[dict[str, Any]] = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            free, total = torch.cuda.mem_get_info(index)
            capability = f"{properties.major}.{properties.minor}"
            found.append(
                {
                    "device": f"cuda:{index}",
                    "name": properties.name,
                    "memory_bytes": total,
                    "free_bytes": free,
                    "compute_capability": capability,
                    "bf16": properties.major >= 8,
                }
            )
            if free < 0.2 * total:
                said.warn(
                    f"cuda:{index} has {free / 1e9:.1f} of {total / 1e9:.1f} GB free", "nvidia-smi shows who uses it"
                )
    elif shutil.which("nvidia-smi"):
        built = torch.version.cuda
        said.warn(
            "there is nvidia-smi, and torch sees no CUDA device",
            "check the driver with nvidia-smi" if built else "this torch was built without CUDA: see pytorch.org",
        )
    if hasattr(torch.backends, "mps") and torch.backends.mps.is_available():
        found.append({"device": "mps", "name": "Apple GPU", "memory_bytes": None, "free_bytes": None})
        said.warn("an Apple GPU is there, and distilkit does not use it", "trainings run on the CPU")
    return found


def _storage(runs: Path, said: _Remarks) -> dict[str, Any]:
    """Room where runs are kept, whether it can be written to, and the memory that workers share."""
    place = runs.expanduser().absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    found: dict[str, Any] = {"runs": str(runs), "free_bytes": None, "writable": False, "shared_memory_bytes": None}
    try:
        found["free_bytes"] = shutil.disk_usage(place).free
        with tempfile.TemporaryFile(dir=place):
            found["writable"] = True
    except OSError as error:
        what = "is no folder" if place.is_file() else f"cannot be written to: {error.strerror or error}"
        said.broken(f"{place}, where runs would be kept, {what}", "name another folder: --runs FOLDER")
    if found["free_bytes"] is not None and found["free_bytes"] < LEAST_DISK:
        said.warn(
            f"{found['free_bytes'] / 1e9:.1f} GB are free where runs are kept ({place})",
            "distilkit runs prune deletes old ones; --runs FOLDER keeps them elsewhere",
        )
    shared = Path("/dev/shm")
    if shared.is_dir():
        with contextlib.suppress(OSError):
            found["shared_memory_bytes"] = shutil.disk_usage(shared).free
    if found["shared_memory_bytes"] is not None and found["shared_memory_bytes"] < LEAST_SHARED:
        said.warn(
            f"/dev/shm has {found['shared_memory_bytes'] / 1e6:.0f} MB free, too little for decoding processes",
            "in a container: --shm-size=2g; without it, set data.workers = 0 where images are streamed",
        )
    return found


# --------------------------------------------------------------------------------------------------------------- speed


def _speed() -> list[dict[str, Any]]:
    """Images per second of two trainings in fp32 and bf16: forward and backward passes, images in memory."""
    torch = _import("torch")
    recipes = _import("distilkit.recipe")
    data = _import("distilkit.data.datasets")
    build = _import("distilkit.learners.build")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for name in RECIPES:
        recipe = recipes.load(name)
        spec = data.spec(recipe.data.dataset, Path(recipe.data.root))
        learner = build.build_learner(recipe, spec).to(device).to(memory_format=torch.channels_last).train()
        batch = recipe.train.batch_size
        images = torch.zeros(batch, spec.channels, spec.size, spec.size, dtype=torch.uint8, device=device)
        images = images.contiguous(memory_format=torch.channels_last)
        labels = torch.arange(batch, device=device) % len(spec.classes)
        row: dict[str, Any] = {"recipe": name, "network": recipe.networks, "method": recipe.method.name}
        row |= {"batch_size": batch, "device": str(device)}
        for precision in ("fp32", "bf16"):
            row[precision] = batch / _step_seconds(learner, images, labels, precision)
        rows.append(row)
    return rows


def _step_seconds(learner: Any, images: Any, labels: Any, precision: str) -> float:
    """The median of up to five steps after one to warm up, for `SECONDS` at most."""
    seconds = [_timed_step(learner, images, labels, precision)]
    while len(seconds) < 6 and sum(seconds) < SECONDS:
        seconds.append(_timed_step(learner, images, labels, precision))
    return float(statistics.median(seconds[1:] or seconds))


def _timed_step(learner: Any, images: Any, labels: Any, precision: str) -> float:
    """Seconds of one forward and backward pass; the gradients are dropped."""
    torch, device = _import("torch"), images.device
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda _: None
    wait(device)
    start = time.perf_counter()
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        loss = learner(images, labels, 1.0).loss
    loss.backward()
    wait(device)
    learner.zero_grad(set_to_none=True)
    return time.perf_counter() - start
