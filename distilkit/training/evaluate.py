"""Every member and the method's own ensemble on one split, in one pass, counted over all processes."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from distilkit.analysis.diversity import distances
from distilkit.analysis.metrics import errors
from distilkit.data.datasets import Split
from distilkit.data.resident import EvaluationImages, evaluation_batch
from distilkit.groups.inference import Inference, Precision, over_images
from distilkit.learners.learner import Learner, classifier_logits, classifiers


@torch.inference_mode()
def evaluate_members(
    learner: Learner, split: Split, accelerator: Accelerator, precision: Precision = "fp32"
) -> dict[str, Any]:
    """Errors in percent and the mean cross-entropy in nats of every member and of the ensemble, in eval mode.

    Every image counts once, whatever the number of processes. Returns
    `{"errors": {name: {"top1", "top5"}}, "cross_entropy": {name: nats}}`; with two peers or more `diversity`, their
    mean distance (see `analysis.diversity`); and `weights`, the mean over images of what the method weighs students
    with: ONE's gate [S], OKDDip's attention [A, A]. Restores the learner's mode.
    """
    was_training = learner.training
    learner.eval()
    group = Inference(learner.group, precision)
    method, members = learner.method, learner.group.members
    rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    names = classifiers(method, members)
    peers = len(method.peers(members))  # They stand first.
    sums = torch.zeros(3, len(names), dtype=torch.float64, device=device)
    distance = torch.zeros((), dtype=torch.float64, device=device)
    weights: dict[str, Tensor] = {}
    starts = range(0, len(split.labels), evaluation_batch(device))
    # A process without a batch of its own looks at the first one, to know which weights there are; it counts nothing.
    counts = float(rank < len(starts))
    share = slice(rank, None, world) if counts else slice(1)
    for outputs, labels in over_images(group, EvaluationImages(split, device, share)):
        logits = classifier_logits(method, outputs)
        top1, top5 = errors(logits, labels)
        sums += counts * torch.stack([top1.double(), top5.double(), _cross_entropy(logits, labels)])
        if peers > 1:
            distance += counts * distances(outputs.logits_SBC[:peers]).sum()
        for name, value in method.weights(outputs).items():
            weights[name] = weights.get(name, 0.0) + counts * value.double().sum(0)
    total = len(split.labels)
    sums = accelerator.reduce(sums, "sum") / total
    learner.train(was_training)
    top1_error, top5_error, cross_entropy = (sums * sums.new_tensor([[100.0], [100.0], [1.0]])).tolist()
    result: dict[str, Any] = {
        "errors": {name: {"top1": top1_error[i], "top5": top5_error[i]} for i, name in enumerate(names)},
        "cross_entropy": {name: cross_entropy[i] for i, name in enumerate(names)},
    }
    if peers > 1:
        result["diversity"] = float(accelerator.reduce(distance, "sum")) / total
    if weights:
        result["weights"] = {
            name: (accelerator.reduce(value, "sum") / total).tolist() for name, value in weights.items()
        }
    return result


def _cross_entropy(logits_SBC: Tensor, labels_B: Tensor) -> Tensor:
    log_q = logits_SBC.double().log_softmax(-1)
    return -log_q.gather(-1, labels_B.expand(log_q.shape[:-1]).unsqueeze(-1)).sum(dim=(1, 2))
