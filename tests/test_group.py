import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from distilkit.errors import SettingError, UserError
from distilkit.groups import group as groups
from distilkit.groups import split
from distilkit.groups.build import build_group
from distilkit.groups.normalize import Classifier, Normalize
from distilkit.groups.outputs import GroupShape
from distilkit.models import registry, resnet_cifar
from distilkit.randomness import seeded

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
# The other families, which want larger images, are in test_families.py.
CIFAR_RESNETS = [
    # Its blocks are those of resnet110_bottleneck12, at several times the cost.
    pytest.param(name, marks=pytest.mark.long if name == "resnet164_bottleneck" else ())
    for name in registry.names()
    if registry._architectures[name].build.__module__ == resnet_cifar.__name__
]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads only wait for one another over images of a few pixels."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def architecture(monkeypatch):
    """Register a function for the length of one test."""
    registry.names()
    monkeypatch.setattr(registry, "_architectures", dict(registry._architectures))
    return lambda build, split_at: registry.register(split_at=split_at)(build)


def build(kind="branches", **changes):
    arguments = {
        "architecture": "resnet8",
        "members": ("peer_0", "peer_1", "leader"),
        "split_at": None,
        "num_classes": 5,
        "channels": 3,
        "size": 8,
        "mean": MEAN,
        "std": STD,
        "seed": 0,
    }
    return build_group(kind=kind, **{**arguments, **changes})


def images(count=4, channels=3, size=8, seed=1):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=generator)
    return pixels.contiguous(memory_format=torch.channels_last)


def assert_same_state(state, other):
    assert state.keys() == other.keys()
    for key, value in state.items():
        assert torch.equal(value, other[key]), key


@settings(max_examples=20, deadline=None)
@given(
    kind=st.sampled_from(["branches", "networks"]),
    students=st.integers(1, 4),
    channels=st.sampled_from([1, 3]),
    size=st.sampled_from([4, 8, 9]),
    seed=st.integers(0, 2**32),
    batch_sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    raw=st.booleans(),
)
def test_a_member_taken_out_gives_the_groups_logits_to_the_last_bit(
    kind, students, channels, size, seed, batch_sizes, raw
):
    members = [f"student_{i}" for i in range(students)]
    mean, std = MEAN[:channels], STD[:channels]
    group = build(kind, members=members, channels=channels, size=size, seed=seed, mean=mean, std=std)
    group(images(6, channels, size))  # so that running statistics are not what they start as
    group.eval()
    for name in members:
        stock = registry.create("resnet8", 5, channels)
        stock.load_state_dict(group.member_state_dict(name), strict=True)
        classifier = Classifier(Normalize(mean, std), stock).eval()
        for count in batch_sizes:
            batch = images(count, channels, size, seed=count)
            batch = batch if raw else batch.float() / 255
            with torch.no_grad():
                assert torch.equal(classifier(batch), group(batch).logits_SBC[members.index(name)])


@pytest.mark.parametrize("kind", ["branches", "networks"])
@pytest.mark.parametrize("name", CIFAR_RESNETS)
def test_gradient_reaches_every_parameter(name, kind):
    group = build(kind, architecture=name, members=("a", "b"))
    logits_SBC = group(images(8)).logits_SBC
    F.cross_entropy(logits_SBC.flatten(0, 1), torch.arange(16) % 5).backward()
    for path, parameter in group.named_parameters():
        assert parameter.grad is not None, path
        assert parameter.grad.isfinite().all(), path
        assert parameter.grad.any(), path


def test_a_students_loss_reaches_its_own_branch_and_the_trunk_alone():
    group = build()
    group(images()).logits_SBC[1].square().sum().backward()
    reached = {path for path, parameter in group.named_parameters() if parameter.grad.any()}
    assert reached == {path for path, _ in group.named_parameters() if path.startswith(("trunk.", "branches.peer_1."))}


@pytest.mark.parametrize("kind", ["branches", "networks"])
def test_the_first_member_starts_as_the_plain_backbone(kind):
    group = build(kind, seed=7)
    for index, name in enumerate(group.members):
        with seeded(7, "init", index):
            plain = registry.create("resnet8", 5)
        state = group.member_state_dict(name)
        own = {key: value for key, value in plain.state_dict().items() if kind == "networks" or index == 0}
        own |= {key: value for key, value in plain.state_dict().items() if key.startswith(("layer3.", "fc."))}
        assert_same_state({key: state[key] for key in own}, own)
        assert (len(own) == len(state)) == (kind == "networks" or index == 0)


@pytest.mark.parametrize("kind", ["branches", "networks"])
def test_members_start_differently_and_the_seed_alone_decides_how(kind):
    group, twin, other = build(kind), build(kind), build(kind, seed=1)
    assert_same_state(group.state_dict(), twin.state_dict())
    drawn = [
        group.member_state_dict(name)[key] for name in group.members for key in ("layer3.0.conv1.weight", "fc.bias")
    ]
    drawn += [other.member_state_dict("leader")[key] for key in ("layer3.0.conv1.weight", "fc.bias")]
    for index, weight in enumerate(drawn):
        assert not any(torch.equal(weight, another) for another in drawn[index + 1 :])


@pytest.mark.parametrize("kind", ["branches", "networks"])
def test_building_leaves_no_trace(kind):
    state = torch.get_rng_state()
    group = build(kind)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in group.modules())
    for path, buffer in group.named_buffers():
        if path.endswith(("running_mean", "num_batches_tracked")):
            assert not buffer.any(), path
        if path.endswith("running_var"):
            assert torch.equal(buffer, torch.ones_like(buffer)), path
    assert all(parameter.grad is None and parameter.requires_grad for parameter in group.parameters())


@pytest.mark.parametrize("kind", ["branches", "networks"])
def test_running_statistics_are_updated_once_for_every_forward(kind):
    group = build(kind)
    for expected in (1, 2):
        group(images())
        counts = {path: int(count) for path, count in group.named_buffers() if path.endswith("num_batches_tracked")}
        assert set(counts.values()) == {expected}
    group.eval()
    before = copy.deepcopy(group.state_dict())
    group(images())
    assert_same_state(group.state_dict(), before)


def test_a_branch_groups_output_and_shape():
    group = build()
    output = group(images())
    assert output.members == group.members == ("peer_0", "peer_1", "leader")
    assert output.logits_SBC.shape == (3, 4, 5)
    assert [features.shape for features in output.features] == [(4, 64)] * 3
    assert output.trunk.shape == (4, 32, 4, 4)
    assert not group.separate  # copies of the trunk's output only where a branch would write into it
    assert group.shape == GroupShape("branches", group.members, 32, (64, 64, 64), 5)
    for index, name in enumerate(group.members):
        classifier = group.branches[name].get_submodule("fc")
        assert torch.equal(classifier(output.features[index]), output.logits_SBC[index])


def test_a_network_groups_output_and_shape():
    group = build("networks", architecture="resnet110_bottleneck12", members=("a", "b"))
    output = group(images())
    assert output.logits_SBC.shape == (2, 4, 5)
    assert [features.shape for features in output.features] == [(4, 256)] * 2
    assert output.trunk is None
    assert group.shape == GroupShape("networks", ("a", "b"), None, (256, 256), 5)


def test_state_is_kept_under_the_backbones_own_names():
    stock = registry.create("resnet8", 5).state_dict().keys()
    below = {key for key in stock if key.startswith(("layer3.", "fc."))}
    branches = build()
    assert set(branches.state_dict()) == {f"trunk.{key}" for key in stock - below} | {
        f"branches.{name}.{key}" for name in branches.members for key in below
    }
    networks = build("networks")
    assert set(networks.state_dict()) == {f"networks.{name}.{key}" for name in networks.members for key in stock}
    for group in (branches, networks):
        for name in group.members:
            assert set(group.member_state_dict(name)) == stock
    assert "bn1.num_batches_tracked" in stock


@pytest.mark.parametrize("kind", ["branches", "networks"])
def test_saved_state_restores_the_group(kind):
    group, other = build(kind), build(kind, seed=9)
    group(images())
    other.load_state_dict(group.state_dict(), strict=True)
    assert torch.equal(group.eval()(images()).logits_SBC, other.eval()(images()).logits_SBC)


@pytest.mark.parametrize("kind", ["branches", "networks"])
def test_a_copied_group_is_equal_and_independent(kind):
    group = build(kind)
    twin = copy.deepcopy(group)
    twin(images())
    assert not group.member_state_dict("leader")["bn1.num_batches_tracked"]
    assert torch.equal(group(images()).logits_SBC, twin(images()).logits_SBC)
    assert {id(tensor) for tensor in group.parameters()}.isdisjoint(id(tensor) for tensor in twin.parameters())


@pytest.mark.parametrize("kind", ["branches", "networks"])
def test_an_unknown_member_is_refused_with_the_names(kind):
    with pytest.raises(UserError) as refusal:
        build(kind).member_state_dict("leadr")
    assert refusal.value.problem == "this group has no member 'leadr'; it has peer_0, peer_1, leader"
    assert refusal.value.hint == "did you mean 'leader'?"


def test_a_group_can_be_exported():
    group = build().eval()
    exported = torch.export.export(group, (images(),), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    output = exported(images(7))
    torch.testing.assert_close(output.logits_SBC, group(images(7)).logits_SBC)
    assert output.members == group.members


# Normalisation


def test_images_are_normalised_once_in_pixel_units():
    pixels = images()
    expected = pixels.double() / 255
    for channel in range(3):
        expected[:, channel] = (expected[:, channel] - MEAN[channel]) / STD[channel]
    for batch in (pixels, pixels.float() / 255, pixels.double() / 255):
        normalized = Normalize(MEAN, STD)(batch)
        assert normalized.dtype == torch.float32
        torch.testing.assert_close(normalized.double(), expected, atol=1e-6, rtol=1e-5)
    group = build("networks", members=("a",)).eval()
    stock = registry.create("resnet8", 5).eval()
    stock.load_state_dict(group.member_state_dict("a"))
    torch.testing.assert_close(group(pixels).logits_SBC[0], stock(expected.float()))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_normalising_keeps_the_memory_format(count, memory_format):
    for batch in (images(count), images(count).float()):
        batch = batch.contiguous(memory_format=memory_format)
        assert Normalize(MEAN, STD)(batch).stride() == batch.stride()


def test_normalisation_moves_with_the_module_but_is_not_saved():
    normalize = Normalize(MEAN, STD)
    assert not normalize.state_dict()
    assert normalize.double()(images()).dtype == torch.float64


def test_what_cannot_be_normalised_is_refused():
    with pytest.raises(TypeError, match="int64"):
        Normalize(MEAN, STD)(images().long())
    with pytest.raises(ValueError, match="one positive std per channel"):
        Normalize((0.5, 0.5), (0.5,))
    with pytest.raises(ValueError, match="one positive std per channel"):
        Normalize((0.5,), (0.0,))


# Cuts that need care


def test_branches_that_begin_in_place_do_not_disturb_one_another():
    group = build(split_at="relu").eval()
    output = group(images())
    assert output.trunk.min() < 0  # the stem's relu, in place, is every branch's own
    for index, name in enumerate(group.members):
        stock = registry.create("resnet8", 5)
        stock.load_state_dict(group.member_state_dict(name))
        assert torch.equal(Classifier(Normalize(MEAN, STD), stock).eval()(images()), output.logits_SBC[index])


def test_branches_that_begin_otherwise_in_place_do_not_disturb_one_another(architecture):
    class Doubling(nn.Module):
        def forward(self, x):
            return x.mul_(2)

    def doubled(num_classes, channels=3):
        return nn.Sequential(
            nn.Conv2d(channels, 4, 8), nn.Flatten(), nn.Dropout(0.5), Doubling(), nn.Linear(4, num_classes)
        )

    architecture(doubled, "2")
    output = (group := build(architecture="doubled").eval())(images())
    for index, name in enumerate(group.members):
        stock = registry.create("doubled", 5)
        stock.load_state_dict(group.member_state_dict(name))
        assert torch.equal(Classifier(Normalize(MEAN, STD), stock).eval()(images()), output.logits_SBC[index])


class Dropping(nn.Sequential):
    def forward(self, x):
        x = F.dropout(self[0](x), 0.5, self.training)
        return self[1](F.dropout(x.flatten(1), 0.5, self.training))


def dropping(num_classes, channels=3):
    return Dropping(nn.Conv2d(channels, 4, 8), nn.Linear(4, num_classes))


def test_a_network_with_dropout_passes_the_comparison(architecture):
    architecture(dropping, "1")
    for kind in ("branches", "networks"):
        assert build(kind, architecture="dropping").shape.feature_widths == (4, 4, 4)


@pytest.mark.parametrize(
    ("permutation", "channels"),
    [((0, 1, 2, 3), 6), ((0, 2, 3, 1), 6)],
    ids=["channels-first", "channels-last"],
)
def test_the_trunks_channels_are_found_in_maps(architecture, permutation, channels):
    class Permute(nn.Module):
        def forward(self, x):
            return x.permute(permutation)

    def permuted(num_classes, channels=3):
        return nn.Sequential(
            nn.Conv2d(channels, 6, 5), Permute(), nn.Identity(), nn.Flatten(), nn.Linear(96, num_classes)
        )

    architecture(permuted, "2")
    assert build(architecture="permuted").shape.trunk_channels == channels


def test_the_trunks_channels_are_found_in_tokens(architecture):
    class Tokens(nn.Module):
        def forward(self, x):
            return x.flatten(2).transpose(1, 2)

    class Pool(nn.Module):
        def forward(self, x):
            return x.mean(1)

    def tokens(num_classes, channels=3):
        return nn.Sequential(nn.Conv2d(channels, 6, 2, 2), Tokens(), nn.Linear(6, 7), Pool(), nn.Linear(7, num_classes))

    architecture(tokens, "2")
    assert build(architecture="tokens").shape == GroupShape("branches", ("peer_0", "peer_1", "leader"), 6, (7, 7, 7), 5)


# What is refused


@pytest.mark.parametrize(
    ("changes", "key", "problem"),
    [
        ({"architecture": "resnet9"}, "architecture", "no architecture 'resnet9'"),
        ({"split_at": "layer4"}, "split_at", "cannot be cut at 'layer4'"),
        ({"kind": "networks", "split_at": "layer3"}, "split_at", "whole networks are not split"),
    ],
)
def test_a_group_that_cannot_be_built_names_the_setting(changes, key, problem):
    with pytest.raises(SettingError) as refusal:
        build(**changes)
    assert refusal.value.setting == key
    assert problem in refusal.value.problem
    assert refusal.value.hint


@pytest.mark.parametrize(
    ("network", "problem"),
    [
        (
            lambda classes: nn.Sequential(nn.Conv2d(3, 4, 9), nn.Flatten(), nn.Linear(4, classes)),
            "cannot take images of 8x8 pixels with 3 channels: ",
        ),
        (
            lambda classes: nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten(), nn.Linear(4, 2)),
            "gives (2, 2) for 2 images",
        ),
        (
            lambda classes: nn.Sequential(nn.Conv2d(3, 4, 8), nn.Linear(1, classes), nn.AvgPool2d((1, 1)), Mean()),
            "4-dimensional, where a vector for each image is needed",
        ),
    ],
    ids=["images-too-small", "wrong-number-of-logits", "features-not-pooled"],
)
def test_an_architecture_that_does_not_suit_names_the_setting(architecture, network, problem):
    def unsuited(num_classes, channels=3):
        return network(num_classes)

    architecture(unsuited, "1")
    for kind in ("branches", "networks"):
        with pytest.raises(SettingError) as refusal:
            build(kind, architecture="unsuited")
        assert refusal.value.setting == "architecture"
        assert problem in refusal.value.problem


class Mean(nn.Module):
    def forward(self, x):
        return x.mean((1, 2))


class Pair(nn.Module):
    def forward(self, x):
        return x, x


class Sum(nn.Module):
    def forward(self, pair):
        return pair[0] + pair[1]


def test_a_cut_where_no_tensor_crosses_names_the_setting(architecture):
    def paired(num_classes, channels=3):
        return nn.Sequential(nn.Conv2d(channels, 4, 8), nn.Flatten(), Pair(), Sum(), nn.Linear(4, num_classes))

    architecture(paired, "3")
    with pytest.raises(SettingError, match="not a tensor") as refusal:
        build(architecture="paired")
    assert refusal.value.setting == "split_at"
    assert build(architecture="paired", split_at="2").shape.trunk_channels == 4


@pytest.mark.parametrize("members", [(), ("a", "a")])
def test_members_need_names_of_their_own(members):
    with pytest.raises(ValueError, match="names of their own"):
        build(members=members)


def test_every_channel_needs_its_mean():
    with pytest.raises(ValueError, match="3 means for 1 channels"):
        build(channels=1)


# A wrong cut cannot pass


def frozen_in_training(trunk, branch):
    trunk._forward_in_evaluation = trunk._forward_in_training


def frozen_in_evaluation(trunk, branch):
    trunk._forward_in_training = trunk._forward_in_evaluation


def one_name_too_many(trunk, branch):
    trunk.register_buffer("extra", torch.zeros(1))


def counting_twice(trunk, branch):
    forward = trunk._forward_in_training

    def twice(part, x):
        part.get_submodule("0").get_buffer("calls").add_(1)
        return forward(part, x)

    trunk._forward_in_training = twice


class Counting(nn.Conv2d):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        if self.training:
            self.calls.add_(1)
        return super().forward(x)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (frozen_in_training, "differs from the stock network in evaluation"),
        (frozen_in_evaluation, "differs from the stock network in training"),
        (one_name_too_many, "has not the names of the stock network"),
        (counting_twice, "updates '0.calls' otherwise"),
    ],
)
def test_a_wrong_cut_cannot_pass(architecture, monkeypatch, spoil, message):
    def counted(num_classes, channels=3):
        return Dropping(Counting(channels, 4, 8), nn.Linear(4, num_classes))

    def spoiled_cut(backbone, split_at, cut=split.cut):
        parts = cut(backbone, split_at)
        spoil(*parts)
        return parts

    architecture(counted, "1")
    build(architecture="counted")
    monkeypatch.setattr(groups.split, "cut", spoiled_cut)
    with pytest.raises(RuntimeError, match=message):
        build(architecture="counted")
