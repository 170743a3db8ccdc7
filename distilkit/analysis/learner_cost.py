"""What a learner costs to train and to deploy, whole and in parts (the papers' TrCost and TeCost)."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from distilkit.analysis.cost import Cost, measure
from distilkit.group import BranchGroup, NetworkGroup
from distilkit.learner import Learner
from distilkit.outputs import GroupOutput
from distilkit.split import Part


@dataclass(frozen=True)
class LearnerCost:
    """Costs of one image.

    `train`: trunk once, every student, the method's own parts, one forward of the teacher. `deploy`: the leader alone.
    `ensemble`: what the method's own ensemble needs, None where it has none. `parts`: each by name.
    """

    train: Cost
    deploy: Cost
    ensemble: Cost | None
    parts: dict[str, Cost]


class TrainingNetwork(nn.Module):
    """All that training computes of a learner, without its losses, as one module that fvcore can trace."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Logits of the members [S, B, C], and what the method computes to weigh them."""
        outputs: GroupOutput = self.learner.group(images)
        return outputs.logits_SBC, *self.learner.method.weights(outputs).values()


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
        alike = dict(zip(group.members, group.architectures or group.members, strict=True))
        costs = {each: measure(_Logits(group.networks[name]), images) for each, name in _first_of_each(alike).items()}
        parts |= {name: costs[alike[name]] for name in group.members}
        deploy = parts[leader]
    train = measure(TrainingNetwork(learner), images)
    rest = train.multiply_adds - _sum(parts.values()).multiply_adds
    parameters = sum(p.numel() for p in learner.method.parameters() if p.requires_grad)
    if rest or parameters:
        parts["method"] = Cost(parameters=parameters, multiply_adds=rest, flops=2 * rest, uncounted={})
    ensemble = None
    if learner.method.ensemble_name:
        needed = [*learner.method.peers(group.members), *(name for name in ("trunk",) if name in parts)]
        needed += ["method"] if learner.method.ensemble_is_learned else []
        ensemble = _sum(parts[name] for name in needed)
    if teacher is not None:
        parts["teacher"] = measure(teacher, images)
        train = replace(_sum([train, parts["teacher"]]), parameters=train.parameters)
    return LearnerCost(train, deploy, ensemble, parts)


def _first_of_each(alike: dict[str, str]) -> dict[str, str]:
    """From members' architectures: each architecture, and the first member that has it."""
    return {architecture: name for name, architecture in reversed(alike.items())}


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
