"""`distilkit ensemble-eval`: every member, every ensemble, and how differently the members see the images."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distilkit.analysis.diversity import agreement, diversity
from distilkit.analysis.metrics import evaluate_logits
from distilkit.data.datasets import Split
from distilkit.errors import UserError
from distilkit.groups.inference import Precision
from distilkit.learners.learner import Learner
from distilkit.models import own
from distilkit.observer import Observer
from distilkit.runs.data_record import DataRecord
from distilkit.runs.run import Run, find_run
from distilkit.workflows.evaluation.evaluate_run import require_split
from distilkit.workflows.evaluation.logits import predict_members
from distilkit.workflows.evaluation.predicting import SplitName


def ensemble_eval(
    paths: list[Path],
    runs: Path,
    *,
    split: SplitName,
    checkpoint: str | None,
    data_root: str | None,
    device: str,
    precision: Precision = "fp32",
    observer: Observer,
) -> dict[str, Any]:
    """Evaluate members and ensembles on one split.

    The members are a run's students; or the snapshots of a run whose schedule kept them; or, of several runs, their
    leaders (an N-net ensemble). Errors in percent, cross-entropy in nats. `mean`, `std`: over the members, sample
    deviation. `ensembles`: the method's own; the mean of logits; the mean of probabilities; `leave_one_out`: these
    means without one member. A leader that stands apart from its peers (OKDDip's) is no part of any ensemble.
    `diversity`: mean Euclidean distance between two peers' softmax outputs (Chen et al. 2020). `agreement`: fraction
    of images on which two members predict the same class. `flops`: TeCost of the ensemble and of one member.

    Raises `UserError` where there are fewer than two members, or the runs do not share data and classes.
    """
    found = [find_run(path, runs) for path in paths] or [find_run(None, runs)]
    if len({run.path.resolve() for run in found}) < len(found):
        raise UserError("the same run stands twice in the ensemble", "name each run once")
    own.name_modules([name for run in found for name in run.architectures])
    for run in found:
        run.require_trust()  # before any of them is computed
    data = _shared_data(found, split)
    require_split(data, split, found[0].path)
    images = data.load((split,), data_root)
    same = [run.data.same(images, run.path, data_root, observer) for run in found]
    seen = _Images(images.splits[split], device, precision, observer)
    if len(found) > 1:
        members = _of_several_runs(found, checkpoint, seen)
    elif found[0].snapshots:
        members = _of_snapshots(found[0], checkpoint, seen)
    else:
        members = _of_one_run(found[0], checkpoint, seen)
    if len(members.logits) < 2:
        raise UserError(
            f"{found[0].path} has a single student and no ensemble",
            "name several runs to evaluate them as one: distilkit ensemble-eval RUN RUN",
        )
    labels, names = seen.split.labels, list(members.logits)
    peers_SNC = torch.stack([members.logits[name] for name in members.peers])
    ensembles = members.own | {kind: mix(peers_SNC) for kind, mix in MEANS.items()}
    evaluated = {name: _figures(logits, labels) for name, logits in members.logits.items()}
    errors = [figures["top1_error"] for figures in evaluated.values()]
    agreeing = agreement(torch.stack(list(members.logits.values()))).tolist()
    return {
        "run": str(found[0].path) if len(found) == 1 else [str(run.path) for run in found],
        "split": split,
        "precision": precision,
        "same_data": all(same),
        "images": len(labels),
        "members": evaluated,
        "peers": list(members.peers),
        "mean": statistics.fmean(errors),
        "std": statistics.stdev(errors),
        "ensembles": {name: _figures(logits, labels) for name, logits in ensembles.items()},
        "leave_one_out": _leave_one_out(members.peers, peers_SNC, labels),
        "diversity": diversity(peers_SNC),
        "agreement": {name: dict(zip(names, row, strict=True)) for name, row in zip(names, agreeing, strict=True)},
        "flops": {"ensemble": members.flops, "single": found[0].record["flops"]["deploy"]},
    }


class _Members(NamedTuple):
    """`logits`: [N, C] by member; `peers`: those that ensembles average; `own`: the method's own ensemble's logits.

    `flops`: what the ensemble costs for one image, in the papers' convention.
    """

    logits: dict[str, Tensor]
    peers: tuple[str, ...]
    own: dict[str, Tensor]
    flops: int


class _Images(NamedTuple):
    """The images that everything is evaluated on."""

    split: Split
    device: str
    precision: Precision
    observer: Observer

    def predict(self, learner: Learner, what: str) -> dict[str, Tensor]:
        """Logits [N, C] of the members and of the method's own ensemble, where it has one, on the CPU."""
        return predict_members(learner, self.split, self.device, f"images, {what}", self.observer, self.precision)


def _of_one_run(run: Run, checkpoint: str | None, images: _Images) -> _Members:
    learner = run.learner(checkpoint)
    logits = images.predict(learner, run.path.name)
    names = learner.group.members
    own = {name: logits.pop(name) for name in [*logits] if name not in names}
    flops = run.record["flops"]["ensemble"] or run.record["flops"]["deploy"]
    return _Members(logits, learner.method.peers(names), own, flops)


def _of_snapshots(run: Run, checkpoint: str | None, images: _Images) -> _Members:
    if checkpoint is not None:
        raise UserError(f"{run.path} is evaluated with all its snapshots", "leave --checkpoint out")
    logits = {}
    for name in run.snapshots:
        learner = run.learner(name)
        logits[name] = images.predict(learner, name)[learner.leader]
    return _Members(logits, tuple(logits), {}, len(logits) * run.record["flops"]["deploy"])


def _of_several_runs(found: list[Run], checkpoint: str | None, images: _Images) -> _Members:
    logits: dict[str, Tensor] = {}
    for run in found:
        learner = run.learner(checkpoint)
        predicted = images.predict(learner, run.path.name)
        logits[_unique(run.path.name, list(logits))] = predicted[learner.leader]
    return _Members(logits, tuple(logits), {}, sum(run.record["flops"]["deploy"] for run in found))


def mean_of_logits(logits_SNC: Tensor) -> Tensor:
    """Average before the softmax, [N, C]."""
    return logits_SNC.mean(0)


def mean_of_probabilities(logits_SNC: Tensor) -> Tensor:
    """Average after the softmax, [N, C], as log-probabilities: their softmax is the mean itself."""
    return logits_SNC.double().softmax(-1).mean(0).log()


MEANS = {"mean_of_logits": mean_of_logits, "mean_of_probabilities": mean_of_probabilities}


def _leave_one_out(names: Sequence[str], logits_SNC: Tensor, labels: Tensor) -> dict[str, dict[str, Any]]:
    """For every member, the ensembles of all the others; with two members that is the other one alone."""
    results: dict[str, dict[str, Any]] = {}
    if len(names) < 2:
        return results
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


def _shared_data(found: list[Run], split: SplitName) -> DataRecord:
    first = found[0].data
    for run in found[1:]:
        other = run.data
        if split != "test" and first.fingerprints.get(split) != other.fingerprints.get(split):
            # What one run held out, another with its own seed may have trained on.
            raise UserError(
                f"{found[0].path} and {run.path} have different {split} images, so no figure would hold for both",
                "use --split test",
            )
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
