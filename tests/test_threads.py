"""How many threads compute: by a rule, kept for the whole run, nobody else's affair."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Result, train_tiny

from distilkit import hardware
from distilkit.analysis.learner_cost import learner_cost
from distilkit.data import datasets
from distilkit.learners.build import build_learner
from distilkit.observer import Observer
from distilkit.recipe import load
from distilkit.runs.run import Run
from distilkit.training import threads
from distilkit.training.interrupt import Interrupted
from distilkit.training.trainer import Trainer
from distilkit.workflows.comparison.recipe_groups import grouped
from distilkit.workflows.train.train import resume

DATA = Path(__file__).parent / "data"
BILLION = 10**9


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cores as far as anybody can tell, with nothing decided by the environment; everything computes on one."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    count = [2]
    monkeypatch.setattr(torch, "get_num_threads", lambda: count[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda number: count.__setitem__(0, number))
    monkeypatch.setattr(hardware, "affinity", lambda: 2)
    monkeypatch.setattr(hardware, "cpu_quota", lambda: None)


@pytest.fixture
def any_work_is_worth_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny network of the tests counts as a large one."""
    monkeypatch.setattr(threads, "SHARE", 1)


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


@pytest.mark.parametrize(
    ("multiply_adds", "cores", "quota", "processes", "expected"),
    [
        (0, 1, None, 1, 1),
        (0, 64, None, 1, 1),
        (BILLION, 64, None, 1, 1),
        (4 * BILLION - 1, 64, None, 1, 1),
        (4 * BILLION, 64, None, 1, 2),
        (26 * BILLION, 1, None, 1, 1),
        (26 * BILLION, 2, None, 1, 2),
        (26 * BILLION, 8, None, 1, 8),
        (26 * BILLION, 64, None, 1, 13),
        (10**14, 64, None, 1, 64),
        (10**14, 64, 4.0, 1, 4),
        (10**14, 64, 2.9, 1, 2),
        (10**14, 64, 0.5, 1, 1),
        (10**14, 2, 8.0, 1, 2),
        (10**14, 64, None, 4, 16),
        (10**14, 64, 8.0, 4, 2),
        (10**14, 2, None, 4, 1),
        (None, 16, None, 1, 16),
        (None, 16, 4.0, 2, 2),
    ],
)
def test_threads_follow_from_work_cores_quota_and_processes(
    multiply_adds: int | None, cores: int, quota: float | None, processes: int, expected: int
) -> None:
    assert threads.thread_count(multiply_adds, cores, quota, processes) == expected


@pytest.mark.parametrize("name", ["quickstart", "quickstart_baseline", "quickstart_one", "quickstart_clilr"])
def test_the_quickstarts_networks_take_one_thread_on_any_machine(name: str) -> None:
    assert _count(name) == 1


def test_the_papers_networks_take_several_threads() -> None:
    assert _count("baseline_resnet32") == 13
    assert _count("one_resnet32") == 21


def _count(name: str) -> int:
    recipe = load(name)
    spec = datasets.spec(recipe.data.dataset, Path(recipe.data.root))
    learner = build_learner(recipe, spec)
    work = threads.step_multiply_adds(learner_cost(learner, spec.channels, spec.size), recipe.train.batch_size)
    return threads.thread_count(work, 64, None, 1)


@pytest.mark.usefixtures("two_threads")
def test_a_small_network_trains_with_one_thread(tmp_path: Path, used: list[int]) -> None:
    run = Run.open(train_tiny(tmp_path, "train.epochs=1"))
    assert run.recipe.train.threads == 1
    assert run.record["threads"]["used"] == 1
    assert "0.9 billion multiply-adds a step, 2 cores" in run.record["threads"]["reason"]
    assert set(used) == {1}
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads", "any_work_is_worth_a_thread")
def test_a_large_network_trains_with_as_many_as_there_are_cores(tmp_path: Path, used: list[int]) -> None:
    assert Run.open(train_tiny(tmp_path, "train.epochs=1")).record["threads"]["used"] == 2
    assert set(used) == {2}


@pytest.mark.usefixtures("two_threads")
def test_the_user_decides_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used: list[int]) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    record = Run.open(train_tiny(tmp_path, "train.epochs=1")).record
    assert record["threads"] == {"used": 2, "reason": "OMP_NUM_THREADS says so"}
    assert set(used) == {2}


@pytest.mark.usefixtures("two_threads", "any_work_is_worth_a_thread")
def test_the_recipe_decides_before_the_rule_and_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used: list[int]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    record = Run.open(train_tiny(tmp_path, "train.epochs=1", "train.threads=3")).record
    assert record["threads"] == {"used": 3, "reason": None}
    assert set(used) == {3}


def test_a_number_of_threads_is_auto_or_a_number(tmp_path: Path, distilkit: Callable[..., Result]) -> None:
    for wrong in ("0", "-1", "many", "1.5", "true"):
        refused = distilkit("train", "quickstart", "--set", f"train.threads={wrong}", "--dry-run", "--json")
        assert refused.status == 2
        (fault,) = refused.json["error"]["faults"]
        assert fault["key"] == "train.threads"


@pytest.mark.usefixtures("two_threads")
def test_a_resumed_run_takes_as_many_as_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used: list[int]
) -> None:
    path = _interrupted(tmp_path)
    used.clear()
    monkeypatch.setattr(threads, "SHARE", 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    resume(path, device="cpu", observer=Observer())
    assert set(used) == {1}


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("recorded", "expected"), [(1, 1), (2, 2), (None, 2)])
def test_a_run_of_a_version_without_the_key_goes_on_with_the_number_that_run_json_has(
    recorded: int | None, expected: int, tmp_path: Path, used: list[int]
) -> None:
    path = _interrupted(tmp_path)
    used.clear()
    recipe = (path / "recipe.toml").read_text()
    assert "threads = 1\n" in recipe
    (path / "recipe.toml").write_text(recipe.replace("threads = 1\n", ""))
    run = Run.open(path)
    run.update(threads={"used": recorded, "probe_seconds": None})
    resume(path, device="cpu", observer=Observer())
    assert set(used) == {expected}


def _interrupted(folder: Path) -> Path:
    class Stop(Observer):
        def epoch_finished(self, line: Any) -> None:
            raise Interrupted(2, "step_1", folder)

    with pytest.raises(Interrupted):
        train_tiny(folder, "train.epochs=2", observer=Stop())
    (path,) = (folder / "runs").iterdir()
    return path


def test_threads_make_no_second_recipe(one_run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(one_run, tmp_path / "other"))
    recipe = (other / "recipe.toml").read_text()
    (other / "recipe.toml").write_text(re.sub(r"threads = \d+\n", "threads = 77\n", recipe))
    runs = [Run.open(one_run), Run.open(other)]
    assert runs[0].recipe.train.threads != runs[1].recipe.train.threads
    assert len(grouped(runs)) == 1


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    "words", [("evaluate",), ("ensemble-eval",), ("prune-branches",), ("robustness", "--steps", "1")]
)
@pytest.mark.parametrize(("share", "expected"), [(10**12, 1), (1, 2)])
def test_commands_that_pass_over_images_follow_the_rule(
    share: int,
    expected: int,
    words: tuple[str, ...],
    one_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    distilkit: Callable[..., Result],
) -> None:
    monkeypatch.setattr(threads, "SHARE", share)
    real, work, chosen = threads.choose, [], []

    def choose(multiply_adds: int, *rest: Any) -> tuple[int, str]:
        work.append(multiply_adds)
        chosen.append(real(multiply_adds, *rest)[0])
        return chosen[-1], ""

    monkeypatch.setattr(threads, "choose", choose)
    command, *options = words
    output = ("--output", str(tmp_path / "out")) if command in ("prune-branches", "robustness") else ()
    images = ("--images", "100") if command == "robustness" else ()
    assert distilkit(command, one_run, *options, *output, *images, "--json").status == 0
    assert chosen == [expected]
    assert 10**6 < work[0] < 10**9
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_a_pass_leaves_the_users_choice_alone(one_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    run = Run.open(one_run)
    split = run.data.load(("test",)).splits["test"]
    with threads.suited(torch.device("cpu"), run.learner().group, split) as count:
        assert count == 2
