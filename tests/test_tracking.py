"""Trackers: what the recipe says of them, what they are told, and that none of them can stop a training."""

import json
import os
import sqlite3
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import accelerate.tracking
import pytest
from accelerate.utils import LoggerType
from conftest import TINY, Result, train_tiny
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import distilkit as package
from distilkit.errors import UserError
from distilkit.observer import Observer
from distilkit.recipe import Recipe, load
from distilkit.runs.run import Run
from distilkit.training import tracking
from distilkit.training.interrupt import Interrupted
from distilkit.workflows.train.train import resume, train

Command = Callable[..., Result]


class Heard(Observer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


class Recording(accelerate.tracking.GeneralTracker):
    """A tracker that remembers its calls, and raises or hangs where it is asked to."""

    name = "wandb"
    requires_logging_directory = False
    calls: ClassVar[list[tuple[str, Any]]] = []
    raising = hanging = ""
    released = threading.Event()

    def __init__(self, project: str, **options: Any) -> None:
        super().__init__()
        self.options = options
        self.note("init", (project, options))

    def note(self, call: str, said: Any) -> None:
        Recording.calls.append((call, said))
        sys.stdout.write("a tracker talks\n")
        if call == Recording.raising:
            raise SystemExit("no route to host\nat all") if call == "finish" else OSError(113, "No route to host")
        if call == Recording.hanging:
            Recording.released.wait(60)

    @property
    def tracker(self) -> Any:
        return self

    @property
    def id(self) -> str:
        return self.options.get("id", "fresh")

    def start(self) -> None:
        self.note("start", None)

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.note("settings", values)

    def log(self, values: dict[str, Any], step: int | None = None, **options: Any) -> None:
        self.note("log", (step, values))

    def finish(self) -> None:
        self.note("finish", None)


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> type[Recording]:
    """W&B, replaced."""
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "wandb", Recording)
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [LoggerType.TENSORBOARD, LoggerType.WANDB])
    monkeypatch.setattr(tracking, "_left_behind", [])
    for name, value in (("calls", []), ("raising", ""), ("hanging", ""), ("released", threading.Event())):
        monkeypatch.setattr(Recording, name, value)
    monkeypatch.setattr(tracking, "_READ_SETTINGS", {})
    for variable in (*tracking._NO_TELEMETRY, *tracking._NO_GIT):
        monkeypatch.setenv(variable, os.environ.get(variable, ""))
        monkeypatch.delenv(variable)
    return Recording


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def stop_after(epoch: int) -> type[Observer]:
    class Stops(Observer):
        def epoch_finished(self, line: Any) -> None:
            if line["epoch"] == epoch:
                raise KeyboardInterrupt

    return Stops


# What the recipe may say


def test_tensorboard_is_the_default_and_every_tracker_of_accelerate_may_be_named(tiny: Callable[..., Recipe]) -> None:
    assert tiny().tracking.names == ("tensorboard",)
    assert tiny("tracking.name=none").tracking.names == ()
    for kind in LoggerType:
        if kind.value != "all":
            assert tiny(f"tracking.name={kind.value}").tracking.names == (kind.value,)
    both = tiny('tracking.name=["tensorboard", "mlflow"]', "tracking.options.mlflow.tracking_uri=sqlite:///a.db")
    assert both.tracking.names == ("tensorboard", "mlflow")
    assert both.tracking.options == {"mlflow": {"tracking_uri": "sqlite:///a.db"}}
    assert tomllib.loads(both.to_toml())["tracking"]["options"] == {"mlflow": {"tracking_uri": "sqlite:///a.db"}}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["tracking.name=wandbb"], ["unknown tracker 'wandbb'", "tensorboard", "none", "did you mean 'wandb'?"]),
        (["tracking.name=all"], ["unknown tracker 'all'"]),
        (["tracking.name=7"], ["must be the name of a tracker, a list of several, or none, not 7"]),
        (["tracking.name=[]"], ["must be the name of a tracker"]),
        (['tracking.name=["wandb", "wandb"]'], ["names a tracker twice"]),
        (['tracking.name=["wandb", "none"]'], ['cannot be "none" beside others']),
        (["tracking.options.wandb.mode=offline"], ["of no tracker that tracking.name names: tensorboard"]),
        (["tracking.options.tensorbord.flush_secs=3"], ["did you mean 'tensorboard'?"]),
        (["tracking.options.tensorboard=3"], ["a table for each tracker"]),
        (["tracking.options=3"], ["a table for each tracker"]),
        (["tracking.timeout=0"], ["tracking.timeout must be a number above 0"]),
        (["tracking.project=''"], ["text that is not empty"]),
        (["tracking.tags=3"], ["unknown key 'tags' in [tracking]"]),
    ],
)
def test_a_wrong_setting_is_told_with_what_is_allowed(
    overrides: list[str], words: list[str], tiny: Callable[..., Recipe]
) -> None:
    with pytest.raises(UserError) as error:
        tiny(*overrides)
    for word in words:
        assert word in str(error.value)


def test_another_tracker_by_override_takes_the_files_options_with_it(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text(TINY + '[tracking]\nname = "wandb"\n[tracking.options.wandb]\nmode = "offline"\n')
    assert load(file).tracking.options == {"wandb": {"mode": "offline"}}
    assert load(file, ["tracking.name=none"]).tracking.options == {}


def test_a_package_that_is_missing_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distilkit: Command
) -> None:
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [LoggerType.TENSORBOARD])
    for name, install in (("wandb", 'pip install "distilkit[tracking]"'), ("comet_ml", "pip install comet-ml")):
        options = ("--set", f"tracking.name={name}", "--runs", tmp_path / "runs", "--device", "cpu")
        refused = distilkit("train", "quickstart", *options)
        assert refused.status == 2
        assert f"the tracker '{name}' needs a package that is not installed" in refused.err
        assert install in " ".join(refused.err.split())
        assert f"tracking.name={name}" in refused.err
    assert not (tmp_path / "runs").exists()


# What they are told


def test_tensorboard_has_the_figures_of_every_epoch_and_the_recipe(one_run: Path) -> None:
    curves = scalars(one_run)
    lines = Run.open(one_run).metrics()
    expected = [(line["epoch"], pytest.approx(line["test"]["errors"]["student_0"]["top1"])) for line in lines]
    assert curves["test/errors/student_0/top1"] == expected
    assert {"loss/total", "lr", "train/diversity", "images_per_second"} <= curves.keys()
    events = EventAccumulator(str(one_run / "tensorboard")).Reload()
    [start] = [
        metadata
        for tag, metadata in events.summary_metadata.items()
        if tag.endswith("session_start_info")  # as TensorBoard's own plugin names it
    ]
    assert b"method/temperature" in start.plugin_data.content
    assert b"resnet8" in start.plugin_data.content


def test_none_tracks_nothing(tmp_path: Path) -> None:
    run = train_tiny(tmp_path, "tracking.name=none", "train.epochs=1")
    assert not (run / "tensorboard").exists()
    assert not (run / tracking.IDENTITIES).exists()


def test_a_tracker_is_told_settings_figures_and_the_end_and_keeps_stdout_clean(
    recording: type[Recording], tiny: Callable[..., Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny("tracking.name=wandb", "tracking.project=birds", "tracking.options.wandb.group=g")
    run = Path(train(recipe, tmp_path, device="cpu", command="", observer=Observer())["run"])
    assert [call for call, _ in recording.calls] == ["init", "start", "settings", "log", "log", "finish"]
    said = dict(recording.calls)
    project, options = said["init"]
    assert project == "birds"
    assert options == {"name": run.name, "dir": str(run), "settings": {"console": "off"}, "group": "g"}
    settings = said["settings"]
    assert settings["train/batch_size"] == 256
    assert settings["method/name"] == "one"
    assert settings["data/dataset"] == "digits"
    assert settings["schedule/milestones"] == "(0.5, 0.75)"
    assert all(isinstance(value, str | int | float | bool) for value in settings.values())
    assert [said for call, said in recording.calls if call == "log"] == [
        (line["epoch"], tracking_names(line)) for line in Run.open(run).metrics()
    ]
    captured = capsys.readouterr()
    assert "a tracker talks" not in captured.out
    assert "a tracker talks" in captured.err
    assert json.loads((run / tracking.IDENTITIES).read_text()) == {"wandb": "fresh"}
    # Nothing is told to a tracker's maker unless the user has allowed it.
    assert os.environ["DO_NOT_TRACK"] == "true"
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"


def tracking_names(line: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Written again here: "test/errors/student_0/top1"."""
    flat: dict[str, float] = {}
    for key, value in line.items():
        if isinstance(value, dict):
            flat.update(tracking_names(value, f"{prefix}{key}/"))
        elif prefix + key not in ("epoch", "step") and isinstance(value, int | float):
            flat[prefix + key] = value
    return flat


def test_what_the_user_allows_stays_allowed(
    recording: type[Recording], tiny: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "true")
    recipe = tiny("tracking.name=wandb", "train.epochs=1")
    train(recipe, tmp_path, device="cpu", command="", observer=Observer())
    assert os.environ["WANDB_ERROR_REPORTING"] == "true"


# None can stop a training


@pytest.mark.parametrize("call", ["init", "start", "settings", "log", "finish"])
def test_a_tracker_that_raises_is_reported_once_and_left_out(
    call: str, recording: type[Recording], tiny: Callable[..., Recipe], tmp_path: Path
) -> None:
    recording.raising = call
    heard = Heard()
    recipe = tiny('tracking.name=["wandb", "tensorboard"]')
    document = train(recipe, tmp_path / "runs", device="cpu", command="", observer=heard)
    assert document["state"] == "done"
    [note] = [note for note in heard.notes if "wandb" in note]
    assert note.startswith("warning: the tracker wandb failed: ")
    assert "o route to host" in note
    assert "\n" not in note
    assert note.endswith("the training goes on without it")
    assert [made for made, _ in recording.calls].count(call) == 1
    assert [step for step, _ in scalars(Path(document["run"]))["lr"]] == [1, 2]


@pytest.mark.parametrize("call", ["start", "log", "finish"])
def test_a_tracker_that_hangs_is_left_behind(
    call: str, recording: type[Recording], tiny: Callable[..., Recipe], tmp_path: Path
) -> None:
    recording.hanging = call
    heard = Heard()
    recipe = tiny("tracking.name=wandb", "tracking.timeout=0.3")
    try:
        document = train(recipe, tmp_path / "runs", device="cpu", command="", observer=heard)
    finally:
        recording.released.set()
    assert document["state"] == "done"
    [note] = [note for note in heard.notes if "wandb" in note]
    assert "gave no answer within 0.3 seconds (tracking.timeout)" in note
    assert [made for made, _ in recording.calls].count(call) == 1
    assert tracking.left_behind()


def test_a_tensorboard_on_a_full_disk_is_left_out(
    tiny: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.utils.tensorboard import SummaryWriter

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    heard = Heard()
    assert train(tiny(), tmp_path, device="cpu", command="", observer=heard)["state"] == "done"
    [note] = [note for note in heard.notes if "tensorboard" in note]
    assert "No space left on device, after epoch 1" in note


HANGING = """
import sys, threading, atexit
import accelerate.tracking
from accelerate.utils import LoggerType
from distilkit import cli
from distilkit.training import tracking

class Hanging(accelerate.tracking.GeneralTracker):
    name, requires_logging_directory, tracker = "wandb", False, None
    def __init__(self, *args, **options):
        super().__init__()
    def start(self):
        threading.Event().wait()

# What W&B does at the end of a process: it waits for its service.
atexit.register(threading.Event().wait)
accelerate.tracking.LOGGER_TYPE_TO_CLASS["wandb"] = Hanging
accelerate.tracking._available_trackers.append(LoggerType.WANDB)
tracking._READ_SETTINGS.clear()
cli.main(sys.argv[1:])
"""


def test_the_process_ends_although_a_tracker_never_does(tmp_path: Path) -> None:
    file = tmp_path / "tiny.toml"
    file.write_text(TINY, encoding="utf-8")
    changes = ["--set", "tracking.name=wandb", "--set", "tracking.timeout=0.5", "--set", "train.epochs=1"]
    done = subprocess.run(
        [sys.executable, "-c", HANGING, "train", str(file), *changes, "--device", "cpu", "--json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(package.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "done"
    assert done.stderr.count("the tracker wandb gave no answer within 0.5 seconds") == 1


# Going on


def test_a_resumed_training_goes_on_with_the_trackers_own_run(
    recording: type[Recording], tiny: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = tiny('tracking.name=["wandb", "tensorboard"]', "train.epochs=3")
    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "runs", device="cpu", command="", observer=stop_after(1)())
    [run] = (tmp_path / "runs").iterdir()
    assert [call for call, _ in recording.calls][-1] == "finish"
    del recording.calls[:]
    assert resume(run, device="cpu", observer=Observer())["state"] == "done"
    said = dict(recording.calls)
    assert said["init"][1]["id"] == "fresh"
    assert said["init"][1]["resume"] == "allow"
    assert [step for step, _ in scalars(run)["lr"]] == [1, 2, 3]


def test_another_tracker_may_go_on_with_a_run(
    recording: type[Recording], tiny: Callable[..., Recipe], tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        train(tiny(), tmp_path / "runs", device="cpu", command="", observer=stop_after(1)())
    [run] = (tmp_path / "runs").iterdir()
    other = tiny("tracking.name=wandb")
    assert resume(run, device="cpu", observer=Observer(), recipe=other)["state"] == "done"
    assert [said[0] for call, said in recording.calls if call == "log"] == [2]
    kept = Run.open(run)
    assert kept.recipe.tracking.names == ("wandb",)
    assert kept.record["recipe_changes"][0]["changes"] == ["tracking.name was tensorboard, now wandb"]


def test_what_is_trained_may_not_change_with_the_tracker(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(tiny(), tmp_path / "runs", device="cpu", command="", observer=stop_after(1)())
    [run] = (tmp_path / "runs").iterdir()
    with pytest.raises(UserError, match=r"another recipe: optimizer\.lr was 0\.05, now 0\.01\s+hint"):
        resume(run, device="cpu", observer=Observer(), recipe=tiny("tracking.name=none", "optimizer.lr=0.01"))


@pytest.mark.parametrize("content", ["", "[]", '{"wandb": 3}', "\x00"])
def test_a_damaged_file_of_identities_begins_a_new_run(
    content: str, recording: type[Recording], tiny: Callable[..., Recipe], tmp_path: Path
) -> None:
    (tmp_path / tracking.IDENTITIES).write_text(content)
    heard = Heard()
    Tracking = tracking.Tracking(("wandb",), tiny("tracking.name=wandb"), tmp_path, 0, heard)
    Tracking.start()
    Tracking.finish()
    assert not heard.notes
    assert "id" not in dict(recording.calls)["init"][1]
    assert json.loads((tmp_path / tracking.IDENTITIES).read_text()) == {"wandb": "fresh"}


# Really written, each in a process of its own: both change much of the process that they are in


TRAINED = """
import sys
from pathlib import Path
from distilkit.observer import Observer
from distilkit.recipe import load
from distilkit.training.interrupt import Interrupted
from distilkit.workflows.train.train import resume, train

class Notes(Observer):
    def note(self, message):
        sys.stderr.write(message + "\\n")

class Stops(Notes):
    def epoch_finished(self, line):
        raise KeyboardInterrupt

try:
    train(load("tiny.toml", sys.argv[1:]), Path("runs"), device="cpu", command="", observer=Stops())
except Interrupted:
    [run] = Path("runs").iterdir()
    # A run does not say where figures go; whoever goes on with it does.
    resume(run, device="cpu", observer=Notes(), recipe=load("tiny.toml", sys.argv[1:]))
"""


def trained_in_two_parts(folder: Path, *overrides: str) -> Path:
    """Two epochs in a process of their own, interrupted after the first: the run."""
    (folder / "tiny.toml").write_text(TINY, encoding="utf-8")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "WANDB_"))}
    done = subprocess.run(
        [sys.executable, "-c", TRAINED, *overrides],
        cwd=folder,
        env={
            **clean,
            "PYTHONPATH": str(Path(package.__file__).parents[1]),
            "OMP_NUM_THREADS": "1",
            "HOME": str(folder),
            # Whoever asks for the network hears no.
            "HTTPS_PROXY": "http://127.0.0.1:9",
            "HTTP_PROXY": "http://127.0.0.1:9",
        },
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "warning: the tracker" not in done.stderr
    assert done.stdout == ""
    [run] = (folder / "runs").iterdir()
    return run


@pytest.mark.skipif(
    not (find_spec("mlflow") and find_spec("alembic") and find_spec("sqlalchemy")),
    reason='MLflow with its SQLite store is not installed: pip install "distilkit[tracking]"',
)
def test_mlflow_is_written_to_a_local_store_and_gone_on_with(tmp_path: Path) -> None:
    uri = f"tracking.options.mlflow.tracking_uri=sqlite:///{tmp_path / 'store.db'}"
    run = trained_in_two_parts(tmp_path, "tracking.name=mlflow", "tracking.project=birds", uri)
    with sqlite3.connect(tmp_path / "store.db") as store:
        assert store.execute("select name from experiments where name != 'Default'").fetchall() == [("birds",)]
        [(identity, name, status)] = store.execute("select run_uuid, name, status from runs").fetchall()
        assert (name, status) == (run.name, "FINISHED")
        assert dict(store.execute("select key, value from params").fetchall())["method/temperature"] == "3.0"
        rows = store.execute("select step, value from metrics where key = 'test/errors/student_0/top1' order by step")
        lines = Run.open(run).metrics()
        assert len(lines) == 2
        assert rows.fetchall() == [(line["epoch"], line["test"]["errors"]["student_0"]["top1"]) for line in lines]
    assert json.loads((run / tracking.IDENTITIES).read_text()) == {"mlflow": identity}


@pytest.mark.skipif(not find_spec("wandb"), reason='wandb is not installed: pip install "distilkit[tracking]"')
def test_wandb_is_written_offline_and_gone_on_with(tmp_path: Path) -> None:
    run = trained_in_two_parts(tmp_path, "tracking.name=wandb", "tracking.options.wandb.mode=offline")
    identity = json.loads((run / tracking.IDENTITIES).read_text())["wandb"]
    folders = list((run / "wandb").glob("offline-run-*"))
    assert folders
    assert {folder.name.rpartition("-")[2] for folder in folders} == {identity}
    written = b"".join(file.read_bytes() for folder in folders for file in folder.glob("*.wandb"))
    assert written.count(b"test/errors/student_0/top1") >= 2
    assert b"method/temperature" in written
