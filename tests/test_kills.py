"""A training killed at any moment loses nothing that it had reported as written, and ends as if nothing had been.

Every moment is a process of its own that kills itself there (see kill_harness.py) and another that resumes it; the
result is compared bit for bit with the uninterrupted run's. `pytest -s` prints what happened at which moment.
"""

import itertools
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from comparing import assert_same_run
from conftest import TINY, Result, train_tiny
from kill_harness import Finished, Harness, Moment

from distilkit.runs import checkpoint as checkpoints

# Three students on a trunk, a moving average, clipping, a validation split that chooses `best`, and a checkpoint every
# other step besides those of the epochs: 3 epochs of 5 steps, the last one smaller; steps 2 4 5 6 8 10 12 14 15.
SETTINGS = (
    "train.epochs=3",
    "train.checkpoint_steps=2",
    "train.ema=0.9",
    "train.recalibrate=100",
    "train.clip_norm=1.0",
    "data.validation=0.1",
)
# Which occurrence of a phase is hit makes the place in the run; every file is hit at another checkpoint.
WRITING = (
    Moment("half group.safetensors", 1),
    Moment("half method.safetensors", 4),
    Moment("half optimizer.safetensors", 2),
    Moment("half raw.safetensors", 5),
    Moment("half state.json", 3),
    Moment("flush state.json", 7),
    Moment("before step_N", 4),
    Moment("after step_N", 5),
    Moment("after step_N", 9),
    Moment("half average.safetensors", 2),
    Moment("half last", 6),
    Moment("before last", 7),
    Moment("after last", 3),
    Moment("half removed", 2),
    Moment("before best", 1),
    Moment("after best", 2),
)
ELSEWHERE = (
    Moment("before run.json", 2),
    Moment("step", 1),
    Moment("step", 4),
    Moment("step", 13),
    Moment("evaluation", 5),
    Moment("half line", 2),
    Moment("after line", 1),
    Moment("half metrics.jsonl", 1),
    Moment("half run.json", 3),
    Moment("half README.md", 1),
)
SIGNALLED = ("step", 3), ("half optimizer.safetensors", 2), ("before last", 3), ("evaluation", 2), ("half line", 1)


def moment_name(moment: object) -> str | None:
    return f"{moment.phase} #{moment.occurrence}" if isinstance(moment, Moment) else None


@pytest.fixture(scope="module")
def harness() -> Iterator[Harness]:
    with Harness() as harness:
        yield harness


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """`train` and its recipe, without --runs."""
    recipe = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    recipe.write_text(TINY, encoding="utf-8")
    changes = itertools.chain.from_iterable(("--set", setting) for setting in SETTINGS)
    return ("train", recipe, *changes, "--device", "cpu", "--json")


@pytest.fixture(scope="module")
def uninterrupted(harness: Harness, arguments: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    finished = harness.run(*arguments, "--runs", tmp_path_factory.mktemp("whole"))
    assert finished.status == 0, finished.err
    return Path(finished.json["run"])


def resumed(harness: Harness, run: Path, moments: tuple[Moment, ...] = ()) -> Finished:
    return harness.run("train", "--resume", run, "--device", "cpu", "--json", moments=moments)


def standing(run: Path) -> str:
    """Where a run stands, in words."""
    lines = len((run / "metrics.jsonl").read_text().splitlines()) if (run / "metrics.jsonl").exists() else 0
    kept = checkpoints.names(run / "checkpoints")
    partial = [path.name for path in run.rglob(".partial-*")]
    return f"{', '.join(kept) or 'no checkpoint'}; lines {lines}; left behind: {', '.join(partial) or 'nothing'}"


def check_resumes(
    harness: Harness, arguments: tuple[object, ...], uninterrupted: Path, moment: Moment, runs: Path, status: int
) -> None:
    ended = harness.run(*arguments, "--runs", runs, moments=[moment])
    assert ended.status == status, ended
    (run,) = runs.iterdir()
    record = json.loads((run / "run.json").read_text())
    assert record["state"] == ("running" if moment.signum == signal.SIGKILL else "interrupted")
    stood, last = standing(run), checkpoints.pointed(run / "checkpoints", "last")
    if last is not None:  # What was reported as written is there.
        checkpoints.load(run / "checkpoints" / last)
    finished = resumed(harness, run)
    assert finished.status == 0, finished.err
    assert finished.json["state"] == "done"
    assert_same_run(uninterrupted, run)
    cards = [(path / "README.md").read_text().partition("Made by")[0] for path in (run, uninterrupted)]
    assert cards[0] == cards[1]
    assert not list(run.rglob(".partial-*")), "what was half written has been cleared away"
    name = signal.Signals(moment.signum).name
    print(f"\n{name:8} {moment_name(moment):32} {stood}; resumed: the same bits", end="")  # noqa: T201 - for pytest -s


def test_there_are_twenty_moments_and_eight_of_them_within_a_checkpoint_that_is_written() -> None:
    assert len(set(WRITING)) >= 8
    assert len(set(WRITING + ELSEWHERE)) == len(WRITING + ELSEWHERE) >= 20
    # From the first byte of a checkpoint to the removal of the one that it replaces.
    assert {moment.phase for moment in WRITING} == {
        *(f"half {part}.safetensors" for part in checkpoints.PARTS),
        *("half state.json", "flush state.json", "before step_N", "after step_N"),
        *("half last", "before last", "after last", "before best", "after best", "half removed"),
    }
    assert {moment.phase for moment in ELSEWHERE} == {
        *("before run.json", "half metrics.jsonl", "step", "evaluation", "half line", "after line"),
        *("half run.json", "half README.md"),
    }


@pytest.mark.parametrize("moment", WRITING + ELSEWHERE, ids=moment_name)
def test_a_killed_training_ends_with_the_bits_of_the_uninterrupted_one(
    moment: Moment, harness: Harness, arguments: tuple[object, ...], uninterrupted: Path, tmp_path: Path
) -> None:
    check_resumes(harness, arguments, uninterrupted, moment, tmp_path / "runs", -signal.SIGKILL)


@pytest.mark.parametrize(
    "moment", [Moment(phase, occurrence, signal.SIGTERM) for phase, occurrence in SIGNALLED], ids=moment_name
)
def test_sigterm_saves_leaves_143_and_the_run_ends_with_the_same_bits(
    moment: Moment, harness: Harness, arguments: tuple[object, ...], uninterrupted: Path, tmp_path: Path
) -> None:
    check_resumes(harness, arguments, uninterrupted, moment, tmp_path / "runs", 143)


@pytest.mark.parametrize(
    ("phase", "signum"),
    [
        ("half optimizer.safetensors", signal.SIGINT),
        ("flush step_N", signal.SIGTERM),
        ("after step_N", signal.SIGINT),
        ("before last", signal.SIGINT),
    ],
)
def test_a_second_signal_leaves_at_once_and_harms_nothing(
    phase: str,
    signum: signal.Signals,
    harness: Harness,
    arguments: tuple[object, ...],
    uninterrupted: Path,
    tmp_path: Path,
) -> None:
    # The first is answered by the checkpoint of step 4, the run's second; the other one comes while that is written.
    moments = [Moment("step", 4, signal.SIGINT), Moment(phase, 2, signum)]
    ended = harness.run(*arguments, "--runs", tmp_path / "runs", moments=moments)
    assert ended.status == 128 + signum, ended
    (run,) = (tmp_path / "runs").iterdir()
    assert checkpoints.pointed(run / "checkpoints", "last") == "step_2", "it did not wait for the checkpoint"
    assert resumed(harness, run).status == 0
    assert_same_run(uninterrupted, run)


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(
    harness: Harness, arguments: tuple[object, ...], uninterrupted: Path, tmp_path: Path
) -> None:
    assert harness.run(*arguments, "--runs", tmp_path / "runs", moments=[Moment("step", 4)]).status == -signal.SIGKILL
    (run,) = (tmp_path / "runs").iterdir()
    for moment in (
        Moment("half metrics.jsonl", 1),
        Moment("step", 2),
        Moment("half state.json", 2),
        Moment("evaluation", 1),
        Moment("after step_N", 2),
        Moment("half line", 1),
        Moment("before best", 1),
    ):
        assert resumed(harness, run, (moment,)).status == -signal.SIGKILL, moment
    assert resumed(harness, run).status == 0
    assert_same_run(uninterrupted, run)


def test_a_kill_before_there_is_a_record_leaves_a_folder_that_is_no_run(
    harness: Harness, arguments: tuple[object, ...], tmp_path: Path
) -> None:
    ended = harness.run(*arguments, "--runs", tmp_path / "runs", moments=[Moment("before run.json", 1)])
    assert ended.status == -signal.SIGKILL
    (folder,) = (tmp_path / "runs").iterdir()
    refused = resumed(harness, folder)
    assert refused.status == 2
    assert "is not a run" in refused.json["error"]["message"]
    # It is in nobody's way.
    assert harness.run(*arguments, "--runs", tmp_path / "runs").status == 0
    assert harness.run("compare", "--runs", tmp_path / "runs", "--json").status == 0


def test_at_every_moment_the_pointers_name_whole_checkpoints(
    harness: Harness, arguments: tuple[object, ...], tmp_path: Path
) -> None:
    """Not at chosen moments but before each operation on any file of the run, as the interpreter reports them."""
    finished = harness.run(*arguments, "--runs", tmp_path / "runs", audit=tmp_path / "runs")
    assert finished.status == 0, finished.err
    looks = int(finished.err.split("looked ")[1].split()[0])
    assert looks > 100
    # Of the nine checkpoints the last two are kept, and the best.
    (run,) = (tmp_path / "runs").iterdir()
    best = checkpoints.pointed(run / "checkpoints", "best")
    assert set(checkpoints.names(run / "checkpoints")) == {"step_14", "step_15", best}


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc to see which file a descriptor is of")
def test_everything_is_on_the_disk_before_a_name_leads_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill leaves what the system has taken; a power failure only what was flushed."""
    flushed: set[Path] = set()
    fsync, rename, replace = os.fsync, Path.rename, Path.replace
    named: list[str] = []

    def seen(descriptor: int) -> None:
        flushed.add(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    def renamed(self: Path, target: Path) -> Path:
        assert {self, *self.iterdir()} <= flushed, f"{self} is not on the disk"
        assert "metrics.jsonl" in {path.name for path in flushed}, "the epoch's line must outlive its checkpoint"
        named.append(target.name)
        return rename(self, target)

    def replaced(self: Path, target: Path) -> Path:
        if target.name in ("last", "best"):
            assert self in flushed, f"{self} is not on the disk"
            assert target.parent in flushed, "nor is the checkpoint's name"
            named.append(target.name)
            flushed.clear()
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", seen)
    monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.setattr(Path, "replace", replaced)
    train_tiny(tmp_path.resolve(), "method.name=baseline")
    assert named == ["step_6", "last", "step_12", "last"]


# Two trainings


def test_two_trainings_cannot_write_to_one_run_and_a_kill_frees_it(
    harness: Harness,
    arguments: tuple[object, ...],
    uninterrupted: Path,
    tmp_path: Path,
    distilkit: Callable[..., Result],
) -> None:
    first = harness.start(*arguments, "--runs", tmp_path / "runs", moments=[Moment("step", 4, signal.SIGSTOP)])
    first.wait_until_stopped()
    (run,) = (tmp_path / "runs").iterdir()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    other = resumed(harness, run)
    assert other.status == 2
    assert f"another training is writing to {run}" in other.json["error"]["message"]
    # Not even a change of the recipe that is accepted may touch it.
    changed = ("--set", "train.epochs=4", "--accept-changes")
    assert distilkit(*arguments, "--resume", run, *changed).status == 2
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    first.send(signal.SIGKILL)
    assert first.wait().status == -signal.SIGKILL
    assert resumed(harness, run).status == 0
    assert_same_run(uninterrupted, run)


def test_a_training_that_waited_for_another_does_not_train_what_is_finished(
    harness: Harness, arguments: tuple[object, ...], tmp_path: Path
) -> None:
    first = harness.start(*arguments, "--runs", tmp_path / "runs", moments=[Moment("step", 4, signal.SIGSTOP)])
    first.wait_until_stopped()
    (run,) = (tmp_path / "runs").iterdir()
    # The second has read the record, in which the first is still at work, when it stops itself.
    second = harness.start(
        "train", "--resume", run, "--device", "cpu", "--json", moments=[Moment("lock", 1, signal.SIGSTOP)]
    )
    second.wait_until_stopped()
    first.send(signal.SIGCONT)
    assert first.wait().status == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    second.send(signal.SIGCONT)
    late = second.wait()
    assert late.status == 0
    assert "finished already" in late.err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
