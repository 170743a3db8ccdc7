"""`distilkit prune-branches`: the leader alone, in the stock architecture, with the proof that nothing changed."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from distilkit._version import __version__
from distilkit.analysis.cost import measure
from distilkit.analysis.learner_cost import learner_cost
from distilkit.data.resident import EvaluationImages
from distilkit.errors import UserError
from distilkit.groups.group import Group
from distilkit.groups.inference import over_images
from distilkit.groups.normalize import Classifier
from distilkit.models import own
from distilkit.observer import Observer
from distilkit.runs.atomic import appearing, inside, writable, write_json
from distilkit.runs.data_record import DataRecord
from distilkit.runs.run import CONFIG, CONFIG_FORMAT, MODEL, RECORD, find_run, stock_classifier
from distilkit.training.threads import suited
from distilkit.workflows.share.cards import refresh


def prune_branches(
    path: Path | None,
    runs: Path,
    *,
    member: str | None,
    checkpoint: str | None,
    output: Path | None,
    data_root: str | None,
    observer: Observer,
) -> dict[str, Any]:
    """Write `model.safetensors` and `config.json` of one member, the leader unless `member` names another.

    `max_abs_difference`: between the pruned classifier's logits and the member's in its group, over all test images,
    fp32 on the CPU; anything but 0 means that the cut was wrong, and nothing is written then (`RuntimeError`).
    """
    run = find_run(path, runs)
    if output is not None and (output / RECORD).is_file():
        raise UserError(f"{output} is a run's folder; a pruned model needs one of its own", f"--output {output}/pruned")
    learner = run.learner(checkpoint)
    name = learner.leader if member is None else member
    state = learner.group.member_state_dict(name)
    network = run.network(learner.group.members.index(name))
    pruned = stock_classifier(network, run.data, state)
    difference = _difference(learner.group, name, pruned, run.data, data_root, observer)
    if difference != 0.0:
        raise RuntimeError(f"the pruned {name} differs from the one in the group by {difference}; nothing was written")
    images = torch.zeros(1, run.data.channels, run.data.size, run.data.size)
    before, after = learner_cost(learner, run.data.channels, run.data.size).train, measure(pruned, images)
    code = own.code(network.architecture)
    contents = save({key: tensor.contiguous() for key, tensor in state.items()})
    figures = run.record.get("final", {}).get("errors", {}).get(name, {})
    config = {
        "format": CONFIG_FORMAT,
        "distilkit": __version__,
        "architecture": network.architecture,
        "norm": network.norm,
        # What opening it will execute, where the network is the user's own; only ever with --trust-code.
        "code": code._asdict() if code else None,
        "num_classes": len(run.data.classes),
        "method": run.recipe.method.name,
        "member": name,
        "run": run.path.name,
        "checkpoint": run.checkpoint(checkpoint).name,
        "recipe_digest": run.recipe.digest(),
        "sha256": hashlib.sha256(contents).hexdigest(),
        # What the training ended with says nothing of a checkpoint that was asked for by name.
        "top1_error": figures.get("top1") if checkpoint is None else None,
        "data": run.data.model_dump(mode="json"),
    }
    with writable(output or inside(run.path, "pruned")) as folder:
        with appearing(folder / MODEL) as partial:
            partial.write_bytes(contents)
        write_json(folder / CONFIG, config)
    if output is None:
        refresh(run.path, observer)
    return {
        "run": str(run.path),
        "output": str(folder),
        "member": name,
        "architecture": network.architecture,
        "code": code._asdict() if code else None,
        "parameters": {"before": before.parameters, "after": after.parameters},
        "flops": {"before": before.flops, "after": after.flops},
        "max_abs_difference": difference,
    }


def _difference(
    group: Group, member: str, pruned: Classifier, data: DataRecord, data_root: str | None, observer: Observer
) -> float:
    split = data.load(("test",), data_root).splits["test"]
    group.to(memory_format=torch.channels_last)
    index, where, total = group.members.index(member), torch.device("cpu"), len(split.labels)

    def largest(images: Tensor) -> float:
        return float((group(images).logits_SBC[index] - pruned(images)).abs().max())

    with suited(where, group, split):
        batches = over_images(
            largest, EvaluationImages(split, where), lambda done: observer.progress("images compared", done, total)
        )
        return max(found for found, _ in batches)
