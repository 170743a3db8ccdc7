"""What stands beside a training's figures: losses per student, intervals, what was chosen how, what to type next."""

import json
import math
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result

from distilkit.analysis.metrics import wilson95
from distilkit.cli import console
from distilkit.methods.okddip import Okddip
from distilkit.methods.one import One
from distilkit.observer import TrainingPlan
from distilkit.recipe import Recipe

Command = Callable[..., Result]


def plan(members: tuple[str, ...], summed_over: dict[str, int]) -> TrainingPlan:
    return TrainingPlan(
        run="runs/one",
        method="one",
        architecture="resnet8",
        members=members,
        leader=members[0],
        ensemble=None,
        epochs=1,
        steps_per_epoch=1,
        start_step=0,
        images=100,
        device="cpu",
        precision="fp32",
        summed_over=summed_over,
    )


def line_of(losses: dict[str, float], told: TrainingPlan, capsys: pytest.CaptureFixture[str]) -> str:
    observer = console.TerminalObserver()
    observer.training_started(told)
    errors = {"errors": {name: {"top1": 90.0, "top5": 50.0} for name in told.members}}
    observer.epoch_finished(
        {"epoch": 1, "loss": losses, "train": errors, "test": errors, "lr": 0.1, "images_per_second": 1.0}
    )
    return capsys.readouterr().err


def test_three_students_that_know_nothing_show_the_logarithm_of_ten_classes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    chance = math.log(10)
    losses = {"total": 4 * chance + 0.3, "cross_entropy": 3 * chance, "ensemble_cross_entropy": chance}
    losses["distillation"] = 0.3
    members = ("student_0", "student_1", "student_2")
    shown = line_of(losses, plan(members, One.summed_over(members)), capsys)
    assert (
        "loss 9.510: cross_entropy 6.908 (2.303 per student), ensemble_cross_entropy 2.303, "
        "distillation 0.300 (0.100 per student)"
    ) in shown


def test_peers_are_counted_without_their_leader(capsys: pytest.CaptureFixture[str]) -> None:
    members = ("peer_0", "peer_1", "leader")
    losses = {"total": 6.0, "cross_entropy": 3.0, "peer_distillation": 2.0, "leader_distillation": 1.0}
    shown = line_of(losses, plan(members, Okddip.summed_over(members)), capsys)
    assert "cross_entropy 3.000 (1.000 per student), peer_distillation 2.000 (1.000 per student)," in shown
    assert "leader_distillation 1.000  test" in shown


def test_one_student_has_one_figure(capsys: pytest.CaptureFixture[str]) -> None:
    shown = line_of({"total": 2.0, "cross_entropy": 2.0}, plan(("student_0",), {}), capsys)
    assert "loss 2.000: cross_entropy 2.000  test" in shown


def test_the_last_lines_of_a_training_have_intervals_and_the_next_command_and_nothing_chosen_on_test_images(
    tmp_path: Path, tiny: Callable[..., Recipe], distilkit: Command
) -> None:
    tiny()
    chosen = ("--set", "train.epochs=1", "--set", "data.validation=100")
    runs = tmp_path / "runs"
    shown = distilkit("train", tmp_path / "tiny.toml", "--runs", runs, *chosen).out
    (run,) = runs.iterdir()
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    images = record["data"]["images"]["test"]
    for error in record["final"]["errors"].values():
        low, high = wilson95(round(error["top1"] * images / 100), images)
        assert f"{low:.2f}-{high:.2f}" in shown
    assert "lowest error on the validation split (epoch 1)" in shown
    assert shown.splitlines()[-1] == f"next: distilkit export {shlex.quote(str(run))}"
    card = (run / "README.md").read_text(encoding="utf-8")
    assert "lowest error on the validation split (epoch 1)" in card
    for text in (shown, card):
        assert "best on test" not in text.lower()
        assert "selected on the test" not in text.lower()
    # It stays where somebody looks for the papers' figures.
    assert "best on test (epoch 1; selected on the test set" in distilkit("runs", "show", run).out
    assert distilkit("runs", "show", run, "--json").json["best_on_test"] == record["final"]["best_on_test"]
    page = distilkit("report", run, "--no-figures", "--no-evaluate", "--json").json["output"]
    assert "Selected on the test set by the leader" in Path(page).read_text(encoding="utf-8")
