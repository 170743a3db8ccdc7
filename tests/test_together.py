"""`--seeds ... --together`: each seed is the training that it would be alone, and none outlives the command."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Result
from safetensors.torch import load_file

from distilkit.errors import UserError
from distilkit.observer import Observer
from distilkit.runs.run import Run
from distilkit.workflows.train.parallel_seeds import _Told
from distilkit.workflows.train.seeds import sibling
from distilkit.workflows.train.train import train

Command = Callable[..., Result]
TRAIN = (sys.executable, "-m", "distilkit", "train", "tiny.toml")


def weights(run: Path) -> dict[str, Any]:
    return load_file(next(run.glob("checkpoints/*/group.safetensors")))


def test_each_seed_is_what_it_is_alone(tmp_path: Path, tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch):
    recipe = tiny("method.name=baseline", "train.epochs=2")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    done = subprocess.run(
        (*TRAIN, "--seeds", "3,1", "--together", "--json", "--set", "method.name=baseline", "--set", "train.epochs=2"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    document = Result(0, done.stdout, done.stderr).json
    assert document["seeds"] == [3, 1]
    assert "seed 3: epoch 2/2  test error" in done.stderr
    for seed, run in zip((3, 1), document["runs"], strict=True):
        alone = train(sibling(recipe, seed), tmp_path / "alone", device="cpu", command="", observer=Observer())
        assert run["errors"] == alone["errors"]
        path = tmp_path / run["run"]
        assert Run.open(path).record["state"] == "done"
        ours, theirs = weights(path), weights(Path(alone["run"]))
        assert ours.keys() == theirs.keys()
        assert all(ours[name].equal(theirs[name]) for name in ours)
        # The card of each knows of both.
        assert "seeds 1, 3" in (path / "README.md").read_text(encoding="utf-8")


def test_all_seeds_train_in_one_precision(tmp_path: Path, tiny: Callable[..., Any]):
    tiny()
    changed = ("--set", "train.precision=auto", "--set", "train.epochs=1", "--set", "model.architecture=resnet8")
    done = subprocess.run(
        (*TRAIN, "--seeds", "0,1,2", "--together", "--json", *changed),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    runs = [Run.open(tmp_path / run["run"]) for run in Result(0, done.stdout, done.stderr).json["runs"]]
    assert len({run.recipe.train.precision for run in runs}) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="signals of another kind")
def test_a_signal_saves_all_of_them_and_none_goes_on(tmp_path: Path, tiny: Callable[..., Any]):
    tiny()
    process = subprocess.Popen(
        (*TRAIN, "--seeds", "0,1", "--together", "--set", "train.epochs=10000"),
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stderr is not None
    waiting = {"seed 0: epoch 1/", "seed 1: epoch 1/"}
    for line in process.stderr:
        waiting -= {start for start in waiting if line.startswith(start)}
        if not waiting:
            break
    process.send_signal(signal.SIGTERM)
    rest = process.communicate(timeout=120)[1]
    assert process.returncode == 143, rest
    runs = [Run.open(path) for path in sorted((tmp_path / "runs").iterdir())]
    assert [run.record["state"] for run in runs] == ["interrupted", "interrupted"]
    assert all(f"--resume {run.path.relative_to(tmp_path)}" in rest for run in runs)
    lines = [len((run.path / "metrics.jsonl").read_text().splitlines()) for run in runs]
    time.sleep(1)
    assert lines == [len((run.path / "metrics.jsonl").read_text().splitlines()) for run in runs]


def test_what_one_of_them_finds_wrong_is_said_as_if_it_were_alone(
    tmp_path: Path, tiny: Callable[..., Any], distilkit: Command
):
    tiny()
    result = distilkit(
        *("train", tmp_path / "tiny.toml", "--seeds", "0", "--together", "--runs", tmp_path / "runs"),
        *("--set", "train.batch_size=100000", "--set", "train.epochs=1", "--set", "data.dataset=cifar10"),
        *("--set", f"data.root={tmp_path}"),
    )
    assert result.status == 2
    assert "cifar10" in result.err.casefold() or "cifar-10" in result.err.casefold()
    assert not (tmp_path / "runs").exists()


def test_a_training_that_vanishes_is_no_success():
    told = _Told(Observer(), [0, 1])
    told.hear(0, "done", {"errors": {}})
    alive = SimpleNamespace(is_alive=lambda: True, exitcode=None)
    killed = SimpleNamespace(is_alive=lambda: False, exitcode=-9)
    told.notice_lost({0: alive, 1: alive})  # type: ignore[dict-item]
    assert told.ended == {0}
    told.notice_lost({0: killed, 1: killed})  # type: ignore[dict-item]
    assert told.ended == {0, 1}
    with pytest.raises(RuntimeError, match="seed 1 ended with -9"):
        told.raise_first_failure()


def test_the_cause_comes_before_what_was_stopped_for_it():
    told = _Told(Observer(), [0, 1])
    told.hear(0, "interrupted", (signal.SIGTERM, "step_3", Path("runs/a")))
    told.hear(1, "user", ("no", "yes", ()))
    with pytest.raises(UserError, match="no"):
        told.raise_first_failure()


@pytest.mark.parametrize("extra", [(), ("--dry-run",)])
def test_together_needs_seeds(extra: tuple[str, ...], tmp_path: Path, tiny: Callable[..., Any], distilkit: Command):
    tiny()
    result = distilkit("train", tmp_path / "tiny.toml", "--together", *extra)
    assert result.status == 2
    assert "--together belongs to --seeds" in result.err


def test_launched_as_several_processes_it_is_refused(
    tmp_path: Path, tiny: Callable[..., Any], distilkit: Command, monkeypatch: pytest.MonkeyPatch
):
    tiny()
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = distilkit("train", tmp_path / "tiny.toml", "--seeds", "0,1", "--together")
    assert result.status == 2
    assert "leave torchrun or accelerate launch out" in result.err
