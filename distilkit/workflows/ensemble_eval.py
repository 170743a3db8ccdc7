"""`distilkit ensemble-eval`: every member, every ensemble, and how differently the members see the images."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distilkit.analysis.cost import measure
from distilkit.analysis.diversity import agreement, diversity
from distilkit.analysis.learner_cost import TrainingNetwork
from distilkit.analysis.metrics import evaluate_logits
from distilkit.data.resident import evaluation_batches
from distilkit.errors import UserError
from distilkit.observer import Observer
from distilkit.run import DataRecord, Run, find_run
from distilkit.workflows.evaluate import SplitName, choose_device, require_split

BATCH_SIZE = 250


def ensemble_eval(
    paths: list[Path],
    runs: Path,
    *,
    split: SplitName,
    checkpoint: str | None,
    data_root: str | None,
    device: str,
    observer: Observer,
) -> dict[str, Any]:
    """Evaluate a run's members and ensembles on one split; several runs give their leaders as an N-net ensemble.

    Errors in percent, cross-entropy in nats. `mean`, `std`: over the members, sample deviation. `ensembles`: the
    method's own; the mean of logits; the mean of probabilities; each of these means without one member ("leave-one-
    out"). `diversity`: mean Euclidean distance between two members' softmax outputs (Chen et al. 2020). `agreement`:
    fraction of images on which two members predict the same class.

    Raises `UserError` where there are fewer than two members, or the runs do not share data and classes.
    """
    found = [find_run(path, runs) for path in paths] or [find_run(None, runs)]
    if len({run.path.resolve() for run in found}) < len(found):
        raise UserError("the same run stands twice in the ensemble", "name each run once")
    data = _shared_data(found)
    require_split(data, split, found[0].path)
    images = data.load((split,), data_root)
    if data.changed(images):
        observer.note(f"these {split} images are not the ones that the training saw")
    chosen = images.splits[split]
    labels, where = chosen.labels, torch.device(choose_device(device))
    names: list[str] = []
    members: list[Tensor] = []
    own: dict[str, Tensor] = {}
    costs: list[int] = []
    total, done = len(found) * len(labels), 0
    for run in found:
        learner = run.learner(checkpoint)
        example = torch.zeros(1, data.channels, data.size, data.size)
        if len(found) == 1:
            costs.append(measure(TrainingNetwork(learner), example).flops)
        else:
            costs.append(run.record["flops"]["deploy"])
        learner.to(where).to(memory_format=torch.channels_last)
        member_parts, ensemble_parts = [], []
        with torch.inference_mode():
            for batch, _ in evaluation_batches(chosen, BATCH_SIZE, where):
                logits_SBC, ensemble_BC = learner.predict(batch)
                member_parts.append(logits_SBC.cpu())
                if ensemble_BC is not None:
                    ensemble_parts.append(ensemble_BC.cpu())
                done += len(batch)
                observer.progress("images", done, total)
        logits_SNC = torch.cat(member_parts, dim=1)
        if len(found) == 1:
            names, members = list(learner.group.members), list(logits_SNC)
            if learner.method.ensemble_name and ensemble_parts:
                own[learner.method.ensemble_name] = torch.cat(ensemble_parts)
        else:
            names.append(_unique(run.path.name, names))
            members.append(logits_SNC[learner.group.members.index(learner.leader)])
    if len(members) < 2:
        raise UserError(
            f"{found[0].path} has a single student and no ensemble",
            "name several runs to evaluate them as one: distilkit ensemble-eval RUN RUN",
        )
    stacked = torch.stack(members)
    ensembles = own | {kind: mix(stacked) for kind, mix in MEANS.items()}
    evaluated = {name: _figures(logits, labels) for name, logits in zip(names, stacked, strict=True)}
    errors = [figures["top1_error"] for figures in evaluated.values()]
    return {
        "run": str(found[0].path) if len(found) == 1 else [str(run.path) for run in found],
        "split": split,
        "images": len(labels),
        "members": evaluated,
        "mean": statistics.fmean(errors),
        "std": statistics.stdev(errors),
        "ensembles": {name: _figures(logits, labels) for name, logits in ensembles.items()},
        "leave_one_out": _leave_one_out(names, stacked, labels),
        "diversity": diversity(stacked),
        "agreement": {
            name: dict(zip(names, row, strict=True))
            for name, row in zip(names, agreement(stacked).tolist(), strict=True)
        },
        "flops": {"ensemble": sum(costs), "single": found[0].record["flops"]["deploy"]},
    }


def mean_of_logits(logits_SNC: Tensor) -> Tensor:
    """Average before the softmax, [N, C]."""
    return logits_SNC.mean(0)


def mean_of_probabilities(logits_SNC: Tensor) -> Tensor:
    """Average after the softmax, [N, C], as log-probabilities: their softmax is the mean itself."""
    return logits_SNC.double().softmax(-1).mean(0).log()


MEANS = {"mean_of_logits": mean_of_logits, "mean_of_probabilities": mean_of_probabilities}


def _leave_one_out(names: list[str], logits_SNC: Tensor, labels: Tensor) -> dict[str, dict[str, Any]]:
    """For every member, the ensembles of all the others; with two members that is the other one alone."""
    results: dict[str, dict[str, Any]] = {}
    for index, name in enumerate(names):
        others = torch.cat([logits_SNC[:index], logits_SNC[index + 1 :]])
        results[name] = {kind: _figures(mix(others), labels) for kind, mix in MEANS.items()}
    return results


def _figures(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    figures = evaluate_logits(logits, labels)
    return {
        "top1_error": figures.top1_error,
        "top5_error": figures.top5_error,
        "interval95": list(figures.interval95),
        "cross_entropy": figures.cross_entropy,
    }


def _shared_data(found: list[Run]) -> DataRecord:
    first = found[0].data
    for run in found[1:]:
        other = run.data
        facts: Mapping[str, tuple[Any, Any]] = {
            "data sets": (first.dataset, other.dataset),
            "classes": (first.classes, other.classes),
            "image sizes": (first.size, other.size),
            "channels": (first.channels, other.channels),
        }
        for what, (ours, theirs) in facts.items():
            if ours != theirs:
                raise UserError(
                    f"{found[0].path} and {run.path} have different {what}, and cannot form one ensemble",
                    "name runs that were trained on the same data set",
                )
    return first


def _unique(name: str, taken: list[str]) -> str:
    return name if name not in taken else f"{name} ({sum(other.startswith(name) for other in taken) + 1})"
