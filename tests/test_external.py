"""Other libraries' networks: built, cut, grown, trained, joined again; and weights from a file."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn

from distilkit import methods
from distilkit.analysis.cost import measure, multiply_adds_by_module
from distilkit.errors import SettingError, UserError
from distilkit.groups import split
from distilkit.groups.build import build_group
from distilkit.learners.learner import Learner
from distilkit.learners.pretrained import read_weights, start_from
from distilkit.models import external, registry
from distilkit.observer import Observer
from distilkit.recipe import load
from distilkit.runs.run import PrunedModel, Run
from distilkit.workflows.train.train import dry_run, resume, train

# The smallest square images that each takes in both modes, in pixels on a side.
SMALL = {
    "convnext_tiny": 32,
    "densenet121": 29,
    "efficientnet_b0": 1,
    "googlenet": 15,
    "mnasnet0_5": 1,
    "mobilenet_v2": 1,
    "mobilenet_v3_small": 1,
    "regnet_y_400mf": 1,
    "resnet18": 1,
    "resnext50_32x4d": 1,
    "shufflenet_v2_x0_5": 1,
    "swin_t": 4,
    "vit_b_32": 224,
}
LONG = {
    "alexnet": 63,
    "convnext_small": 32,
    "densenet161": 29,
    "densenet169": 29,
    "densenet201": 29,
    "efficientnet_b1": 1,
    "efficientnet_b2": 1,
    "efficientnet_b3": 1,
    "efficientnet_b4": 1,
    "efficientnet_b5": 1,
    "efficientnet_v2_s": 1,
    "inception_v3": 75,
    "maxvit_t": 224,
    "mnasnet0_75": 1,
    "mnasnet1_0": 1,
    "mnasnet1_3": 1,
    "mobilenet_v3_large": 1,
    "regnet_x_1_6gf": 1,
    "regnet_x_3_2gf": 1,
    "regnet_x_400mf": 1,
    "regnet_x_800mf": 1,
    "regnet_y_1_6gf": 1,
    "regnet_y_3_2gf": 1,
    "regnet_y_800mf": 1,
    "resnet101": 1,
    "resnet152": 1,
    "resnet34": 1,
    "resnet50": 1,
    "shufflenet_v2_x1_0": 1,
    "shufflenet_v2_x1_5": 1,
    "shufflenet_v2_x2_0": 1,
    "swin_v2_t": 4,
    "vgg11": 32,
    "vgg11_bn": 32,
    "wide_resnet50_2": 1,
}
# One way of building, tracing and cutting with those above, and too large to be trained in a test.
LARGER = {
    "convnext_base", "convnext_large", "efficientnet_b6", "efficientnet_b7", "efficientnet_v2_l", "efficientnet_v2_m",
    "regnet_x_16gf", "regnet_x_32gf", "regnet_x_8gf", "regnet_y_128gf", "regnet_y_16gf", "regnet_y_32gf",
    "regnet_y_8gf", "resnext101_32x8d", "resnext101_64x4d", "swin_b", "swin_s", "swin_v2_b", "swin_v2_s", "vgg13",
    "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn", "vit_b_16", "vit_h_14", "vit_l_16", "vit_l_32",
    "wide_resnet101_2",
}  # fmt: skip
CANNOT = {
    "squeezenet1_0": "SqueezeNet has no linear layer that leads to its logits",
    "squeezenet1_1": "SqueezeNet has no linear layer that leads to its logits",
}

CLASSES = 5
BATCH = 6
MEMBERS = ("student_0", "student_1", "student_2")

RECIPE = """
name = "fine"
[data]
dataset = "image-folder"
root = "{root}"
image_size = 32
[model]
architecture = "torchvision:shufflenet_v2_x0_5"
[group]
students = 2
[method]
name = "one"
rampup_epochs = 0
[train]
epochs = 1
batch_size = 16
precision = "fp32"
"""


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads only wait for one another over images of a few pixels."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def recipe(tmp_path, image_folder):
    def make(*overrides):
        file = tmp_path / "fine.toml"
        file.write_text(RECIPE.format(root=image_folder), encoding="utf-8")
        return load(file, overrides)

    return make


def group_of(architecture, size, members=MEMBERS, channels=3, classes=CLASSES, split_at=None, kind="branches"):
    return build_group(
        kind=kind,
        architecture=architecture,
        members=members,
        split_at=split_at,
        num_classes=classes,
        channels=channels,
        size=size,
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
        seed=3,
    )


def stock_of(name, classes=CLASSES):
    """What torchvision itself builds, without distilkit's help."""
    options = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, weights=None, num_classes=classes, **options)


def train_two_steps(group, size):
    options = methods.options_model("one")(name="one")
    method = methods.create(options, group.shape, 0.0)
    learner = Learner(group, method).train()
    optimizer = torch.optim.SGD(learner.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        # More than two, of whose every pixel alone batch norm would make 1 and -1.
        images = torch.rand(BATCH, 3, size, size, generator=generator)
        labels = torch.randint(CLASSES, (BATCH,), generator=generator)
        loss = learner(images, labels, 1.0).loss
        assert torch.isfinite(loss)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learner.parameters(), 1.0, error_if_nonfinite=True)
        optimizer.step()
    return learner


def cut_grow_train_join(name, size):
    group = group_of(f"torchvision:{name}", size)
    before = {key: value.clone() for key, value in group.member_state_dict("student_1").items()}
    train_two_steps(group, size).eval()
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(2))
    stock = stock_of(name).eval()
    with torch.no_grad():
        together = group(images).logits_SBC
        for index, member in enumerate(MEMBERS):
            state = group.member_state_dict(member)
            if name.startswith("mnasnet"):
                # Its own loader asks which version of itself wrote the weights.
                registry.load_strict(stock, state)
            else:
                stock.load_state_dict(state, strict=True)
            assert torch.equal(stock(group.normalize(images)), together[index]), member
    after = group.member_state_dict("student_1")
    assert any(not torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize(("name", "size"), SMALL.items())
def test_a_network_of_each_family_is_cut_grown_trained_and_joined(name, size):
    cut_grow_train_join(name, size)


@pytest.mark.long
@pytest.mark.parametrize(("name", "size"), LONG.items())
def test_networks_of_every_family_are_cut_grown_trained_and_joined(name, size):
    cut_grow_train_join(name, size)


@pytest.mark.parametrize(("name", "size"), [("googlenet", 15), ("densenet121", 29), ("swin_t", 4)])
def test_smaller_images_than_the_smallest_are_refused_in_words(name, size):
    with pytest.raises(SettingError, match=f"cannot take images of {size - 1}x{size - 1} pixels") as caught:
        group_of(f"torchvision:{name}", size - 1, MEMBERS[:1])
    assert caught.value.setting == "architecture"


def test_every_image_classifier_of_torchvision_is_accounted_for():
    accounted = {*SMALL, *LONG, *LARGER, *CANNOT}
    assert len(SMALL) + len(LONG) >= 40
    # A newer torchvision may have more.
    assert accounted <= {name.partition(":")[2] for name in external.names("torchvision")}


@pytest.mark.parametrize("name", CANNOT)
def test_what_cannot_be_cut_says_so(name):
    with pytest.raises(SettingError, match=CANNOT[name]) as caught:
        group_of(f"torchvision:{name}", 32)
    assert caught.value.hint == "choose an architecture that ends in a linear layer"


# ------------------------------------------------------------------------------------------------------ default splits


# Small images: the last stage; large ones: the last two.
SPLITS = {
    "resnet18": ("layer4", "layer3"),
    "resnet152": ("layer4", "layer3"),
    "mobilenet_v2": ("features.14", "features.7"),
    "mobilenet_v3_small": ("features.9", "features.4"),
    "shufflenet_v2_x0_5": ("stage4", "stage3"),
    "efficientnet_b0": ("features.6", "features.4"),
    "densenet121": ("features.transition3", "features.transition2"),
    "vgg16": ("features.24", "features.17"),
    "convnext_tiny": ("features.6", "features.4"),
    "swin_t": ("features.6", "features.4"),
    "regnet_y_400mf": ("trunk_output.block4", "trunk_output.block3"),
    "mnasnet0_5": ("layers.12", "layers.10"),
    "googlenet": ("inception5a", "inception4a"),
}


def on_meta(name, classes=10):
    from accelerate import init_empty_weights

    with init_empty_weights():
        network = registry.create(name, classes)
    return network.to("meta")


def default_split(network, size):
    images = torch.zeros(1, 3, size, size, device="meta")
    return split.default_point(split.measured_points(network, images), images)


DEEP = ("resnet152", "densenet121", "swin_t", "efficientnet_b0")  # seconds each


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if name in DEEP else ()) for name in SPLITS]
)
def test_the_default_split_is_the_last_stage_for_small_images_and_the_last_two_for_large(name):
    network = on_meta(f"torchvision:{name}")
    assert (default_split(network, 32), default_split(network, 224)) == SPLITS[name]


def test_the_default_split_changes_above_64_pixels():
    network = on_meta("torchvision:resnet18")
    assert [default_split(network, size) for size in (64, 65)] == ["layer4", "layer3"]


def test_a_network_without_stages_is_cut_at_a_quarter_or_half_of_its_cost():
    network = on_meta("torchvision:vit_b_16")
    assert default_split(network, 224) == "encoder.layers.encoder_layer_6"

    class Plain(nn.Sequential):
        def __init__(self):
            blocks = [nn.Conv2d(8, 8, 3, padding=1) for _ in range(8)]
            super().__init__(nn.Conv2d(3, 8, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))

    assert default_split(Plain().to("meta"), 32) == "7"
    assert default_split(Plain().to("meta"), 96) == "5"


def test_the_default_split_of_our_own_networks_would_be_found_too():
    assert default_split(on_meta("resnet32"), 32) == registry.default_split("resnet32")


def test_pooling_before_a_stage_stays_in_the_trunk_and_a_container_of_stages_is_none():
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, padding=1)
            self.stages = nn.Sequential(
                nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()),
                nn.Sequential(nn.Conv2d(8, 16, 3, padding=1, stride=2), nn.ReLU()),
                nn.MaxPool2d(2),
                nn.Conv2d(16, 32, 3, padding=1),
            )
            self.head = nn.Linear(32, 5)

        def forward(self, x):
            return self.head(self.stages(self.stem(x)).mean((2, 3)))

    assert default_split(Nested().to("meta"), 32) == "stages.3"
    assert default_split(Nested().to("meta"), 96) == "stages.1"


def test_shares_of_the_cost_are_those_that_fvcore_counts():
    network, images = registry.create("torchvision:shufflenet_v2_x0_5", 10).eval(), torch.zeros(1, 3, 64, 64)
    trunk, _ = split.cut(network, "stage4")
    points = {point.path: point for point in split.measured_points(network, images)}
    share = 1 - measure(trunk, images).multiply_adds / measure(network, images).multiply_adds
    assert points["stage4"].share == pytest.approx(share)


@pytest.mark.parametrize("name", ["resnet8", "torchvision:mobilenet_v3_small", "torchvision:googlenet"])
def test_multiply_adds_of_modules_add_up_to_those_of_the_whole(name):
    network, images = registry.create(name, 10), torch.rand(2, 3, 64, 64)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    by_module = multiply_adds_by_module(network, images)
    assert by_module[""] == measure(network, images).multiply_adds
    assert sum(by_module.get(child, 0) for child, _ in network.named_children()) == by_module[""]
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert network.training


def test_multiply_adds_of_modules_include_attention():
    network, images = registry.create("torchvision:vit_b_32", 10), torch.zeros(1, 3, 224, 224)
    by_module = multiply_adds_by_module(network, images)
    tokens, width = 50, 768
    layer = tokens * width * width * (3 + 1 + 8) + 2 * tokens * tokens * width
    assert by_module["encoder.layers.encoder_layer_0"] == layer
    assert by_module[""] == measure(network, images).multiply_adds


# --------------------------------------------------------------------------------------------------- names and options


@pytest.mark.parametrize("use", [lambda name: registry.create(name, 10), registry.default_split, registry.check])
@pytest.mark.parametrize(
    ("name", "problem", "hint"),
    [
        ("torchvision:resnet19", "torchvision has no image classifier 'resnet19'", "'torchvision:resnet18'"),
        ("torchvision:fcn_resnet50", "torchvision has no image classifier 'fcn_resnet50'", "'torchvision:"),
        ("torchvison:resnet18", "there is no library 'torchvison'", "did you mean 'torchvision'?"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(use, name, problem, hint):
    with pytest.raises(SettingError) as caught:
        use(name)
    assert caught.value.setting == "architecture"
    assert problem in caught.value.problem
    assert hint in caught.value.hint if hint else caught.value.hint is None


def test_a_recipe_names_the_line_of_a_wrong_name_without_building_anything(tmp_path, monkeypatch):
    monkeypatch.setattr(external, "create", lambda *_: pytest.fail("built"))
    file = tmp_path / "wrong.toml"
    file.write_text(
        '[data]\ndataset = "cifar10"\n'
        '[model]\narchitecture = "torchvision:resnet_18"\n'
        '[method]\nname = "one"\n'
        "[train]\nepochs = 100\n"
        '[teacher]\narchitecture = "torchvision:vgg61"\nweights = "t.pth"\n',
        encoding="utf-8",
    )
    with pytest.raises(UserError) as caught:
        load(file)
    first, second = caught.value.faults
    assert (first.place.rpartition("/")[2], first.key) == ("wrong.toml:4", "model.architecture")
    assert "'torchvision:resnet18'" in first.hint
    assert (second.place.rpartition("/")[2], second.key) == ("wrong.toml:10", "teacher.architecture")
    assert "'torchvision:vgg16'" in second.hint


def test_a_missing_timm_is_said_to_be_an_extra():
    code = (
        "import sys; sys.modules['timm'] = None\n"
        "import importlib.util; importlib.util.find_spec = lambda name: None\n"
        "from distilkit import cli; cli.main(['models', 'timm:resnet18'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "timm, which is not installed" in done.stderr
    assert 'pip install "distilkit[timm]"' in done.stderr


def test_no_form_without_batch_norm():
    with pytest.raises(SettingError, match="no form without batch norm") as caught:
        registry.create("torchvision:resnet18", 10, 3, "none")
    assert caught.value.setting == "norm"


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "googlenet"])
@pytest.mark.parametrize("channels", [1, 4])
def test_the_first_convolution_is_replaced_for_other_channels(name, channels):
    torch.manual_seed(0)
    network = registry.create(f"torchvision:{name}", 7, channels).eval()
    stem = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    usual = next(
        module for module in registry.create(f"torchvision:{name}", 7).modules() if isinstance(module, nn.Conv2d)
    )
    assert stem.in_channels == channels
    # What comes out varies as much as with three channels.
    deviation = float(usual.weight.detach().std()) * (3 / channels) ** 0.5
    assert float(stem.weight.detach().std()) == pytest.approx(deviation, rel=0.25)
    assert network(torch.rand(2, channels, 32, 32)).shape == (2, 7)


def test_three_channels_are_torchvisions_own_draws():
    torch.manual_seed(0)
    ours = registry.create("torchvision:shufflenet_v2_x0_5", 7).state_dict()
    torch.manual_seed(0)
    theirs = stock_of("shufflenet_v2_x0_5", 7).state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_are_left_out(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network = on_meta(f"torchvision:{name}")
    assert not [key for key in network.state_dict() if key.startswith(("aux", "Aux"))]
    with torch.no_grad():
        assert network.train()(torch.zeros(2, 3, 96, 96, device="meta")).shape == (2, 10)


def test_timm_builds_cuts_and_takes_other_channels():
    pytest.importorskip("timm", reason="the extra is not installed")
    for name, channels, expected in (("mobilenetv3_small_050", 1, "blocks"), ("resnet18", 4, "layer4")):
        group = group_of(f"timm:{name}", 32, MEMBERS[:2], channels)
        assert group.split_at.startswith(expected)
    import timm

    stock = timm.create_model("resnet18", num_classes=CLASSES, in_chans=4)
    stock.load_state_dict(group.member_state_dict("student_1"), strict=True)
    with pytest.raises(SettingError, match="no image classifier 'resnet18x'") as caught:
        registry.check("timm:resnet18x")
    assert "'timm:resnet18" in caught.value.hint


# ------------------------------------------------------------------------------------------------- weights from a file


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A 1000-class ShuffleNet's weights, as files that the world has them in."""
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(9)
    state = stock_of("shufflenet_v2_x0_5", 1000).state_dict()
    save_file(state, folder / "net.safetensors")
    torch.save(state, folder / "net.pth")
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}, folder / "run.pth")
    return folder


@pytest.mark.parametrize(
    ("file", "kind"), [("net.safetensors", "branches"), ("net.pth", "networks"), ("run.pth", "branches")]
)
def test_every_student_starts_from_the_file_and_its_own_fresh_classifier(published, file, kind):
    group = group_of("torchvision:shufflenet_v2_x0_5", 32, kind=kind)
    fresh = {name: group.member_state_dict(name)["fc.weight"].clone() for name in MEMBERS}
    found = start_from(group, published / file)
    state = load_file(published / "net.safetensors")
    for name in MEMBERS:
        own = group.member_state_dict(name)
        assert all(torch.equal(own[key], state[key]) for key in own if not key.startswith("fc."))
        assert torch.equal(own["fc.weight"], fresh[name])
    assert not torch.equal(fresh["student_0"], fresh["student_1"])
    assert found["classifier"] == "fresh"
    assert len(found["sha256"]) == 64


def test_a_classifier_that_fits_is_taken_by_a_single_network_only(published):
    single = group_of("torchvision:shufflenet_v2_x0_5", 32, MEMBERS[:1], classes=1000)
    several = group_of("torchvision:shufflenet_v2_x0_5", 32, MEMBERS[:2], classes=1000)
    file = published / "net.safetensors"
    weight = load_file(file)["fc.weight"]
    assert start_from(single, file)["classifier"] == "loaded"
    assert torch.equal(single.member_state_dict("student_0")["fc.weight"], weight)
    assert start_from(several, file)["classifier"] == "fresh"
    heads = [several.member_state_dict(name)["fc.weight"] for name in MEMBERS[:2]]
    assert not torch.equal(*heads)
    assert not any(torch.equal(head, weight) for head in heads)


def test_our_own_networks_start_from_a_file_too(tmp_path):
    torch.manual_seed(4)
    state = registry.create("resnet8", 100).state_dict()
    save_file(state, tmp_path / "ours.safetensors")
    group = group_of("resnet8", 8)
    start_from(group, tmp_path / "ours.safetensors")
    own = group.member_state_dict("student_2")
    assert all(torch.equal(own[key], state[key]) for key in own if not key.startswith("fc."))


def test_what_does_not_fit_is_listed_and_nothing_is_changed(published, tmp_path):
    state = load_file(published / "net.safetensors")
    state["stage4.0.branch1.0.weight"] = torch.zeros(2, 1, 3, 3)
    state["surplus"] = state.pop("conv5.0.weight")
    save_file(state, tmp_path / "other.safetensors")
    group = group_of("torchvision:shufflenet_v2_x0_5", 32)
    before = {key: value.clone() for key, value in group.state_dict().items()}
    with pytest.raises(SettingError) as caught:
        start_from(group, tmp_path / "other.safetensors")
    assert caught.value.setting == "model.pretrained"
    for fault in (
        "missing conv5.0.weight",
        "unexpected surplus",
        "stage4.0.branch1.0.weight is [2, 1, 3, 3] instead of",
    ):
        assert fault in caught.value.problem
    assert "fc." not in caught.value.problem
    assert all(torch.equal(value, before[key]) for key, value in group.state_dict().items())


def test_a_stem_of_other_channels_is_an_error_that_says_so(published):
    group = group_of("torchvision:shufflenet_v2_x0_5", 32, channels=1)
    with pytest.raises(SettingError, match=r"conv1\.0\.weight is \[24, 3, 3, 3\]") as caught:
        start_from(group, published / "net.pth")
    assert "takes images of 3 channels, the data have 1" in caught.value.hint


def test_names_of_old_and_auxiliary_heads_are_read(tmp_path):
    state = {
        "features.denseblock1.denselayer2.norm.1.weight": torch.ones(1),
        "features.denseblock1.denselayer2.conv.2.weight": torch.ones(1),
        "features.transition1.norm.weight": torch.ones(1),
        "aux1.fc1.weight": torch.ones(1),
        "AuxLogits.fc.bias": torch.ones(1),
    }
    torch.save(state, tmp_path / "old.pth")
    assert set(read_weights(tmp_path / "old.pth").tensors) == {
        "features.denseblock1.denselayer2.norm1.weight",
        "features.denseblock1.denselayer2.conv2.weight",
        "features.transition1.norm.weight",
    }


class _Evil:
    def __reduce__(self):
        return print, ("executed",)


def test_a_file_that_would_execute_code_or_is_damaged_is_refused(tmp_path, capsys):
    torch.save({"weight": _Evil()}, tmp_path / "evil.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"\x00\x01")
    (tmp_path / "empty.pth").write_bytes(b"")
    for name, problem in (
        ("evil.pth", "cannot be read without executing"),
        ("list.pth", "are not a state dict"),
        ("cut.safetensors", "cannot be read"),
        ("empty.pth", "cannot be read"),
        ("none.pth", "are not there"),
        (".", "are a folder"),
    ):
        with pytest.raises(UserError, match=problem):
            read_weights(tmp_path / name)
    assert "executed" not in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------------ the runs


def test_a_run_writes_down_its_split_and_its_weights_and_needs_the_file_no_more(recipe, published, tmp_path, distilkit):
    file = tmp_path / "start.pth"
    file.write_bytes((published / "net.pth").read_bytes())
    asked = recipe(f"model.pretrained={file}")
    assert asked.group.split_at is None
    notes = []
    observer = Observer()
    observer.note = notes.append
    document = train(asked, tmp_path / "runs", device="cpu", command="", observer=observer)
    assert f"starting from {file}; classifiers: fresh" in notes
    file.unlink()

    run = Run.open(Path(document["run"]))
    assert run.recipe.group.split_at == "stage4"
    assert run.recipe.model.pretrained == str(file)
    assert run.record["pretrained"]["file"] == str(file)
    assert len(run.record["pretrained"]["sha256"]) == 64
    assert run.recipe.differences(asked) == []
    assert resume(run.path, device="cpu", observer=Observer(), recipe=asked)["state"] == "done"
    evaluated = distilkit("evaluate", run.path, "--json").json
    distilkit("prune-branches", run.path)
    pruned = distilkit("evaluate", run.path / "pruned", "--json").json
    assert pruned["top1_error"] == evaluated["top1_error"]
    stock = stock_of("shufflenet_v2_x0_5", 2)
    stock.load_state_dict(load_file(run.path / "pruned" / "model.safetensors"), strict=True)
    assert PrunedModel.open(run.path / "pruned").model().architecture == "torchvision:shufflenet_v2_x0_5"


def test_a_run_with_a_checkpoint_takes_no_other_weights_to_start_from(recipe, published, tmp_path):
    run = Run.open(Path(train(recipe(), tmp_path / "runs", device="cpu", command="", observer=Observer())["run"]))
    run.update(state="interrupted")
    other = recipe(f"model.pretrained={published / 'net.pth'}")
    with pytest.raises(UserError, match="goes on from a checkpoint") as caught:
        resume(run.path, device="cpu", observer=Observer(), recipe=other, accept_changes=True)
    assert "model.pretrained was not set" in str(caught.value)
    assert Run.open(run.path).recipe.model.pretrained is None


def test_a_run_without_checkpoint_begins_again_from_the_same_file_only(recipe, published, tmp_path):
    file = tmp_path / "start.pth"
    file.write_bytes((published / "net.pth").read_bytes())
    asked = recipe(f"model.pretrained={file}")
    path = Path(train(asked, tmp_path / "runs", device="cpu", command="", observer=Observer())["run"])
    weights = Run.open(path).learner().group.state_dict()
    for folder in (path / "checkpoints").iterdir():
        if folder.is_dir():
            for part in folder.iterdir():
                part.unlink()
            folder.rmdir()
        else:
            folder.unlink()
    Run.open(path).update(state="interrupted")
    contents = file.read_bytes()
    torch.save({key: value + 1 for key, value in torch.load(file).items()}, file)
    with pytest.raises(UserError, match="are not the ones"):
        resume(path, device="cpu", observer=Observer())
    file.write_bytes(contents)
    resume(path, device="cpu", observer=Observer())
    again = Run.open(path).learner().group.state_dict()
    assert all(torch.equal(value, again[key]) for key, value in weights.items())


def test_missing_weights_are_a_fault_with_its_line_before_any_data_is_read(recipe, tmp_path, monkeypatch):
    asked = recipe("model.pretrained=nowhere.pth")
    monkeypatch.setattr("distilkit.workflows.train.train.load", lambda *_: pytest.fail("read"))
    with pytest.raises(UserError) as caught:
        train(asked, tmp_path / "runs", device="cpu", command="", observer=Observer())
    (fault,) = caught.value.faults
    assert (fault.place, fault.key) == ("--set model.pretrained=nowhere.pth", "model.pretrained")
    assert not (tmp_path / "runs").exists()


def test_the_teacher_may_be_another_librarys_network(recipe, tmp_path):
    torch.manual_seed(0)
    save_file(stock_of("squeezenet1_1", 2).state_dict(), tmp_path / "teacher.safetensors")
    teacher = [f'teacher.weights="{tmp_path / "teacher.safetensors"}"']
    # Weights that nobody has trained.
    with pytest.raises(UserError, match="the teacher has"):
        dry_run(recipe("teacher.architecture=torchvision:squeezenet1_1", *teacher))
    plan = dry_run(recipe("teacher.architecture=torchvision:squeezenet1_1", "teacher.allow_weak=true", *teacher))
    assert plan["teacher_missing"] is None
    assert (plan["split_at"], plan["pretrained"]) == ("stage4", None)
    assert plan["parts"]["teacher"]["flops"] > 0


# ---------------------------------------------------------------------------------------------------- distilkit models


def test_models_lists_ours_with_parameters_flops_and_splits(distilkit):
    document = distilkit("models", "--filter", "resnet*2", "--classes", "100", "--json").json
    rows = {row["name"]: row for row in document["models"]}
    assert all(name in registry.names() for name in rows)
    assert rows["resnet32"]["parameters"] == 472_756
    assert rows["resnet32"]["flops"] == 2 * 69_130_496
    assert rows["resnet32"]["split_at"] == "layer3"
    shown = distilkit("models", "--filter", "resnet8").out
    assert "resnet8" in shown
    assert "78,042" in shown


def test_models_lists_a_library_by_pattern_and_says_what_cannot_be_cut(distilkit):
    document = distilkit("models", "--library", "torchvision", "--filter", "s*net1_?", "--size", "64", "--json").json
    rows = {row["name"].partition(":")[2]: row for row in document["models"]}
    assert set(rows) == {"squeezenet1_0", "squeezenet1_1"}
    assert rows["squeezenet1_1"]["parameters"] == sum(p.numel() for p in stock_of("squeezenet1_1", 10).parameters())
    assert rows["squeezenet1_1"]["split_at"] is None
    assert "no linear layer" in rows["squeezenet1_1"]["problem"]
    shown = distilkit("models", "--library", "torchvision", "--filter", "googlenet", "--size", "8").out
    assert "cannot take images of 8x8 pixels" in shown


def test_models_draws_stages_with_shares_and_the_default_cut(distilkit):
    document = distilkit("models", "torchvision:resnet18", "--json").json
    stages = {stage["module"]: stage for stage in document["stages"]}
    assert list(stages) == ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"]
    assert document["split_at"] == "layer3"
    assert [name for name, stage in stages.items() if stage["default"]] == ["layer3"]
    assert stages["conv1"]["branch_share"] is None
    assert sum(stage["share"] for stage in stages.values()) == pytest.approx(1)
    assert stages["layer4"]["branch_share"] == pytest.approx(stages["layer4"]["share"] + stages["fc"]["share"])
    assert {point["module"] for point in document["cut_points"]} >= {"layer4.1", "layer2"}
    lines = distilkit("models", "torchvision:resnet18").out.splitlines()
    (drawn,) = [line for line in lines if line.lstrip().startswith("layer3")]
    assert "default" in drawn
    assert "####" in drawn
    assert not any("…" in line for line in lines)


def test_models_shows_the_stages_inside_containers(distilkit):
    document = distilkit("models", "torchvision:regnet_y_400mf", "--size", "32", "--json").json
    assert document["classifier"] == "fc"
    names = [stage["module"] for stage in document["stages"]]
    assert names == ["stem", *(f"trunk_output.block{index}" for index in range(1, 5)), "fc"]
    assert document["split_at"] == "trunk_output.block4"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("torchvision:resnet19",), "no image classifier 'resnet19'"),
        (("resnet33",), "there is no architecture 'resnet33'"),
        (("resnet8", "--library", "timm"), "--library and --filter make a list"),
        (("--filter", "zzz"), "no architecture of distilkit matches 'zzz'"),
        (("--library", "torchvison"), "torchvison"),
        (("torchvision:googlenet", "--size", "8"), "cannot take images of 8x8 pixels with 3 channels"),
        (("torchvision:vit_b_16", "--size", "32"), "Expected 224 but got 32"),
        (("resnet8", "--size", "0"), "--size"),
    ],
)
def test_models_refuses_in_words(distilkit, arguments, problem):
    result = distilkit("models", *arguments)
    assert result.status == 2
    assert problem in result.err
    as_json = distilkit("models", *arguments, "--json")
    assert json.loads(as_json.out)["error"]["message"]
