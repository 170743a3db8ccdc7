import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from distilkit.errors import SettingError
from distilkit.groups import split
from distilkit.models import registry, resnet_cifar

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


class Toy(nn.Module):
    """Everything that makes cutting hard: modes, constants, plain tensors, unused state, parameters of its own."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.scale = nn.Parameter(torch.rand(4, 1, 1))
        self.register_buffer("shift", torch.rand(4, 1, 1))
        self.register_buffer("hidden", torch.rand(4, 1, 1), persistent=False)
        self.plain = torch.rand(4, 1, 1)
        self.body = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.spare = nn.Linear(2, 2)
        self.body.spare = nn.Parameter(torch.rand(2))
        self.head = nn.Linear(6, 5)

    def forward(self, x, scale_logits=None):
        x = F.dropout(self.stem(x), 0.5, self.training)
        x = x * self.scale + self.shift + self.hidden + self.plain
        x = self.body(x) + torch.full((1,), 0.25)
        if self.training:
            x = x * 0.5
        x = F.dropout(x.mean((2, 3)), 0.5, self.training)
        logits = self.head(x)
        return logits if scale_logits is None else logits * scale_logits


def images(size=8, count=2, channels=3):
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(5))


def joined_state(trunk, branch):
    assert trunk.state_dict().keys().isdisjoint(branch.state_dict())
    return {**trunk.state_dict(), **branch.state_dict()}


def assert_joined_equals(stock, trunk, branch, x):
    """Strict load into `stock`, then bit-equal logits and equal updates of buffers in both modes."""
    stock.load_state_dict(joined_state(trunk, branch), strict=True)
    for training in (False, True):
        with torch.no_grad():
            torch.manual_seed(3)
            expected = stock.train(training)(x)
            torch.manual_seed(3)
            logits, features = branch.train(training)(trunk.train(training)(x))
        assert torch.equal(logits, expected), f"training={training}"
        assert features.shape[0] == x.shape[0]
    for key, value in stock.state_dict().items():
        assert torch.equal(joined_state(trunk, branch)[key], value), key


@pytest.mark.parametrize("name", CIFAR_RESNETS)
def test_every_architecture_joins_back_to_itself_at_its_own_split(name):
    trunk, branch = split.cut(registry.create(name, 10), registry.default_split(name))
    assert_joined_equals(registry.create(name, 10), trunk, branch, images(8))


@pytest.mark.parametrize("split_at", ["body", "body.1", "body.2", "head"])
def test_a_cut_network_computes_what_it_did_in_both_modes(split_at):
    backbone = Toy()
    stock = copy.deepcopy(backbone)
    assert_joined_equals(stock, *split.cut(backbone, split_at), images())


def test_dropout_acts_in_training_and_rests_in_evaluation():
    trunk, branch = split.cut(Toy(), "body")
    x = images()
    assert torch.equal(branch.eval()(trunk.eval()(x))[0], branch(trunk(x))[0])
    assert not torch.equal(trunk.train()(x), trunk(x))


def test_the_whole_network_as_a_part_keeps_its_names_and_gives_its_features():
    backbone = Toy()
    stock = copy.deepcopy(backbone)
    part = split.whole(backbone)
    assert part.state_dict().keys() == stock.state_dict().keys()
    stock.load_state_dict(part.state_dict(), strict=True)
    into_head = []
    stock.head.register_forward_pre_hook(lambda module, inputs: into_head.append(inputs[0]))
    for training in (False, True):
        torch.manual_seed(0)
        expected = stock.train(training)(images())
        torch.manual_seed(0)
        logits, features = part.train(training)(images())
        assert torch.equal(logits, expected)
        assert torch.equal(features, into_head.pop())


def test_features_are_the_input_of_the_last_linear_layer_on_the_way_to_the_logits():
    class TwoLinear(nn.Sequential):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 8)
            self.hidden = nn.Linear(4, 3)
            self.classifier = nn.Linear(3, 5)
            self.other = nn.Linear(4, 7)

        def forward(self, x):
            x = self.stem(x).flatten(1)
            logits = self.classifier(self.hidden(x).relu()) - 1
            self.other(x)
            return logits

    backbone = TwoLinear()
    trunk, branch = split.cut(backbone, "hidden")
    logits, features = branch(trunk(images()))
    assert features.shape == (2, 3)
    assert torch.equal(backbone.classifier(features) - 1, logits)


def test_parts_hold_the_backbones_own_tensors_and_leave_it_as_it_was():
    backbone = Toy()
    backbone.eval()
    backbone.body.train()
    modes = [module.training for module in backbone.modules()]
    attributes = set(vars(backbone))
    before = backbone(images())
    generator_state = torch.get_rng_state()
    trunk, branch = split.cut(backbone, "body")
    assert torch.equal(torch.get_rng_state(), generator_state)
    assert [module.training for module in backbone.modules()] == modes
    assert set(vars(backbone)) == attributes
    assert torch.equal(backbone(images()), before)
    own = {id(tensor) for tensor in backbone.state_dict(keep_vars=True).values()}
    held = {id(tensor) for part in (trunk, branch) for tensor in part.state_dict(keep_vars=True).values()}
    assert held == own
    assert not trunk.training


def test_state_that_no_graph_reads_stays_for_the_strict_load():
    trunk, branch = split.cut(Toy(), "body")
    assert {"spare.weight", "spare.bias"} <= trunk.state_dict().keys()
    assert "body.spare" in branch.state_dict()
    assert "hidden" not in trunk.state_dict()
    assert "plain" not in trunk.state_dict()


class Reading(nn.Module):
    """Reads parameters past their modules, and has one module under two names."""

    def __init__(self):
        super().__init__()
        self.alias = nn.Linear(4, 4)
        self.stem = nn.Conv2d(3, 4, 8)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 4)
        self.hidden = self.alias
        self.head.plain = torch.ones(4)

    def forward(self, x):
        x = self.hidden(self.stem(x).flatten(1) * self.stem.bias.sum())
        return self.head(x) * self.norm.weight + self.head.bias + self.head.plain + self.hidden.bias


def test_what_is_read_past_its_module_is_held_once_and_goes_with_its_module():
    trunk, branch = split.cut(Reading(), "alias")
    assert set(trunk.state_dict()) == {"stem.weight", "stem.bias"}
    assert {"norm.bias", "norm.running_var", "hidden.weight", "alias.weight"} <= branch.state_dict().keys()
    assert len(list(branch.parameters())) == 6
    assert_joined_equals(Reading(), trunk, branch, images())


def test_constants_and_plain_tensors_move_with_the_part():
    trunk, branch = split.cut(Toy(), "body")
    expected = branch.eval()(trunk.eval()(images()))[0]
    logits, _ = branch.double()(trunk.double()(images().double()))
    assert logits.dtype == torch.float64
    torch.testing.assert_close(logits.float(), expected)
    assert all(buffer.dtype == torch.float64 for _, buffer in trunk.named_buffers() if buffer.is_floating_point())


def test_a_copy_of_a_part_has_weights_of_its_own():
    trunk, _ = split.cut(registry.create("resnet8", 10), "layer3")
    twin = copy.deepcopy(trunk)
    expected = trunk.eval()(images())
    assert torch.equal(twin.eval()(images()), expected)
    with torch.no_grad():
        for parameter in trunk.parameters():
            parameter.zero_()
    assert torch.equal(twin(images()), expected)
    assert not torch.equal(trunk(images()), expected)


def test_a_part_can_be_moved_to_channels_last():
    trunk, branch = split.cut(registry.create("resnet8", 10), "layer3")
    expected = branch.eval()(trunk.eval()(images(16)))[0]
    trunk.to(memory_format=torch.channels_last)
    branch.to(memory_format=torch.channels_last)
    assert trunk.get_submodule("conv1").weight.is_contiguous(memory_format=torch.channels_last)
    crossing = trunk(images(16).to(memory_format=torch.channels_last))
    assert crossing.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(branch(crossing)[0], expected)


class Joined(nn.Module):
    def __init__(self, trunk, branch):
        super().__init__()
        self.trunk, self.branch = trunk, branch

    def forward(self, x):
        return self.branch(self.trunk(x))[0]


def test_parts_can_be_exported_and_compiled():
    network = Joined(*split.cut(registry.create("resnet8", 10), "layer3")).eval()
    batch = torch.export.Dim("batch")
    exported = torch.export.export(network, (images(16),), dynamic_shapes=({0: batch},))
    assert exported.state_dict.keys() == network.state_dict().keys()
    torch.testing.assert_close(exported.module()(images(16, 5)), network(images(16, 5)))
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    assert torch.equal(compiled(images(16)), network(images(16)))
    network.train()
    assert torch.equal(compiled(images(16)), network(images(16)))


# torch 2.11's own exporter uses what torch 2.11 deprecates.
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
def test_parts_can_be_exported_to_onnx(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    network = Joined(*split.cut(registry.create("resnet8", 10), "layer3")).eval()
    path = tmp_path / "network.onnx"
    torch.onnx.export(
        network,
        (images(16),),
        path,
        dynamo=True,
        verbose=False,
        input_names=["images"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    session = onnxruntime.InferenceSession(path)
    for count in (1, 3):
        (logits,) = session.run(None, {"images": images(16, count).numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), network(images(16, count)).detach(), atol=1e-5, rtol=1e-4)


def test_every_cut_point_can_be_cut_and_nothing_else_can():
    backbone = registry.create("resnet8", 10)
    stock = registry.create("resnet8", 10)
    points = split.cut_points(backbone)
    assert points == ["bn1", "relu", "layer1", "layer2", "layer3", "avgpool", "flatten", "fc"]
    refused = []
    for path, _ in backbone.named_modules():
        try:
            trunk, branch = split.cut(backbone, path)
        except SettingError:
            refused.append(path)
        else:
            assert_joined_equals(stock, trunk, branch, images(8))
    # The same cuts under the name of the first block inside are allowed, but not listed.
    allowed = {path for path, _ in backbone.named_modules()} - set(refused)
    assert allowed == {*points, "layer1.0", "layer2.0", "layer3.0", "layer1.0.conv1"}
    for path in ("", "conv1", "layer2.0.conv1", "layer2.0.downsample", "layer2.0.bn2", "layer3.0.relu"):
        assert path in refused


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.twice = nn.Linear(4, 4)
        self.last = nn.Linear(4, 4)
        self.idle = nn.Linear(4, 4)
        self.aside = nn.Linear(4, 4)
        self.last.weight = self.first.weight

    def forward(self, x):
        x = self.first(x)
        self.aside(x)
        x = self.twice(self.twice(x))
        return self.last(x) + 1


def refusal(backbone, split_at):
    with pytest.raises(SettingError) as caught:
        split.cut(backbone, split_at)
    assert caught.value.setting == "split_at"
    assert repr(split_at) in caught.value.problem
    assert caught.value.hint
    return caught.value


def test_a_refused_cut_says_what_is_wrong_and_where_it_can_be_cut():
    resnet = registry.create("resnet8", 10)
    points = "bn1, relu, layer1, layer2, layer3, avgpool, flatten, fc"
    missing = refusal(resnet, "layr3")
    assert "no such module" in missing.problem
    assert missing.hint == f"did you mean 'layer3'? it can be cut at {points}"
    block = refusal(resnet, "layer3.0.bn2")
    assert "2 tensors cross" in block.problem
    assert block.hint == f"it can be cut at {points}"
    assert "calls it 2 times" in refusal(resnet, "layer3.0.relu").problem
    assert "nothing is left to share" in refusal(resnet, "conv1").problem


def test_shared_idle_and_dead_modules_are_no_places_to_cut():
    assert "calls it 2 times" in refusal(Shared(), "twice").problem
    assert "never calls it" in refusal(Shared(), "idle").problem
    assert "does not lead to the logits" in refusal(Shared(), "aside").problem
    tied = refusal(Shared(), "last")
    assert "used on both sides" in tied.problem
    assert "nowhere" in tied.hint


def test_a_cut_after_the_last_linear_layer_is_refused():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.BatchNorm1d(4))
    assert "last linear layer comes before it" in refusal(network, "2").problem


def test_a_long_list_of_places_is_cut_short_by_whole_levels():
    hint = refusal(registry.create("resnet110", 10), "conv1").hint
    assert hint == (
        "it can be cut at bn1, relu, layer1, layer2, layer3, avgpool, flatten, fc; and at some modules inside these"
    )


class DependsOnValues(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class TwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return (self.fc(x), x) if self.training else self.fc(x)


@pytest.mark.parametrize(
    ("backbone", "reason"),
    [
        (
            DependsOnValues(),
            "torch.fx cannot trace it: symbolically traced variables cannot be used as inputs to control",
        ),
        (TwoOutputs(), "something else than one tensor of logits in training"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), "no linear layer"),
    ],
)
def test_a_network_that_cannot_be_taken_apart_is_refused_with_the_reason(backbone, reason):
    modes = [module.training for module in backbone.modules()]
    for use in (split.whole, split.cut_points, lambda network: split.cut(network, "0")):
        with pytest.raises(SettingError) as caught:
            use(backbone)
        assert caught.value.setting == "architecture"
        assert reason in caught.value.problem
        assert "\n" not in caught.value.problem
    assert [module.training for module in backbone.modules()] == modes


def test_batch_norms_with_an_activation_inside_go_on_counting_batches():
    class NormAct(nn.BatchNorm2d):
        def __init__(self, channels):
            super().__init__(channels)
            self.act = nn.ReLU()

        def forward(self, x):
            if self.training:
                self.num_batches_tracked.add_(1)
            x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training)
            return self.act(x)

    def network():
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), NormAct(4), nn.Conv2d(4, 4, 3), NormAct(4), nn.Flatten(), nn.Linear(64, 5)
        )

    trunk, branch = split.cut(network(), "2")
    assert_joined_equals(network(), trunk, branch, images())
    assert joined_state(trunk, branch)["3.num_batches_tracked"] == 1


@pytest.mark.parametrize(
    ("name", "options", "split_at", "size"),
    [
        ("mobilenet_v3_small", {}, "features.9", 32),
        ("densenet121", {}, "features.denseblock3", 32),
        ("vgg11_bn", {"num_classes": 10}, "features.22", 32),
        ("efficientnet_b0", {}, "features.6", 32),
        ("shufflenet_v2_x0_5", {}, "stage4", 32),
        ("googlenet", {"aux_logits": False, "init_weights": False}, "inception5a", 32),
        ("vit_b_16", {"image_size": 32}, "encoder.layers.encoder_layer_10", 32),
        ("swin_t", {}, "features.7", 32),
        ("convnext_tiny", {}, "features.7", 32),
    ],
)
def test_torchvision_networks_join_back_to_themselves(name, options, split_at, size):
    models = pytest.importorskip("torchvision.models")
    backbone = models.get_model(name, weights=None, **options)
    stock = copy.deepcopy(backbone)
    trunk, branch = split.cut(backbone, split_at)
    assert_joined_equals(stock, trunk, branch, images(size))
    assert split_at in split.cut_points(backbone)


def test_auxiliary_heads_are_refused():
    models = pytest.importorskip("torchvision.models")
    with pytest.raises(SettingError, match="one tensor of logits in training"):
        split.whole(models.googlenet(weights=None, aux_logits=True, init_weights=False))


class WritesIntoWhatItKeeps(nn.Module):
    """`x += y` is no `x = x + y` where somebody looks at x through a view."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.again, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 2)

    def forward(self, x):
        x = self.conv(x)
        kept = x[:, :, 1:]
        x += 1
        x *= 2
        x = self.again(x)
        return self.fc((x[:, :, 1:] + kept).mean((2, 3)))


def test_operations_in_place_are_traced_as_such() -> None:
    network = WritesIntoWhatItKeeps()
    logits, _ = split.whole(network)(images())
    assert torch.equal(logits, network(images()))
