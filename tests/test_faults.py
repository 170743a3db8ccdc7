"""What happens to a machine in a long night: no room, no memory, lost folders, clocks set back, two at one run.

tests/test_disk.py has the disk of the training itself, tests/test_kills.py its death, tests/test_streaming.py what
happens to the images.
"""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from comparing import StopAt
from conftest import TINY, Result

from distilkit.errors import UserError
from distilkit.observer import Observer
from distilkit.recipe import Recipe
from distilkit.runs import atomic as writing
from distilkit.runs import checkpoint as checkpoints
from distilkit.runs import run as runs
from distilkit.runs.run import Run
from distilkit.training import processes
from distilkit.training.interrupt import Interrupted
from distilkit.training.trainer import Trainer
from distilkit.workflows.deploy import predict as prediction
from distilkit.workflows.train.train import resume, train

Command = Callable[..., Result]
ROBUSTNESS = ("robustness", "--steps", "1", "--directions", "1", "--images", "20", "--device", "cpu")
NO_SPACE = os.strerror(errno.ENOSPC)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with 24 MB, in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path, spare: int) -> None:
    """Leave so many bytes free."""
    with (disk / "filler").open("wb") as file:
        file.write(bytes(max(0, shutil.disk_usage(disk).free - spare)))


def files(folder: Path) -> dict[str, bytes]:
    found = {path for path in folder.rglob("*") if path.is_file() and path.name not in (".lock", "filler")}
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


# The disk is full for what comes after the training


WRITING: dict[str, tuple[str, ...]] = {
    "prune-branches": ("prune-branches",),
    "robustness": (*ROBUSTNESS, "--no-parameters", "--inputs", "noise", "--junit", "{disk}/junit.xml"),
    "report": ("report", "--no-evaluate"),
    "compare": ("compare", "--output", "{disk}/table.csv"),
}
PUSH = {"push": ("push", "--to", "{disk}/published")}


@pytest.mark.parametrize(
    ("what", "spare"),
    [
        *((what, 0) for what in WRITING),
        *(
            pytest.param(what, spare, marks=pytest.mark.long)
            for what in (*WRITING, "push")
            for spare in (4_096, 40_000)
        ),
    ],
)
def test_a_full_disk_leaves_no_half_result_and_the_command_works_when_there_is_room(
    what: str, spare: int, disk: Path, baseline_run: Path, distilkit: Command
) -> None:
    command, *rest = (word.format(disk=disk) for word in (WRITING | PUSH)[what])
    run = Path(shutil.copytree(baseline_run, disk / "runs" / "one"))
    fill(disk, spare)
    before = files(disk)
    full = distilkit(command, run, *rest, "--json")
    if full.status == 0:
        assert spare, "it has written nothing"
        return
    assert full.status == 2, full
    assert NO_SPACE in full.json["error"]["message"]
    assert str(disk) in full.json["error"]["message"]
    assert ".partial" not in full.json["error"]["message"]
    after = files(disk)
    assert {name: after[name] for name in before} == before
    # What was finished before the room was used up may be there; nothing is empty or has a name of its making.
    assert not [name for name in after.keys() - before.keys() if not after[name] or ".partial" in name]
    (disk / "filler").unlink()
    assert distilkit(command, run, *rest, "--json").status == 0


def test_what_only_reads_needs_no_room(disk: Path, baseline_run: Path, distilkit: Command) -> None:
    run = Path(shutil.copytree(baseline_run, disk / "runs" / "one"))
    fill(disk, 0)
    for words in (("evaluate", run), ("runs", "--runs", disk / "runs"), ("compare", run)):
        assert distilkit(*words, "--json").status == 0, words


@pytest.mark.long
@pytest.mark.parametrize("more", [(), ("--format", "pt2"), ("--format", "openvino"), ("--quantize", "int8")], ids=str)
@pytest.mark.parametrize("spare", [0, 100_000])
def test_an_export_to_a_full_disk_leaves_nothing(
    more: tuple[str, ...], spare: int, disk: Path, baseline_run: Path, distilkit: Command
) -> None:
    run = Path(shutil.copytree(baseline_run, disk / "runs" / "one"))
    fill(disk, spare)
    before = files(disk)
    full = distilkit("export", run, *more, "--json")
    assert full.status == 2, full
    assert NO_SPACE in full.json["error"]["message"]
    assert files(disk) == before


def test_where_nothing_temporary_can_be_written_that_is_named(
    tmp_path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(disk, 0)
    with pytest.raises(UserError, match=f"temporary.*{NO_SPACE}") as error, writing.writable(tmp_path / "out"):
        raise OSError(errno.ENOSPC, NO_SPACE, str(disk / "temporary"))
    assert "TMPDIR" in str(error.value.hint)


def test_a_fault_of_ours_is_shown_where_its_file_cannot_be_written(
    one_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from distilkit import cli
    from distilkit.cli import console
    from distilkit.workflows.evaluation import evaluate

    def fail(*args: object, **kwargs: object) -> None:
        raise IndexError("a fault")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, NO_SPACE)

    monkeypatch.setattr(evaluate, "evaluate", fail)
    monkeypatch.setattr(console.tempfile, "NamedTemporaryFile", full)
    with pytest.raises(SystemExit) as left:
        cli.main(["evaluate", str(one_run)])
    assert left.value.code == 3
    said = capsys.readouterr().err
    assert "the details are above" in said
    assert "IndexError: a fault" in said


# The run's folder goes


class Vanish(Observer):
    """Removes the run's folder, or a part of it, when a certain step of the second epoch is done."""

    def __init__(self, runs: Path, part: str) -> None:
        self.runs, self.part = runs, part

    def steps_finished(self, epoch: int, step_in_epoch: int, losses: Mapping[str, float]) -> None:
        if (epoch, step_in_epoch) == (2, 2):
            (run,) = self.runs.iterdir()
            if (run / self.part).exists():
                shutil.rmtree(run / self.part)


@pytest.mark.parametrize("part", [".", "checkpoints"])
def test_a_run_folder_that_vanishes_ends_the_training_with_a_message(
    part: str, tiny: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = tiny("method.name=baseline", "tracking.name=none")
    folder = tmp_path / "runs"
    if part == "checkpoints":  # which are made again
        result = train(recipe, folder, device="cpu", command="", observer=Vanish(folder, part))
        assert checkpoints.load(Run.open(Path(result["run"])).checkpoint("last"))
        return
    with pytest.raises(UserError, match=str(folder)) as error:
        train(recipe, folder, device="cpu", command="", observer=Vanish(folder, part))
    assert os.strerror(errno.ENOENT) in error.value.problem


LATER = (
    "evaluate",
    "ensemble-eval",
    "prune-branches",
    "robustness",
    "export",
    "report",
    "compare",
    "push",
    "benchmark",
)


@pytest.mark.parametrize("gone", ["", "run.json", "recipe.toml", "checkpoints", "checkpoints/last", "metrics.jsonl"])
def test_every_later_command_names_what_has_vanished(
    gone: str, baseline_run: Path, tmp_path: Path, distilkit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distilkit.workflows.deploy.export._write", lambda *args: pytest.fail("it was exported"))
    run = Path(shutil.copytree(baseline_run, tmp_path / "runs" / "one"))
    (run / "checkpoints" / "best").unlink(missing_ok=True)
    if (run / gone).is_dir():
        shutil.rmtree(run / gone)
    else:
        (run / gone).unlink()
    for command in LATER:
        more = {"push": ("--to", tmp_path / "published"), "robustness": ROBUSTNESS[1:]}.get(command, ())
        if gone == "metrics.jsonl" and command in ("export", "benchmark", "push", "prune-branches", "robustness"):
            continue  # which do not need it, and work for long
        if command == "report":
            more = ("--no-figures", "--no-evaluate", "--output", tmp_path / "report.html")
        result = distilkit(command, run, *more, "--json")
        assert result.status in (0, 2), (command, result.err)
        if result.status == 2:
            assert str(run) in result.json["error"]["message"], (command, result.err)
        assert gone not in ("", "run.json", "recipe.toml") or result.status == 2, command


# Two at one run


def test_other_commands_work_beside_a_training(tiny: Callable[..., Recipe], tmp_path: Path, distilkit: Command) -> None:
    """Between two steps of it; what they add is no matter to it."""
    seen: dict[str, Result] = {}

    class Beside(Observer):
        def steps_finished(self, epoch: int, step_in_epoch: int, losses: Mapping[str, float]) -> None:
            if (epoch, step_in_epoch) == (2, 3):
                (run,) = (tmp_path / "runs").iterdir()
                for command in ("evaluate", "prune-branches", "ensemble-eval"):
                    seen[command] = distilkit(command, run, "--json")
                seen["runs"] = distilkit("runs", "prune", "--runs", run.parent, "--name", "*", "--yes", "--json")

    recipe = tiny("tracking.name=none", "group.students=2")
    result = train(recipe, tmp_path / "runs", device="cpu", command="", observer=Beside())
    assert {name: each.status for name, each in seen.items()} == dict.fromkeys(seen, 0), seen
    assert seen["runs"].json["spared"], "a training's run is not deleted"
    alone = train(recipe, tmp_path / "alone", device="cpu", command="", observer=Observer())
    assert result["errors"] == alone["errors"]
    assert Run.open(Path(result["run"])).record["state"] == "done"


def test_a_checkpoint_that_a_training_replaces_while_it_is_read_is_read_anew(
    baseline_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.open(Path(shutil.copytree(baseline_run, tmp_path / "one")))
    old = run.checkpoint("last")
    load_part, seen = checkpoints.load_part, []

    def replaced(path: Path, part: str) -> Any:
        seen.append(path.name)
        if len(seen) == 2:  # between the first file and the second
            newer = old.with_name("step_999999")
            shutil.copytree(old, newer)
            checkpoints.point(old.parent, "last", newer.name)
            shutil.rmtree(old)
        return load_part(path, part)

    monkeypatch.setattr(checkpoints, "load_part", replaced)
    assert run.learner("last") is not None
    assert seen == [old.name, old.name, "step_999999", "step_999999"]


# The clock


class Clock(datetime):
    """A clock that is wrong by so much."""

    wrong_by = timedelta(0)

    @classmethod
    def now(cls, tz: Any = None) -> "Clock":
        return cls.fromtimestamp((datetime.now(tz) + cls.wrong_by).timestamp(), tz)


def test_the_newest_run_is_found_though_the_clock_was_set_back(
    baseline_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distilkit: Command
) -> None:
    monkeypatch.setattr(runs, "datetime", Clock)
    source, names = Run.open(baseline_run), []
    about = {key: value for key, value in source.record.items() if key not in ("created", "after", "format")}
    for days in (0, 9, 3, 2, 4, 10):  # the clock goes wrong, back, back again, forth, and beyond all
        monkeypatch.setattr(Clock, "wrong_by", timedelta(days=days))
        names.append(Run.create(source.recipe, tmp_path / "runs", about).path.name)
        assert Run.newest(tmp_path / "runs").path.name == names[-1]
    rows = distilkit("runs", "--runs", tmp_path / "runs", "--json").json["runs"]
    assert [Path(row["run"]).name for row in rows] == names[::-1]
    assert all(row["age_seconds"] >= 0 for row in rows)
    assert distilkit("runs", "prune", "--runs", tmp_path / "runs", "--keep", "1", "--yes", "--json").status == 0
    assert [path.name for path in (tmp_path / "runs").iterdir()] == names[-1:]


def test_durations_are_not_the_wall_clocks(
    tiny: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is set back by a day at every look, in the training, between its checkpoints and when it is resumed."""
    days = iter(range(10_000))
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 86_400 * next(days))
    recipe = tiny("method.name=baseline", "train.checkpoint_minutes=0.0001")
    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "runs", device="cpu", command="", observer=StopAt(2, 2))
    (path,) = (tmp_path / "runs").iterdir()
    assert resume(path, device="cpu", observer=Observer())["state"] == "done"
    lines = Run.open(path).metrics()
    assert [line["epoch"] for line in lines] == [1, 2]
    assert all(line["seconds"] > 0 and line["images_per_second"] > 0 for line in lines)


# Memory

CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 1 GiB")
CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:130] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "99999999999 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.mark.parametrize("error", [CUDA, CPU, MemoryError()], ids=["CUDA", "CPU", "Python"])
def test_too_little_memory_says_which_batch_to_try(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distilkit: Command
) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise error

    (tmp_path / "tiny.toml").write_text(TINY)
    monkeypatch.setattr(Trainer, "_step", fails)
    words = ("train", tmp_path / "tiny.toml", "--device", "cpu", "--json", "--runs", tmp_path / "runs")
    result = distilkit(*words, "--set", "train.accumulation=2")
    assert result.status == 2, result.err
    told = result.json["error"]
    assert "too little memory for this training in 128 images at a time" in told["message"]
    assert "--set train.accumulation=4 (the batch stays 256, computed 64 images at a time)" in told["hint"]
    assert "--set train.batch_size=128" in told["hint"]
    (run,) = (tmp_path / "runs").iterdir()
    assert Run.open(run).record["state"] == "failed"


def test_what_ran_out_of_memory_goes_on_with_a_batch_in_more_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distilkit: Command
) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    step = Trainer._step

    def fails(self: Trainer, number: int, *args: Any) -> None:
        if number == 8 and self.recipe.train.accumulation == 1:
            raise CPU
        step(self, number, *args)

    monkeypatch.setattr(Trainer, "_step", fails)
    words = ("train", tmp_path / "tiny.toml", "--device", "cpu", "--json")
    failed = distilkit(*words, "--runs", tmp_path / "runs")
    (run,) = (tmp_path / "runs").iterdir()
    assert f"--resume {run} --accept-changes" in failed.json["error"]["hint"]
    resumed = distilkit(*words, "--resume", run, "--set", "train.accumulation=2", "--accept-changes")
    assert resumed.status == 0, resumed.err


@pytest.mark.parametrize("error", [CUDA, CPU, MemoryError("Unable to allocate 3 TiB")], ids=["CUDA", "CPU", "Python"])
def test_too_little_memory_for_any_command_is_said(
    error: Exception, one_run: Path, monkeypatch: pytest.MonkeyPatch, distilkit: Command
) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr("distilkit.workflows.evaluation.evaluate.predict", fails)
    result = distilkit("evaluate", one_run, "--json")
    assert result.status == 2
    assert "too little memory" in result.json["error"]["message"]


def test_another_runtime_error_is_no_want_of_memory(
    tiny: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Trainer, "_step", fails)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        train(tiny(), tmp_path / "runs", device="cpu", command="", observer=Observer())


# What is not there


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--device", "cuda"), "there is no CUDA device here"),
        (("--device", "cpu", "--set", "train.precision=fp16"), "fp16 trains on a CUDA device only"),
        (("--device", "cpu", "--set", "train.sync_batch_norm=true"), "on CUDA devices only"),
    ],
)
def test_a_recipe_that_wants_cuda_says_so_before_there_is_a_run(
    words: tuple[str, ...], message: str, tmp_path: Path, distilkit: Command
) -> None:
    (tmp_path / "tiny.toml").write_text(TINY.replace('precision = "fp32"', ""))
    result = distilkit("train", tmp_path / "tiny.toml", *words, "--runs", tmp_path / "runs")
    assert result.status == 2
    assert message in result.err
    assert "hint" in result.err
    assert not (tmp_path / "runs").exists()


def test_the_home_of_nobody_is_named(tmp_path: Path, distilkit: Command) -> None:
    nobody = "~nosuchuser/images"
    changes = ("--set", "data.dataset=image-folder", "--set", f"data.root={nobody}")
    for more in ((), ("--dry-run",)):
        result = distilkit("train", "quickstart", *changes, *more, "--runs", tmp_path / "runs", "--device", "cpu")
        assert result.status == 2, result.err
        assert "there is no user 'nosuchuser' here" in result.err
        assert "data.root" in result.err
    assert distilkit("pull", nobody).status == 2
    import distilkit as package

    with pytest.raises(UserError, match="nosuchuser"):
        package.load(nobody)


# What a launcher and others leave in the environment


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"])
@pytest.mark.parametrize("value", ["abc", "", "\u00b2"])
def test_a_launchers_number_that_is_none_is_named(
    name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distilkit: Command
) -> None:
    monkeypatch.setenv(name, value)
    result = distilkit("runs", "--runs", tmp_path, "--json")
    assert result.status == 2
    assert f"{name} must be a whole number" in result.json["error"]["message"]


def test_a_rank_alone_makes_no_part_of_many(monkeypatch: pytest.MonkeyPatch, distilkit: Command) -> None:
    """One of several leaves the document to the first of them; one that is alone has nobody to leave it to."""
    monkeypatch.setenv("RANK", "1")
    assert distilkit("recipes", "show", "nosuch", "--json").json["error"]["message"]
    assert processes.is_main()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not processes.is_main()


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, "cannot join the processes of this training"),
        ({"ACCELERATE_USE_CPU": "maybe"}, "cannot do what its settings ask for: invalid truth value"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "cannot do what its settings ask for: DeepSpeed is not installed"),
    ],
    ids=str,
)
def test_what_accelerate_cannot_do_is_no_fault_of_ours(
    variables: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    try:
        with pytest.raises(UserError, match=words) as error:
            processes.make_accelerator("fp32", "cpu")
        assert all(name in str(error.value.hint) for name in variables if name != "LOCAL_RANK")
    finally:
        monkeypatch.undo()
        processes.make_accelerator("fp32", "cpu")


def test_the_recipe_alone_decides_what_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """`accelerate launch` hands its own configuration on, in which somebody may have chosen a compiler."""
    for backend in ("inductor", "nosuch"):
        monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", backend)
        accelerator = processes.make_accelerator("fp32", "cpu")
        assert accelerator.prepare(torch.nn.Linear(2, 2)).__class__ is torch.nn.Linear


def test_a_package_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    """torch refuses names of logs that it does not have while it is imported."""
    done = subprocess.run(
        [sys.executable, "-m", "distilkit", "compare", "--json"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "TORCH_LOGS": "nosuchlog"},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "torch cannot be imported here: ValueError" in json.loads(done.stdout)["error"]["message"]
    assert "Traceback" not in done.stderr


# Shared memory, as a container may have it


def images(root: Path) -> Path:
    from PIL import Image

    for place, part in enumerate(("train/a", "train/b", "test/a", "test/b")):
        (root / part).mkdir(parents=True)
        for number in range(24):
            Image.new("RGB", (64, 64), (place * 60, number * 9, 90)).save(root / part / f"{number}.png")
    return root


def streaming(folder: Path) -> Path:
    data = f'"image-folder"\nroot = "{images(folder / "images")}"\nimage_size = 64\nstorage = "stream"\nworkers = 2'
    text = TINY.replace('"digits"', data).replace("batch_size = 256", "batch_size = 8")
    file = folder / "stream.toml"
    file.write_text(text.replace('name = "one"', 'name = "baseline"'), encoding="utf-8")
    return file


@pytest.mark.long
@pytest.mark.parametrize("options", ["size=64k", "size=1m,ro"], ids=["64 kB", "read-only"])
def test_without_shared_memory_workers_are_not_waited_for(options: str, tmp_path: Path) -> None:
    """The real command, with a /dev/shm of its own."""
    file = streaming(tmp_path)
    program = [sys.executable, "-m", "distilkit", "train", str(file), "--device", "cpu", "--json"]
    mount = f'mount -t tmpfs -o {options} tmpfs /dev/shm && exec "$@"'
    if subprocess.run(["unshare", "-m", "sh", "-c", mount, "sh", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    with subprocess.Popen(
        ["unshare", "-m", "sh", "-c", mount, "sh", *program],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            out, err = process.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 2, err
    assert "Traceback" not in err
    assert "data.workers = 0" in json.loads(out)["error"]["hint"]
    done = subprocess.run([*program, "--set", "data.workers=0"], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc to find the workers")
def test_a_training_whose_worker_is_killed_saves_and_is_resumed(tmp_path: Path) -> None:
    file = streaming(tmp_path)
    program = [sys.executable, "-m", "distilkit", "train"]
    process = subprocess.Popen(
        [*program, str(file), "--set", "train.epochs=100000", "--device", "cpu", "--json"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until = time.monotonic() + 240
    while not any(tmp_path.glob("runs/*/checkpoints/last")) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.2)
    servers = _below(process.pid)
    workers = [pid for server in servers for pid in _below(server)]
    assert workers
    os.kill(workers[0], signal.SIGKILL)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 2, err
    assert "SIGKILL" in json.loads(out)["error"]["message"]
    (run,) = (tmp_path / "runs").iterdir()
    assert f"--resume {run.relative_to(tmp_path)}" in json.loads(out)["error"]["hint"]
    done = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["epoch"]
    more = ["--set", f"train.epochs={done + 1}", "--accept-changes", "--resume", str(run)]
    resumed = subprocess.run([*program, str(file), *more], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr


def _below(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def test_pictures_are_predicted_in_batches_that_fit(tmp_path: Path) -> None:
    """A file may ask for pictures of thousands of pixels."""
    from fuzzing import onnx_files

    (tmp_path / "any.onnx").write_bytes(onnx_files()[1])
    deployed = prediction.open_file(tmp_path / "any.onnx")
    assert prediction._fitting(deployed) == prediction.BATCH
    framing = deployed.preparation.framing._replace(size=8000, short_side=8000)
    assert prediction._fitting(deployed._replace(preparation=deployed.preparation._replace(framing=framing))) == 1
