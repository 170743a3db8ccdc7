"""`import distilkit`: what it offers, in someone else's loop, as docs/library.md prints it."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import distilkit
from distilkit import methods
from distilkit.groups.split.cut import cut

PAGE = Path(__file__).parents[1] / "docs" / "library.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


class Net(nn.Module):
    """A user's own network, as small as one can be cut."""

    def __init__(self, classes: int = 5, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(self.stem(x)).mean((2, 3)))


class WithBareParameter(Net):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(self.stem(x)).mean((2, 3)) * self.scale)


@pytest.fixture
def network() -> Net:
    torch.manual_seed(3)
    return Net()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


LABELS = torch.arange(8) % 5


# What is offered


def test_everything_that_is_offered_is_there_documented_and_nothing_else_is_typed() -> None:
    assert list(distilkit.__all__) == sorted(distilkit.__all__)
    for name in distilkit.__all__:
        assert getattr(distilkit, name).__doc__, name
        assert name in dir(distilkit)
    source = Path(distilkit.__file__).read_text(encoding="utf-8")
    typed = re.findall(r" as (\w+)$", source.partition("\n__all__")[0], re.MULTILINE)
    assert {*typed, "load"} - {"__version__"} == set(distilkit.__all__)
    assert (Path(distilkit.__file__).parent / "py.typed").is_file()
    with pytest.raises(AttributeError, match="tarin"):
        distilkit.tarin  # noqa: B018


def test_importing_it_imports_nothing_heavy_until_a_part_is_used() -> None:
    code = (
        "import sys, distilkit\n"
        "assert distilkit.UserError and distilkit.Observer and dir(distilkit)\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'accelerate', 'rich', 'typer'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "distilkit.losses\n"
        "assert 'torch' in sys.modules and 'accelerate' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_block_of_the_page_runs_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(BLOCKS) == 6
    there: dict[str, Any] = {}
    for number, block in enumerate(BLOCKS):
        exec(compile(block, f"{PAGE.name}, block {number + 1}", "exec"), there)
    example = [line for line in BLOCKS[0].splitlines() if line.strip() and not line.strip().startswith("#")]
    assert len(example) <= 30
    assert (tmp_path / "student.pth").is_file()
    assert (there["trained"].path / "run.json").is_file()
    assert "student_0" in capsys.readouterr().out
    # The kept student is the leader as it was trained.
    network, learner = there["network"].eval(), there["learner"].cpu().eval()
    with torch.no_grad():
        assert torch.equal(network(there["images"]), learner.group(there["images"]).logits_SBC[0])


@pytest.mark.long
def test_the_page_is_typed_in_the_eyes_of_a_strict_checker(tmp_path: Path) -> None:
    sample = tmp_path / "sample.py"
    sample.write_text(
        "from torch import Tensor, nn\n"
        "import distilkit\n"
        "def train(network: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:\n"
        '    learner: distilkit.Learner = distilkit.make_learner(network, images, "one", students=3)\n'
        "    output: distilkit.LearnerOutput = learner(images, labels, distilkit.ramp(1, 2))\n"
        "    loss: Tensor = output.loss + distilkit.losses.distillation(output.logits_SBC[0], output.logits_SBC, 3.0)\n"
        '    recipe: distilkit.Recipe = distilkit.load_recipe("quickstart", {"train.epochs": 1})\n'
        "    trained: distilkit.Trained = distilkit.train(recipe)\n"
        "    model: distilkit.LoadedClassifier = distilkit.load(trained.path)\n"
        "    names: list[str] = distilkit.cut_points(network)\n"
        "    print(model.classes, names, loss)\n"
        "    group: distilkit.BranchGroup = distilkit.branch_group(network, images)\n"
        '    method: distilkit.Method = distilkit.create_method("dml", group)\n'
        "    losses: distilkit.MethodLosses = method(group(images), labels, 1.0)\n"
        "    return losses.terms\n"
        "distilkit.load(3)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", str(sample)],
        capture_output=True,
        text=True,
        check=False,
        cwd=PAGE.parents[1],
    )
    # The last line is wrong, so that a checker that sees nothing is seen.
    assert re.findall(r":(\d+): error: .*\[([a-z-]+)\]", done.stdout) == [("16", "arg-type")], done.stdout


# A network of anyone's


def test_the_first_student_is_the_network_and_the_others_begin_elsewhere(network: Net, images: Tensor) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    group = distilkit.branch_group(network, images, students=3, split_at="body")
    with torch.no_grad():
        logits_SBC = group.eval()(images).logits_SBC
        assert torch.equal(logits_SBC[0], network.eval()(images))
    assert not torch.allclose(logits_SBC[0], logits_SBC[1])
    assert not torch.allclose(logits_SBC[1], logits_SBC[2])
    first, second = (group.member_state_dict(f"student_{i}") for i in (0, 1))
    assert set(first) == set(before)
    assert torch.equal(first["stem.0.weight"], second["stem.0.weight"])
    assert not torch.equal(first["fc.weight"], second["fc.weight"])
    # The network itself is a copy's original: training the group leaves it alone.
    group.train()(images).logits_SBC.sum().backward()
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert network.fc.weight.grad is None


def test_a_builder_is_called_for_every_student_and_the_seed_alone_decides(images: Tensor) -> None:
    torch.manual_seed(0)
    first = distilkit.branch_group(Net, images, split_at="body", seed=5)
    torch.manual_seed(1)
    again, other = (distilkit.branch_group(Net, images, split_at="body", seed=seed) for seed in (5, 6))
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert not torch.equal(first.state_dict()["trunk.stem.0.weight"], other.state_dict()["trunk.stem.0.weight"])


def test_torchs_own_stream_is_left_as_it_was(network: Net, images: Tensor) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    distilkit.make_learner(network, images, "one")
    assert torch.equal(torch.rand(3), expected)


def test_images_go_to_the_network_as_they_are_unless_constants_are_given(network: Net, images: Tensor) -> None:
    network.eval()
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    group = distilkit.branch_group(network, images, students=2, mean=mean, std=std).eval()
    expected = network((images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1))
    torch.testing.assert_close(group(images).logits_SBC[0], expected)


def test_ones_loss_in_a_loop_of_ones_own_is_the_papers(network: Net, images: Tensor) -> None:
    """L = sum CE_i + CE_e + w T^2 sum KL(e || i), computed here from the students' logits and the gate's weights."""
    learner = distilkit.make_learner(network, images, "one", students=3, split_at="body", temperature=2.0)
    output = learner(images, LABELS, 0.5)
    outputs = learner.group(images)
    gate_BS = learner.method.weights(outputs)["gate"]
    logits = outputs.logits_SBC
    ensemble = sum(gate_BS[:, i, None] * logits[i] for i in range(3))
    assert isinstance(ensemble, Tensor)
    expected = F.cross_entropy(ensemble, LABELS)
    target = F.softmax(ensemble.detach() / 2.0, -1)
    for student in logits:
        expected = expected + F.cross_entropy(student, LABELS)
        expected = expected + 0.5 * 4 * F.kl_div(F.log_softmax(student / 2.0, -1), target, reduction="batchmean")
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize("name", methods.names())
def test_every_method_learns_in_a_loop_of_ones_own(name: str, network: Net, images: Tensor) -> None:
    one_kind = methods.options_model(name).allowed_kinds == ("networks",)
    source: Any = [Net(), Net()] if one_kind else network
    learner = distilkit.make_learner(source, images, name)
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.02)
    losses = []
    for _ in range(12):
        output = learner(images, LABELS, 1.0)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert losses[-1] < losses[0]
    network.load_state_dict(learner.group.member_state_dict(learner.leader))


def test_networks_that_differ_share_nothing_and_keep_their_weights(images: Tensor) -> None:
    networks = [Net(width=4), Net(width=6)]
    group = distilkit.network_group(networks, images)
    with torch.no_grad():
        logits_SBC = group.eval()(images).logits_SBC
        for each, logits in zip(networks, logits_SBC, strict=True):
            assert torch.equal(each.eval()(images), logits)


def test_what_cannot_be_had_is_refused_by_name(network: Net, images: Tensor) -> None:
    def refused(words: str, make: Any) -> None:
        with pytest.raises(distilkit.UserError) as error:
            make()
        assert words in str(error.value)

    refused("okddip", lambda: distilkit.make_learner(network, images, "okdip"))
    refused("temperature", lambda: distilkit.make_learner(network, images, "one", temprature=2.0))
    refused("temperature", lambda: distilkit.make_learner(network, images, "one", temperature=-1.0))
    refused("students", lambda: distilkit.make_learner(network, images, "okddip", students=1))
    refused("body", lambda: distilkit.make_learner(network, images, split_at="boby"))
    refused("B of 2", lambda: distilkit.branch_group(network, images[:1]))
    refused("logits [B, C]", lambda: distilkit.branch_group(nn.Sequential(nn.Conv2d(3, 3, 1)), images))
    refused("does not take images", lambda: distilkit.branch_group(network, images[:, :1]))
    refused("a function that builds", lambda: distilkit.branch_group(WithBareParameter(), images))
    refused("different numbers of classes", lambda: distilkit.network_group([Net(4), Net(5)], images))
    refused("leader", lambda: distilkit.create_method("okddip", distilkit.branch_group(network, images)))
    refused("means", lambda: distilkit.branch_group(network, images, mean=(0.5,), std=(0.5,)))
    shared = Net()
    refused("same parameters", lambda: distilkit.branch_group(lambda: shared, images))


def test_pieces_of_a_network_hold_its_own_modules(network: Net) -> None:
    trunk, branch = cut(network, "body")
    assert {name.partition(".")[0] for name in trunk.state_dict()} == {"stem"}
    assert {name.partition(".")[0] for name in branch.state_dict()} == {"body", "fc"}


# Recipes as objects


def test_a_recipe_of_tables_is_that_of_the_same_file(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text('extends = "quickstart"\nname = "mine"\n[train]\nepochs = 3\n')
    tables = {"extends": "quickstart", "name": "mine", "train": {"epochs": 3}}
    assert distilkit.load_recipe(tables) == distilkit.load_recipe(file)
    assert tables == {"extends": "quickstart", "name": "mine", "train": {"epochs": 3}}
    changed = distilkit.load_recipe("quickstart", {"train.epochs": 2, "schedule.milestones": [0.25, 0.5], "name": "x"})
    assert changed == distilkit.load_recipe(
        "quickstart", ["train.epochs=2", "schedule.milestones=[0.25, 0.5]", "name=x"]
    )


def test_faults_of_tables_are_all_named() -> None:
    with pytest.raises(distilkit.UserError) as error:
        distilkit.load_recipe({"data": {"dataset": "digit"}, "method": {"name": "one"}, "train": {"epoch": 3}})
    text = str(error.value)
    assert "did you mean 'digits'?" in text
    assert "did you mean 'epochs'?" in text
    assert "model.architecture" in text
    with pytest.raises(distilkit.UserError, match="yet to be read"):
        distilkit.train(distilkit.load_recipe("quickstart"), overrides={"train.epochs": 1})
