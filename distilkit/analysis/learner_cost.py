"""What a learner costs to train and to deploy, whole and in parts (the papers' TrCost and TeCost).

Each structure is counted once: the trunk, one branch or network of each kind, and what the method computes from their
outputs. The whole is their sum, which equals what counting the whole learner finds.
"""

from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from types import FunctionType

import torch
from torch import Tensor, nn

from distilkit.analysis.cost import Cost, file_bytes, measure, parameter_count
from distilkit.groups.group import BranchGroup, NetworkGroup
from distilkit.groups.outputs import GroupOutput
from distilkit.groups.split.cut import Part
from distilkit.learners.learner import Learner
from distilkit.methods.base import Method
from distilkit.threads import threads


@dataclass(frozen=True)
class LearnerCost:
    """Costs of one image.

    `train`: trunk once, every student, the method's own parts, one forward of the teacher. `deploy`: the leader alone.
    `ensemble`: what the method's own ensemble needs, None where it has none. `parts`: each by name.

    `bytes` of `train` and of `ensemble`: the group's state and the method's, a file each as in a checkpoint, which also
    holds the optimizer's state; of `deploy`: the file that `prune-branches` writes. The teacher's are in `parts` alone,
    and neither its parameters nor its bytes belong to `train`.
    """

    train: Cost
    deploy: Cost
    ensemble: Cost | None
    parts: dict[str, Cost]


class _Logits(nn.Module):
    """A student's own part without its second output, the features."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, value: Tensor) -> Tensor:
        logits: Tensor = self.part(value)[0]
        return logits


class _Weights(nn.Module):
    """What a method itself computes of a group's outputs, which come as tensors one by one."""

    def __init__(self, method: Method, members: tuple[str, ...]) -> None:
        super().__init__()
        self.method = method
        self.members = members

    def forward(self, logits_SBC: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        features, trunk = rest[: len(self.members)], rest[len(self.members) :]
        outputs = GroupOutput(logits_SBC, features, trunk[0] if trunk else None, self.members)
        # The logits too: fvcore takes nothing that puts out nothing.
        return logits_SBC, *self.method.weights(outputs).values()


def learner_cost(learner: Learner, channels: int, size: int, teacher: nn.Module | None = None) -> LearnerCost:
    """Costs of one image [1, channels, size, size], in the papers' convention (see `Cost`).

    `teacher`: images -> logits; its forward pass is part of the training's cost (ONE's Table 3), its parameters are
    not trained.
    """
    group, leader = learner.group, learner.leader
    # Where the learner is: a resumed training, whose recipe has changed, counts it on the device that trains it.
    device = next(group.parameters()).device
    images = torch.zeros(1, channels, size, size, device=device)
    parts: dict[str, Cost] = {}
    known: dict[Hashable, Cost] = {}
    crossing = None
    if isinstance(group, BranchGroup):
        parts["trunk"] = measure(group.trunk, images)
        crossing = _output(group.trunk, images)
        for name in group.members:
            parts[name] = _counted_once(known, group.branches[name], crossing)
        deploy = _sum([parts["trunk"], parts[leader]])
    else:
        assert isinstance(group, NetworkGroup)
        for name in group.members:
            parts[name] = _counted_once(known, group.networks[name], images)
        deploy = parts[leader]
    method = _method_cost(learner, crossing, device)
    if method.multiply_adds or method.parameters or method.uncounted:
        parts["method"] = method
    state_bytes = file_bytes(group.state_dict()) + method.bytes
    train = replace(_sum(parts.values()), parameters=parameter_count(learner), bytes=state_bytes)
    ensemble = None
    if learner.method.ensemble_name:
        peers, learned = learner.method.peers(group.members), learner.method.ensemble_is_learned
        needed = [*peers, *(name for name in ("trunk",) if name in parts), *(["method"] if learned else [])]
        state_bytes = file_bytes(group.only(peers).state_dict()) + (method.bytes if learned else 0)
        ensemble = replace(_sum(parts[name] for name in needed), bytes=state_bytes)
    if teacher is not None:
        parts["teacher"] = measure(teacher, images)
        train = replace(_sum([train, parts["teacher"]]), parameters=train.parameters, bytes=train.bytes)
    deploy = replace(deploy, bytes=file_bytes(group.member_state_dict(leader)))
    return LearnerCost(train, deploy, ensemble, parts)


def _counted_once(known: dict[Hashable, Cost], part: nn.Module, value: Tensor) -> Cost:
    structure = _structure(part)
    if structure not in known:
        known[structure] = replace(measure(_Logits(part), value), bytes=file_bytes(part.state_dict()))
    return known[structure]


def _structure(module: nn.Module) -> Hashable:
    """What two modules have in common that compute the same on numbers of their own.

    The kind and the settings (stride, groups, ...) of every module inside, the code that was generated for a cut
    network, and the names and shapes of parameters and buffers.
    """
    modules = [(path, type(inner), _settings(vars(inner))) for path, inner in module.named_modules()]
    tensors = [(name, tuple(tensor.shape)) for name, tensor in (*module.named_parameters(), *module.named_buffers())]
    return tuple(modules), tuple(tensors)


def _settings(value: object) -> Hashable:
    if isinstance(value, dict):
        return tuple((str(key), _settings(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(_settings(item) for item in value)
    if isinstance(value, FunctionType):
        return value.__code__
    if isinstance(value, bool | int | float | str):
        return value
    return type(value).__qualname__


def _method_cost(learner: Learner, trunk: Tensor | None, device: torch.device) -> Cost:
    """What the method computes of one image's outputs. How large they are tells the group's shape."""
    method, shape = learner.method, learner.group.shape
    outputs = [torch.zeros(len(shape.members), 1, shape.num_classes, device=device)]
    outputs += [torch.zeros(1, width, device=device) for width in shape.feature_widths]
    outputs += [] if trunk is None else [trunk]
    return replace(measure(_Weights(method, shape.members), tuple(outputs)), bytes=file_bytes(method.state_dict()))


def _sum(costs: Iterable[Cost]) -> Cost:
    """All but the bytes, which are of files and not of their parts."""
    costs = list(costs)
    multiply_adds = sum(cost.multiply_adds for cost in costs)
    uncounted = Counter[str]()
    for cost in costs:
        uncounted.update(cost.uncounted)
    return Cost(
        parameters=sum(cost.parameters for cost in costs),
        multiply_adds=multiply_adds,
        flops=2 * multiply_adds,
        uncounted=dict(uncounted),
        activations=sum(cost.activations for cost in costs),
    )


@torch.no_grad()
def _output(trunk: Part, images: Tensor) -> Tensor:
    """What the trunk gives, in eval mode: looking must leave no trace in its running statistics."""
    was_training = trunk.training
    with threads(1):
        shared: Tensor = trunk.eval()(images)
    trunk.train(was_training)
    return shared
