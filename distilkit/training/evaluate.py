"""Every member and the method's own ensemble on one split, in one pass, counted over all processes."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from distilkit.analysis.metrics import errors
from distilkit.data.datasets import Split
from distilkit.learner import Learner

BATCH_SIZE = 250


@torch.inference_mode()
def evaluate_members(learner: Learner, split: Split, accelerator: Accelerator) -> dict[str, Any]:
    """Errors in percent and the mean cross-entropy in nats of every member and of the ensemble, in eval mode and fp32.

    Every image counts once, whatever the number of processes. Returns
    `{"errors": {name: {"top1", "top5"}}, "cross_entropy": {name: nats}}`. Restores the learner's mode.
    """
    was_training = learner.training
    learner.eval()
    rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    names = [*learner.group.members, *([learner.method.ensemble_name] if learner.method.ensemble_name else [])]
    sums = torch.zeros(3, len(names), dtype=torch.float64, device=device)
    for start in range(rank * BATCH_SIZE, len(split.labels), world * BATCH_SIZE):
        images = split.images[start : start + BATCH_SIZE].to(device)
        labels = split.labels[start : start + BATCH_SIZE].to(device)
        members_SBC, ensemble_BC = learner.predict(images)
        logits = members_SBC if ensemble_BC is None else torch.cat([members_SBC, ensemble_BC[None]])
        top1, top5 = errors(logits, labels)
        sums += torch.stack([top1.double(), top5.double(), _cross_entropy(logits, labels)])
    sums = accelerator.reduce(sums, "sum") / len(split.labels)
    learner.train(was_training)
    top1_error, top5_error, cross_entropy = (sums * sums.new_tensor([[100.0], [100.0], [1.0]])).tolist()
    return {
        "errors": {name: {"top1": top1_error[i], "top5": top5_error[i]} for i, name in enumerate(names)},
        "cross_entropy": {name: cross_entropy[i] for i, name in enumerate(names)},
    }


def _cross_entropy(logits_SBC: Tensor, labels_B: Tensor) -> Tensor:
    log_q = logits_SBC.double().log_softmax(-1)
    return -log_q.gather(-1, labels_B.expand(log_q.shape[:-1]).unsqueeze(-1)).sum(dim=(1, 2))
