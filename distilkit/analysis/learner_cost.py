"""What a learner costs to train and to deploy, whole and in parts (the papers' TrCost and TeCost)."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from distilkit.analysis.cost import Cost, measure
from distilkit.group import BranchGroup, NetworkGroup
from distilkit.learner import Learner
from distilkit.split import Part


@dataclass(frozen=True)
class LearnerCost:
    """`train`: trunk once, every student, the method's own parts. `deploy`: the leader alone. `parts`: each by name."""

    train: Cost
    deploy: Cost
    parts: dict[str, Cost]


class TrainingNetwork(nn.Module):
    """A learner's forward pass without its losses, as one module that fvcore can trace."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the members and then the method's own ensemble, [S (+ 1), B, C]."""
        members_SBC, ensemble_BC = self.learner.predict(images)
        return members_SBC if ensemble_BC is None else torch.cat([members_SBC, ensemble_BC[None]])


class _Logits(nn.Module):
    """A student's own part without its second output, the features."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, value: Tensor) -> Tensor:
        logits: Tensor = self.part(value)[0]
        return logits


def learner_cost(learner: Learner, channels: int, size: int, teacher: nn.Module | None = None) -> LearnerCost:
    """Costs of one image [1, channels, size, size], in the papers' convention (see `Cost`).

    `teacher`: images -> logits; its forward pass is part of the training's cost (ONE's Table 3), its parameters are
    not trained.
    """
    images = torch.zeros(1, channels, size, size)
    group, leader = learner.group, learner.leader
    parts: dict[str, Cost] = {}
    # fvcore takes seconds for a deep network, so students of one architecture are counted once.
    if isinstance(group, BranchGroup):
        parts["trunk"] = measure(group.trunk, images)
        branch = measure(_Logits(group.branches[leader]), _output(group.trunk, images))
        parts |= dict.fromkeys(group.members, branch)
        deploy = _sum([parts["trunk"], branch])
    elif isinstance(group, NetworkGroup):
        deploy = measure(_Logits(group.networks[leader]), images)
        parts |= dict.fromkeys(group.members, deploy)
    train = measure(TrainingNetwork(learner), images)
    rest = train.multiply_adds - _sum(parts.values()).multiply_adds
    parameters = sum(p.numel() for p in learner.method.parameters() if p.requires_grad)
    if rest or parameters:
        parts["method"] = Cost(parameters=parameters, multiply_adds=rest, flops=2 * rest, uncounted={})
    if teacher is not None:
        parts["teacher"] = measure(teacher, images)
        train = replace(_sum([train, parts["teacher"]]), parameters=train.parameters)
    return LearnerCost(train, deploy, parts)


def _sum(costs: Iterable[Cost]) -> Cost:
    costs = list(costs)
    multiply_adds = sum(cost.multiply_adds for cost in costs)
    uncounted = Counter[str]()
    for cost in costs:
        uncounted.update(cost.uncounted)
    return Cost(sum(cost.parameters for cost in costs), multiply_adds, 2 * multiply_adds, dict(uncounted))


@torch.no_grad()
def _output(trunk: Part, images: Tensor) -> Tensor:
    """What the trunk gives, in eval mode: looking must leave no trace in its running statistics."""
    was_training = trunk.training
    shared: Tensor = trunk.eval()(images)
    trunk.train(was_training)
    return shared
