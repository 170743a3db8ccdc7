"""`distilkit export`: one file to deploy, compared with PyTorch on real images before it is called done."""

import json
import tempfile
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from distilkit import __version__
from distilkit.analysis.cost import Cost
from distilkit.analysis.learner_cost import learner_cost
from distilkit.data import datasets
from distilkit.data.preparation import Preparation
from distilkit.errors import UserError, did_you_mean
from distilkit.export.form import PLAIN, Form, Formed
from distilkit.export.latency import interleaved_latency
from distilkit.export.onnx import EnsembleForExport, SingleForExport, export_onnx
from distilkit.export.parity import check_onnx
from distilkit.learner import Learner
from distilkit.observer import Observer
from distilkit.run import DataRecord, Model, Run, find_run, inside, open_model, writable
from distilkit.workflows.quantize import Quantization, quantize

Format = Literal["onnx"]

PARITY_BATCH_SIZES = (1, 7, 32)
PARITY_IMAGES = 1000
"""At most so many test images are compared: a wrong graph shows itself on the first."""

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
) -> dict[str, Any]:
    """Export the leader ("single"), another student ("member:NAME") or the method's own ensemble ("ensemble").

    The file takes `images` in the given form, by default [N, C, H, W], float in [0, 1], and gives `logits` and
    `probabilities`; with `members`, each member's logits too. It is proved on test images: `passed` is False when ONNX
    Runtime disagrees with PyTorch, and the file is then kept under a name that says so. With `quantization` a second
    file beside it has 8-bit weights; `passed` then also says whether that one met what was asked of it. Raises
    `UserError` for what cannot be exported.
    """
    asked_mode = mode
    mode, member = _mode(mode, member)
    if quantization is not None:
        quantization.check()
        if form.half:
            raise UserError("--fp16 and --quantize are two precisions", "leave one of them out")
    if mode == "single" and members:
        raise UserError("--members adds outputs to an ensemble", "use --mode ensemble --members")
    if mode == "ensemble" and member is not None:
        raise UserError(f"--member {member} cannot be chosen in an ensemble of all members", "leave --member out")
    if mode == "single":
        found, model = open_model(path, runs, member=member, checkpoint=checkpoint)
        classifier: SingleForExport | EnsembleForExport = SingleForExport(model.classifier)
        source, data, metadata = found.path, model.data, _metadata(model)
    else:
        run = find_run(path, runs)
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
    loaded = data.load(("test",) if quantization is None else ("train", "test"), data_root)
    images = form.arrange(loaded.splits["test"].images[:PARITY_IMAGES])
    batch_sizes = PARITY_BATCH_SIZES if form.batch is None else (form.batch,)
    metadata |= form.metadata(data.channels, data.size)
    framing = datasets.traits(data.dataset).framing(data.size, data.channels)
    metadata["preprocessing"] = Preparation(framing, form.layout, form.input_type).to_json()
    target = output or inside(source, "exports") / f"{mode if member is None else member}{form.suffix}.{format}"
    if target.is_dir():
        raise UserError(f"{target} is a folder; the export is one file", f"name it: --output {target}/model.{format}")
    unchecked = target.with_name(f"{target.stem}.unchecked{target.suffix}")
    with writable(target.parent):
        observer.note(f"exporting {source} ({mode}) to {format}")
        _write(network, unchecked, data, metadata, opset)
        sizes = ", ".join(map(str, batch_sizes))
        observer.note(f"comparing with PyTorch on {len(images)} test images at batch size {sizes}")
        parity = check_onnx(unchecked, network, images, network.output_names, batch_sizes, half=form.half)
        if not parity.passed:
            target = target.with_name(f"{target.stem}.failed-parity{target.suffix}")
        unchecked.replace(target)
    summary: dict[str, Any] = {
        "run": str(source),
        "file": str(target),
        "mode": asked_mode,
        "format": format,
        "input": form.pixels,
        "layout": form.layout,
        "batch": form.batch,
        "precision": form.precision,
        "member": metadata["member"],
        "outputs": list(network.output_names),
        "bytes": target.stat().st_size,
        "images_compared": parity.images,
        "batch_sizes": list(parity.batch_sizes),
        "max_abs_difference": parity.max_abs_difference,
        "tolerance": parity.tolerance,
        "top1_agreement": parity.top1_agreement,
        "passed": parity.passed,
        "reason": parity.reason,
    }
    if mode == "ensemble" and parity.passed:
        observer.note("timing the ensemble beside the leader alone")
        costs = learner_cost(learner, data.channels, data.size)
        assert costs.ensemble is not None  # There is one: it has a name.
        summary["deployed"] = _beside_the_leader(
            run.model(checkpoint=checkpoint), {"single": costs.deploy, "ensemble": costs.ensemble}, target, form
        )
    if quantization is not None and parity.passed:
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
    return summary


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


def _write(network: Formed, file: Path, data: DataRecord, metadata: dict[str, str], opset: int | None) -> None:
    form = network.form
    export_onnx(
        network,
        file,
        size=form.size(data.channels, data.size),
        output_names=network.output_names,
        metadata=metadata,
        opset=opset,
        input_dtype=form.dtype,
        batch=form.batch,
        half=form.half,
    )


class _OwnEnsemble(nn.Module):
    """Images -> the method's own ensemble's logits [N, C] and the members' [S, N, C]; the trunk is computed once."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        members_SNC, ensemble_NC = self.learner.predict(images)
        assert ensemble_NC is not None  # The caller has looked.
        return ensemble_NC, members_SNC


def _beside_the_leader(leader: Model, costs: dict[str, Cost], file: Path, form: Form) -> dict[str, Any]:
    """TeCost (FLOPs of one image), parameters and ONNX Runtime's latency of the leader and the ensemble, in one run."""
    batch_sizes = LATENCY_BATCH_SIZES if form.batch is None else (form.batch,)
    with tempfile.TemporaryDirectory() as folder:
        single_file = Path(folder) / "single.onnx"
        _write(Formed(SingleForExport(leader.classifier), form), single_file, leader.data, {}, None)
        latency = interleaved_latency({"single": single_file, "ensemble": file}, batch_sizes)
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
