"""Branches that are computed together train as those that are computed one after another."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_families
import torch
import torch.nn.functional as F
from comparing import Crash, CrashAt, assert_same_run, largest_difference
from conftest import TINY, Result, train_tiny
from played_back import PlayedBack
from torch import Tensor, nn

from distilkit import grouped
from distilkit.errors import SettingError, UserError
from distilkit.group import BranchGroup, branch_group, build_group
from distilkit.models.pooling import keep_layout
from distilkit.models.registry import register
from distilkit.models.resnet_cifar import Bottleneck, CifarResNet
from distilkit.observer import Observer
from distilkit.recipe import load
from distilkit.run import Run
from distilkit.training import compiled
from distilkit.training import trainer as trainers
from distilkit.training import update as updates
from distilkit.training.processes import make_accelerator
from distilkit.training.trainer import Trainer
from distilkit.workflows.train import dry_run, resume

TOGETHER = "train.branches=grouped"


# --------------------------------------------------------------------------------------------------------- every family

FAMILIES = {
    "resnet8": None,
    "resnet14": "layer3.1",  # a branch begins with a block whose shortcut is the trunk's tensor itself
    "tiny_bottleneck": None,
    **{f"tiny_{name}": None for name in ("resnext_cifar", "densenet_cifar", "wrn_cifar", "vgg_cifar")},
    **{f"tiny_{name}": None for name in ("resnet_imagenet", "seresnet_imagenet", "mobilenet")},
    "torchvision:resnet18": "layer4",
}


def tiny_bottleneck(num_classes: int, channels: int = 3) -> nn.Module:
    return CifarResNet(Bottleneck, [1, 1, 2], num_classes, channels, width=4)


@pytest.fixture(autouse=True)
def _tiny() -> Iterator[None]:
    with tiny_families.registered():
        register(split_at="layer3", size=32)(tiny_bottleneck)
        yield


def group_of(architecture: str, students: int, split_at: str | None = None) -> BranchGroup:
    built = build_group(
        kind="branches",
        architecture=architecture,
        members=[f"s{index}" for index in range(students)],
        split_at=split_at,
        num_classes=7,
        channels=3,
        size=32,
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.3, 0.25),
        seed=0,
    )
    assert isinstance(built, BranchGroup)
    tiny_families.randomised(built)
    return built


def without_dropout(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def step(group: BranchGroup, images: Tensor) -> dict[str, Tensor]:
    """Everything that a step computes and leaves, by name."""
    output = group(images)
    assert output.members == group.members
    numbers = torch.Generator().manual_seed(3)
    values = {"logits": output.logits_SBC, "trunk": output.trunk}
    values |= {f"features {index}": each for index, each in enumerate(output.features)}
    sum(
        (each * torch.randn(each.shape, generator=numbers, dtype=each.dtype)).sum() for each in values.values()
    ).backward()
    found = {name: value.detach() for name, value in values.items()}
    for name, parameter in group.named_parameters():
        if parameter.grad is not None:
            found[f"gradient of {name}"] = parameter.grad
    return {**found, **dict(group.named_buffers())}


def both(group: BranchGroup, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Two steps, of copies: plain and grouped."""
    plain = copy.deepcopy(group)
    together = copy.deepcopy(group)
    together.together = grouped.forward(together)
    for each in (plain, together):
        step(each, images)
        each.zero_grad()
    return step(plain, images), step(together, images)


def assert_same_step(plain: dict[str, Tensor], together: dict[str, Tensor], tolerance: float) -> None:
    assert plain.keys() == together.keys()
    steepest = max(value.abs().max() for name, value in plain.items() if name.startswith("gradient"))
    for name, value in plain.items():
        assert value.shape == together[name].shape
        assert value.dtype == together[name].dtype
        size = steepest if name.startswith("gradient") else value.abs().max()
        assert (value - together[name]).abs().max() <= tolerance * size, name


@pytest.mark.parametrize("students", [2, 4])
@pytest.mark.parametrize("architecture", FAMILIES)
def test_two_steps_are_the_plain_ones_in_every_family(architecture: str, students: int) -> None:
    group = group_of(architecture, students, FAMILIES[architecture]).double()
    without_dropout(group)
    keep_layout(group)
    images = tiny_families.images(6).double() / 255
    assert_same_step(*both(group, images), 1e-10)


@pytest.mark.parametrize("architecture", ["resnet8", "tiny_densenet_cifar", "tiny_seresnet_imagenet"])
def test_a_step_keeps_channels_last_and_the_rounding_of_autocast(architecture: str) -> None:
    group = group_of(architecture, 3).to(memory_format=torch.channels_last)
    keep_layout(group)
    images = tiny_families.images(16).contiguous(memory_format=torch.channels_last)
    exact, _ = both(group, images)
    with torch.autocast("cpu", torch.bfloat16):
        plain, together = both(group, images)
    assert plain["logits"].dtype == together["logits"].dtype == torch.bfloat16
    for name in ("logits", "features 1", "gradient of branches.s1.fc.weight"):
        error = (plain[name] - exact[name]).abs().max()
        assert (together[name] - exact[name]).abs().max() <= 3 * error
    for name, value in together.items():
        if name.startswith("gradient") and value.dim() == 4:
            assert value.stride() == plain[name].stride()


def test_evaluation_and_copies_are_left_alone() -> None:
    group, images = group_of("resnet8", 2), tiny_families.images(4)
    names = list(group.state_dict())
    wanted = group.eval()(images).logits_SBC

    def never(*_: Any) -> Any:
        raise AssertionError

    group.together = never
    assert torch.equal(group(images).logits_SBC, wanted)
    assert list(group.state_dict()) == names
    assert group.only(["s1"]).together is None
    group.together = grouped.forward(group)
    twin = copy.deepcopy(group).train()
    with torch.no_grad():
        for parameter in twin.branches["s1"].parameters():
            parameter.zero_()
    assert (twin(images).logits_SBC[1] == 0).all(), "a copy computes with its own weights"
    assert torch.equal(group(images).logits_SBC, wanted)


def test_every_branch_drops_out_for_itself_and_as_much() -> None:
    group = group_of("tiny_vgg_cifar", 3)
    group.together = grouped.forward(group)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = torch.stack(group(tiny_families.images(33)).features) == 0
    for module in group.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    without = torch.stack(group(tiny_families.images(33)).features) == 0
    assert 0.4 < (drawn.float().mean() - without.float().mean()) / (1 - without.float().mean()) < 0.6
    assert not torch.equal(drawn[0], drawn[1])


# ------------------------------------------------------------------------------------------------------ own networks


class Around(nn.Module):
    """Maps of 8 channels that the students share, some modules, and whatever `compute` makes of them."""

    def __init__(self, compute: Callable[["Around", Tensor], Tensor]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.first = nn.Identity()
        self.a, self.b = (nn.Conv2d(8, 8, 3, padding="same") for _ in range(2))
        self.depthwise = nn.Conv2d(8, 16, 3, groups=8, bias=False)
        self.narrow = nn.Conv2d(16, 8, 1)
        self.norm, self.bare = nn.BatchNorm2d(8), nn.BatchNorm2d(8, affine=False, momentum=0.3)
        self.unmeasured, self.vectors = nn.BatchNorm2d(8, track_running_stats=False), nn.BatchNorm1d(9, eps=0.1)
        self.slowly = nn.BatchNorm2d(8, momentum=None)
        self.relu, self.silu, self.dropout = nn.ReLU(inplace=True), nn.SiLU(), nn.Dropout(0.5)
        self.pool, self.shrink = nn.AdaptiveAvgPool2d(1), nn.MaxPool2d(2, ceil_mode=True)
        self.hidden, self.fc = nn.Linear(8, 9, bias=False), nn.Linear(9, 5)
        self.scale = nn.Parameter(torch.rand(8, 1, 1))
        self.around = nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular")
        self.layer = nn.GroupNorm(2, 8)
        self.compute = compute

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.hidden(self.compute(self, self.first(self.stem(x))).mean((2, 3)))))


def _product_of_branch_and_trunk(n: Around, x: Tensor) -> Tensor:
    return torch.mul(n.a(x), x) * 2 - x


def _half_of_what_is_shared(n: Around, x: Tensor) -> Tensor:
    return 0.5 * n.shrink(x) + n.a(n.shrink(x)).div(2)


def _shared_and_own_side_by_side(n: Around, x: Tensor) -> Tensor:
    return n.narrow(torch.cat((n.silu(x), n.a(x)), dim=1)) + n.narrow(torch.cat([x, x], 1))


def _depthwise_of_what_is_shared(n: Around, x: Tensor) -> Tensor:
    return n.narrow(n.depthwise(x))


def _written_into_the_trunk(n: Around, x: Tensor) -> Tensor:
    return n.b(n.relu(x)) + n.a(x)


def _sum_in_place(n: Around, x: Tensor) -> Tensor:
    y = n.norm(n.a(x))
    y += x
    return y.relu_()


def _norms_of_all_kinds(n: Around, x: Tensor) -> Tensor:
    return n.bare(n.unmeasured(n.norm(x)))


def _called_twice(n: Around, x: Tensor) -> Tensor:
    return n.a(n.relu(n.a(x)))


def _gate_by_functions(n: Around, x: Tensor) -> Tensor:
    y = n.a(x)
    return y * torch.sigmoid(n.b(F.adaptive_avg_pool2d(y, 1))) + F.max_pool2d(F.silu(y), 3, 1, 1)


def _vectors(n: Around, x: Tensor) -> Tensor:
    y = n.hidden(n.pool(n.a(x)).flatten(1))
    z = n.hidden(torch.flatten(n.pool(x), 1))
    return n.relu(y + z) * torch.tanh(z)


def _vectors_by_view(n: Around, x: Tensor) -> Tensor:
    y = F.adaptive_avg_pool2d(n.a(x), 1)
    z = F.adaptive_max_pool2d(n.b(x), 1)
    return n.hidden(y.view(y.size(0), -1) + z.reshape(z.shape[0], -1) + torch.flatten(z, start_dim=1))


COMPUTATIONS = [
    *(
        _product_of_branch_and_trunk,
        _half_of_what_is_shared,
        _shared_and_own_side_by_side,
        _depthwise_of_what_is_shared,
    ),
    *(_written_into_the_trunk, _sum_in_place, _norms_of_all_kinds, _called_twice, _gate_by_functions),
    *(_vectors, _vectors_by_view),
]


class Vectors(Around):
    """What `compute` makes of them are vectors already."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.vectors(self.compute(self, self.first(self.stem(x)))))


def own_group(compute: Callable[[Around, Tensor], Tensor], split_at: str = "first") -> BranchGroup:
    made = Vectors if compute in (_vectors, _vectors_by_view) else Around
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng():
        return branch_group(lambda: made(compute), images, students=3, split_at=split_at, seed=1)


@pytest.mark.parametrize("compute", COMPUTATIONS, ids=lambda compute: compute.__name__.strip("_"))
def test_whatever_is_known_is_computed_the_same(compute: Callable[[Around, Tensor], Tensor]) -> None:
    group = own_group(compute)
    grouped.check(group, torch.rand(4, 3, 8, 8))
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert_same_step(*both(group.double(), images), 1e-10)


@pytest.mark.parametrize("split_at", ["a", "hidden", "fc"])
def test_branches_may_begin_anywhere(split_at: str) -> None:
    group = own_group(lambda n, x: n.a(x), split_at)
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert_same_step(*both(group.double(), images), 1e-10)


def test_every_branch_drops_for_itself_what_they_share() -> None:
    group = own_group(lambda n, x: n.a(n.dropout(x)))
    for name in group.members[1:]:
        group.branches[name].load_state_dict(group.branches[group.members[0]].state_dict())
    group.together = grouped.forward(group)
    images = torch.rand(4, 3, 8, 8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second, _ = group(images).logits_SBC
        assert not torch.allclose(first, second)
    without_dropout(group)
    first, second, _ = group(images).logits_SBC
    assert torch.allclose(first, second)


class Odd(nn.Module):
    """Nine channels, then eight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 9, 3), nn.Conv2d(9, 8, 3)
        self.nine, self.eight = nn.BatchNorm2d(9), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.eight(self.b(self.nine(self.a(self.stem(x))))).mean((2, 3)))


def test_one_vector_of_an_odd_length_does_not_move_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels may read four numbers at once, from addresses of whole sixteen bytes."""
    with torch.random.fork_rng():
        group = branch_group(Odd, torch.rand(4, 3, 12, 12), students=3, split_at="a")
    group.together = grouped.forward(group)
    places: dict[int, list[int]] = {}
    batch_norm = F.batch_norm

    def noted(x: Tensor, *more: Any) -> Tensor:
        places[x.shape[1]] = [each.storage_offset() for each in more[:4]]
        return batch_norm(x, *more)

    monkeypatch.setattr(F, "batch_norm", noted)
    group(torch.rand(4, 3, 12, 12))
    assert all(place % 4 == 0 for place in places[24]), places
    assert any(place % 4 for place in places[27]), "otherwise this says nothing"


def _written_into_what_is_shared(n: Around, x: Tensor) -> Tensor:
    y = n.shrink(x)
    y += n.a(y)
    return y


REFUSED: dict[str, tuple[Callable[[Around, Tensor], Tensor], str]] = {
    "a norm over channels": (lambda n, x: n.layer(x), "'layer' is a GroupNorm"),
    "a parameter of its own": (lambda n, x: n.a(x) * n.scale, "they read 'scale' outside of a module"),
    "no momentum": (lambda n, x: n.slowly(x), "'slowly' is a BatchNorm2d without momentum"),
    "a norm called twice": (lambda n, x: n.norm(n.relu(n.norm(x))), "'norm', a BatchNorm2d, is called more than once"),
    "other padding": (lambda n, x: n.around(x), "'around' is a Conv2d with padding_mode 'circular'"),
    "softmax over channels": (lambda n, x: F.softmax(n.a(x), 1), "they call 'softmax', of which it is not known"),
    "a mean over channels": (lambda n, x: n.a(x) * x.mean(1, True), "they call 'mean', of which it is not known"),
    "another method": (lambda n, x: n.a(x).transpose(2, 3), "they call 'transpose', of which it is not known"),
    "a number of images": (lambda n, x: n.a(x) * x.size(0), "they call 'size', of which it is not known"),
    "a shape": (lambda n, x: n.a(x) * x.shape[-1], "they compute with the sizes of tensors"),
    "dropout as a function": (
        lambda n, x: F.dropout(n.a(x), training=n.training),
        "they call 'dropout', of which it is not known",
    ),
    "cat of images": (lambda n, x: torch.cat([n.a(x), x], 2), "they join tensors, but not along the channels"),
    "in place": (_written_into_what_is_shared, "'iadd' writes into what the branches share"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_known_is_refused_by_its_name(case: str) -> None:
    compute, said = REFUSED[case]
    group = own_group(compute)
    with pytest.raises(SettingError) as caught:
        grouped.forward(group)
    assert caught.value.key == "train.branches"
    assert said in caught.value.problem


def _listen(group: BranchGroup) -> None:
    group.branches["student_1"].get_submodule("a").register_forward_hook(lambda *_: None)


def _listen_to_gradients(group: BranchGroup) -> None:
    group.branches["student_1"].register_full_backward_hook(lambda *_: None)


def _replace(group: BranchGroup) -> None:
    group.branches["student_2"].add_module("a", nn.Conv2d(8, 8, 5, padding="same"))


def _synchronise(group: BranchGroup) -> None:
    for branch in group.branches.values():
        branch.add_module("norm", nn.SyncBatchNorm(8))


def _other_steps(group: BranchGroup) -> None:
    group.branches["student_1"] = own_group(lambda n, x: n.norm(n.b(x))).branches["student_1"]


def _own_forward(group: BranchGroup) -> None:
    group.branches["student_0"].get_submodule("a").forward = torch.relu  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_listen, "somebody listens to 'a', a Conv2d"),
        (_listen_to_gradients, "somebody listens to the branch 'student_1'"),
        (_replace, "'a' is not the same in all branches"),
        (_synchronise, "'norm' is a SyncBatchNorm"),
        (_other_steps, "'student_1' takes other steps than 'student_0'"),
        (_own_forward, "somebody listens to 'a'"),
    ],
)
def test_branches_that_somebody_has_changed_are_refused(change: Callable[[BranchGroup], None], said: str) -> None:
    group = own_group(lambda n, x: n.norm(n.a(x)))
    grouped.forward(group)
    change(group)
    with pytest.raises(SettingError) as caught:
        grouped.forward(group)
    assert said in caught.value.problem


# -------------------------------------------------------------------------------------- the check before a training


def _no_statistics(joined: Tensor, statistics: Any, counts: Any) -> None:
    torch._foreach_add_(list(counts), 1)


def _no_counts(joined: Tensor, statistics: Any, counts: Any) -> None:
    with torch.no_grad():
        torch._foreach_copy_(list(statistics), joined.split([each.numel() for each in statistics]))


def _tensor_by_tensor(tensors: Any, shared: Any, students: int) -> Tensor:
    return torch.cat(
        [each.repeat(1, students if same else 1, 1, 1) for each, same in zip(tensors, shared, strict=True)], 1
    )


def _in_another_order(x_SBD: Tensor, weights: Any, bias: Tensor | None) -> Tensor:
    return MULTIPLIED(x_SBD, weights[::-1], bias)


def _stacked_by_images(x: Tensor, students: int) -> Tensor:
    return x.view(students, len(x), -1)


def _cut_off(x_SBD: Tensor, weights: Any, bias: Tensor | None) -> Tensor:
    return MULTIPLIED(x_SBD, [each.detach() for each in weights], bias)


MULTIPLIED = grouped.multiplied


@pytest.mark.parametrize(
    ("name", "wrong", "what"),
    [
        ("write_back", _no_statistics, "running_mean"),
        ("write_back", _no_counts, "num_batches_tracked"),
        ("interleaved", _tensor_by_tensor, "logits"),
        ("multiplied", _in_another_order, "logits"),
        ("stacked", _stacked_by_images, "logits"),
        ("multiplied", _cut_off, "the gradient of s0.fc.weight"),
    ],
)
def test_the_check_finds_what_is_wrong(
    name: str, wrong: Callable[..., Any], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, images = group_of("tiny_densenet_cifar", 3), torch.rand(2, 3, 32, 32)
    before = {key: value.clone() for key, value in group.state_dict().items()}
    grouped.check(group, images)
    monkeypatch.setattr(grouped, name, wrong)
    with pytest.raises(SettingError, match="differ from themselves one by one in ") as caught:
        grouped.check(group, images)
    assert what in caught.value.problem
    assert all(torch.equal(before[key], value) for key, value in group.state_dict().items())
    assert group.together is None


# --------------------------------------------------------------------------------------------------------- trainings

SHORT = ("train.epochs=2", "method.rampup_epochs=0")
METHODS = {
    "one": ("method.name=one",),
    "okddip": ("method.name=okddip",),
    "cl-ilr": ("method.name=cl-ilr",),
    "dml on branches": ("method.name=dml", "group.kind=branches"),
    "one with much else": (
        *("train.ema=0.9", "train.accumulation=2", "train.clip_norm=1.0", "optimizer.name=adamw", "optimizer.lr=0.001"),
    ),
    "one without batch norm": ("model.norm=none", "train.label_smoothing=0.1", "optimizer.lr=0.01"),
}


@pytest.fixture
def doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train in float64, where rounding is too small to put a number on another side of a ReLU."""
    create = Trainer.__init__

    def doubled(self: Trainer, recipe: Any, learner: Any, *args: Any, **kwargs: Any) -> None:
        create(self, recipe, learner.double(), *args, **kwargs)

    monkeypatch.setattr(Trainer, "__init__", doubled)


def two_trainings(folder: Path, *settings: str) -> tuple[Path, Path]:
    """The same recipe, plain and grouped."""
    for name in ("plain", "grouped"):
        (folder / name).mkdir()
    return train_tiny(folder / "plain", *settings), train_tiny(folder / "grouped", *settings, TOGETHER)


@pytest.mark.usefixtures("doubles")
@pytest.mark.parametrize("settings", METHODS.values(), ids=METHODS)
def test_a_training_is_the_plain_one(settings: tuple[str, ...], tmp_path: Path) -> None:
    plain, together = two_trainings(tmp_path, *SHORT, *settings)
    parts = ("group", "method", "optimizer", "raw") if "train.ema=0.9" in settings else ("group", "method", "optimizer")
    for part in parts:
        if (Run.open(plain).checkpoint("last") / f"{part}.safetensors").stat().st_size > 100:
            assert largest_difference(plain, together, part) < 1e-9
    assert largest_difference(plain, together) > 0, "to the last bit: it is not computed together"
    for one, other in zip(Run.open(plain).metrics(), Run.open(together).metrics(), strict=True):
        assert one["train"]["errors"] == other["train"]["errors"]
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-9)
    assert 'branches = "grouped"' in (together / "recipe.toml").read_text()
    assert 'branches = "one-by-one"' in (plain / "recipe.toml").read_text()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_first_steps_are_the_plain_ones_to_rounding(precision: str, tmp_path: Path) -> None:
    settings = ("train.epochs=1", "method.rampup_epochs=0", f"train.precision={precision}", "optimizer.lr=0.01")
    plain, together = two_trainings(tmp_path, *settings)
    (one,), (other,) = (Run.open(each).metrics() for each in (plain, together))
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-5 if precision == "fp32" else 1e-2)
    assert largest_difference(plain, together) < (2e-4 if precision == "fp32" else 2e-2)


def test_a_run_goes_on_where_it_was_broken_off(tmp_path: Path) -> None:
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    settings = (*SHORT, TOGETHER, "train.checkpoint_steps=1")
    whole = train_tiny(tmp_path / "whole", *settings)
    with pytest.raises(Crash):
        train_tiny(tmp_path / "broken", *settings, observer=CrashAt(2, 2))
    (broken,) = (tmp_path / "broken" / "runs").iterdir()
    resume(broken, device="cpu", observer=Observer())
    assert_same_run(whole, broken)


@pytest.mark.parametrize("first", ["one-by-one", "grouped"])
def test_either_form_goes_on_from_the_others_checkpoint(first: str, tmp_path: Path) -> None:
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    settings = (*SHORT, "train.checkpoint_steps=1", "model.norm=none", "optimizer.lr=0.01")
    whole = train_tiny(tmp_path / "whole", *settings)
    with pytest.raises(Crash):
        train_tiny(tmp_path / "broken", *settings, f"train.branches={first}", observer=CrashAt(2, 2))
    (broken,) = (tmp_path / "broken" / "runs").iterdir()
    other = "grouped" if first == "one-by-one" else "one-by-one"
    recipe = load(tmp_path / "broken" / "tiny.toml", [*settings, f"train.branches={other}"])
    with pytest.raises(UserError, match=f"train.branches was {first}, now {other}"):
        resume(broken, device="cpu", observer=Observer(), recipe=recipe)
    resume(broken, device="cpu", observer=Observer(), recipe=recipe, accept_changes=True)
    assert Run.open(broken).recipe.train.branches == other
    assert 0 < largest_difference(whole, broken) < 2e-4


def test_replayed_steps_are_computed_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[PlayedBack] = []
    monkeypatch.setattr(updates, "CudaGraph", lambda: made.append(PlayedBack()) or made[-1])
    monkeypatch.setattr(trainers, "check_graph", lambda *_: None)
    settings = ("train.epochs=2", "optimizer.lr=0.125", "schedule.gamma=0.5", TOGETHER)
    for name in ("computed", "replayed"):
        (tmp_path / name).mkdir()
    computed = train_tiny(tmp_path / "computed", *settings)
    replayed = train_tiny(tmp_path / "replayed", *settings, "train.cuda_graph=true")
    assert made[0].replays == 2 * 5 - 3
    assert_same_run(computed, replayed)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_losses_are_one_graph_without_breaks(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    for name in ("eager", "compiled"):
        (tmp_path / name).mkdir()
    settings = ("train.epochs=1", "method.rampup_epochs=0", TOGETHER, f"train.precision={precision}")
    eager = train_tiny(tmp_path / "eager", *settings)
    traced = train_tiny(tmp_path / "compiled", *settings, "train.compile=true")
    assert largest_difference(eager, traced) < (2e-4 if precision == "fp32" else 2e-2)


def test_the_trainers_group_is_the_one_that_is_computed_together(tmp_path: Path) -> None:
    import contestants

    recipe = contestants.recipe_of("one", "train.batch_size=8", "train.precision=fp32", "train.ema=0.9", TOGETHER)
    data = contestants.data(16)
    accelerator = make_accelerator("fp32", "cpu")
    made = Trainer(recipe, contestants.learner_of(recipe, data), data, accelerator, tmp_path, Observer())
    assert made.learner.group.together is not None
    assert made.deployed.group.together is None


# ---------------------------------------------------------------------------------------------- what a recipe may say


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ((TOGETHER, "group.kind=networks"), 'train.branches = "grouped" is for group.kind = "branches"'),
        (("train.branches=streams", "group.kind=networks"), 'train.branches = "streams" is for group.kind'),
        (("train.branches=group",), "train.branches must be"),
        (("train.branch=grouped",), "'branches'"),
    ],
)
def test_a_recipe_that_asks_for_what_cannot_be_is_refused(settings: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError) as caught:
        load("quickstart", list(settings))
    assert said in str(caught.value)


def test_no_run_is_begun_with_branches_that_cannot_be_grouped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distilkit: Callable[..., Result]
) -> None:
    monkeypatch.setattr(grouped, "_NUMBERWISE_MODULES", (nn.Identity,))
    file = tmp_path / "tiny.toml"
    file.write_text(TINY.replace('precision = "fp32"', 'precision = "fp32"\nbranches = "grouped"'), encoding="utf-8")
    found = distilkit("train", file, "--runs", tmp_path / "runs", "--device", "cpu")
    assert found.status == 2
    assert "tiny.toml:13: the branches cannot be computed together: 'layer3.0.relu' is a ReLU" in found.err
    assert "leave train.branches out" in found.err
    assert not (tmp_path / "runs").exists()
    with pytest.raises(UserError, match="is a ReLU"):
        dry_run(load(file))
