"""`distilkit benchmark`: how fast files and runs answer on this machine, all of them in turn."""

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from distilkit.analysis.learner_cost import learner_cost
from distilkit.errors import UserError, is_plain_file
from distilkit.export.latency import (
    file_call,
    interleave,
    is_busy,
    machine,
    opened_for_timing,
    random_pixels,
)
from distilkit.export.onnx import SingleForExport, export_onnx
from distilkit.export.opened import fixed_batch, may_open, on_cuda
from distilkit.export.program import UntrustedProgramError
from distilkit.export.runtime import Device
from distilkit.observer import Observer
from distilkit.runs.run import EXPORTED, Model, Run, open_models
from distilkit.workflows.deploy.quantize import BUSY
from distilkit.workflows.evaluation.logits import choose_device

Kind = Literal["onnxruntime", "torch-export", "openvino", "eager", "compiled"]
RUNTIMES: dict[str, Kind] = {".pt2": "torch-export", ".xml": "openvino"}
"""By the ending of a file; all others are ONNX."""

SINGLE, ENSEMBLE = "single.onnx", "ensemble.onnx"
NOT_DEPLOYED = (".unchecked", ".failed")
"""What the names of files that a check held back say of them."""


@dataclass(frozen=True)
class _Contender:
    """What is timed: a file in its own runtime, or a run's leader in PyTorch."""

    name: str
    kind: Kind
    source: Path
    model: Model | None = field(default=None, hash=False)

    def calls(self, batches: Sequence[int], threads: int, device: Device) -> dict[int, Callable[[], object]]:
        """By batch size, one computation; a file of one fixed batch knows no other."""
        if self.model is None:
            opened = opened_for_timing(self.source, threads, device)
            only = fixed_batch(opened)
            return {batch: file_call(opened, batch) for batch in batches if only in (None, batch)}
        data = self.model.data
        network: nn.Module = self.model.classifier.to(device)
        if self.kind == "compiled":
            # Threads are compiled in.
            torch.compiler.reset()
            network = torch.compile(network, dynamic=False)  # type: ignore[assignment]
        calls = {}
        for batch in batches:
            images = random_pixels((batch, data.channels, data.size, data.size)).float() / 255
            calls[batch] = _inference(network, images.to(memory_format=torch.channels_last), device)
        return calls


def benchmark(
    paths: Sequence[Path],
    runs: Path,
    *,
    batches: Sequence[int],
    threads: Sequence[int],
    repetitions: int,
    compile: bool,
    observer: Observer,
    device: Device = "cpu",
) -> dict[str, Any]:
    """Median and 95th percentile of a batch in milliseconds, and images per second, of exported files and runs.

    `paths`: exported files, runs and pruned models; none of them is the newest finished run. A run's leader is timed in
    PyTorch, eager and with `compile` compiled, and every file in its `exports/` that passed its checks in its own
    runtime; where it has no `single.onnx` one is made for the occasion. A pt2 file is code: outside of `code_trusted`
    one that was named is refused, one of a run passed over with a note. For each number of `threads` and each batch
    size all take turns, `repetitions` times, after three rounds that do not count. Input is random pixels. `device`:
    where all of them compute; on "cuda" the images' way there and the answers' way back count, and files that are not
    ONNX are left out.

    `runs`: the folders that were timed. `ratios`: the ensemble's time over the leader's, beside the same ratio of
    FLOPs, for runs that exported both. Raises `UserError` for what is no file of a classifier, or cannot be
    compiled here.
    """
    for path in paths:
        if path.suffix in EXPORTED and path.exists() and not path.is_dir() and not is_plain_file(path):
            raise UserError(f"{path} is not a plain file", "name an exported file, or a run")
    files = [path for path in paths if path.is_file()]
    folders: list[Path | None] = [path for path in paths if not path.is_file()]
    if compile and paths and not folders:
        raise UserError("--compile times a run's network in PyTorch; a file has none", "name the run as well")
    for file in files:
        if not may_open(file):
            raise UntrustedProgramError(file)
    if device == "cuda":
        choose_device(device)
    found = open_models(folders if paths else [None], runs)
    around = machine()
    if is_busy(around):
        observer.note(BUSY)
    with tempfile.TemporaryDirectory() as folder:
        contenders = [_of_file(file) for file in files]
        for index, (source, model) in enumerate(found):
            contenders += _of_run(source.path, model, Path(folder) / f"{index}.onnx", compile, observer)
        if device == "cuda":
            for file in [each.source for each in contenders if each.model is None and not on_cuda(each.source)]:
                if file in files:
                    raise UserError(f"{file} is no ONNX file, and only those are timed on CUDA", "leave it out")
                observer.note(f"{file} is no ONNX file; it is not timed on CUDA")
            contenders = [each for each in contenders if each.model is not None or on_cuda(each.source)]
        contenders = list({(contender.name, contender.kind): contender for contender in contenders}.values())
        results: list[dict[str, Any]] = []
        for count in threads:
            results += _timed(contenders, batches, count, repetitions, observer, device)
    for only in {contender.name for contender in contenders} - {result["name"] for result in results}:
        observer.note(f"warning: {only} takes none of the batch sizes {', '.join(map(str, batches))}; it is left out")
    if not results:
        raise UserError("no file takes any of the batch sizes", "name others with --batch")
    ratios = [ratio for source, _ in found if isinstance(source, Run) for ratio in _ratios(source, results)]
    return {
        "runs": [str(source.path) for source, _ in found],
        "batches": list(batches),
        "threads": list(threads),
        "repetitions": repetitions,
        "device": device,
        "machine": dict(around),
        "results": results,
        "ratios": ratios,
    }


def _of_run(path: Path, model: Model, temporary: Path, compile: bool, observer: Observer) -> Iterator[_Contender]:
    yield _Contender(str(path), "eager", path, model)
    if compile:
        yield _Contender(str(path), "compiled", path, model)
    exports = path / "exports"
    files = [
        file
        for file in sorted(exports.glob("*"))
        if file.suffix in EXPORTED and not any(word in file.name for word in NOT_DEPLOYED)
    ]
    if exports / SINGLE not in files:
        observer.note(f"{path} has no exports/{SINGLE}; exporting one that is not kept (distilkit export keeps one)")
        network = SingleForExport(model.classifier)
        size = (model.data.channels, model.data.size, model.data.size)
        export_onnx(network, temporary, size=size, output_names=network.output_names, metadata={})
        yield _Contender(f"{exports / SINGLE} (not kept)", "onnxruntime", temporary)
    for file in files:
        if may_open(file):
            yield _of_file(file)
        else:
            observer.note(f"{file} can run code when it is opened, and is passed over; --trust-code times it too")


def _of_file(file: Path) -> _Contender:
    return _Contender(str(file), RUNTIMES.get(file.suffix, "onnxruntime"), file)


def _timed(
    contenders: Sequence[_Contender],
    batches: Sequence[int],
    threads: int,
    repetitions: int,
    observer: Observer,
    device: Device,
) -> list[dict[str, Any]]:
    results = []
    with _torch_threads(threads):
        calls = {contender: contender.calls(batches, threads, device) for contender in contenders}
        for batch in batches:
            observer.note(f"timing batch size {batch} on {threads} thread{'s' * (threads > 1)}")
            able = {contender: calls[contender][batch] for contender in contenders if batch in calls[contender]}
            _compile(able)
            latency = interleave(able, repetitions)
            eager = {who.source: times["median_ms"] for who, times in latency.items() if who.kind == "eager"}
            for contender, times in latency.items():
                median = times["median_ms"]
                # An export lies in its run's exports/; with a single run everything is compared with it.
                own = contender.source.parent.parent if contender.model is None else contender.source
                reference = next(iter(eager.values())) if len(eager) == 1 else eager.get(own, math.nan)
                results.append(
                    {
                        "name": contender.name,
                        "kind": contender.kind,
                        "threads": threads,
                        "batch": batch,
                        **times,
                        "images_per_second": 1000 * batch / median,
                        "speedup_over_eager": reference / median,
                    }
                )
    return results


def _compile(calls: dict[_Contender, Callable[[], object]]) -> None:
    """Compile now what is to be compiled, so that no turn of the others falls into it."""
    for contender, call in calls.items():
        if contender.kind != "compiled":
            continue
        try:
            call()
        except Exception as error:  # whatever the compiler and the tools that it calls raise
            cause = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(
                f"{contender.name} cannot be compiled here: {cause[0]}",
                "torch.compile needs a C++ compiler; leave --compile out to time without it",
            ) from error


def _inference(network: nn.Module, images: torch.Tensor, device: Device) -> Callable[[], object]:
    def call() -> object:
        with torch.inference_mode():
            # To where the caller has it, as ONNX Runtime gives it; that waits for the device, too.
            return network(images.to(device)).cpu()

    return call


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _ratios(run: Run, results: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    medians = {(result["name"], result["threads"], result["batch"]): result["median_ms"] for result in results}
    single, ensemble = (str(run.path / "exports" / name) for name in (SINGLE, ENSEMBLE))
    places = [key[1:] for key in medians if key[0] == ensemble and (single, *key[1:]) in medians]
    if not places:
        return
    costs = learner_cost(run.learner(), run.data.channels, run.data.size)
    if costs.ensemble is None:  # A file of another run was put there.
        return
    for threads, batch in places:
        yield {
            "run": str(run.path),
            "threads": threads,
            "batch": batch,
            "latency_ratio": medians[ensemble, threads, batch] / medians[single, threads, batch],
            "flops_ratio": costs.ensemble.flops / costs.deploy.flops,
        }
