"""Groups of students: branches on a shared trunk, or whole networks side by side.

Either is made of plain backbones, so that every member's weights are those of the stock architecture under its own
names: taking one member out of the group loses nothing and changes nothing.

Shape suffixes: S students, B images, C classes, D features before the classifier.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from distilkit.errors import SettingError, UserError, did_you_mean
from distilkit.groups import split
from distilkit.groups.outputs import GroupKind, GroupOutput, GroupShape
from distilkit.models import registry
from distilkit.models.registry import Norm
from distilkit.randomness import generator, seeded

BranchResults = tuple[Tensor, Sequence[Tensor]]
"""Of all branches of a group: logits [S, B, C], and the features of each, S tensors [B, D]."""

_PROBE_IMAGES = 2  # the fewest that batch norm can train on where maps have shrunk to one pixel


class Normalize(nn.Module):
    """The first step of every network that takes raw images: (images - mean) / std, per channel.

    `mean`, `std`: one number for every channel, of images in [0, 1]. They are buffers, to move with the module, but not
    part of its `state_dict()`. Takes images [B, C, H, W], uint8 in [0, 255] or floating point in [0, 1]; gives the same
    shape and memory format in the module's own precision, float32 unless it has been converted. Raises `TypeError` on
    images of any other type, and `ValueError` if the numbers do not fit together.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or min(std, default=0.0) <= 0:
            raise ValueError(f"one mean and one positive std per channel, not {list(mean)} and {list(std)}")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W], uint8 or in [0, 1] -> normalised images [B, C, H, W]."""
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise TypeError(f"images are uint8, or floating point in [0, 1], not {images.dtype}")
        if _has_rows(images):
            return self._by_rows(images)
        if images.dtype == torch.uint8:
            images = images.to(self.mean.dtype) / 255
        return (images.to(self.mean.dtype) - self.mean) / self.std

    def _by_rows(self, images: Tensor) -> Tensor:
        """Compute the same numbers, a row of W * C of them at a time instead of C."""
        B, C, H, W = images.shape
        rows = images.permute(0, 2, 3, 1).view(B, H, W * C)
        scaled = rows.to(self.mean.dtype).div_(255) if images.dtype == torch.uint8 else rows.to(self.mean.dtype)
        mean, std = self.mean.view(C).repeat(W), self.std.view(C).repeat(W)
        return scaled.sub(mean).div_(std).view(B, H, W, C).permute(0, 3, 1, 2)


def _has_rows(images: Tensor) -> bool:
    """Whether the channels of a pixel lie side by side in memory, and nobody is writing down what is computed."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return False
    return images.dim() == 4 and images.is_contiguous(memory_format=torch.channels_last)


class Classifier(nn.Module):
    """One network that takes raw images: `backbone` after `normalize`. What is deployed, and what teaches."""

    def __init__(self, normalize: Normalize, backbone: nn.Module) -> None:
        super().__init__()
        self.normalize = normalize
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, channels, H, W], uint8 or in [0, 1] -> logits [B, C]."""
        logits: Tensor = self.backbone(self.normalize(images))
        return logits


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


def build_group(
    *,
    kind: GroupKind,
    architecture: str | Sequence[str],
    members: Sequence[str],
    split_at: str | None,
    num_classes: int,
    channels: int,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    seed: int,
    norm: Norm = "batch",
) -> Group:
    """Build freshly initialised students, one for each name in `members`, in training mode on the CPU.

    Student i starts as the plain backbone drawn with `seeded(seed, "init", i)`; in a group of branches the trunk is
    student 0's, so that student 0 starts as exactly that plain network. `architecture`: of all students or, for whole
    networks, of each. `split_at`: None for the architecture's own (found by `split.default_point` where the registry
    knows none), and for whole networks. `norm`: see
    `registry.create`. `channels`, `size`: of the images, `size` pixels on a side. `mean`, `std`: per channel, of images
    in [0, 1]. Torch's global stream is left as it was.

    Before it is handed out every member is compared with a stock network that is loaded with its weights: the same
    names, the same logits to the last bit and the same updates of buffers, in both modes.

    Raises `SettingError` on "model.architecture" (on "group.students" where each student has its own) if there is no
    such architecture, if it cannot be taken apart or if it cannot take images of this size; on "group.split_at" if it
    cannot be cut there; `RuntimeError` if that comparison fails, which is a fault of ours.
    """
    if not members or len(set(members)) != len(members):
        raise ValueError(f"members need names of their own, not {list(members)}")
    if len(mean) != channels:
        raise ValueError(f"{len(mean)} means for {channels} channels")
    if kind == "networks" and split_at is not None:
        raise SettingError(
            "group.split_at", f"whole networks are not split, at {split_at!r} or elsewhere", 'leave out "split_at"'
        )
    architectures = [architecture] * len(members) if isinstance(architecture, str) else list(architecture)
    if len(architectures) != len(members):
        raise ValueError(f"{len(architectures)} architectures for {len(members)} members")
    if kind == "branches" and len(set(architectures)) > 1:
        raise SettingError(
            "group.kind",
            f"students that share a trunk have one architecture, not {', '.join(dict.fromkeys(architectures))}",
            'set group.kind = "networks"',
        )
    named = "model.architecture" if isinstance(architecture, str) else "group.students"
    with _named(named):
        backbones = []
        for index, each in enumerate(architectures):
            with seeded(seed, "init", index):
                backbones.append(registry.create(each, num_classes, channels, norm))
        stocks = {}
        for each in dict.fromkeys(architectures):
            with seeded(seed, "stock"):
                stocks[each] = registry.create(each, num_classes, channels, norm)
        _check_fresh([*zip(architectures, backbones, strict=True), *stocks.items()])
    normalize = Normalize(mean, std)
    probe = torch.rand(_PROBE_IMAGES, channels, size, size, generator=generator(seed, "probe"))
    default = registry.default_split(architectures[0]) if kind == "branches" else None
    return _assembled(
        kind, members, architectures, backbones, stocks, split_at, default, normalize, probe, num_classes, named
    )


def branch_group(
    network: nn.Module | Callable[[], nn.Module],
    images: Tensor,
    *,
    students: int | Sequence[str] = 3,
    split_at: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
) -> BranchGroup:
    """Make students of any classifier: branches on the trunk that the network has before `split_at`.

    `network`: a module, which is copied: trunk and first student keep its weights, the other students' branches are
    drawn anew by their modules' `reset_parameters`. Or a function that builds one, which is called for every student.
    `images`: an example of what it takes, [B >= 2, channels, H, W]; nothing is learned from it. `students`: how many,
    or their names. `split_at`: the first module that is each student's own, one of `cut_points`; None looks for one.
    `mean`, `std`: per channel; then the group normalises images in [0, 1], or uint8, itself. Without them it takes what
    the network takes, and divides uint8 by 255.

    The group is in training mode on the CPU; move it as any module. Every member has been compared with the network as
    in `build_group`. Raises `UserError` where the network cannot be cut there, or gives no logits [B, C].
    """
    names = _names(students)
    probe, what = _probe(images), type(network).__name__ if isinstance(network, nn.Module) else network.__name__
    backbones = [_student(network, what, seed, index) for index in range(len(names))]
    stock = copy.deepcopy(backbones[0])
    if not isinstance(network, nn.Module):
        _check_fresh([(what, backbone) for backbone in backbones])
    normalize = _normalize(mean, std, probe)
    classes = _classes(stock, what, normalize(probe))
    group = _assembled(
        "branches",
        names,
        [what] * len(names),
        backbones,
        {what: stock},
        split_at,
        None,
        normalize,
        probe,
        classes,
        "network",
    )
    assert isinstance(group, BranchGroup)
    return group


def network_group(
    networks: Sequence[nn.Module],
    images: Tensor,
    *,
    members: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> NetworkGroup:
    """Make students of whole networks, which may differ and share nothing: each is copied with its weights.

    `images`, `mean`, `std`: see `branch_group`. `members`: their names, `student_0` and so on without it. Raises
    `UserError` where the networks do not give logits of the same classes.
    """
    names = _names(len(networks) if members is None else members)
    if len(names) != len(networks):
        raise UserError(f"{len(names)} names for {len(networks)} networks", "give every network a name")
    probe, normalize = _probe(images), _normalize(mean, std, images)
    whats = [f"{type(network).__name__}_{index}" for index, network in enumerate(networks)]
    backbones = [copy.deepcopy(network).cpu() for network in networks]
    stocks = {what: copy.deepcopy(backbone) for what, backbone in zip(whats, backbones, strict=True)}
    classes = {what: _classes(stock, what, normalize(probe)) for what, stock in stocks.items()}
    if len(set(classes.values())) > 1:
        told = ", ".join(f"{what} {count}" for what, count in classes.items())
        raise UserError(f"the networks tell apart different numbers of classes: {told}", "they must have one in common")
    group = _assembled(
        "networks", names, whats, backbones, stocks, None, None, normalize, probe, classes[whats[0]], "networks"
    )
    assert isinstance(group, NetworkGroup)
    return group


def _names(students: int | Sequence[str]) -> tuple[str, ...]:
    names = tuple(f"student_{i}" for i in range(students)) if isinstance(students, int) else tuple(students)
    if not names or len(set(names)) != len(names):
        raise UserError(f"students need names of their own, and there must be one at least, not {list(names)}")
    return names


def _probe(images: Tensor) -> Tensor:
    if images.dim() != 4 or len(images) < _PROBE_IMAGES:
        raise UserError(
            f"images must be [B, channels, H, W] with B of {_PROBE_IMAGES} or more, not {list(images.shape)}",
            "a batch of your loader will do",
        )
    return images[:_PROBE_IMAGES].detach().cpu()


def _normalize(mean: Sequence[float] | None, std: Sequence[float] | None, images: Tensor) -> Normalize:
    channels = images.shape[1]
    mean, std = (0.0,) * channels if mean is None else mean, (1.0,) * channels if std is None else std
    if not len(mean) == len(std) == channels:
        raise UserError(
            f"{len(mean)} means and {len(std)} deviations for {channels} channels", "give one of each per channel"
        )
    return Normalize(mean, std)


def _student(network: nn.Module | Callable[[], nn.Module], what: str, seed: int, index: int) -> nn.Module:
    """The network of one student: built, or copied and, but for the first, drawn anew."""
    if not isinstance(network, nn.Module):
        with seeded(seed, "init", index):
            return network().cpu()
    twin = copy.deepcopy(network).cpu()
    if index:
        drawn: set[int] = set()
        with seeded(seed, "init", index):
            for module in twin.modules():
                reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
                if callable(reset):
                    reset()
                    drawn |= {id(parameter) for parameter in module.parameters()}
        left = [name for name, parameter in twin.named_parameters() if id(parameter) not in drawn]
        if left:
            raise UserError(
                f"{what} cannot be drawn anew for another student: no module resets {', '.join(left[:3])}",
                "give a function that builds the network instead of the network",
            )
    return twin


def _classes(network: nn.Module, what: str, normalized: Tensor) -> int:
    """How many classes a network tells apart."""
    with _left_as_it_was(network):
        try:
            logits = network.eval()(normalized)
        except Exception as error:
            # Any kind of exception: each network has its own way to say that images do not suit it.
            raise UserError(
                f"{what} does not take images {list(normalized.shape)}: {error}", "other images?"
            ) from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(normalized):
        got = list(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise UserError(f"{what} gives {got} for {len(normalized)} images, not logits [B, C]", "choose a classifier")
    return int(logits.shape[1])


def _assembled(
    kind: GroupKind,
    members: Sequence[str],
    architectures: Sequence[str],
    backbones: Sequence[nn.Module],
    stocks: Mapping[str, nn.Module],
    split_at: str | None,
    default: str | None,
    normalize: Normalize,
    probe: Tensor,
    num_classes: int,
    named: str,
) -> Group:
    """Take backbones apart and join them to a group that has been compared with stock networks.

    `architectures`: of every member; `stocks`: a network of each. `default`: where the architecture is cut if
    `split_at` does not say; None looks for a place. `probe`: images to compare on. `named`: the setting at fault where
    an architecture is.
    """
    normalized = normalize(probe)
    with _named(named):
        for each, stock in stocks.items():
            _check_stock(stock, each, normalized, num_classes)
    if kind == "networks":
        with _named(named):
            networks = {name: split.whole(backbone) for name, backbone in zip(members, backbones, strict=True)}
            widths = {
                each: _feature_width(each, networks[name], normalized)
                for name, each in zip(members, architectures, strict=True)
            }
        shape = GroupShape(kind, tuple(members), None, tuple(widths[each] for each in architectures), num_classes)
        group: Group = NetworkGroup(networks, normalize, shape, architectures=architectures)
    else:
        architecture = architectures[0]
        if split_at is None:
            images = normalized[:1]
            split_at = default or split.default_point(split.measured_points(stocks[architecture], images), images)
        cuts = {name: split.cut(backbone, split_at) for name, backbone in zip(members, backbones, strict=True)}
        trunk = cuts[members[0]][0]
        branches = {name: branch for name, (_, branch) in cuts.items()}
        with _left_as_it_was(trunk):
            crossing = trunk.eval()(normalized)
        if not isinstance(crossing, Tensor) or crossing.dim() < 2 or not crossing.is_floating_point():
            raise SettingError(
                "group.split_at",
                f"{architecture} cannot be cut at {split_at!r}: what crosses there is not a tensor of features",
                f"cut it at its default, {default!r}" if default else 'leave "split_at" out',
            )
        width = _feature_width(architecture, branches[members[0]], crossing.clone())
        shape = GroupShape(kind, tuple(members), split.channels(crossing), (width,) * len(members), num_classes)
        separate = _writes_to_its_input(branches[members[0]], crossing)
        group = BranchGroup(
            trunk,
            branches,
            normalize,
            shape,
            split_at=split_at,
            separate=separate,
            architectures=architectures,
        )
    _compare(group, stocks, probe, f" cut at {split_at!r}" if split_at else "")
    return group.train()


@contextmanager
def _named(key: str) -> Iterator[None]:
    """Blame `key` for what is wrong with an architecture: each student's own stands in a list of students."""
    try:
        yield
    except SettingError as error:
        if error.key != "model.architecture":
            raise
        raise SettingError(key, error.problem, error.hint) from error


def _check_fresh(networks: Iterable[tuple[str, nn.Module]]) -> None:
    """Tell the user if a builder gives a network, or a part of one, that it has given before."""
    seen: set[int] = set()
    for architecture, network in networks:
        tensors = {id(tensor) for tensor in (*network.parameters(), *network.buffers())}
        if not seen.isdisjoint(tensors):
            raise SettingError(
                "model.architecture",
                f"{architecture} is built of the same parameters again, where every student needs its own",
                "its builder must make a new network whenever it is called",
            )
        seen |= tensors


def _check_stock(stock: nn.Module, architecture: str, normalized: Tensor, num_classes: int) -> None:
    """Tell the user, before anything is taken apart, if the architecture itself does not take these images."""
    size = f"{normalized.shape[2]}x{normalized.shape[3]}"
    for training in (False, True):
        try:
            with _left_as_it_was(stock), seeded(0, "check"):
                logits = stock.train(training)(normalized)
        except Exception as error:
            # Any kind of exception: each architecture has its own way to say that images are too small for it.
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise SettingError(
                "model.architecture",
                f"{architecture} cannot take images of {size} pixels with {normalized.shape[1]} channels: {reason}",
                "choose an architecture for images of this size, or another size of image",
            ) from error
        if not isinstance(logits, Tensor) or logits.shape != (_PROBE_IMAGES, num_classes):
            what = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise SettingError(
                "model.architecture",
                f"{architecture} gives {what} for {_PROBE_IMAGES} images, and not one logit for each of {num_classes} "
                "classes",
                "choose a classifier without auxiliary outputs",
            )


def _feature_width(architecture: str, part: split.Part, x: Tensor) -> int:
    with _left_as_it_was(part):
        _, features = part.eval()(x)
    if features.dim() != 2:
        raise SettingError(
            "model.architecture",
            f"the input of {architecture}'s last linear layer is {features.dim()}-dimensional, where a vector for each "
            "image is needed",
            "choose an architecture that pools before its classifier",
        )
    return int(features.shape[1])


def _writes_to_its_input(branch: split.Part, crossing: Tensor) -> bool:
    for training in (False, True):
        handed = crossing.clone()
        before = handed._version  # counts the writes to a tensor and to all its views
        with _left_as_it_was(branch), seeded(0, "check"):
            branch.train(training)(handed)
        if handed._version != before:
            return True
    return False


def _compare(group: Group, stocks: Mapping[str, nn.Module], images: Tensor, how: str) -> None:
    """Raise `RuntimeError` unless every member computes what the stock network with its weights computes.

    `stocks`: one of every architecture. `how`: what was done to them, for the message.
    """
    normalized = group.normalize(images)
    with _left_as_it_was(group):
        together_SBC = group.eval()(images).logits_SBC
    for index, (name, architecture) in enumerate(zip(group.members, group.architectures, strict=True)):
        stock, what = stocks[architecture], f"{architecture}{how}"
        with _left_as_it_was(group):
            try:
                registry.load_strict(stock, group.member_state_dict(name))
            except RuntimeError as error:
                raise RuntimeError(f"{what}: {name!r} has not the names of the stock network") from error
            if not torch.equal(together_SBC[index], stock.eval()(normalized)):
                raise RuntimeError(f"{what}: {name!r} differs from the stock network in evaluation")
            # In training each member alone: in a group, what one branch draws for dropout moves the next one's draws.
            with seeded(0, "check"):
                expected = stock.train()(normalized)
            with seeded(0, "check"):
                alone = group.train()._member_logits(name, normalized)
            if not torch.equal(alone, expected):
                raise RuntimeError(f"{what}: {name!r} differs from the stock network in training")
            updated = group.member_state_dict(name)
            for key, value in stock.state_dict().items():
                if not torch.equal(updated[key], value):
                    raise RuntimeError(f"{what}: {name!r} updates {key!r} otherwise than the stock network")


@contextmanager
def _left_as_it_was(module: nn.Module) -> Iterator[None]:
    """Compute without gradients, and put buffers and modes back afterwards."""
    modes = {each: each.training for each in module.modules()}
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    try:
        with torch.no_grad():
            yield
    finally:
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                buffer.copy_(buffers[name])
        for each, mode in modes.items():
            each.training = mode
