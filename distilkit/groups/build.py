"""Builds groups: branches cut from a backbone, or whole networks."""

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from distilkit.errors import SettingError, UserError
from distilkit.groups import split
from distilkit.groups.group import BranchGroup, Group, NetworkGroup
from distilkit.groups.normalize import Normalize
from distilkit.groups.outputs import GroupKind, GroupShape
from distilkit.groups.verify import (
    PROBE_IMAGES,
    check_fresh,
    check_reference,
    compare,
    feature_width,
    state_restored,
    writes_to_its_input,
)
from distilkit.models import registry
from distilkit.models.registry import Norm
from distilkit.randomness import generator, seeded


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

    Raises `SettingError` on "architecture" if there is no such architecture, if it cannot be taken apart or if it
    cannot take images of this size; on "split_at" if it cannot be cut there; `RuntimeError` if that comparison fails,
    which is a fault of ours.
    """
    if not members or len(set(members)) != len(members):
        raise ValueError(f"members need names of their own, not {list(members)}")
    if len(mean) != channels:
        raise ValueError(f"{len(mean)} means for {channels} channels")
    if kind == "networks" and split_at is not None:
        raise SettingError(
            "split_at", f"whole networks are not split, at {split_at!r} or elsewhere", 'leave out "split_at"'
        )
    architectures = [architecture] * len(members) if isinstance(architecture, str) else list(architecture)
    if len(architectures) != len(members):
        raise ValueError(f"{len(architectures)} architectures for {len(members)} members")
    if kind == "branches" and len(set(architectures)) > 1:
        raise SettingError(
            "kind",
            f"students that share a trunk have one architecture, not {', '.join(dict.fromkeys(architectures))}",
            'set group.kind = "networks"',
        )
    backbones = []
    for index, each in enumerate(architectures):
        with seeded(seed, "init", index):
            backbones.append(registry.create(each, num_classes, channels, norm))
    stocks = {}
    for each in dict.fromkeys(architectures):
        with seeded(seed, "stock"):
            stocks[each] = registry.create(each, num_classes, channels, norm)
    check_fresh([*zip(architectures, backbones, strict=True), *stocks.items()])
    normalize = Normalize(mean, std)
    probe = torch.rand(PROBE_IMAGES, channels, size, size, generator=generator(seed, "probe"))
    default = registry.default_split(architectures[0]) if kind == "branches" else None
    return _assembled(kind, members, architectures, backbones, stocks, split_at, default, normalize, probe, num_classes)


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
        check_fresh([(what, backbone) for backbone in backbones])
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
    group = _assembled("networks", names, whats, backbones, stocks, None, None, normalize, probe, classes[whats[0]])
    assert isinstance(group, NetworkGroup)
    return group


def _names(students: int | Sequence[str]) -> tuple[str, ...]:
    names = tuple(f"student_{i}" for i in range(students)) if isinstance(students, int) else tuple(students)
    if not names or len(set(names)) != len(names):
        raise UserError(f"students need names of their own, and there must be one at least, not {list(names)}")
    return names


def _probe(images: Tensor) -> Tensor:
    if images.dim() != 4 or len(images) < PROBE_IMAGES:
        raise UserError(
            f"images must be [B, channels, H, W] with B of {PROBE_IMAGES} or more, not {list(images.shape)}",
            "a batch of your loader will do",
        )
    return images[:PROBE_IMAGES].detach().cpu()


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
    with state_restored(network):
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
) -> Group:
    """Take backbones apart and join them to a group that has been compared with stock networks.

    `architectures`: of every member; `stocks`: a network of each. `default`: where the architecture is cut if
    `split_at` does not say; None looks for a place. `probe`: images to compare on.
    """
    normalized = normalize(probe)
    for each, stock in stocks.items():
        check_reference(stock, each, normalized, num_classes)
    if kind == "networks":
        networks = {name: split.whole(backbone) for name, backbone in zip(members, backbones, strict=True)}
        widths = {
            each: feature_width(each, networks[name], normalized)
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
        with state_restored(trunk):
            crossing = trunk.eval()(normalized)
        if not isinstance(crossing, Tensor) or crossing.dim() < 2 or not crossing.is_floating_point():
            raise SettingError(
                "split_at",
                f"{architecture} cannot be cut at {split_at!r}: what crosses there is not a tensor of features",
                f"cut it at its default, {default!r}" if default else 'leave "split_at" out',
            )
        width = feature_width(architecture, branches[members[0]], crossing.clone())
        shape = GroupShape(kind, tuple(members), split.channels(crossing), (width,) * len(members), num_classes)
        separate = writes_to_its_input(branches[members[0]], crossing)
        group = BranchGroup(
            trunk,
            branches,
            normalize,
            shape,
            split_at=split_at,
            separate=separate,
            architectures=architectures,
        )
    compare(group, stocks, probe, f" cut at {split_at!r}" if split_at else "")
    return group.train()
