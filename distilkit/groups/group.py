"""Groups of students: branches on a shared trunk, or whole networks side by side.

Either is made of plain backbones, so that every member's weights are those of the stock architecture under its own
names: taking one member out of the group loses nothing and changes nothing.

Shape suffixes: S students, B images, C classes, D features before the classifier.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from distilkit.errors import UserError, did_you_mean
from distilkit.groups import split
from distilkit.groups.normalize import Normalize
from distilkit.groups.outputs import GroupOutput, GroupShape

BranchResults = tuple[Tensor, Sequence[Tensor]]
"""Of all branches of a group: logits [S, B, C], and the features of each, S tensors [B, D]."""


class Group(nn.Module, ABC):
    """Students that are trained together. Made by `build_group`.

    Called with raw images [B, channels, H, W] (uint8, or floating point in [0, 1]) it gives a `GroupOutput`. `shape`:
    what a method must know of it. `architectures`: each student's, in the order of the members.
    """

    def __init__(self, normalize: Normalize, shape: GroupShape, architectures: Sequence[str] = ()) -> None:
        super().__init__()
        self.normalize = normalize
        self.shape = shape
        self.architectures = tuple(architectures)

    @property
    def members(self) -> tuple[str, ...]:
        """The students' names, in the order of the logits."""
        return self.shape.members

    @abstractmethod
    def forward(self, images: Tensor) -> GroupOutput:
        """Raw images [B, channels, H, W] -> every student's logits and features."""

    @abstractmethod
    def member_state_dict(self, name: str) -> dict[str, Tensor]:
        """Return the weights and buffers of one member under the stock backbone's own names, all of them.

        The tensors are the group's own, not copies. Raises `UserError` if no member has this name.
        """

    @abstractmethod
    def head(self, name: str) -> str:
        """Name one member's classifier, its last linear layer: the path in the stock backbone.

        Raises `UserError` if no member has this name.
        """

    def only(self, names: Sequence[str]) -> "Group":
        """Return a group of these members, in this order, that shares their modules with this one."""
        raise TypeError(f"a {type(self).__name__} cannot be taken apart")

    @abstractmethod
    def _member_logits(self, name: str, normalized: Tensor) -> Tensor:
        """Compute one member's logits [B, C] alone."""

    def _shape_of(self, names: Sequence[str]) -> GroupShape:
        for name in names:
            self._require(name)
        widths = tuple(self.shape.feature_widths[self.members.index(name)] for name in names)
        return self.shape._replace(members=tuple(names), feature_widths=widths)

    def _architectures_of(self, names: Sequence[str]) -> list[str]:
        return [self.architectures[self.members.index(name)] for name in names] if self.architectures else []

    def _require(self, name: str) -> None:
        if name not in self.members:
            raise UserError(
                f"this group has no member {name!r}; it has {', '.join(self.members)}",
                did_you_mean(name, self.members),
            )


class BranchGroup(Group):
    """Students that share `trunk` and own one of `branches` each.

    `separate`: hand every branch its own copy of the trunk's output, for branches that begin with an operation in
    place: without copies the second branch would get what the first has made of it. `split_at`: the first module of
    the branches.

    Keys of its `state_dict()`: "trunk.<backbone's name>" and "branches.<member>.<backbone's name>".
    """

    def __init__(
        self,
        trunk: split.Part,
        branches: Mapping[str, nn.Module],
        normalize: Normalize,
        shape: GroupShape,
        *,
        split_at: str,
        separate: bool = False,
        architectures: Sequence[str] = (),
    ) -> None:
        super().__init__(normalize, shape, architectures)
        self.split_at = split_at
        self.trunk = trunk
        self.branches = nn.ModuleDict(branches)
        self.separate = separate

    def forward(self, images: Tensor) -> GroupOutput:
        """Normalise once, compute the trunk once, then every branch."""
        trunk = self.trunk(self.normalize(images))
        logits_SBC, features = self.from_trunk(trunk)
        return GroupOutput(logits_SBC, tuple(features), trunk, self.members)

    def from_trunk(self, trunk: Tensor) -> BranchResults:
        """Compute every branch from the trunk's tensor."""
        results = [self.branch(name, trunk) for name in self.members]
        return torch.stack([logits for logits, _ in results]), [features for _, features in results]

    def branch(self, name: str, trunk: Tensor) -> tuple[Tensor, Tensor]:
        """Compute one branch from the trunk's tensor: (logits [B, C], features [B, D])."""
        results: tuple[Tensor, Tensor] = self.branches[name](trunk.clone() if self.separate else trunk)
        return results

    def member_state_dict(self, name: str) -> dict[str, Tensor]:
        """Join the trunk's and one branch's weights and buffers under the stock backbone's own names."""
        self._require(name)
        return {**self.trunk.state_dict(), **self.branches[name].state_dict()}

    def only(self, names: Sequence[str]) -> "BranchGroup":
        """Return a group of these members, in this order, on the same trunk."""
        shape, branches = self._shape_of(names), {name: self.branches[name] for name in names}
        kept = self._architectures_of(names)
        return BranchGroup(
            self.trunk,
            branches,
            self.normalize,
            shape,
            split_at=self.split_at,
            separate=self.separate,
            architectures=kept,
        )

    def head(self, name: str) -> str:
        """Name the last linear layer of a branch."""
        self._require(name)
        return str(self.branches[name].head_path)

    def _member_logits(self, name: str, normalized: Tensor) -> Tensor:
        logits: Tensor
        logits, _ = self.branches[name](self.trunk(normalized))
        return logits


class NetworkGroup(Group):
    """Students that are whole networks and share nothing; they may be of different architectures.

    Keys of its `state_dict()`: "networks.<member>.<backbone's name>".
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        normalize: Normalize,
        shape: GroupShape,
        *,
        architectures: Sequence[str] = (),
    ) -> None:
        super().__init__(normalize, shape, architectures)
        self.networks = nn.ModuleDict(networks)

    def forward(self, images: Tensor) -> GroupOutput:
        """Normalise once, then compute every network."""
        normalized = self.normalize(images)
        results = [self.networks[name](normalized) for name in self.members]
        logits_SBC = torch.stack([logits for logits, _ in results])
        return GroupOutput(logits_SBC, tuple(features for _, features in results), None, self.members)

    def member_state_dict(self, name: str) -> dict[str, Tensor]:
        """Return one network's weights and buffers under the stock backbone's own names."""
        self._require(name)
        return dict(self.networks[name].state_dict())

    def head(self, name: str) -> str:
        """Name the last linear layer of a network."""
        self._require(name)
        return str(self.networks[name].head_path)

    def only(self, names: Sequence[str]) -> "NetworkGroup":
        """Return a group of these networks, in this order."""
        shape, networks = self._shape_of(names), {name: self.networks[name] for name in names}
        return NetworkGroup(networks, self.normalize, shape, architectures=self._architectures_of(names))

    def _member_logits(self, name: str, normalized: Tensor) -> Tensor:
        logits: Tensor
        logits, _ = self.networks[name](normalized)
        return logits
