"""What a command touches outside of the files that were named: a run's data folder, special files, code, other data.

A file that somebody else wrote may name any place of this machine. Nothing is fetched to it, made in it, or read from
it that is no plain file; and what is read by mistake is not quoted.
"""

import json
import os
import shutil
import sys
import urllib.error
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from conftest import TINY, Result
from onnx import AttributeProto, TensorProto, helper
from test_datasets import CifarFiles

from distilkit import errors
from distilkit.data import datasets, npz
from distilkit.errors import UserError, is_plain_file, parse_json, require_plain_file
from distilkit.learners.pretrained import read_weights
from distilkit.models import own
from distilkit.observer import Observer
from distilkit.recipe import load
from distilkit.runs.run import PrunedModel, Run
from distilkit.workflows.share import hub
from distilkit.workflows.train.train import train

Command = Callable[..., Result]
linux = pytest.mark.skipif(not Path("/proc/self/mountinfo").exists(), reason="needs /proc")


# The data's folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No connection; the addresses that were asked for."""
    addresses: list[str] = []

    def urlopen(request: Any, *_: object, **__: object) -> None:
        addresses.append(request.full_url)
        raise urllib.error.URLError("no connection")

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    return addresses


class Trained:
    """A run on a CIFAR of a few images, whose folder, `there`, can be taken away; `run` says that it may download."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.there = tmp_path / "theirs"
        self.there.mkdir()
        self.files = CifarFiles("cifar10", self.there, monkeypatch)
        self.files.unpack()
        recipe = tmp_path / "cifar.toml"
        data = f'dataset = "cifar10"\nroot = "{self.there}"\ndownload = true'
        recipe.write_text(TINY.replace('dataset = "digits"', data).replace("epochs = 2", "epochs = 1"))
        self.run = Path(
            train(load(recipe), tmp_path / "runs", device="cpu", command="test", observer=Observer())["run"]
        )

    def pruned(self, distilkit: Command) -> Path:
        assert distilkit("prune-branches", self.run).status == 0
        return self.run / "pruned"


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trained:
    return Trained(tmp_path, monkeypatch)


@pytest.mark.filterwarnings("ignore:Python 3.14 will:DeprecationWarning")
def test_a_data_root_that_a_run_names_is_only_read(
    trained: Trained, tmp_path: Path, distilkit: Command, asked: list[str]
) -> None:
    run, pruned = trained.run, trained.pruned(distilkit)
    for opened in (run, pruned):
        assert distilkit("evaluate", opened).status == 0, "one's own images are read without --data"

    commands: list[tuple[object, ...]] = [
        ("evaluate", run),
        ("evaluate", pruned),
        ("ensemble-eval", run),
        ("robustness", run),
        ("prune-branches", run, "--output", tmp_path / "out"),
        ("export", run, "--output", tmp_path / "out.onnx"),
        ("push", run, "--to", tmp_path / "published"),
        ("report", run, "--no-figures"),
    ]
    shutil.rmtree(trained.there)
    for command in commands:
        result = distilkit(*command)
        assert result.status == (0 if command[0] == "report" else 2), (command, result)
        if command[0] != "report":
            assert "not typed" in result.err, command
        assert not trained.there.exists(), command
    trained.there.mkdir()
    trained.files.archive.write_bytes(trained.files.packed)
    for command in commands[:2]:
        assert distilkit(*command).status == 2
        assert list(trained.there.iterdir()) == [trained.files.archive], command
    assert asked == []

    # Typed, it is the user's.
    assert distilkit("evaluate", run, "--data", trained.there).status == 0
    assert trained.files.folder.is_dir()
    assert distilkit("evaluate", run, "--data", tmp_path / "elsewhere").status == 2
    assert asked


def test_a_run_goes_on_with_the_images_that_are_there_and_fetches_none_unasked(
    trained: Trained, tmp_path: Path, distilkit: Command, asked: list[str]
) -> None:
    run = trained.run
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"state": "interrupted"}))
    moved = trained.there.rename(tmp_path / "moved")
    result = distilkit("train", "--resume", run)
    assert result.status == 2
    assert f"distilkit train {run / 'recipe.toml'} --resume {run}" in result.err
    assert not trained.there.exists()
    assert asked == []
    assert distilkit("train", run / "recipe.toml", "--resume", run).status == 2
    assert asked, "whoever names the recipe has it done"
    shutil.rmtree(trained.there, ignore_errors=True)
    moved.rename(trained.there)
    assert distilkit("train", "--resume", run).status == 0


def test_nothing_is_unpacked_where_nothing_may_be_prepared(tmp_path: Path) -> None:
    (tmp_path / "ILSVRC2012_img_val.tar").write_bytes(b"not looked at")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match="has no folder train"):
        datasets.load("imagenet", tmp_path, download=True, prepare=False)
    with pytest.raises(UserError, match="there is no"):
        datasets.load("svhn", tmp_path, download=True, prepare=False)
    assert sorted(tmp_path.iterdir()) == before


# Special files


@pytest.fixture(params=["pipe", "device", "link to /proc", "/proc"])
def special(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Path]:
    """special("x.toml"): no plain file, under that name where it may have one."""

    def make(name: str) -> Path:
        if request.param == "/proc":
            return Path("/proc/version")
        path = tmp_path / "special" / name
        path.parent.mkdir(exist_ok=True)
        if request.param == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to("/dev/zero" if request.param == "device" else "/proc/version")
        return path

    return make


def refused(result: Result) -> None:
    assert result.status == 2, result
    assert "plain file" in result.err, result.err
    assert "Linux version" not in result.err + result.out


@linux
@pytest.mark.timeout(120)
def test_special_files_are_refused_wherever_they_are_typed(
    special: Callable[[str], Path], one_run: Path, tmp_path: Path, distilkit: Command
) -> None:
    refused(distilkit("train", special("recipe.toml")))
    refused(distilkit("train", special("dry.toml"), "--dry-run"))
    refused(distilkit("recipes", "show", special("shown.toml")))
    refused(distilkit("robustness", one_run, "--thresholds", special("thresholds.toml")))
    refused(distilkit("report", one_run, "--benchmark", special("latency.json"), "--output", tmp_path / "r.html"))
    refused(distilkit("predict", special("model.onnx"), tmp_path))
    refused(distilkit("benchmark", special("model.pt2")))
    refused(distilkit("push", special("pushed.onnx"), "--to", tmp_path / "published"))
    for key in ("model.pretrained", "teacher.weights"):
        for name in ("weights.pth", "weights.safetensors"):
            more = ("--set", "teacher.architecture=resnet8") if "teacher" in key else ()
            weights = special(f"{key}.{name}")
            refused(
                distilkit(
                    *("train", "quickstart_baseline", "--set", f"{key}={weights}", *more, "--runs", tmp_path / "runs"),
                )
            )
    arrays = special("images.npz")
    words = ("data.dataset=npz", f"data.root={arrays}", "model.architecture=resnet8")
    result = distilkit("train", "quickstart_baseline", *(word for each in words for word in ("--set", each)))
    assert result.status == 2
    assert "Linux version" not in result.err
    (tmp_path / "child.toml").write_text(f'extends = "{special("base.toml")}"\n')
    refused(distilkit("train", tmp_path / "child.toml"))


@linux
@pytest.mark.timeout(120)
def test_special_files_in_a_run_are_refused(
    special: Callable[[str], Path], one_run: Path, tmp_path: Path, distilkit: Command
) -> None:
    for number, name in enumerate(("run.json", "recipe.toml", "metrics.jsonl", "checkpoints/last", "README.md")):
        run = Path(shutil.copytree(one_run, tmp_path / "runs" / str(number)))
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(special(str(number)))
        for command in ("evaluate", "report"):
            more = ("--no-evaluate", "--no-figures") if command == "report" else ()
            result = distilkit(command, run, *more)
            assert result.status in (0, 2), result
            assert "Linux version" not in result.err + result.out
        assert distilkit("runs", "--runs", tmp_path / "runs").status in (0, 2)


@linux
@pytest.mark.timeout(60)
def test_special_files_among_pictures_are_refused(
    special: Callable[[str], Path], tmp_path: Path, distilkit: Command
) -> None:
    from test_predict import GREY, small_file

    file = small_file(tmp_path / "small.onnx", GREY)
    picture = special("cat.png")
    refused(distilkit("predict", file, picture))
    if picture.parent.name == "special":
        refused(distilkit("predict", file, picture.parent))


@linux
def test_plain_are_files_on_a_disk_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for plain in (tmp_path / "empty", Path(__file__)):
        require_plain_file(plain)
        assert is_plain_file(plain)
    require_plain_file(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    reader, writer = os.pipe()
    others = [tmp_path / "pipe", "/dev/null", "/dev/zero", "/proc/self/environ", "/proc/version", f"/dev/fd/{reader}"]
    for other in [*others, "/sys/kernel/mm/transparent_hugepage/enabled"]:
        if Path(other).exists():
            assert not is_plain_file(other), other
            with pytest.raises(OSError, match="no plain file"):
                require_plain_file(other)
    os.close(reader)
    os.close(writer)
    assert not is_plain_file(tmp_path)
    assert not is_plain_file(tmp_path / "missing")
    assert errors._kernel_devices()


# What messages quote

SECRET = "hunter2"
NO_RECIPES = {
    "passwords": f"root:{SECRET}:0:0:root:/root:/bin/bash\n",
    "environment": f"{SECRET}={SECRET}\n",
    "TOML of others": f'[{SECRET}]\n{SECRET} = "{SECRET}"\n',
    "TOML without a table": f'{SECRET} = "{SECRET}"\nname = "{SECRET}"\n',
    "a section that is a value": f'data = "{SECRET}"\n',
    "twice": f"{SECRET} = 1\n{SECRET} = 1\n",
    "bare word": f"key = {SECRET}\n",
    "JSON": f'{{"{SECRET}": "{SECRET}"}}\n',
    "YAML": f"data: {SECRET}\n  train: - {SECRET}\n",
    "a section in a sentence": f"see [data] {SECRET}: {SECRET}\n",
    "no UTF-8": f"\udcff{SECRET}\n",
}


@pytest.mark.parametrize("text", NO_RECIPES.values(), ids=NO_RECIPES)
def test_nothing_is_quoted_of_a_file_that_is_no_recipe(text: str, tmp_path: Path, distilkit: Command) -> None:
    file = tmp_path / "private"
    file.write_bytes(text.encode(errors="surrogateescape"))
    (tmp_path / "child.toml").write_text(f'extends = "{file}"\n[train]\nepochs = 1\n')
    for command in (
        ("train", file, "--json"),
        ("train", tmp_path / "child.toml", "--dry-run", "--json"),
        ("train", "--resume", tmp_path, "--json"),
        ("robustness", "--thresholds", file, "--json"),
        ("report", "--benchmark", file, "--json", "--runs", tmp_path),
        ("train", "quickstart_baseline", "--set", f"model.pretrained={file}", "--json", "--runs", tmp_path / "runs"),
    ):
        result = distilkit(*command)
        assert result.status == 2, (command, result)
        assert SECRET not in result.err + result.out, (command, result)
    assert str(file) in distilkit("train", file).err


@pytest.mark.parametrize("name", ["run.json", "config.json"])
def test_nothing_is_quoted_of_other_json_in_the_place_of_a_record(
    name: str, tmp_path: Path, distilkit: Command
) -> None:
    for text in (f'{{"format": "{SECRET}", "{SECRET}": 1}}', f'["{SECRET}"]', f"{SECRET}", f'{{"{SECRET}": {SECRET}}}'):
        (tmp_path / name).write_text(text)
        result = distilkit("evaluate", tmp_path)
        assert result.status == 2
        assert SECRET not in result.err


def test_a_recipe_with_a_slip_is_still_quoted(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[data]\ndataset = "digits"\n[model]\narchitecture = resnet8\n')
    with pytest.raises(UserError) as caught:
        load(file)
    (fault,) = caught.value.faults
    assert fault.key == "model.architecture"
    assert fault.hint == 'write "resnet8", in quotes'


def test_nothing_is_quoted_of_an_archive_that_holds_no_arrays(tmp_path: Path) -> None:
    file = tmp_path / "private.npz"
    heads = [
        SECRET.encode(),
        b"\x93NUMPY\x01\x00\x76\x00" + SECRET.encode().ljust(117) + b"\n",
        b"\x93NUMPY\x01\x00\x76\x00"
        + f"{{'descr': '{SECRET}', 'fortran_order': False, 'shape': ()}}".encode().ljust(118),
    ]
    for entry, content in [(f"{SECRET}.txt", b"x"), *(("x_train.npy", head) for head in heads)]:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(entry, content)
        with pytest.raises(UserError, match=r"cannot be read as \.npz") as caught:
            npz.image_shape(file)
        assert SECRET not in str(caught.value)
    for name in ("private.pth", "private.safetensors"):
        (tmp_path / name).write_text(f"{SECRET} {SECRET}\n")
        with pytest.raises(UserError, match="cannot be read") as caught:
            read_weights(tmp_path / name)
        assert SECRET not in str(caught.value)


# Code

NETS = """
import sys
from pathlib import Path
from torch import nn
with Path(__file__).with_name("imported").open("a") as file:
    file.write(__name__ + "\\n")
def build(num_classes, channels):
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, num_classes))
"""
MODULES = ("first_net", "second_net", "third_net")


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with three modules, and recipes of which each trains a network of one."""
    for module in MODULES:
        (tmp_path / f"{module}.py").write_text(NETS)
        text = (
            TINY.replace('"tiny"', f'"{module}"')
            .replace('"resnet8"', f'"{module}:build"')
            .replace('"one"', '"baseline"')
        )
        (tmp_path / f"{module}.toml").write_text(text.replace("epochs = 2", "epochs = 1"))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    forget()


def forget() -> None:
    for module in MODULES:
        sys.modules.pop(module, None)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """What was said of imports on stderr, and whether one of the modules was imported by then."""
    from distilkit.cli import console

    lines: list[tuple[str, bool]] = []
    really = console.tell

    def tell(text: str, style: str = "") -> None:
        if "importing" in text:
            lines.append((text, any(module in sys.modules for module in MODULES)))
        really(text, style)

    monkeypatch.setattr(console, "tell", tell)
    return lines


def train_two(distilkit: Command, told: list[tuple[str, bool]]) -> list[str]:
    runs = []
    for module in MODULES[:2]:
        result = distilkit("train", f"{module}.toml", "--trust-code", "--json")
        assert result.status == 0, result
        runs.append(result.json["run"])
        forget()
    assert told == [(f"--trust-code: importing {module}", False) for module in MODULES[:2]]
    return runs


def named_first(result: Result, nets: Path, told: list[tuple[str, bool]]) -> None:
    """Exactly what was imported was named, on one line of stderr, before the first was."""
    assert result.status == 0, result
    json.loads(result.out)
    ((line, late),) = told
    assert not late
    assert set((nets / "imported").read_text().split()) == {module for module in MODULES if module in line}
    assert line in result.err
    told.clear()
    (nets / "imported").unlink()
    forget()


def test_modules_are_named_before_any_is_imported(nets: Path, distilkit: Command, told: list[tuple[str, bool]]) -> None:
    both = train_two(distilkit, told)
    told.clear()
    (nets / "imported").unlink()
    teachers = f'teacher.run=["{both[0]}", "{both[1]}"]'
    inputs = ("--no-parameters", "--inputs", "noise", "--images", "2", "--output", "out")
    several: list[tuple[str, ...]] = [
        ("ensemble-eval", *both),
        ("robustness", *both, *inputs),
        ("report", *both, "--no-figures", "--output", "report.html"),
        ("train", "third_net.toml", "--dry-run", "--set", teachers),
    ]
    for command in several:
        named_first(distilkit(*command, "--trust-code", "--json"), nets, told)
    assert distilkit("evaluate", both[0], "--json").status == 2
    assert told == [], "without leave nothing will be imported"


@pytest.mark.long
def test_a_benchmark_names_modules_before_any_is_imported(
    nets: Path, distilkit: Command, told: list[tuple[str, bool]]
) -> None:
    both = train_two(distilkit, told)
    told.clear()
    (nets / "imported").unlink()
    named_first(
        distilkit("benchmark", *both, "--repetitions", "1", "--batch", "1", "--trust-code", "--json"), nets, told
    )


def test_a_module_that_nobody_has_named_is_named_before_it_is_imported(nets: Path) -> None:
    told: list[str] = []
    with own.code_trusted(tell=told.append):
        own.builder("first_net:build")
        own.builder("first_net:build")
        own.name_modules(["first_net:build", "second_net:build", "resnet8", "no module:at all"])
    assert told == ["--trust-code: importing first_net", "--trust-code: importing second_net"]
    own.name_modules(["third_net:build"])
    assert len(told) == 2


# What is pulled


def outside() -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    return tensor


def graph(**fields: Any) -> onnx.GraphProto:
    made = helper.make_graph([], "g", [], [])
    for name, value in fields.items():
        getattr(made, name).extend(value)
    return made


def model(main: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(main, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def constant() -> onnx.NodeProto:
    node = helper.make_node("Constant", [], ["c"])
    node.attribute.append(AttributeProto(name="value", type=AttributeProto.TENSOR, t=outside()))
    return node


def branch(inner: onnx.GraphProto) -> onnx.NodeProto:
    return helper.make_node("If", ["condition"], ["out"], then_branch=inner, else_branch=graph())


def in_a_function() -> onnx.ModelProto:
    made = model(graph())
    made.functions.append(helper.make_function("own", "F", [], ["c"], [constant()], [helper.make_opsetid("", 18)]))
    return made


def as_a_functions_default() -> onnx.ModelProto:
    made = in_a_function()
    del made.functions[0].node[:]
    made.functions[0].attribute_proto.append(AttributeProto(name="a", type=AttributeProto.TENSOR, t=outside()))
    return made


def of_a_training(part: str) -> onnx.ModelProto:
    made = model(graph())
    getattr(made.training_info.add(), part).CopyFrom(graph(initializer=[outside()]))
    return made


def sparse(part: str) -> onnx.SparseTensorProto:
    tensor = onnx.SparseTensorProto(dims=[1])
    getattr(tensor, part).CopyFrom(outside())
    return tensor


def a_list(name: str, kind: int, **value: Any) -> onnx.NodeProto:
    node = helper.make_node("Own", [], ["c"], domain="own")
    node.attribute.append(AttributeProto(name=name, type=kind, **value))
    return node


PLACES: dict[str, Callable[[], onnx.ModelProto]] = {
    "the graph": lambda: model(graph(initializer=[outside()])),
    "a constant": lambda: model(graph(node=[constant()])),
    "a branch without nodes": lambda: model(graph(node=[branch(graph(initializer=[outside()]))])),
    "a branch of a branch": lambda: model(graph(node=[branch(graph(node=[branch(graph(initializer=[outside()]))]))])),
    "a loop": lambda: model(
        graph(node=[helper.make_node("Loop", ["", ""], ["out"], body=graph(initializer=[outside()]))])
    ),
    "a list of graphs": lambda: model(
        graph(node=[a_list("g", AttributeProto.GRAPHS, graphs=[graph(initializer=[outside()])])])
    ),
    "a list of tensors": lambda: model(graph(node=[a_list("t", AttributeProto.TENSORS, tensors=[outside()])])),
    "sparse values": lambda: model(graph(sparse_initializer=[sparse("values")])),
    "sparse indices": lambda: model(graph(sparse_initializer=[sparse("indices")])),
    "a sparse attribute": lambda: model(
        graph(node=[a_list("s", AttributeProto.SPARSE_TENSOR, sparse_tensor=sparse("values"))])
    ),
    "a list of sparse tensors": lambda: model(
        graph(node=[a_list("s", AttributeProto.SPARSE_TENSORS, sparse_tensors=[sparse("values")])])
    ),
    "a function": in_a_function,
    "a function's default": as_a_functions_default,
    "a training's beginning": lambda: of_a_training("initialization"),
    "a training's steps": lambda: of_a_training("algorithm"),
}


@pytest.mark.parametrize("make", PLACES.values(), ids=PLACES)
def test_a_pulled_onnx_file_keeps_nothing_outside_itself(
    make: Callable[[], onnx.ModelProto], tmp_path: Path, distilkit: Command
) -> None:
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(make().SerializeToString())
    result = distilkit("pull", folder, "--to", tmp_path / "mine")
    assert result.status == 2
    assert "weights in other files" in result.err
    assert not (tmp_path / "mine").exists()


def test_a_pulled_onnx_file_says_nothing_twice(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    made = model(graph())
    for value in ("a", "b"):
        made.metadata_props.add(key="classes", value=value)
    file.write_bytes(made.SerializeToString())
    with pytest.raises(UserError, match="a key twice"):
        hub.inspect(tmp_path, "theirs")


def test_json_with_a_key_twice_is_refused(one_run: Path, tmp_path: Path, distilkit: Command) -> None:
    assert parse_json(b'{"a": {"b": 1}, "b": [{"a": 1}, {"a": 2}]}') == {"a": {"b": 1}, "b": [{"a": 1}, {"a": 2}]}
    for text in ('{"a": 1, "a": 1}', '[{"a": {"b": 1, "b": 2}}]', '{"a": 1, "\\u0061": 2}'):
        with pytest.raises(ValueError, match="a key twice"):
            parse_json(text)
    run = Path(shutil.copytree(one_run, tmp_path / "runs" / "one"))
    assert distilkit("prune-branches", run).status == 0
    for file, command in ((run / "pruned" / "config.json", "pull"), (run / "run.json", "evaluate")):
        text = file.read_text()
        file.write_text(text.replace("{", '{"architecture": "resnet20",', 1))
        result = distilkit(command, file.parent, *(["--to", tmp_path / "mine"] if command == "pull" else []))
        assert result.status == 2
        assert "a key twice" in result.err
        opened = PrunedModel if command == "pull" else Run
        with pytest.raises(UserError, match="a key twice"):
            opened.open(file.parent)
    assert not (tmp_path / "mine").exists()


def test_epochs_lines_with_a_key_twice_are_damage(one_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(one_run, tmp_path / "one"))
    file = run / "metrics.jsonl"
    file.write_text(file.read_text().replace('{"epoch": 1,', '{"epoch": 1, "epoch": 1,', 1))
    with pytest.raises(UserError, match="line 1 is damaged"):
        Run.open(run).metrics()
