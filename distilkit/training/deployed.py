"""What is deployed, against the network that was trained: batch norm's statistics that lag behind its weights.

In training batch norm normalises by each batch's own mean and variance; what is deployed uses running averages of them.
Where these have not caught up with the weights (a momentum too small for so few steps, a moving average that holds the
first steps), the deployed network is far worse than its training error says.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distilkit.data.base import Split
from distilkit.data.pictures import evenly
from distilkit.groups.group import Group

CHECKED = 1000
"""Training images on which the deployed network is compared with the trained one."""
POINTS = 5.0
P = 0.001


def fixed_images(split: Split, most: int) -> Tensor:
    """Places of up to `most` training images, evenly spread: the same ones in the same order at any time."""
    return torch.tensor(list(evenly(len(split.labels), most)))


@torch.no_grad()
def recalibrate(group: Group, split: Split, images: int, batch_size: int, accelerator: Accelerator) -> None:
    """Replace batch norm's running statistics by the mean over `images` training images, in place.

    The images are fixed and not augmented, in batches of `batch_size`; what is left over of the last one is not used,
    unless it is the only one. Every batch counts alike (PyTorch's cumulative mean, `momentum = None`). Everything but
    batch norm computes as it does when deployed. Processes share the batches, and end with the same statistics.
    """
    norms = _norms(group)
    if not norms:
        return
    places = fixed_images(split, images)
    size = min(batch_size, len(places))
    batches = torch.split(places[: len(places) // size * size], size)
    rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    before = [(norm.momentum, norm.training, copy.deepcopy(norm.num_batches_tracked)) for norm in norms]
    was_training = group.training
    group.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    # A process without a batch of its own computes the first one, which then counts for nothing.
    own = batches[rank::world]
    for batch in own or batches[:1]:
        group(split.images[batch].to(device))
    if world > 1:
        for norm in norms:
            for statistic in (norm.running_mean, norm.running_var):
                assert statistic is not None
                statistic.copy_(accelerator.reduce(statistic * len(own), "sum") / len(batches))
    group.train(was_training)
    for norm, (momentum, training, tracked) in zip(norms, before, strict=True):
        norm.momentum, norm.num_batches_tracked = momentum, tracked
        norm.train(training)


@dataclass(frozen=True)
class DeployedCheck:
    """What is deployed, and what was trained with each batch's own statistics, on the same training images.

    Errors in percent, without augmentation or dropout. `p`: exact, two-sided, of the images on which only one of both
    is wrong (McNemar's test).
    """

    images: int
    deployed_error: float
    trained_error: float
    p: float

    @property
    def lags(self) -> bool:
        """Whether what is deployed is clearly worse than what was trained."""
        return self.deployed_error - self.trained_error >= POINTS and self.p < P

    def document(self) -> dict[str, Any]:
        """What run.json keeps."""
        return {
            "images": self.images,
            "deployed_error": self.deployed_error,
            "trained_error": self.trained_error,
            "p": self.p,
            "lags": self.lags,
        }


@torch.inference_mode()
def check_deployed(
    deployed: Group, trained: Group, leader: int, split: Split, batch_size: int, device: torch.device
) -> DeployedCheck | None:
    """Compare the member at place `leader` of the `deployed` group with that of the one that was `trained`.

    The second computes with each batch's own statistics. None where neither has any that could lag.
    """
    if not _norms(deployed):
        return None
    # Imported here: it takes longer than many evaluations.
    from scipy.stats import binomtest

    places = fixed_images(split, CHECKED)
    labels = split.labels[places]
    wrong = []
    for group, batch_statistics in ((deployed, False), (trained, True)):
        network = copy.deepcopy(group).to(device).eval()
        for norm in _norms(network):
            norm.train(batch_statistics)
        parts = [
            network(split.images[part].to(device)).logits_SBC[leader].argmax(-1).cpu()
            for part in _batches(places, batch_size)
        ]
        wrong.append(torch.cat(parts) != labels)
    ours, theirs = wrong
    only, other = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    return DeployedCheck(
        images=len(labels),
        deployed_error=100 * float(ours.double().mean()),
        trained_error=100 * float(theirs.double().mean()),
        p=float(binomtest(only, only + other).pvalue) if only + other else 1.0,
    )


def _norms(network: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The batch norms that keep running statistics."""
    found = (module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
    return [norm for norm in found if norm.track_running_stats]


def _batches(places: Tensor, size: int) -> list[Tensor]:
    """Batches of about the training's size, none of them too small for statistics of its own."""
    return list(places.tensor_split(max(1, len(places) // size)))
