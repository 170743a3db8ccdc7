"""What run.json and a dry run say of a training before it begins."""

import platform
from typing import Any

import torch

from distilkit.runs.data_record import DataRecord
from distilkit.training.footprint import checkpoint_bytes
from distilkit.workflows.train.prepare import Prepared
from distilkit.workflows.train.teachers import teacher_digests


def described(prepared: Prepared) -> dict[str, Any]:
    """What is built, what it costs, and what stands where the recipe may say "auto"."""
    recipe, learner = prepared.recipe, prepared.learner
    return {
        "method": recipe.method.name,
        "architecture": recipe.model.architecture,
        "architectures": dict(zip(learner.group.members, recipe.architectures, strict=True)),
        "members": list(learner.group.members),
        "leader": learner.leader,
        "ensemble": learner.method.ensemble_name,
        **_costs(prepared),
    }


def decided(prepared: Prepared) -> dict[str, Any]:
    """Precision and threads, with the reason where the recipe left them open."""
    train = prepared.recipe.train
    return {
        "precision": {"used": train.precision, "reason": prepared.reasons.precision},
        "threads": {"used": train.threads, "reason": prepared.reasons.threads},
    }


def recorded(prepared: Prepared, data: DataRecord) -> dict[str, Any]:
    """What run.json says of the recipe, also after a change of it."""
    return {
        "seed": prepared.recipe.train.seed,
        **described(prepared),
        "teacher_sha256": teacher_digests(prepared.recipe),
        "data": data.model_dump(mode="json"),
    }


def device_name(device: torch.device) -> str:
    """What computes, in words: "NVIDIA H100 PCIe", "cpu (x86_64)"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"


def _costs(prepared: Prepared) -> dict[str, Any]:
    cost = prepared.cost
    wholes = {"train": cost.train, "deploy": cost.deploy, "ensemble": cost.ensemble}
    of_each: dict[str, dict[str, int | None]] = {
        what: {name: None if whole is None else getattr(whole, what) for name, whole in wholes.items()}
        for what in ("parameters", "flops", "activations", "bytes")
    }
    of_each["bytes"]["checkpoint"] = checkpoint_bytes(prepared.recipe, prepared.learner)
    parts = {
        name: {
            "parameters": part.parameters,
            "flops": part.flops,
            "activations": part.activations,
            "bytes": part.bytes,
        }
        for name, part in cost.parts.items()
    }
    return {**of_each, "parts": parts, "uncounted": cost.train.uncounted}
