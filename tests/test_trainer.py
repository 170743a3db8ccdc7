"""The loop: exact by seed, exact after an interruption, and loud when a loss is not finite."""

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import train_tiny
from safetensors.torch import load_file
from torch import Tensor

from distilkit.errors import UserError
from distilkit.observer import Observer
from distilkit.runs.run import Run
from distilkit.training.interrupt import Interrupted
from distilkit.training.trainer import Trainer
from distilkit.workflows.train.train import resume, train

# A validation split, clipping and smoothing are on, so that resuming must carry their state as well.
SETTINGS = ("train.epochs=3", "data.validation=0.1", "train.clip_norm=1.0", "train.label_smoothing=0.1")


def _weights(run: Path) -> dict[str, Tensor]:
    folder = Run.open(run).checkpoint("last")
    return {
        f"{part}.{key}": value
        for part in ("group", "method", "optimizer")
        for key, value in load_file(folder / f"{part}.safetensors").items()
    }


def _equal(first: Path, second: Path) -> bool:
    ours, theirs = _weights(first), _weights(second)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def _untimed(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in lines]


class _StopAt(Observer):
    """Sends the process a signal when a certain step of a certain epoch is done."""

    def __init__(self, epoch: int, step: int, signum: int = signal.SIGINT) -> None:
        self.epoch, self.step, self.signum = epoch, step, signum

    def steps_finished(self, epoch: int, step_in_epoch: int, losses: Mapping[str, float]) -> None:
        if (epoch, step_in_epoch) == (self.epoch, self.step):
            signal.raise_signal(self.signum)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tiny(tmp_path_factory.mktemp("whole"), *SETTINGS)


def test_the_same_seed_gives_the_same_weights_bit_for_bit(uninterrupted: Path, tmp_path: Path) -> None:
    again = train_tiny(tmp_path, *SETTINGS)
    assert _equal(uninterrupted, again)
    assert _untimed(Run.open(uninterrupted).metrics()) == _untimed(Run.open(again).metrics())


def test_another_seed_gives_other_weights(uninterrupted: Path, tmp_path: Path) -> None:
    assert not _equal(uninterrupted, train_tiny(tmp_path, *SETTINGS, "train.seed=1"))


@pytest.mark.parametrize(
    ("epoch", "step", "signum"),
    [(1, 2, signal.SIGINT), (2, 1, signal.SIGTERM), (2, 5, signal.SIGINT), (3, 4, signal.SIGTERM)],
)
def test_resume_after_a_signal_reproduces_the_uninterrupted_run(
    uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int, step: int, signum: int
) -> None:
    whole = Run.open(uninterrupted)
    with pytest.raises(Interrupted) as interrupted:
        train(whole.recipe, tmp_path, device="cpu", command="", observer=_StopAt(epoch, step, signum))
    assert interrupted.value.signum == signum
    (path,) = tmp_path.iterdir()
    assert Run.open(path).record["state"] == "interrupted"
    document = resume(path, device="cpu", observer=Observer())
    assert document["state"] == "done"
    assert _equal(uninterrupted, path)
    assert _untimed(whole.metrics()) == _untimed(Run.open(path).metrics())
    assert document["errors"] == whole.record["final"]["errors"]


def test_resume_drops_lines_that_were_written_after_the_checkpoint(uninterrupted: Path, tmp_path: Path) -> None:
    recipe = Run.open(uninterrupted).recipe
    with pytest.raises(Interrupted):
        train(recipe, tmp_path, device="cpu", command="", observer=_StopAt(2, 1))
    (path,) = tmp_path.iterdir()
    lines = path / "metrics.jsonl"
    # As a kill leaves it that came between an epoch's line and its checkpoint, in the middle of the next line.
    lines.write_text(lines.read_text() + json.dumps({"epoch": 2, "stale": True}) + '\n{"epoch": 3, "los')
    resume(path, device="cpu", observer=Observer())
    assert _untimed(Run.open(path).metrics()) == _untimed(Run.open(uninterrupted).metrics())


def test_resume_refuses_other_images(uninterrupted: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(Run.open(uninterrupted).recipe, tmp_path, device="cpu", command="", observer=_StopAt(1, 1))
    (path,) = tmp_path.iterdir()
    record = json.loads((path / "run.json").read_text())
    record["data"]["fingerprints"]["train"] = "0" * 64
    (path / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="images of train are not the ones"):
        resume(path, device="cpu", observer=Observer())


def test_best_is_the_epoch_with_the_lowest_validation_error(uninterrupted: Path) -> None:
    run = Run.open(uninterrupted)
    errors = [line["validation"]["errors"]["student_0"]["top1"] for line in run.metrics()]
    epoch = errors.index(min(errors)) + 1
    assert run.record["final"]["selected"]["epoch"] == epoch
    assert run.checkpoint().name == f"step_{run.metrics()[epoch - 1]['step']}"


def test_training_lowers_the_error(one_run: Path) -> None:
    errors = [line["test"]["errors"]["student_0"]["top1"] for line in Run.open(one_run).metrics()]
    assert errors[-1] < 20 < errors[0]


def test_a_loss_that_is_not_finite_names_step_term_and_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        train_tiny(tmp_path, "optimizer.lr=1e25", "schedule.name=constant", "train.epochs=4")
    assert "not finite at step" in error.value.problem
    assert "cross_entropy" in error.value.problem
    (path,) = (tmp_path / "runs").iterdir()
    run = Run.open(path)
    assert run.record["state"] == "failed"
    if run.metrics():
        assert str(run.checkpoint("last")) in error.value.problem
    else:
        assert "no checkpoint was written yet" in error.value.problem


def test_the_last_good_checkpoint_is_named_when_a_later_loss_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Trainer._step

    def poisoned(self: Trainer, step: int, indices: Tensor, ramp: float) -> None:
        if step == self.steps_per_epoch + 2:
            with torch.no_grad():
                next(self.learner.parameters()).fill_(float("nan"))
        whole(self, step, indices, ramp)

    monkeypatch.setattr(Trainer, "_step", poisoned)
    with pytest.raises(UserError) as error:
        train_tiny(tmp_path)
    (path,) = (tmp_path / "runs").iterdir()
    run = Run.open(path)
    assert f"step {run.metrics()[0]['step'] + 3} (epoch 2)" in error.value.problem
    assert str(run.checkpoint("last")) in error.value.problem
    assert run.checkpoint("last").name == f"step_{run.metrics()[0]['step']}"


def test_metrics_hold_every_figure_of_every_epoch(one_run: Path) -> None:
    run = Run.open(one_run)
    lines = run.metrics()
    assert [line["epoch"] for line in lines] == list(range(1, 7))
    for line in lines:
        assert set(line["loss"]) == {"total", "cross_entropy", "ensemble_cross_entropy", "distillation"}
        parts = line["loss"]
        expected = parts["cross_entropy"] + parts["ensemble_cross_entropy"] + line["ramp"] * parts["distillation"]
        assert parts["total"] == pytest.approx(expected, rel=1e-5)
        assert set(line["test"]["errors"]) == {"student_0", "student_1", "student_2", "gated"}
    assert list((one_run / "tensorboard").glob("events.out.tfevents.*"))


def test_a_run_keeps_two_checkpoints_and_the_best(uninterrupted: Path) -> None:
    run = Run.open(uninterrupted)
    kept = {folder.name for folder in run.checkpoints.glob("step_*")}
    steps = [f"step_{line['step']}" for line in run.metrics()]
    assert kept == {*steps[-2:], run.checkpoint("best").name}


def test_clipping_bounds_the_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms = []
    step = torch.optim.SGD.step

    def seen(self: torch.optim.SGD, *args: Any, **kwargs: Any) -> Any:
        gradients = [p.grad.norm() for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.stack(gradients).norm()))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", seen)
    train_tiny(tmp_path, "train.clip_norm=0.05", "train.epochs=1")
    assert norms
    assert max(norms) <= 0.05 * 1.001
    assert min(norms) > 0


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_bf16_trains_close_to_fp32_with_every_optimizer(tmp_path: Path, optimizer: str) -> None:
    rate = {"sgd": 0.05, "adamw": 0.003}[optimizer]
    losses = {}
    for used in ("fp32", "bf16"):
        (tmp_path / used).mkdir()
        settings = (f"optimizer.name={optimizer}", f"optimizer.lr={rate}", "train.epochs=4")
        run = Run.open(train_tiny(tmp_path / used, f"train.precision={used}", *settings))
        losses[used] = [line["loss"]["total"] for line in run.metrics()]
        assert all(value.dtype != torch.bfloat16 for value in _weights(run.path).values())
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.1)
    assert losses["bf16"][-1] < 0.8 * losses["bf16"][0]


def test_adamw_resumes_exactly(tmp_path: Path) -> None:
    settings = ("optimizer.name=adamw", "optimizer.lr=0.003", "schedule.name=cosine")
    (tmp_path / "whole").mkdir()
    whole = train_tiny(tmp_path / "whole", *settings)
    with pytest.raises(Interrupted):
        train(Run.open(whole).recipe, tmp_path / "cut", device="cpu", command="", observer=_StopAt(2, 3))
    (path,) = (tmp_path / "cut").iterdir()
    resume(path, device="cpu", observer=Observer())
    assert _equal(whole, path)


def test_fp16_on_a_cpu_is_refused_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        train_tiny(tmp_path, "train.precision=fp16")
    assert error.value.faults[0].place == "--set train.precision=fp16"
    assert not (tmp_path / "runs").exists()
