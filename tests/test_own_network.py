"""A network of the user's own: it goes through every command, and none of them executes its code without leave."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import Result
from safetensors.torch import load_file, save_file

from distilkit.errors import SettingError
from distilkit.groups.build import build_group
from distilkit.models import own, registry
from distilkit.models.own import UntrustedCodeError, code_trusted
from distilkit.observer import Observer
from distilkit.recipe import load
from distilkit.runs.run import Run, open_model
from distilkit.workflows.train.train import train

Command = Callable[..., Result]
PAGE = Path(__file__).parents[1] / "docs" / "own_network.md"

NETS = """
from pathlib import Path

import torch
from torch import nn

Path(__file__).with_name("executed").touch()


class Small(nn.Module):
    def __init__(self, num_classes, channels, width=12):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(6, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.head(self.pool(self.body(self.stem(x))).flatten(1))


class Deciding(Small):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


def small(num_classes, channels):
    return Small(num_classes, channels)


def lazy(num_classes, channels):
    import neighbour

    return neighbour.build(num_classes, channels)


def plain(num_classes, channels, norm="batch"):
    parts = [nn.BatchNorm2d(channels)] if norm == "batch" else []
    return nn.Sequential(*parts, nn.Conv2d(channels, 4, 8), nn.Flatten(), nn.Linear(4, num_classes))


def failing(num_classes, channels):
    raise OSError("the disk is on fire")


def leaving(num_classes, channels):
    raise SystemExit(0)


def a_number(num_classes, channels):
    return 3


def one_argument(num_classes):
    return Small(num_classes, 1)


def deciding(num_classes, channels):
    return Deciding(num_classes, channels)


KEPT = Small(10, 1)


def kept(num_classes, channels):
    return KEPT
"""

RECIPE = """
[data]
dataset = "digits"
[model]
architecture = "mynets:small"
[group]
split_at = "body"
[method]
name = "one"
[train]
epochs = 2
batch_size = 256
precision = "fp32"
"""

OPENED_MODULES = ("mynets", "neighbour", "small_net", "broken", "hungry")


@pytest.fixture(autouse=True)
def _new_process() -> Iterator[None]:
    """Every command finds the modules not imported, as it would in a process of its own."""
    yield
    _forget()


def _forget() -> None:
    for module in OPENED_MODULES:
        sys.modules.pop(module, None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder: mynets.py, own.toml, a finished `runs/own`, its pruned model `small`, weights.safetensors."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "mynets.py").write_text(NETS)
    (folder / "own.toml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with code_trusted():
            document = train(load("own.toml"), Path("runs"), device="cpu", command="distilkit", observer=Observer())
            Path(document["run"]).rename("runs/own")
            from distilkit.workflows.deploy.prune_branches import prune_branches

            prune_branches(
                Path("runs/own"),
                Path("runs"),
                member=None,
                checkpoint=None,
                output=Path("small"),
                data_root=None,
                observer=Observer(),
            )
    save_file(load_file(folder / "small" / "model.safetensors"), folder / "weights.safetensors")
    _forget()
    (folder / "executed").unlink()
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, in which the test works."""
    copy = tmp_path / "work"
    shutil.copytree(trained, copy)
    monkeypatch.chdir(copy)
    return copy


def _unfinished(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    del record["final"]
    (run / "run.json").write_text(json.dumps(record | {"state": "interrupted"}))


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.name != ".lock"]


# Without leave

TEACHER = ("train", "quickstart_baseline", "--set", "train.epochs=1", "--set")
OPENING = {
    "train": ("train", "own.toml"),
    "train several seeds": ("train", "own.toml", "--seeds", "0,1"),
    "dry run": ("train", "own.toml", "--dry-run"),
    "resume": ("train", "--resume", "runs/own"),
    "resume beside its recipe": ("train", "own.toml", "--resume", "runs/own"),
    "evaluate": ("evaluate", "runs/own"),
    "evaluate the newest": ("evaluate",),
    "evaluate a pruned model": ("evaluate", "small"),
    "ensemble-eval": ("ensemble-eval", "runs/own"),
    "prune-branches": ("prune-branches", "runs/own", "--member", "student_1"),
    "robustness": ("robustness", "runs/own"),
    "robustness of a pruned model": ("robustness", "small"),
    "export": ("export", "runs/own"),
    "export an ensemble": ("export", "runs/own", "--mode", "ensemble"),
    "export a pruned model": ("export", "small"),
    "a teacher's run": (*TEACHER, "teacher.run=runs/own"),
    "a teacher's recipe": (*TEACHER, "teacher.run=own"),
    "a pruned teacher": (*TEACHER, "teacher.run=small"),
    "a teacher in a dry run": (*TEACHER, "teacher.run=runs/own", "--dry-run"),
    "a teacher's architecture": (
        *TEACHER,
        "teacher.architecture=mynets:small",
        "--set",
        "teacher.weights=weights.safetensors",
    ),
    "one student of several": (
        *("train", "quickstart_dml", "--set", 'group.students=["resnet8", "mynets:small"]'),
        *("--set", "model.architecture=resnet8"),
    ),
}


@pytest.mark.parametrize("arguments", OPENING.values(), ids=OPENING.keys())
def test_without_leave_nothing_is_executed_and_the_module_is_named(
    arguments: tuple[str, ...], folder: Path, distilkit: Command
) -> None:
    if "--resume" in arguments:
        _unfinished(folder / "runs" / "own")
    before = _files(folder)
    result = distilkit(*arguments, "--json")
    assert result.status == 2
    error = result.json["error"]
    assert "would execute code from the module 'mynets'" in error["message"]
    assert "add --trust-code" in error["hint"]
    assert error["faults"] == []
    assert result.err.count("would execute") == 1
    assert not (folder / "executed").exists()
    assert "mynets" not in sys.modules
    assert _files(folder) == before, "nothing was begun"


def test_what_builds_no_network_needs_no_leave(folder: Path, distilkit: Command) -> None:
    result = distilkit("compare", "--json")
    assert result.status == 0, result.err
    assert {row["architecture"] for row in result.json["rows"]} == {"mynets:small"}
    assert distilkit("evaluate", "runs/elsewhere").status == 2
    assert load("own.toml").model.architecture == "mynets:small"
    assert not (folder / "executed").exists()


def test_leave_is_for_one_command_and_no_run_remembers_it(folder: Path, distilkit: Command) -> None:
    assert distilkit("train", "own.toml", "--set", "train.epochs=1", "--trust-code").status == 0
    assert (folder / "executed").exists()
    (folder / "executed").unlink()
    _forget()
    assert distilkit("evaluate").status == 2
    assert not (folder / "executed").exists()
    for file in (folder / "runs").glob("own-*/recipe.toml"):
        assert "trust" not in file.read_text()
    (run,) = (folder / "runs").glob("own-*")
    record = json.loads((run / "run.json").read_text())
    assert [key for key, value in record.items() if "trust" in json.dumps([key, value])] in ([], ["command"])


def test_leave_in_python_is_a_context_that_can_be_taken_back_and_that_threads_do_not_inherit(folder: Path) -> None:
    with pytest.raises(UntrustedCodeError):
        open_model(Path("small"), Path("runs"))
    with code_trusted():
        with code_trusted(False), pytest.raises(UntrustedCodeError):
            registry.create("mynets:small", 10, 1)
        assert not (folder / "executed").exists()
        failures: list[BaseException] = []

        def elsewhere() -> None:
            try:
                registry.create("mynets:small", 10, 1)
            except UntrustedCodeError as error:
                failures.append(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert len(failures) == 1
        assert not (folder / "executed").exists()
        _, model = open_model(Path("small"), Path("runs"))
    assert model.architecture == "mynets:small"
    with pytest.raises(UntrustedCodeError):
        registry.create("mynets:small", 10, 1)


# With leave


def _blocks() -> list[tuple[str, str]]:
    """The page's code blocks: their language, and what they hold."""
    return re.findall(r"^```(\w*)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def test_the_page_s_example_works_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distilkit: Command
) -> None:
    monkeypatch.chdir(tmp_path)
    for language, text in _blocks():
        if language != "sh":
            name = text.splitlines()[0].removeprefix("# ")
            assert name in ("small_net.py", "small.toml")
            (tmp_path / name).write_text(text)
    commands = [line for language, text in _blocks() if language == "sh" for line in text.splitlines()]
    assert len(commands) == 7
    for command in commands:
        words = shlex.split(command)
        assert words[0] == "distilkit"
        result = distilkit(*words[1:])
        assert result.status == 0, f"{command}: {result.err}"
        _forget()
    assert (tmp_path / "small.onnx").is_file()
    assert "small_net" in (next((tmp_path / "runs").iterdir()) / "README.md").read_text()
    # Again without the flag, whatever has it: refused.
    for command in commands:
        if "--trust-code" in command:
            words = shlex.split(command.replace(" --trust-code", ""))
            assert distilkit(*words[1:]).status == 2, command


def test_a_pruned_model_says_which_code_it_needs_and_has_the_network_s_own_names(
    folder: Path, distilkit: Command
) -> None:
    result = distilkit("prune-branches", "runs/own", "--member", "student_2", "--output", "other", "--trust-code")
    assert result.status == 0, result.err
    assert "needs the module mynets" in result.out
    config = json.loads((folder / "other" / "config.json").read_text())
    assert config["architecture"] == "mynets:small"
    assert config["code"] == {"module": "mynets", "builder": "small"}
    with code_trusted():
        stock = registry.create("mynets:small", 10, 1)
    stock.load_state_dict(load_file(folder / "other" / "model.safetensors"), strict=True)
    shown = distilkit("evaluate", "other", "--trust-code", "--device", "cpu", "--json")
    recorded = Run.open(Path("runs/own")).record["final"]["errors"]["student_2"]["top1"]
    assert shown.json["top1_error"] == pytest.approx(recorded)


def test_teachers_of_one_s_own_teach_with_leave(folder: Path, distilkit: Command) -> None:
    weights = ("teacher.weights=weights.safetensors", "--set", "teacher.allow_weak=true")
    by_file = ("teacher.architecture=mynets:small", "--set", *weights)
    flops = []
    for teacher in (("teacher.run=small",), by_file):
        result = distilkit(*TEACHER, *teacher, "--dry-run", "--trust-code", "--json")
        assert result.status == 0, result.err
        assert result.json["teacher_missing"] is None
        flops.append(result.json["parts"]["teacher"]["flops"])
        _forget()
    assert flops[0] == flops[1] > 0


def test_an_interrupted_run_goes_on_with_leave(folder: Path, distilkit: Command) -> None:
    _unfinished(folder / "runs" / "own")
    result = distilkit("train", "--resume", "runs/own", "--trust-code", "--device", "cpu", "--json")
    assert result.status == 0, result.err
    assert result.json["state"] == "done"


def test_the_working_folder_is_importable_however_the_program_was_started(folder: Path) -> None:
    """As the script `distilkit` is: without the working folder on Python's path (-P)."""
    command = [sys.executable, "-P", "-m", "distilkit", "train", "own.toml", "--dry-run", "--trust-code", "--json"]
    environment = {"PYTHONPATH": str(Path(own.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["architecture"] == "mynets:small"


def test_builders_may_import_their_neighbours_and_leave_the_path_as_it_was(folder: Path) -> None:
    (folder / "neighbour.py").write_text("from mynets import small as build\n")
    before = list(sys.path)
    with code_trusted():
        assert registry.create("mynets:lazy", 10, 1)(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    assert sys.path == before


def test_packages_and_classes_are_taken_too(folder: Path) -> None:
    (folder / "hungry").mkdir()
    (folder / "hungry" / "nets.py").write_text(NETS)
    with code_trusted():
        network = registry.create("hungry.nets:Small", 7, 3)
    assert network(torch.rand(2, 3, 8, 8)).shape == (2, 7)
    for module in ("hungry.nets", "hungry"):
        sys.modules.pop(module)


def test_a_builder_that_takes_norm_can_do_without_batch_norm(folder: Path) -> None:
    with code_trusted():
        assert not list(registry.create("mynets:plain", 10, 1, "none").buffers())
        assert list(registry.create("mynets:plain", 10, 1).buffers())
        with pytest.raises(SettingError, match="mynets:small has no form without batch norm"):
            registry.create("mynets:small", 10, 1, "none")


# What can be wrong

FAULTS = {
    "no module": ("mynet:small", "there is no module 'mynet', neither in the working folder", "mean 'mynets'"),
    "no package": ("mynets.inside:small", "there is no module 'mynets.inside'", ""),
    "no function": ("mynets:smal", "the module 'mynets' has no function 'smal'", "did you mean 'small'?"),
    "not a function": ("mynets:__doc__", "has no function '__doc__'", "define __doc__ in"),
    "a module that fails": ("broken:build", "'broken' cannot be imported: ZeroDivisionError: division by zero", "mend"),
    "a module that lacks another": ("hungry:build", "'hungry' cannot be imported: ModuleNotFoundError: No mod", "mend"),
    "a builder that fails": ("mynets:failing", "fails to build the network: OSError: the disk is on fire", "mend"),
    "a builder that leaves": ("mynets:leaving", "fails to build the network: SystemExit: 0", "mend"),
    "not a network": ("mynets:a_number", "returns something of type int, not a torch.nn.Module", "must return"),
    "other arguments": ("mynets:one_argument", "cannot be called with (num_classes, channels)", "one_argument(num_cla"),
    "not traceable": ("mynets:deciding", "torch.fx cannot trace it", "must not depend on the values"),
    "the same network again": ("mynets:kept", "built of the same parameters again", "a new network whenever"),
    "not a network function": ("json:dumps", "cannot be called with (num_classes, channels)", "define it as"),
}


@pytest.mark.parametrize(("name", "problem", "hint"), FAULTS.values(), ids=FAULTS.keys())
def test_code_that_will_not_do_is_the_users_to_mend(
    name: str, problem: str, hint: str, folder: Path, distilkit: Command
) -> None:
    (folder / "broken.py").write_text("def build(num_classes, channels): ...\n\n1 / 0\n")
    (folder / "hungry.py").write_text("import no_such_module_anywhere\n")
    (folder / "other.toml").write_text(RECIPE.replace("mynets:small", name))
    result = distilkit("train", "other.toml", "--dry-run", "--trust-code", "--json")
    assert result.status == 2
    (fault,) = result.json["error"]["faults"]
    assert fault["key"] == "model.architecture"
    assert fault["place"] == "other.toml:5"
    assert problem in fault["problem"]
    assert hint in (fault["hint"] or "")
    if name.startswith(("broken", "mynets:failing")):
        assert re.search(r"\.py, line \d+\)", fault["problem"]), "the line of the user's code is named"


@pytest.mark.parametrize(
    "name",
    ["mynets:", ":small", "nets/small.py:small", "my-nets:small", "mynets:small:x", "a..b:c", "import:x", "a:b c"],
)
def test_a_name_of_the_wrong_form_is_a_fault_of_the_recipe(name: str, folder: Path, distilkit: Command) -> None:
    for key in ("model.architecture", "teacher.architecture"):
        more = ("--set", "teacher.weights=x") if key.startswith("teacher") else ()
        result = distilkit("train", "own.toml", "--set", f"{key}='{name}'", *more, "--json")
        assert result.status == 2
        assert f"{name!r} is not of the form package.module:builder" in result.json["error"]["faults"][0]["problem"]
    assert not (folder / "executed").exists()


def test_libraries_prefixes_are_not_modules_of_the_user_s() -> None:
    assert not own.is_own("torchvision:resnet18")
    assert not own.is_own("timm:resnet18")
    assert not own.is_own("resnet8")
    assert own.code("resnet8") is None
    assert own.code("torch.nets:resnet8") == ("torch.nets", "resnet8")


def test_where_to_cut_is_found_and_written_down_where_the_recipe_does_not_say(folder: Path, distilkit: Command) -> None:
    (folder / "uncut.toml").write_text(RECIPE.replace('split_at = "body"', ""))
    assert load("uncut.toml").group.split_at is None
    done = distilkit("train", "uncut.toml", "--trust-code", "--runs", "found", "--json")
    assert done.status == 0
    assert load(Path(done.json["run"]) / "recipe.toml").group.split_at in ("stem.2", "body", "body.1")
    wrong = distilkit("train", "own.toml", "--set", "group.split_at=bodi", "--dry-run", "--trust-code")
    assert wrong.status == 2
    assert "did you mean 'body" in wrong.err


def test_code_that_has_changed_so_that_weights_no_longer_fit_is_found(folder: Path, distilkit: Command) -> None:
    (folder / "mynets.py").write_text(NETS.replace("width=12", "width=14"))
    for opened in ("runs/own", "small"):
        result = distilkit("evaluate", opened, "--trust-code")
        assert result.status == 2
        assert "head.weight is [10, 12] instead of [10, 14]" in result.err
        _forget()


def test_parts_that_two_students_would_share_are_found() -> None:
    """Also where the networks differ and only a layer of theirs is the same."""
    from torch import nn

    layer = nn.Linear(4, 5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_architectures", dict(registry._architectures))

        @registry.register(split_at="1")
        def sharing(num_classes: int, channels: int = 3) -> nn.Module:
            return nn.Sequential(nn.Conv2d(channels, 4, 8), nn.Flatten(), layer)

        with pytest.raises(SettingError, match="the same parameters again"):
            build_group(
                kind="networks",
                architecture="sharing",
                members=("a",),
                split_at=None,
                num_classes=5,
                channels=3,
                size=8,
                mean=(0.5,) * 3,
                std=(0.5,) * 3,
                seed=0,
            )


def test_models_draws_a_network_of_ones_own_with_leave_only(folder: Path, distilkit: Command) -> None:
    refused = distilkit("models", "mynets:small", "--size", "8", "--channels", "1", "--json")
    assert refused.status == 2
    assert "--trust-code" in refused.json["error"]["hint"]
    assert "mynets" not in sys.modules
    drawn = distilkit("models", "mynets:small", "--size", "8", "--channels", "1", "--trust-code", "--json")
    assert drawn.status == 0
    assert "body" in [point["module"] for point in drawn.json["cut_points"]]
