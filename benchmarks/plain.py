"""The plain baseline: training and evaluation written as most scripts are, to measure ours against.

Same networks, same losses, same batches: only the writing differs. Images go through PIL transforms in DataLoader
workers, the network is eager, in fp32 and in torch's default memory layout, losses are loops over students, and every
metric is read with `.item()` in every step.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from distilkit.groups.group import BranchGroup
from distilkit.learners.learner import Learner

CLASSES, SIZE = 100, 32
TEMPERATURE = 3.0
BATCH_SIZE = 128


def pictures(count: int, seed: int = 0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Random images uint8 [N, 32, 32, 3] and labels int64 [N]: what is in them does not change the work."""
    numbers = np.random.default_rng(seed)
    images = numbers.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
    return images, numbers.integers(0, CLASSES, count)


class PlainImages(Dataset[tuple[Tensor, int]]):
    """As torchvision's CIFAR: arrays in memory, a PIL image made of each, transforms on that."""

    def __init__(self, images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], *, train: bool) -> None:
        from torchvision import transforms

        steps = [transforms.RandomCrop(SIZE, padding=SIZE // 8), transforms.RandomHorizontalFlip()] if train else []
        normalise = transforms.Normalize((0.507, 0.487, 0.441), (0.267, 0.256, 0.276))
        self.transform = transforms.Compose([*steps, transforms.ToTensor(), normalise])
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def loader(count: int, workers: int, *, train: bool, batch_size: int = BATCH_SIZE) -> DataLoader[Any]:
    """Batches of normalised images [B, 3, 32, 32] in fp32, and labels [B]."""
    images = PlainImages(*pictures(count), train=train)
    return DataLoader(images, batch_size, shuffle=train, num_workers=workers, persistent_workers=workers > 0)


class PlainGroup(nn.Module):
    """The learner's networks (and ONE's gate), called as scripts call them: a list of outputs."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
        """Logits [B, C] and features [B, D] of each student, and ONE's ensemble [B, C]."""
        group = self.learner.group
        if isinstance(group, BranchGroup):
            trunk = group.trunk(images)
            results = [group.branches[name](trunk) for name in group.members]
        else:
            results = [group.networks[name](images) for name in group.members]  # type: ignore[union-attr, index]
        logits, features = [result[0] for result in results], [result[1] for result in results]
        gate = getattr(self.learner.method, "gate", None)
        if gate is None:
            return logits, features, None
        shares = gate(trunk.mean((2, 3)))
        return logits, features, sum(shares[:, i : i + 1] * each for i, each in enumerate(logits))  # type: ignore[return-value]


def soft(student: Tensor, target: Tensor) -> Tensor:
    """T^2 KL(softmax(target / T) || softmax(student / T)), mean over the batch."""
    return TEMPERATURE**2 * F.kl_div(
        F.log_softmax(student / TEMPERATURE, dim=1), F.softmax(target / TEMPERATURE, dim=1), reduction="batchmean"
    )


def plain_loss(method: str, model: PlainGroup, images: Tensor, labels: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The loss of `baseline`, `one` or `okddip` with a ramp weight of 1, and the students' logits."""
    logits, features, ensemble = model(images)
    loss = sum((F.cross_entropy(each, labels) for each in logits), torch.zeros(()))
    if method == "one":
        assert ensemble is not None
        loss = loss + F.cross_entropy(ensemble, labels)
        for each in logits:
            loss = loss + soft(each, ensemble.detach())
    elif method == "okddip":
        peers = logits[:-1]
        queries = [model.learner.method.W_L(each) for each in features[:-1]]  # type: ignore[operator]
        keys = [model.learner.method.W_E(each) for each in features[:-1]]  # type: ignore[operator]
        for a, peer in enumerate(peers):
            energy = torch.stack([(queries[a] * key).sum(1) for key in keys], dim=1)
            attention = F.softmax(energy, dim=1)
            target = sum((attention[:, b : b + 1] * other for b, other in enumerate(peers)), torch.zeros(()))
            loss = loss + soft(peer, target)
        loss = loss + soft(logits[-1], torch.stack(peers).mean(0))
    return loss, logits


def accuracy(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Top-1 and top-5 in percent, read at once."""
    _, places = logits.topk(5, dim=1)
    right = places.eq(labels[:, None])
    return right[:, :1].float().sum().item() * 100 / len(labels), right.float().sum().item() * 100 / len(labels)


def training_step(method: str, model: PlainGroup) -> Callable[[Tensor, Tensor], None]:
    """One update with SGD as in the papers, and the metrics that scripts keep."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    meters: dict[str, float] = {}

    device = next(model.parameters()).device

    def step(images: Tensor, labels: Tensor) -> None:
        images, labels = images.to(device), labels.to(device)
        loss, logits = plain_loss(method, model, images, labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        meters["loss"] = meters.get("loss", 0.0) + loss.item() * len(labels)
        for index, each in enumerate(logits):
            top1, top5 = accuracy(each, labels)
            meters[f"top1_{index}"] = meters.get(f"top1_{index}", 0.0) + top1 * len(labels)
            meters[f"top5_{index}"] = meters.get(f"top5_{index}", 0.0) + top5 * len(labels)

    return step


def endless(batches: DataLoader[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """Epoch after epoch."""
    while True:
        yield from batches


@torch.no_grad()
def evaluate(model: PlainGroup, batches: DataLoader[Any]) -> dict[str, float]:
    """Top-1 and top-5 of every student and of the ensemble, and the loss, batch by batch."""
    model.eval()
    meters: dict[str, float] = {}
    device = next(model.parameters()).device
    for images, labels in batches:
        images, labels = images.to(device), labels.to(device)
        logits, _, ensemble = model(images)
        outputs = [*logits, sum(logits) / len(logits) if ensemble is None else ensemble]
        for index, each in enumerate(outputs):
            top1, top5 = accuracy(each, labels)
            meters[f"loss_{index}"] = meters.get(f"loss_{index}", 0.0) + F.cross_entropy(each, labels).item() * len(
                labels
            )
            meters[f"top1_{index}"] = meters.get(f"top1_{index}", 0.0) + top1 * len(labels)
            meters[f"top5_{index}"] = meters.get(f"top5_{index}", 0.0) + top5 * len(labels)
    total = len(batches.dataset)  # type: ignore[arg-type]
    return {name: value / total for name, value in meters.items()}


def diversity(logits_SNC: Tensor) -> float:
    """Mean Euclidean distance of two students' predictions: a loop over images and pairs."""
    students, images, _ = logits_SNC.shape
    total, pairs = 0.0, 0
    for n in range(images):
        for a in range(students):
            for b in range(a + 1, students):
                difference = F.softmax(logits_SNC[a, n], dim=0) - F.softmax(logits_SNC[b, n], dim=0)
                total += difference.pow(2).sum().sqrt().item()
                pairs += 1
    return total / pairs
