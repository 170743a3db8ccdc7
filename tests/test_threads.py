"""How many threads compute: decided by a probe, kept for the whole run, nobody else's affair."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Result, train_tiny

from distilkit.observer import Observer
from distilkit.runs.run import Run
from distilkit.threads import threads as computing_threads
from distilkit.training import threads
from distilkit.training.interrupt import Interrupted
from distilkit.training.trainer import Trainer
from distilkit.workflows.train.train import resume


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cores as far as torch can tell, with nothing decided by the environment; everything computes on one."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    count = [2]
    monkeypatch.setattr(torch, "get_num_threads", lambda: count[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda number: count.__setitem__(0, number))


class Probe:
    """Stands in for timing: seconds by number of threads; notes what it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float]) -> None:
        self.asked: list[int] = []

        def timed(*_: Any) -> float:
            self.asked.append(torch.get_num_threads())
            return seconds[torch.get_num_threads()]

        monkeypatch.setattr(threads, "timed_step", timed)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of threads of every step that is trained."""
    found: list[int] = []
    real = Trainer._step

    def step(self: Trainer, *args: Any) -> None:
        found.append(torch.get_num_threads())
        real(self, *args)

    monkeypatch.setattr(Trainer, "_step", step)
    return found


@pytest.mark.usefixtures("two_threads")
def test_one_thread_computes_where_two_are_slower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used: list[int]
) -> None:
    probe = Probe(monkeypatch, {1: 1.0, 2: 2.0})
    run = Run.open(train_tiny(tmp_path, "train.epochs=1"))
    assert probe.asked == [1, 2] * 4
    assert run.record["threads"] == {"used": 1, "probe_seconds": {"1": 1.0, "2": 2.0}}
    assert set(used) == {1}
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("alone", [1.0, 0.95])
def test_all_threads_compute_unless_one_is_clearly_faster(
    alone: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used: list[int]
) -> None:
    Probe(monkeypatch, {1: alone, 2: 1.0})
    assert Run.open(train_tiny(tmp_path, "train.epochs=1")).record["threads"]["used"] == 2
    assert set(used) == {2}


@pytest.mark.usefixtures("two_threads")
def test_the_probe_gives_up_where_threads_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = Probe(monkeypatch, {1: 1.0, 2: 20.0})
    assert Run.open(train_tiny(tmp_path, "train.epochs=1")).record["threads"]["used"] == 1
    assert probe.asked == [1, 2]


@pytest.mark.usefixtures("two_threads")
def test_the_user_decides_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used: list[int]) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    probe = Probe(monkeypatch, {1: 1.0, 2: 2.0})
    assert Run.open(train_tiny(tmp_path, "train.epochs=1")).record["threads"] == {"used": None, "probe_seconds": None}
    assert not probe.asked
    assert set(used) == {2}


@pytest.mark.usefixtures("two_threads")
def test_a_deterministic_training_does_not_depend_on_a_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = Probe(monkeypatch, {1: 1.0, 2: 2.0})
    train_tiny(tmp_path, "train.epochs=1", "train.deterministic=true")
    assert not probe.asked


@pytest.mark.usefixtures("two_threads")
def test_a_resumed_run_takes_as_many_as_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used: list[int]
) -> None:
    Probe(monkeypatch, {1: 1.0, 2: 2.0})

    class Stop(Observer):
        def epoch_finished(self, line: Any) -> None:
            raise Interrupted(2, "step_1", tmp_path)

    with pytest.raises(Interrupted):
        train_tiny(tmp_path, "train.epochs=2", observer=Stop())
    used.clear()
    probe = Probe(monkeypatch, {1: 2.0, 2: 1.0})
    (path,) = (tmp_path / "runs").iterdir()
    resume(path, device="cpu", observer=Observer())
    assert not probe.asked
    assert set(used) == {1}


@pytest.mark.usefixtures("two_threads")
def test_the_probe_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = threads.timed_step
    (tmp_path / "probed").mkdir()
    (tmp_path / "plain").mkdir()

    def timed(*args: Any) -> float:
        real(*args)
        return float(torch.get_num_threads())

    monkeypatch.setattr(threads, "timed_step", timed)
    probed = Run.open(train_tiny(tmp_path / "probed", "train.epochs=1"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with computing_threads(1):
        plain = Run.open(train_tiny(tmp_path / "plain", "train.epochs=1"))
    assert probed.record["threads"]["used"] == 1
    ours, theirs = (run.learner().state_dict() for run in (probed, plain))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("with_all", "expected"), [(0.9, 2), (2.0, 1)])
def test_a_pass_over_images_takes_the_faster_number_of_threads(
    with_all: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "_convolutions", lambda: {1: 1.0, 2: with_all}[torch.get_num_threads()])
    with threads.suited(torch.device("cpu")) as count:
        assert (count, torch.get_num_threads()) == (expected, expected)
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_a_pass_leaves_the_users_choice_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(threads, "_convolutions", lambda: pytest.fail("there is nothing to choose"))
    with threads.suited(torch.device("cpu")) as count:
        assert count == 2


def test_the_convolutions_of_the_probe_are_timed() -> None:
    assert 0 < threads._convolutions() < 60


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    "words", [("evaluate",), ("ensemble-eval",), ("prune-branches",), ("robustness", "--steps", "1")]
)
def test_commands_that_look_at_images_ask_the_probe(
    words: tuple[str, ...],
    one_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    distilkit: Callable[..., Result],
) -> None:
    asked: list[int] = []

    def timed() -> float:
        asked.append(torch.get_num_threads())
        return 1.0

    monkeypatch.setattr(threads, "_convolutions", timed)
    command, *options = words
    output = ("--output", str(tmp_path / "out")) if command in ("prune-branches", "robustness") else ()
    assert distilkit(command, one_run, *options, *output, "--json").status == 0
    assert asked == [1, 2] * 4
