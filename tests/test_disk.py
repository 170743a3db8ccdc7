"""Disks that are full, cannot be written, or lose bits: what was reported as written stays, and the message says so."""

import errno
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest
from comparing import Crash, CrashAt, Notes, StopAt, assert_same_run
from conftest import TINY, Result, train_tiny

from distilkit.errors import UserError
from distilkit.observer import Observer
from distilkit.recipe import Recipe
from distilkit.runs import checkpoint as checkpoints
from distilkit.runs import metrics as log
from distilkit.runs.run import Run
from distilkit.training import trainer
from distilkit.training.interrupt import Interrupted
from distilkit.workflows.train.train import resume, train

Command = Callable[..., Result]
SETTINGS = ("method.name=baseline", "train.checkpoint_steps=2", "data.validation=0.1")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tiny(tmp_path_factory.mktemp("whole"), *SETTINGS)


@pytest.fixture
def arguments(tmp_path: Path) -> tuple[object, ...]:
    """`train` and its recipe, without --runs."""
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(TINY, encoding="utf-8")
    return ("train", recipe, *(word for setting in SETTINGS for word in ("--set", setting)), "--device", "cpu")


class Disk:
    """A small file system of its own, in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", self.folder], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", folder], check=True, capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here: {getattr(error, 'stderr', '') or error}")
    yield Disk(folder)
    subprocess.run(["umount", "--lazy", folder], check=True)


def only(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def last(run: Path) -> str | None:
    return checkpoints.pointed(run / "checkpoints", "last")


# Full


def test_a_full_disk_leaves_status_2_and_the_checkpoint_before_and_resuming_ends_equal(
    disk: Disk, uninterrupted: Path, arguments: tuple[object, ...], distilkit: Command
) -> None:
    one = sum(file.stat().st_size for file in Run.open(uninterrupted).checkpoint("last").iterdir())
    # Two are kept, and the third is written beside them.
    disk.remount(f"size={(int(2.7 * one) + 150_000) // 1024}k")
    full = distilkit(*arguments, "--runs", disk.folder, "--json")
    assert full.status == 2, full
    run = only(disk.folder)
    message = full.json["error"]["message"]
    assert f"the checkpoint {run / 'checkpoints' / 'step_'}" in message
    assert os.strerror(errno.ENOSPC) in message
    assert "intact" in full.json["error"]["hint"]
    assert last(run) == "step_4"
    for name in checkpoints.names(run / "checkpoints"):
        checkpoints.load(run / "checkpoints" / name)
    assert not list(run.rglob(".partial-step*")), "what could not be finished gives its space back"
    again = distilkit("train", "--resume", run, "--device", "cpu", "--json")
    assert again.status == 2
    assert last(run) == "step_4"
    disk.remount("size=32m")
    assert distilkit("train", "--resume", run, "--device", "cpu", "--json").status == 0
    assert_same_run(uninterrupted, run)


@pytest.mark.parametrize("pages", range(10))
def test_a_disk_that_is_full_from_the_start_leaves_status_2_and_names_what_cannot_be_written(
    pages: int, disk: Disk, arguments: tuple[object, ...], distilkit: Command
) -> None:
    """Every small file with which a run begins is once the one that does not fit."""
    (disk.folder / "runs").mkdir()
    page = os.sysconf("SC_PAGE_SIZE")
    disk.remount(f"size={page * (pages + 1)}")
    (disk.folder / "filler").write_bytes(bytes(page))
    full = distilkit(*arguments, "--runs", disk.folder / "runs", "--json")
    assert full.status == 2, full
    message = full.json["error"]["message"]
    assert os.strerror(errno.ENOSPC) in message
    assert str(disk.folder / "runs") in message


class Failing:
    """Lets the n-th of the writes of one kind fail, as a full disk or a lost network drive does."""

    def __init__(self, occurrence: int, number: int) -> None:
        self.left, self.number = occurrence, number

    def __call__(self, path: object) -> None:
        self.left -= 1
        if self.left == 0:
            raise OSError(self.number, os.strerror(self.number), str(path))


WRITES = {
    "group.safetensors": 2,
    "optimizer.safetensors": 3,
    "state.json": 1,
    "last": 2,
    "best": 1,
    "run.json": 3,
    "README.md": 1,
    "metrics.jsonl": 2,
    "rename": 4,
    "replace": 8,
    "fsync": 9,
}


@pytest.mark.parametrize(
    ("kind", "number"),
    [*((kind, errno.ENOSPC) for kind in WRITES), ("optimizer.safetensors", errno.EIO), ("metrics.jsonl", errno.EROFS)],
)
def test_whatever_cannot_be_written_the_message_says_so_and_the_run_can_be_finished(
    kind: str, number: int, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = Failing(WRITES[kind], number)
    save_file, write_text, write = checkpoints.save_file, Path.write_text, log._write
    rename, replace, fsync = Path.rename, Path.replace, os.fsync

    def tensors(values: Any, file: Path) -> None:
        if file.name == kind:
            failing(file)
        save_file(values, file)

    def text(self: Path, *args: Any, **kwargs: Any) -> int:
        if self.name.removeprefix(".partial-") == kind:
            write_text(self, "half")
            failing(self)
        return write_text(self, *args, **kwargs)

    def lines(stream: TextIO, *args: Any) -> None:
        if kind == "metrics.jsonl":
            failing(stream.name)
        write(stream, *args)

    def renamed(self: Path, target: Path) -> Path:
        if kind == "rename":
            failing(self)
        return rename(self, target)

    def replaced(self: Path, target: Path) -> Path:
        if kind == "replace":
            failing(self)
        return replace(self, target)

    def flushed(descriptor: int) -> None:
        if kind == "fsync":
            failing("")
        fsync(descriptor)

    recipe = Run.open(uninterrupted).recipe
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_file", tensors)
        patch.setattr(Path, "write_text", text)
        patch.setattr(log, "_write", lines)
        patch.setattr(Path, "rename", renamed)
        patch.setattr(Path, "replace", replaced)
        patch.setattr(os, "fsync", flushed)
        with pytest.raises(UserError) as error:
            train(recipe, tmp_path / "runs", device="cpu", command="", observer=Observer())
    assert os.strerror(number) in error.value.problem
    run = only(tmp_path / "runs")
    assert str(run) in error.value.problem
    assert Run.open(run).record["state"] in ("failed", "running")
    name = last(run)
    if name is not None:
        checkpoints.load(run / "checkpoints" / name)
    assert resume(run, device="cpu", observer=Observer())["state"] == "done"
    assert_same_run(uninterrupted, run)
    assert not list(run.rglob(".partial-*"))


# It cannot be written


def test_a_run_on_a_read_only_disk_is_refused_and_goes_on_when_it_can_be_written(
    disk: Disk, uninterrupted: Path, arguments: tuple[object, ...], distilkit: Command
) -> None:
    with pytest.raises(Interrupted):
        train(Run.open(uninterrupted).recipe, disk.folder, device="cpu", command="", observer=StopAt(1, 3))
    run = only(disk.folder)
    disk.remount("ro")
    refused = distilkit("train", "--resume", run, "--device", "cpu", "--json")
    assert refused.status == 2
    assert f"{run} cannot be written: {os.strerror(errno.EROFS)}" in refused.json["error"]["message"]
    new = distilkit(*arguments, "--runs", disk.folder, "--json")
    assert new.status == 2
    assert str(disk.folder) in new.json["error"]["message"]
    assert os.strerror(errno.EROFS) in new.json["error"]["message"]
    disk.remount("rw")
    assert distilkit("train", "--resume", run, "--device", "cpu", "--json").status == 0
    assert_same_run(uninterrupted, run)
    disk.remount("ro")
    finished = distilkit("train", "--resume", run, "--device", "cpu", "--json")
    assert finished.status == 0
    assert finished.json["state"] == "done"
    assert distilkit("evaluate", run, "--device", "cpu", "--json").status == 0


def test_who_may_read_a_run_may_read_its_weights(uninterrupted: Path) -> None:
    folder = Run.open(uninterrupted).checkpoint("last")
    modes = {file.name: file.stat().st_mode & 0o777 for file in folder.iterdir()}
    assert set(modes.values()) == {folder.stat().st_mode & 0o666}, modes


# It loses bits


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flip(file: Path) -> None:
    """One bit of the middle byte; in text a digit or letter becomes another one."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def flip_a_digit(file: Path) -> None:
    """In the sums of the unfinished epoch: what is left is a state that reads as well as the true one."""
    state = json.loads(file.read_text())
    state["sums"]["loss/total"] += 1
    file.write_text(json.dumps(state))


@pytest.fixture
def unfinished(uninterrupted: Path, tmp_path: Path) -> Path:
    """Interrupted after step 7; step 6 is the checkpoint before."""
    with pytest.raises(Interrupted):
        train(Run.open(uninterrupted).recipe, tmp_path / "cut", device="cpu", command="", observer=StopAt(2, 2))
    run = only(tmp_path / "cut")
    assert checkpoints.names(run / "checkpoints")[-2:] == ["step_6", "step_7"]
    return run


FILES = ("group.safetensors", "method.safetensors", "optimizer.safetensors", "state.json")


@pytest.mark.parametrize(
    ("name", "damage"), [*((name, damage) for name in FILES for damage in (cut, flip)), ("state.json", flip_a_digit)]
)
def test_a_damaged_checkpoint_is_passed_over_loudly_and_the_run_ends_equal(
    name: str, damage: Callable[[Path], None], unfinished: Path, uninterrupted: Path
) -> None:
    damage(unfinished / "checkpoints" / "step_7" / name)
    observer = Notes()
    resume(unfinished, device="cpu", observer=observer)
    warning = observer.notes[0]
    assert warning.startswith("warning:")
    assert str(unfinished / "checkpoints" / "step_7" / name) in warning
    assert "damaged" in warning
    assert_same_run(uninterrupted, unfinished)


def test_the_pointers_leave_a_damaged_checkpoint_for_the_one_that_is_taken(
    unfinished: Path, tiny: Callable[..., Recipe]
) -> None:
    cut(unfinished / "checkpoints" / "step_7" / "group.safetensors")
    (unfinished / "checkpoints" / "best").write_text("step_7")
    with pytest.raises(Crash):
        resume(unfinished, device="cpu", observer=CrashAt(2, 2))
    assert last(unfinished) == "step_6"
    assert checkpoints.pointed(unfinished / "checkpoints", "best") == "step_5"
    assert Run.open(unfinished).learner() is not None


def test_two_whole_checkpoints_are_kept_beside_a_damaged_one(unfinished: Path) -> None:
    cut(unfinished / "checkpoints" / "step_7" / "group.safetensors")
    with pytest.raises(Interrupted):
        resume(unfinished, device="cpu", observer=StopAt(2, 3))
    assert {"step_6", "step_8"} <= set(checkpoints.names(unfinished / "checkpoints"))


def test_where_all_are_damaged_the_run_is_refused_and_left_as_it_is(unfinished: Path) -> None:
    for folder in (unfinished / "checkpoints").glob("step_*"):
        flip(folder / "optimizer.safetensors")
    before = {path: path.read_bytes() for path in unfinished.rglob("*") if path.is_file()}
    observer = Notes()
    with pytest.raises(UserError, match=r"no checkpoint of .* is whole") as error:
        resume(unfinished, device="cpu", observer=observer)
    assert error.value.hint
    assert [note.partition(" ")[0] for note in observer.notes] == ["warning:"] * 3
    assert {path: path.read_bytes() for path in unfinished.rglob("*") if path.is_file()} == before


def test_the_best_checkpoint_stays_however_many_come_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a validation split on which the first epoch stays the best one."""
    errors = iter([10.0, 90.0, 80.0])
    evaluate = trainer.evaluate_members

    def first_is_best(learner: Any, split: Any, accelerator: Any) -> dict[str, Any]:
        found = evaluate(learner, split, accelerator)
        if len(split.labels) == 129:
            found["errors"]["student_0"]["top1"] = next(errors)
        return found

    monkeypatch.setattr(trainer, "evaluate_members", first_is_best)
    run = train_tiny(tmp_path, *SETTINGS, "train.epochs=3", "data.validation=129")
    assert checkpoints.names(run / "checkpoints") == ["step_5", "step_14", "step_15"]
    assert checkpoints.pointed(run / "checkpoints", "best") == "step_5"
    assert last(run) == "step_15"
    for name in checkpoints.names(run / "checkpoints"):
        checkpoints.load(run / "checkpoints" / name)
