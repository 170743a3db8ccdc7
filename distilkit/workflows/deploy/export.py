"""`distilkit export`: one file to deploy, compared with PyTorch on real images before it is called done."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distilkit._version import __version__
from distilkit.analysis.cost import Cost
from distilkit.analysis.learner_cost import learner_cost
from distilkit.data import datasets
from distilkit.data.datasets import Split
from distilkit.data.pictures import evenly
from distilkit.data.preparation import Preparation
from distilkit.errors import UserError, did_you_mean
from distilkit.export.evaluation import evaluate_file
from distilkit.export.form import ENDINGS, PLAIN, Form, Format, Formed
from distilkit.export.latency import interleaved_latency
from distilkit.export.onnx import EnsembleForExport, SingleForExport, check_opset, export_onnx, oldest_runtime
from distilkit.export.opened import parts
from distilkit.export.openvino import export_openvino, require_openvino
from distilkit.export.parity import Parity, check_file
from distilkit.export.program import export_pt2
from distilkit.export.runtime import Device
from distilkit.learners.learner import Learner
from distilkit.observer import Observer
from distilkit.runs.atomic import inside, writable
from distilkit.runs.data_record import DataRecord
from distilkit.runs.deployed_check import describe
from distilkit.runs.run import Model, Run, find_run, open_model
from distilkit.workflows.deploy.quantize import Quantization, quantize
from distilkit.workflows.share.cards import beside_export

PARITY_BATCH_SIZES = (1, 7, 32)
PARITY_IMAGES = 1000
"""At most so many test images are compared: a wrong graph shows itself on the first."""

SIZED_IMAGES = 64
"""So many of them at each other size, where a file takes any."""

ERROR_IMAGES = 10_000
"""The error is counted on at most so many test images, evenly spread over the set."""

LATENCY_BATCH_SIZES = (1, 32)


def export(
    path: Path | None,
    runs: Path,
    *,
    mode: str,
    format: Format,
    member: str | None,
    members: bool,
    checkpoint: str | None,
    output: Path | None,
    data_root: str | None,
    opset: int | None,
    observer: Observer,
    form: Form = PLAIN,
    quantization: Quantization | None = None,
    device: Device = "cpu",
) -> dict[str, Any]:
    """Export the leader ("single"), another student ("member:NAME") or the method's own ensemble ("ensemble").

    The file takes `images` in the given form, by default [N, C, H, W], float in [0, 1], and gives `logits` and
    `probabilities`; with `members`, each member's logits too. It is proved on test images in its format's own runtime:
    `passed` is False when that disagrees with PyTorch, and the file is then kept under a name that says so. `device`:
    where the file computes when it is compared and timed; PyTorch's side is the CPU's. With `quantization` a second
    file beside it has 8-bit weights; `passed` then also says whether that one met what was asked of it. Raises
    `UserError` for what cannot be exported.
    """
    asked_mode = mode
    mode, member = _mode(mode, member)
    _check(format, form, opset, quantization, output, device)
    if mode == "single" and members:
        raise UserError("--members adds outputs to an ensemble", "use --mode ensemble --members")
    if mode == "ensemble" and member is not None:
        raise UserError(f"--member {member} cannot be chosen in an ensemble of all members", "leave --member out")
    if mode == "single":
        exported, model = open_model(path, runs, member=member, checkpoint=checkpoint)
        classifier: SingleForExport | EnsembleForExport = SingleForExport(model.classifier)
        source, data, metadata = exported.path, model.data, _metadata(model)
    else:
        run = exported = find_run(path, runs)
        learner = run.learner(checkpoint)
        name = learner.method.ensemble_name
        if name is None:
            raise UserError(f"{run.path} has a single student and no ensemble", "use --mode single")
        # A leader that stands apart from the ensemble is computed only where its logits are asked for.
        names = learner.group.members if members else learner.method.peers(learner.group.members)
        deployed = Learner(learner.group.only(names), learner.method).eval()
        classifier = EnsembleForExport(_OwnEnsemble(deployed), names, members=members)
        source, data, metadata = run.path, run.data, _ensemble_metadata(run, name, checkpoint)
    network = Formed(classifier, form).eval()
    side = form.side if isinstance(form.side, int) else data.size
    sizes = [(side, side), *(_other_sizes(side) if form.any_size else ())]
    if form.side is not None:
        _require_sizes(network, sizes, data.channels, format)
    test = _test_images(data, side, data_root) if quantization is None else None
    loaded = None if quantization is None else data.load(("train", "test"), data_root)
    test = loaded.splits["test"] if loaded is not None else test
    assert test is not None
    images = test.images[:PARITY_IMAGES]
    batch_sizes = PARITY_BATCH_SIZES if form.batch is None else (form.batch,)
    metadata |= form.metadata(data.channels, data.size)
    if side != data.size:
        metadata["top1_error_percent"] = ""  # which was counted at another size
    metadata["outputs"] = json.dumps(list(network.output_names))
    framing = datasets.traits(data.dataset).framing(side, data.channels)
    metadata["preprocessing"] = Preparation(framing, form.layout, form.input_type).to_json()
    ending = ENDINGS[format]
    target = output or inside(source, "exports") / f"{mode if member is None else member}{form.suffix}{ending}"
    if target.is_dir():
        raise UserError(f"{target} is a folder; the export is one file", f"name it: --output {target}/model{ending}")
    try:
        str(target).encode()
    except UnicodeEncodeError:
        problem = f"the name of {target} is not UTF-8, which the libraries that open it need"
        raise UserError(problem, "name another file with --output") from None
    unchecked, failed = (target.with_name(f"{target.stem}.{word}{target.suffix}") for word in ("unchecked", "failed"))
    parities: dict[tuple[int, int], Parity] = {}
    with writable(target.parent):
        try:
            observer.note(f"exporting {source} ({mode}) to {format}")
            if isinstance(exported, Run) and (lag := describe(exported.record.get("deployed_check", {}))):
                observer.note(f"warning: {lag}")
            _write(network, unchecked, data, metadata, format, opset)
            together = ", ".join(map(str, batch_sizes))
            observer.note(f"comparing with PyTorch on {len(images)} test images at batch size {together}")
            for height, width in sizes:
                at_size = images if (height, width) == (side, side) else _resized(images[:SIZED_IMAGES], height, width)
                parities[height, width] = check_file(
                    unchecked,
                    network,
                    form.arrange(at_size),
                    network.output_names,
                    batch_sizes,
                    half=form.half,
                    device=device,
                )
            height, width = next((size for size, each in parities.items() if not each.passed), (side, side))
            parity, where = parities[height, width], f"at {height} x {width} pixels: " if form.any_size else ""
            error = _error(unchecked, test, form, observer, device) if parity.passed else None
            if not parity.passed:
                target = failed
            _move(unchecked, target)
            if parity.passed:
                _remove(failed)
        finally:
            _remove(unchecked)
    summary: dict[str, Any] = {
        "run": str(source),
        "file": str(target),
        "files": [str(part) for part in parts(target)],
        "mode": asked_mode,
        "format": format,
        "input": form.pixels,
        "layout": form.layout,
        "batch": form.batch,
        "precision": form.precision,
        "device": device,
        "member": metadata["member"],
        "outputs": list(network.output_names),
        "size": form.side or data.size,
        "bytes": sum(part.stat().st_size for part in parts(target)),
        "onnxruntime": oldest_runtime(target) if format == "onnx" else None,
        "images_compared": parity.images,
        "batch_sizes": list(parity.batch_sizes),
        "max_abs_difference": parity.max_abs_difference,
        "tolerance": parity.tolerance,
        "top1_agreement": parity.top1_agreement,
        "sizes": [
            {
                "height": height,
                "width": width,
                "images": each.images,
                "max_abs_difference": each.max_abs_difference,
                "top1_agreement": each.top1_agreement,
                "passed": each.passed,
            }
            for (height, width), each in parities.items()
        ],
        "test": error,
        "passed": parity.passed,
        "reason": where + parity.reason if parity.reason else None,
    }
    if mode == "ensemble" and parity.passed:
        observer.note("timing the ensemble beside the leader alone")
        costs = learner_cost(learner, data.channels, side)
        assert costs.ensemble is not None  # There is one: it has a name.
        summary["deployed"] = _beside_the_leader(
            run.model(checkpoint=checkpoint),
            {"single": costs.deploy, "ensemble": costs.ensemble},
            target,
            form,
            format,
            metadata["preprocessing"],
            device,
        )
    if quantization is not None and loaded is not None and parity.passed:
        same = data.same(loaded, source, data_root, observer)
        with writable(target.parent):
            quantized = quantize(
                target,
                quantization,
                train=loaded.splits["train"],
                test=loaded.splits["test"],
                seed=data.seed,
                form=form,
                observer=observer,
            )
        summary["quantized"] = {"same_data": same, **quantized}
        summary |= {"passed": quantized["passed"], "reason": quantized["reason"]}
    summary["card"] = beside_export(exported, summary, observer, inside=output is None, final=checkpoint is None)
    return summary


def _check(
    format: Format,
    form: Form,
    opset: int | None,
    quantization: Quantization | None,
    output: Path | None,
    device: Device,
) -> None:
    """Raise `UserError` for options that do not go together, or that cannot be had here."""
    if quantization is not None:
        quantization.check(form.batch)
        if form.half:
            raise UserError("--fp16 and --quantize are two precisions", "leave one of them out")
        if format != "onnx":
            raise UserError(f"--quantize makes ONNX files, not {format}", "leave --format or --quantize out")
        if form.side is not None:
            raise UserError("--quantize is calibrated at the size of training", "leave --size out")
        if device != "cpu":
            raise UserError("--quantize makes files for CPUs, and its verdict is this CPU's", "leave --device out")
    if device == "cuda" and format != "onnx":
        raise UserError(
            f"--device cuda is ONNX Runtime's; --format {format} is checked on the CPU", "leave --device out"
        )
    if opset is not None:
        if format != "onnx":
            raise UserError(f"--opset belongs to --format onnx; {format} has none", "leave --opset out")
        check_opset(opset)
    if format == "openvino":
        require_openvino()
    others = {ending: name for name, ending in ENDINGS.items() if name != format}
    if output is not None and not output.is_dir():
        if output.suffix in others:
            raise UserError(
                f"--output {output} ends as a file of --format {others[output.suffix]} does, not {format}",
                f"--output {output.with_suffix(ENDINGS[format])}",
            )
        if format != "onnx" and output.suffix != ENDINGS[format]:
            raise UserError(
                f"--output {output} must end in {ENDINGS[format]}, by which a file of --format {format} is known",
                f"--output {output.with_suffix(ENDINGS[format])}",
            )


def _test_images(data: DataRecord, side: int, data_root: str | None) -> Split:
    """The test images, `side` pixels high and wide: read so where the data set has original pictures, else resized."""
    if side == data.size:
        return data.load(("test",), data_root).splits["test"]
    if datasets.traits(data.dataset).image_size:
        return data.model_copy(update={"size": side}).load(("test",), data_root).splits["test"]
    test = data.load(("test",), data_root).splits["test"]
    return replace(test, images=_resized(test.images[:], side, side))


def _resized(images: Tensor, height: int, width: int) -> Tensor:
    """Images uint8 [N, C, H, W] at another size, as Pillow's bilinear filter has them."""
    resized = F.interpolate(images.float(), size=(height, width), mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8)


def _require_sizes(network: Formed, sizes: Sequence[tuple[int, int]], channels: int, format: Format) -> None:
    """Raise `UserError` if the network itself, or the format, does not take images of these sizes."""
    hint = "a fully convolutional network with global pooling takes any size; leave --size out"
    for height, width in sizes:
        images = torch.zeros(2, channels, height, width, dtype=network.form.dtype)
        try:
            with torch.inference_mode():
                network(network.form.arrange(images))
        except Exception as error:  # each architecture has its own way to say that it does not take images of a size
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise UserError(
                f"this network does not take images of {height} x {width} pixels: {reason}", hint
            ) from error
    pools = [each for each in network.modules() if isinstance(each, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d)]
    fixed = [each.output_size for each in pools if each.output_size not in (1, (1, 1))]
    if network.form.any_size and fixed and format != "pt2":
        raise UserError(
            f"this network pools maps of any size to {fixed[0]}, for which ONNX has no operator",
            "--format pt2 takes any size here; --size N is another fixed size",
        )


def _other_sizes(side: int) -> tuple[tuple[int, int], ...]:
    """Those at which a file for any size is compared besides that of training: larger, and neither square nor even."""
    return (5 * side // 4 | 1, 3 * side // 2), (2 * side, side)


def _error(file: Path, test: Split, form: Form, observer: Observer, device: Device) -> dict[str, Any]:
    """The file's own top-1 error on the test images, in percent, with Wilson's 95 % interval."""
    total = len(test.labels)
    places = None if total <= ERROR_IMAGES else torch.tensor(evenly(total, ERROR_IMAGES))
    figures = evaluate_file(file, test, form, lambda *done: observer.progress("test images", *done), places, device)
    return {
        "images": min(total, ERROR_IMAGES),
        "top1_error": figures.top1_error,
        "interval95": list(figures.interval95),
    }


def _move(file: Path, target: Path) -> None:
    for part, wanted in zip(parts(file), parts(target), strict=True):
        part.replace(wanted)


def _remove(file: Path) -> None:
    for part in parts(file):
        part.unlink(missing_ok=True)


def _mode(mode: str, member: str | None) -> tuple[Literal["single", "ensemble"], str | None]:
    """ "member:NAME" is "single" of another student. Raises `UserError` for what is no mode."""
    if mode == "ensemble":
        return "ensemble", member
    if mode == "single":
        return "single", member
    kind, _, name = mode.partition(":")
    if kind != "member" or not name:
        known = ("single", "ensemble", "member:NAME")
        raise UserError(
            f"--mode {mode} is none of {', '.join(known)}", did_you_mean(mode, known) or "--mode single is the leader"
        )
    if member is not None:
        raise UserError(f"--mode {mode} and --member {member} both name a student", "leave --member out")
    return "single", name


def _write(
    network: Formed, file: Path, data: DataRecord, metadata: dict[str, str], format: Format, opset: int | None = None
) -> None:
    form = network.form
    settings: dict[str, Any] = {
        "size": form.size(data.channels, data.size),
        "output_names": network.output_names,
        "metadata": metadata,
        "input_dtype": form.dtype,
        "batch": form.batch,
        "half": form.half,
        "free_axes": form.free_axes,
    }
    if format == "pt2":
        export_pt2(network, file, **settings)
    elif format == "openvino":
        export_openvino(network, file, **settings)
    else:
        export_onnx(network, file, opset=opset, **settings)


class _OwnEnsemble(nn.Module):
    """Images -> the method's own ensemble's logits [N, C] and the members' [S, N, C]; the trunk is computed once."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        members_SNC, ensemble_NC = self.learner.predict(images)
        assert ensemble_NC is not None  # The caller has looked.
        return ensemble_NC, members_SNC


def _beside_the_leader(
    leader: Model,
    costs: dict[str, Cost],
    file: Path,
    form: Form,
    format: Format,
    preprocessing: str,
    device: Device,
) -> dict[str, Any]:
    """TeCost (FLOPs of one image), parameters and latency of the leader and the ensemble, in one run."""
    batch_sizes = LATENCY_BATCH_SIZES if form.batch is None else (form.batch,)
    with tempfile.TemporaryDirectory() as folder:
        single_file = Path(folder) / f"single{ENDINGS[format]}"
        about = {"preprocessing": preprocessing}
        _write(Formed(SingleForExport(leader.classifier), form), single_file, leader.data, about, format)
        latency = interleaved_latency({"single": single_file, "ensemble": file}, batch_sizes, device=device)
    return {name: _deployed(costs[name], dict(latency[name])) for name in costs}


def _deployed(cost: Cost, latency: dict[int, Any]) -> dict[str, Any]:
    return {
        "parameters": cost.parameters,
        "flops": cost.flops,
        "latency_ms": {f"batch_{batch}": dict(times) for batch, times in latency.items()},
    }


def _metadata(model: Model) -> dict[str, str]:
    return {
        **_data_metadata(model.data),
        "architecture": model.architecture,
        "method": model.method,
        "member": model.member,
        "top1_error_percent": "" if model.error is None else f"{model.error:.4f}",
        "recipe_digest": model.recipe_digest,
    }


def _ensemble_metadata(run: Run, name: str, checkpoint: str | None) -> dict[str, str]:
    errors = run.record.get("final", {}).get("errors", {})
    known = checkpoint is None and name in errors
    return {
        **_data_metadata(run.data),
        "architecture": run.recipe.networks,
        "method": run.recipe.method.name,
        "member": f"ensemble ({name}) of {', '.join(run.record['members'])}",
        "top1_error_percent": f"{errors[name]['top1']:.4f}" if known else "",
        "recipe_digest": run.recipe.digest(),
    }


def _data_metadata(data: DataRecord) -> dict[str, str]:
    return {
        "distilkit_version": __version__,
        "dataset": data.dataset,
        "classes": json.dumps(list(data.classes)),
    }
