"""The logits of all images of a split, on the CPU: of a classifier, or of a learner's members and its ensemble."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from distilkit.data.datasets import Split
from distilkit.data.resident import EvaluationImages
from distilkit.errors import UserError
from distilkit.groups.inference import Inference, Precision, over_images
from distilkit.learners.learner import Learner, classifier_logits, classifiers
from distilkit.observer import Observer
from distilkit.training.threads import suited


def choose_device(device: str) -> torch.device:
    """ "auto" is CUDA where there is one, else the CPU. Raises `UserError` for a CUDA that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no CUDA device here", "leave --device out to use what there is")
    return torch.device(device)


def predict(
    classifier: nn.Module, split: Split, device: str, observer: Observer, precision: Precision = "fp32"
) -> Tensor:
    """Logits [N, C] of every image in order, on the CPU, in fp32; `precision`: what they are computed in."""
    where = choose_device(device)
    return _collected(Inference(classifier.to(where).eval(), precision), split, where, "images", observer)


def predict_members(
    learner: Learner, split: Split, device: str, what: str, observer: Observer, precision: Precision = "fp32"
) -> dict[str, Tensor]:
    """The same of every member, and of the method's own ensemble where there is one, by name."""
    where, method = choose_device(device), learner.method
    learner.to(where).to(memory_format=torch.channels_last).eval()
    group = Inference(learner.group, precision)
    found = _collected(lambda images: classifier_logits(method, group(images)), split, where, what, observer)
    return dict(zip(classifiers(method, learner.group.members), found, strict=True))


def _collected(
    network: Callable[[Tensor], Tensor], split: Split, where: torch.device, what: str, observer: Observer
) -> Tensor:
    """[..., N, C]."""
    total = len(split.labels)
    with suited(where, network, split):
        batches = over_images(
            network, EvaluationImages(split, where), lambda done: observer.progress(what, done, total)
        )
        return torch.cat([logits.cpu() for logits, _ in batches], dim=-2)
