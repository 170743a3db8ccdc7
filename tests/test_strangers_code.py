"""Code of strangers that no command executes unasked: exported programs, and modules of the working folder.

Nothing here does harm: what would have been executed leaves a marker file, or does not.
"""

import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Result
from torch import nn

import distilkit as package
from distilkit.errors import UserError
from distilkit.export import program
from distilkit.export.evaluation import evaluate_file
from distilkit.export.opened import open_file
from distilkit.export.program import export_pt2
from distilkit.models.own import code_trusted
from distilkit.observer import Observer
from distilkit.recipe import Recipe
from distilkit.training import tracking

Command = Callable[..., Result]

# --------------------------------------------------------------------------------------------------- exported programs


class Tiny(nn.Module):
    """Images of the digits to two outputs, by one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.layer(images.flatten(1))
        return logits, logits.softmax(1)


class Touches:
    """Pickled, it is a call that makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good program, written by this process."""
    file = tmp_path_factory.mktemp("written") / "good.pt2"
    export_pt2(Tiny().eval(), file, size=(1, 8, 8), output_names=("logits", "probabilities"), metadata={})
    return file


@pytest.fixture
def of_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process has written no program yet."""
    monkeypatch.setattr(program, "_written", set())


def repacked(source: Path, target: Path, change: Callable[[str, bytes], bytes]) -> Path:
    """The archive with each member as `change` (its path, its bytes) gives it."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return target


def with_a_pickle(source: Path, target: Path, marker: Path) -> Path:
    """Weights that their config says are pickled."""

    def change(name: str, content: bytes) -> bytes:
        if name.endswith("/model_weights_config.json"):
            config = json.loads(content)
            config["config"]["network.layer.weight"]["use_pickle"] = True
            return json.dumps(config).encode()
        return pickle.dumps(Touches(marker)) if name.endswith("/weight_0") else content

    return repacked(source, target, change)


def with_an_expression(source: Path, target: Path, marker: Path) -> Path:
    """A size, given as text, that is evaluated."""

    def change(name: str, content: bytes) -> bytes:
        if not name.endswith("/models/model.json"):
            return content
        model = content.decode()
        begin = model.index('"expr_str": "') + len('"expr_str": "')
        attack = f"__import__('pathlib').Path('{marker}').touch()"
        return (model[:begin] + attack + model[model.index('"', begin) :]).encode()

    return repacked(source, target, change)


ATTACKS = [with_a_pickle, with_an_expression]


@pytest.fixture(params=ATTACKS, ids=lambda attack: attack.__name__)
def hostile(request: pytest.FixtureRequest, written: Path, tmp_path: Path) -> Path:
    """A program that leaves tmp_path/marker when PyTorch opens it."""
    file: Path = request.param(written, tmp_path / "hostile.pt2", tmp_path / "marker")
    return file


def test_the_hostile_programs_are_what_they_are_taken_for(hostile: Path, tmp_path: Path) -> None:
    with code_trusted(), pytest.raises(Exception, match="cannot load"):
        open_file(hostile)
    assert (tmp_path / "marker").exists()


def test_benchmark_refuses_a_strangers_program_and_says_what_to_type(
    hostile: Path, tmp_path: Path, distilkit: Command
) -> None:
    result = distilkit("benchmark", hostile, "--json")
    assert result.status == 2
    error = result.json["error"]
    assert f"{hostile} is a program of torch.export, and such a file can run code when it is opened" in error["message"]
    assert "add --trust-code" in error["hint"]
    assert not (tmp_path / "marker").exists()


def copy_of(run: Path, folder: Path, *programs: Path) -> Path:
    """A run that holds these programs among its exports."""
    copy = Path(shutil.copytree(run, folder / "runs" / "theirs"))
    (copy / "exports").mkdir(exist_ok=True)
    for file in programs:
        shutil.copy(file, copy / "exports" / "single.pt2")
    return copy


@pytest.mark.parametrize("named", [True, False], ids=["RUN", "newest"])
def test_benchmark_passes_a_runs_program_over_with_a_note(
    named: bool, hostile: Path, one_run: Path, tmp_path: Path, distilkit: Command
) -> None:
    run = copy_of(one_run, tmp_path, hostile)
    words = (run,) if named else ("--runs", run.parent)
    result = distilkit("benchmark", *words, "--batch", 1, "--repetitions", 1, "--json")
    assert result.status == 0, result.err
    assert {each["kind"] for each in result.json["results"]} == {"eager", "onnxruntime"}
    assert "single.pt2 can run code when it is opened, and is passed over; --trust-code" in " ".join(result.err.split())
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    "commands",
    [
        (("compare", "RUN"), ("runs", "show", "RUN"), ("evaluate", "FILE"), ("predict", "FILE", "FILE")),
        (("pull", "RUN/exports", "--to", "other"), ("train", "quickstart", "--set", "model.pretrained=FILE")),
        # `export` replaces the file, and opens what it has written.
        pytest.param((("export", "RUN", "--format", "pt2"), ("report", "RUN")), marks=pytest.mark.long),
        pytest.param((("push", "RUN", "--to", "new"), ("pull", "new", "--to", "pulled")), marks=pytest.mark.long),
    ],
    ids=lambda commands: "-".join(words[0] for words in commands),
)
def test_no_other_command_opens_a_program(
    commands: tuple[tuple[str, ...], ...],
    written: Path,
    one_run: Path,
    tmp_path: Path,
    distilkit: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    half = with_a_pickle(written, tmp_path / "half.pt2", tmp_path / "marker")
    hostile = with_an_expression(half, tmp_path / "both.pt2", tmp_path / "marker")
    run = copy_of(one_run, tmp_path, hostile)
    monkeypatch.chdir(tmp_path)
    file = run / "exports" / "single.pt2"
    for command in commands:
        words = [word.replace("RUN", str(run)).replace("FILE", str(file)) for word in command]
        # What is given the file, or takes its folder for a published model.
        status = 2 if any("FILE" in word or "exports" in word for word in command) else 0
        result = distilkit(*words, "--json")
        assert (result.status, not result.err.count("Traceback")) == (status, True), (words, result)
        if words[0] == "export":
            shutil.copy(hostile, file)
        assert not (tmp_path / "marker").exists(), words


def test_a_program_that_this_process_has_written_is_opened_wherever_it_lies(written: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copy(written, tmp_path / "moved.pt2"))
    assert open_file(moved).outputs == ("logits", "probabilities")


@pytest.mark.usefixtures("of_another_process")
def test_a_good_program_of_another_process_needs_leave(written: Path, distilkit: Command) -> None:
    from distilkit.data.datasets import Split
    from distilkit.export.form import PLAIN

    words = ("benchmark", written, "--batch", 2, "--repetitions", 1, "--json")
    assert distilkit(*words).status == 2
    split = Split(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(UserError, match="can run code"):
        evaluate_file(written, split, PLAIN, lambda *_: None)
    (result,) = distilkit(*words, "--trust-code").json["results"]
    assert (result["kind"], result["batch"]) == ("torch-export", 2)
    assert distilkit(*words).status == 2  # it held for that command alone


@pytest.mark.usefixtures("of_another_process")
def test_a_runs_program_is_timed_with_leave(written: Path, one_run: Path, tmp_path: Path, distilkit: Command) -> None:
    run = copy_of(one_run, tmp_path, written)
    result = distilkit("benchmark", run, "--batch", 1, "--repetitions", 1, "--trust-code", "--json")
    assert "torch-export" in {each["kind"] for each in result.json["results"]}


def test_a_program_that_was_changed_after_it_was_written_is_a_strangers(written: Path, tmp_path: Path) -> None:
    content = bytearray(written.read_bytes())
    content[-1] ^= 1  # as long as it was
    (tmp_path / "changed.pt2").write_bytes(content)
    with pytest.raises(UserError, match="can run code"):
        open_file(tmp_path / "changed.pt2")


# -------------------------------------------------------------------------------------------------- the working folder

THEIRS = ("numpy", "torch", "PIL", "rich", "typer", "scipy", "sklearn", "pydantic", "matplotlib", "accelerate", "yaml")
PACKAGE = Path(package.__file__).parents[1]

# What pip writes as the program `distilkit`, for an environment in which nothing is installed.
SCRIPT = "import sys\nfrom distilkit.__main__ import main\nsys.exit(main())\n"

DECODES = """
import sys
from pathlib import Path
from distilkit.data.decoding import Request, decode_batches
from distilkit.data.pixels import Framing

if __name__ == "__main__":
    files = [str(file) for file in Path(sys.argv[1]).rglob("*.png")]
    (batch,) = decode_batches(Framing(8, 8, 3), [Request(files[:4])], 1, pin=False)
    print(len(batch.images_BHWC), batch.faults)
"""

NETWORK = """
from torch import nn


def small(num_classes, channels):
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, num_classes),
    )
"""


@pytest.fixture
def trapped(tmp_path: Path) -> Path:
    """A working folder with a file for each module of Python's, and for some of others, that leaves a marker."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    for name in {*sys.stdlib_module_names, *THEIRS} - set(sys.builtin_module_names):
        (folder / f"{name}.py").write_text("import _io\n_io.open(__file__ + '.executed', 'w').close()\n")
    return folder


def executed(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.rglob("*.executed"))


def the_program(folder: Path) -> list[str]:
    """The program `distilkit` as it is installed."""
    installed = Path(sys.executable).with_name("distilkit")
    if installed.is_file():
        return [str(installed)]
    script = folder.parent / "bin" / "distilkit"
    script.parent.mkdir(exist_ok=True)
    script.write_text(SCRIPT)
    return [sys.executable, str(script)]


def started(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """A program in a working folder, as a shell starts it."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONSAFEPATH", "PYTHONPATH")}
    environment = {**kept, "PYTHONPATH": str(PACKAGE), "OMP_NUM_THREADS": "1"}
    command = [str(word) for word in words]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )


def recipe(folder: Path, images: Path, *lines: str, architecture: str = "resnet8") -> Path:
    """A training of one step on image files that worker processes decode while it goes on."""
    data = ['dataset = "image-folder"', f'root = "{images}"', "image_size = 8", "workers = 1", 'storage = "stream"']
    text = TINY.replace('dataset = "digits"', "\n".join(data)).replace("epochs = 2", "epochs = 1")
    text = text.replace("resnet8", architecture).replace('name = "one"', 'name = "baseline"')
    file = folder / "tiny.toml"
    file.write_text("\n".join([text, *lines]), encoding="utf-8")
    return file


def test_a_training_with_decoding_workers_imports_nothing_of_the_working_folder(
    trapped: Path, image_folder: Path
) -> None:
    file = recipe(trapped, image_folder)
    done = started(trapped, *the_program(trapped), "train", file, "--device", "cpu", "--json")
    assert (done.returncode, executed(trapped)) == (0, []), done.stderr
    assert json.loads(done.stdout)["state"] == "done"


@pytest.mark.long
def test_several_seeds_at_once_import_nothing_of_the_working_folder(trapped: Path, image_folder: Path) -> None:
    words = ("train", recipe(trapped, image_folder), "--seeds", "0,1", "--together", "--device", "cpu", "--json")
    done = started(trapped, *the_program(trapped), *words)
    assert (done.returncode, executed(trapped)) == (0, []), done.stderr


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_compiled_code_imports_nothing_of_the_working_folder(
    trapped: Path, one_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    words = ("benchmark", one_run, "--compile", "--batch", 1, "--repetitions", 1)
    done = started(trapped, *the_program(trapped), *words)
    assert (done.returncode, executed(trapped)) == (0, []), done.stderr


def test_the_librarys_decoding_workers_import_nothing_of_the_working_folder(
    trapped: Path, image_folder: Path, tmp_path: Path
) -> None:
    script = tmp_path / "decodes.py"
    script.write_text(DECODES)
    done = started(trapped, sys.executable, script, image_folder)
    assert (done.returncode, done.stdout, executed(trapped)) == (0, "4 []\n", []), done.stderr


def test_python_m_imports_nothing_of_the_working_folder_once_distilkit_has_begun(
    trapped: Path, baseline_run: Path
) -> None:
    """What Python itself imports before it reaches distilkit is for `python -P` or PYTHONSAFEPATH to prevent."""
    for name in sys.stdlib_module_names - {"signal", "json", "multiprocessing", "random", "tomllib", "sqlite3"}:
        (trapped / f"{name}.py").unlink(missing_ok=True)
    done = started(trapped, sys.executable, "-m", "distilkit", "evaluate", baseline_run, "--device", "cpu", "--json")
    assert (done.returncode, executed(trapped)) == (0, []), done.stderr


def test_a_checkout_that_is_not_installed_runs_in_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "distilkit").symlink_to(PACKAGE / "distilkit")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ours = "import sys; sys.path.insert(0, ''); sys.argv = ['distilkit', '--version'];"
    found = "import runpy; runpy.run_module('distilkit', run_name='__main__', alter_sys=True)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", ours + found],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == f"distilkit {package.__version__}\n", done.stderr


def test_a_network_of_the_users_own_is_still_found_there_and_trains_with_workers(
    image_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "my_nets.py").write_text(NETWORK)
    file = recipe(tmp_path, image_folder, architecture="my_nets:small")
    done = started(tmp_path, *the_program(tmp_path), "train", file, "--device", "cpu", "--trust-code", "--json")
    assert done.returncode == 0, done.stderr


def test_the_papers_trainings_are_started_without_the_working_folder() -> None:
    from reproduce import PROGRAM

    assert (sys.executable, "-P", "-m", "distilkit") == PROGRAM


# ----------------------------------------------------------------------------------------------------- configuration

DRAWS = """
from pathlib import Path
from distilkit.report.charts import Chart, Line, Series
from distilkit.report.curves import plot_curves
from distilkit.report.figures import write_figures

chart = Chart("errors", "Errors", "epoch", "%", (Series("one", Line((1.0, 2.0, 3.0), (9.0, 5.0, 4.0)), 0),))
write_figures([("", chart)], Path())
values = {"train": [[1.0, 2.0]], "test": [[1.0, 2.0]]}
run = {"magnitudes": [0.0, 1.0], "curves": values, "cross_entropy": values, "method": "one", "run": "r", "member": "m"}
plot_curves([run], Path("curves"), "fresh", "layer")
"""


def test_matplotlibrc_of_the_working_folder_is_not_read(tmp_path: Path) -> None:
    drawn = {}
    for name, rc in (("plain", None), ("red", b"figure.facecolor: red\n"), ("broken", b"\xff\xfe\n")):
        folder = tmp_path / name
        folder.mkdir()
        if rc is not None:
            (folder / "matplotlibrc").write_bytes(rc)
        done = started(folder, sys.executable, "-P", "-c", DRAWS)
        assert (done.returncode, done.stderr) == (0, ""), name
        drawn[name] = {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "matplotlibrc"}
    assert sorted(drawn["plain"]) == ["curves.png", "curves.svg", "errors.png", "errors.svg"]
    assert drawn["red"] == drawn["plain"]
    assert drawn["broken"] == drawn["plain"]


@pytest.mark.parametrize("place", ["libcuda.so.1", "libgcc_s.so.1", "glibc-hwcaps/x86-64-v3/libcuda.so.1"])
def test_a_library_that_would_be_taken_for_the_systems_is_refused(
    place: str, tmp_path: Path, distilkit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_bytes(b"\x7fELF")
    result = distilkit("models", "--json")
    assert result.status == 2
    assert f"the working folder holds a library {Path(place).name}" in result.json["error"]["message"]


@pytest.mark.parametrize("hangs", [False, True], ids=["answers", "hangs"])
def test_a_tracker_reads_no_settings_of_the_working_folder(
    hangs: bool, tiny: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B takes a server's address from wandb/settings where it is set up, and sends the user's key there."""
    seen, released = [], threading.Event()

    class Wandb:
        @staticmethod
        def setup() -> None:
            seen.append(Path.cwd())
            if hangs:
                released.wait(60)

    for variable in (*tracking._NO_TELEMETRY, *tracking._NO_GIT):
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", Wandb)
    monkeypatch.setattr(tracking, "_left_behind", [])
    monkeypatch.setattr(tracking, "_begin", lambda *_: seen.append(Path.cwd()))
    tracked = tracking.Tracking(
        ("wandb",), tiny("tracking.name=wandb", "tracking.timeout=0.2"), tmp_path, 0, Observer()
    )
    tracked.start()
    assert seen == [Path(package.__file__).parent, *([] if hangs else [tmp_path])]
    assert Path.cwd() == tmp_path
    assert os.environ["WANDB_DISABLE_GIT"] == "true"
    released.set()
