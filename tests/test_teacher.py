"""Teachers: frozen, of the right classes, opened by training alone, and found again when a run is resumed."""

import json
import pickle
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from conftest import Result, train_tiny
from safetensors.torch import load_file, save_file

from distilkit.errors import UserError
from distilkit.learners.teacher import Teacher
from distilkit.observer import Observer
from distilkit.recipe import load
from distilkit.runs.run import Run
from distilkit.training.interrupt import Interrupted
from distilkit.workflows.train.teachers import open_teacher
from distilkit.workflows.train.train import dry_run, resume, train

KD = ("method.name=kd", "model.architecture=resnet8")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a network of another depth."""
    return train_tiny(
        tmp_path_factory.mktemp("teacher"), "method.name=baseline", "model.architecture=resnet14", "name=mentor"
    )


@pytest.fixture(scope="module")
def pruned(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, pruned."""
    from distilkit.workflows.deploy.prune_branches import prune_branches

    folder = tmp_path_factory.mktemp("pruned") / "mentor"
    prune_branches(
        teacher, Path("runs"), member=None, checkpoint=None, output=folder, data_root=None, observer=Observer()
    )
    return folder


def _fault(error: pytest.ExceptionInfo[UserError]) -> tuple[str, str]:
    (fault,) = error.value.faults
    assert fault.hint
    return fault.key, fault.problem


def test_kd_trains_with_its_own_term_and_counts_the_teachers_forward(teacher: Path, tmp_path: Path) -> None:
    run = Run.open(train_tiny(tmp_path, *KD, f"teacher.run={teacher}"))
    assert set(run.metrics()[0]["loss"]) == {"total", "cross_entropy", "teacher"}
    line = run.metrics()[0]["loss"]
    assert line["total"] == pytest.approx(line["cross_entropy"] + line["teacher"], rel=1e-5)
    mentor = Run.open(teacher).record["flops"]["deploy"]
    assert run.record["flops"]["train"] == run.record["flops"]["deploy"] + mentor
    assert run.record["parameters"]["train"] == run.record["parameters"]["deploy"]


def test_weight_and_ramp_of_the_teacher_are_its_own(teacher: Path, tmp_path: Path) -> None:
    settings = (f"teacher.run={teacher}", "teacher.weight=0.5", "teacher.rampup_epochs=2", "method.rampup_epochs=0")
    first, second = (line["loss"] for line in Run.open(train_tiny(tmp_path, *settings)).metrics())
    for line, weight in ((first, 0.5 * 2.718281828459045**-5), (second, 0.5 * 2.718281828459045**-1.25)):
        students = line["cross_entropy"] + line["ensemble_cross_entropy"] + line["distillation"]
        assert line["total"] == pytest.approx(students + weight * line["teacher"], rel=1e-4)


def test_temperature_of_the_teacher_is_its_own(teacher: Path, tmp_path: Path) -> None:
    """Its weight of zero leaves the training alone, so that the same students are compared with the same teacher."""
    settings = (*KD, "train.epochs=1", f"teacher.run={teacher}", "teacher.weight=0.0")
    default, hot = (
        Run.open(train_tiny(tmp_path, *settings, f"teacher.temperature={temperature}")).metrics()[0]["loss"]
        for temperature in (3.0, 30.0)
    )
    assert default["cross_entropy"] == hot["cross_entropy"]
    assert hot["teacher"] != pytest.approx(default["teacher"], rel=1e-3)


def test_the_teacher_sees_what_the_students_see(tmp_path: Path) -> None:
    """A student that starts as its teacher has stopped, and hardly moves, has nothing to learn from it.

    Without batch norm, which students would use in train mode.
    """
    still = ("train.epochs=1", "optimizer.lr=1e-9", "model.norm=none", "data.augment=crop-flip")
    mentor = train_tiny(tmp_path, "method.name=baseline", *still, "name=mentor")
    twin, stranger = (
        Run.open(train_tiny(tmp_path, "method.name=kd", *still, f"teacher.run={mentor}", f"train.seed={seed}"))
        for seed in (0, 1)
    )
    assert twin.metrics()[0]["loss"]["teacher"] == pytest.approx(0, abs=1e-6)
    assert stranger.metrics()[0]["loss"]["teacher"] > 1e-4


def test_two_runs_teach_the_mean_of_their_logits(
    teacher: Path, baseline_run: Path, tiny: Callable[..., object]
) -> None:
    images = torch.rand(3, 1, 8, 8)
    both = [Run.open(path).model().classifier(images) for path in (teacher, baseline_run)]
    opened = open_teacher(tiny(f"teacher.run=['{teacher}', '{baseline_run}']"), Run.open(teacher).data)  # type: ignore[arg-type]
    assert opened is not None
    assert torch.allclose(opened(images), (both[0] + both[1]) / 2, atol=1e-6)


def test_the_teacher_stays_as_it_is_whatever_is_called_on_it(teacher: Path) -> None:
    frozen = Teacher([Run.open(teacher).model().classifier])
    before = {key: value.clone() for key, value in frozen.state_dict().items()}
    frozen.train()
    assert not any(module.training for module in frozen.modules())
    logits = frozen(torch.rand(4, 1, 8, 8, requires_grad=True))
    assert not logits.requires_grad
    assert all(torch.equal(value, before[key]) for key, value in frozen.state_dict().items())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_a_run_a_pruned_model_and_its_weights_teach_the_same(
    teacher: Path, pruned: Path, tmp_path: Path, tiny: Callable[..., object]
) -> None:
    state = load_file(pruned / "model.safetensors")
    torch.save(state, tmp_path / "plain.pth")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "nested.pth")
    images = torch.rand(3, 1, 8, 8)
    data = Run.open(teacher).data
    by_file = [pruned / "model.safetensors", tmp_path / "plain.pth", tmp_path / "nested.pth"]
    settings = [
        (f"teacher.run={teacher}",),
        (f"teacher.run={pruned}",),
        (f"teacher.run=['{teacher}', '{pruned}']",),
        *((f"teacher.weights={file}", "teacher.architecture=resnet14") for file in by_file),
    ]
    opened = [open_teacher(tiny(*setting), data) for setting in settings]  # type: ignore[arg-type]
    expected = Run.open(teacher).model().classifier(images)
    for one in opened:
        assert one is not None
        assert torch.allclose(one(images), expected, atol=1e-6)


def test_a_chain_says_what_is_missing_and_then_finds_the_newest_run_of_the_recipe(
    teacher: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        train_tiny(tmp_path, *KD, "teacher.run=mentor")
    key, problem = _fault(error)
    assert key == "teacher.run"
    assert "not there yet" in problem
    assert error.value.faults[0].hint == "train the teacher first: distilkit train mentor"
    assert not (tmp_path / "runs").exists()
    shutil.copytree(teacher, tmp_path / "runs" / teacher.name)
    run = Run.open(train_tiny(tmp_path, *KD, "teacher.run=mentor"))
    assert run.recipe.teacher is not None
    assert run.recipe.teacher.run == str(tmp_path / "runs" / teacher.name)


def test_dry_run_of_a_chain_works_before_the_teacher_is_there(tmp_path: Path, tiny: Callable[..., object]) -> None:
    plan = dry_run(tiny(*KD, "teacher.run=mentor"), tmp_path)  # type: ignore[arg-type]
    assert "not there yet" in plan["teacher_missing"]
    assert plan["flops"]["train"] == plan["flops"]["deploy"]


def test_an_unfinished_teacher_is_refused(teacher: Path, tmp_path: Path) -> None:
    unfinished = tmp_path / "unfinished"
    shutil.copytree(teacher, unfinished)
    record = json.loads((unfinished / "run.json").read_text())
    (unfinished / "run.json").write_text(json.dumps(record | {"state": "interrupted"}))
    with pytest.raises(UserError) as error:
        train_tiny(tmp_path, *KD, f"teacher.run={unfinished}")
    assert "has not finished" in _fault(error)[1]


@pytest.mark.parametrize(("change", "said"), [("order", "another order"), ("fewer", "instead of 10")])
def test_a_teacher_of_other_classes_is_refused_before_training(
    pruned: Path, tmp_path: Path, change: str, said: str
) -> None:
    other = tmp_path / "other"
    shutil.copytree(pruned, other)
    config = json.loads((other / "config.json").read_text())
    classes = config["data"]["classes"]
    config["data"]["classes"] = classes[::-1] if change == "order" else classes[:9]
    if change == "fewer":
        state = load_file(other / "model.safetensors")
        state["fc.weight"], state["fc.bias"] = state["fc.weight"][:9].clone(), state["fc.bias"][:9].clone()
        save_file(state, other / "model.safetensors")
        import hashlib

        config["sha256"] = hashlib.sha256((other / "model.safetensors").read_bytes()).hexdigest()
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError) as error:
        train_tiny(tmp_path, *KD, f"teacher.run={other}")
    key, problem = _fault(error)
    assert key == "teacher.run"
    assert said in problem
    assert not (tmp_path / "runs").exists()


class _Payload:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.file,))


def test_weights_that_would_execute_code_are_refused_and_have_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    torch.save({"weight": _Payload(trace)}, tmp_path / "evil.pth")
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps(_Payload(trace)))
    (tmp_path / "short.pth").write_bytes(b"PK\x03\x04")
    for name in ("evil.pth", "pickle.pth", "short.pth", "missing.pth"):
        with pytest.raises(UserError) as error:
            train_tiny(tmp_path, *KD, f"teacher.weights={tmp_path / name}", "teacher.architecture=resnet14")
        assert _fault(error)[0] == "teacher.weights"
    assert not trace.exists()


def test_weights_of_another_architecture_are_refused_with_the_tensors_that_do_not_fit(
    pruned: Path, tmp_path: Path
) -> None:
    weights = f"teacher.weights={pruned / 'model.safetensors'}"
    with pytest.raises(UserError) as error:
        train_tiny(tmp_path, *KD, weights, "teacher.architecture=resnet8")
    key, problem = _fault(error)
    assert key == "teacher.weights"
    assert "unexpected layer1.1.bn1.bias" in problem


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (("teacher.weight=2.0",), "teacher"),
        (("teacher.architecture=resnet14",), "teacher.architecture"),
        (("teacher.run=x", "teacher.weights=y"), "teacher.run"),
        (("teacher.run=x", "teacher.rampup_epochs=9"), "teacher.rampup_epochs"),
        (("teacher.run=x", "teacher.wait=1"), "teacher.wait"),
    ],
)
def test_a_teacher_section_that_makes_no_sense_is_a_fault(
    settings: tuple[str, ...], key: str, tiny: Callable[..., object]
) -> None:
    with pytest.raises(UserError) as error:
        tiny(*settings)
    assert _fault(error)[0] == key


class _StopAt(Observer):
    def steps_finished(self, epoch: int, step_in_epoch: int, losses: Mapping[str, float]) -> None:
        if (epoch, step_in_epoch) == (2, 2):
            signal.raise_signal(signal.SIGINT)


def test_resume_opens_the_same_teacher_and_reproduces_the_run(teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    shutil.copytree(teacher, tmp_path / "whole" / "runs" / teacher.name)
    whole = Run.open(train_tiny(tmp_path / "whole", "teacher.run=mentor"))
    with pytest.raises(Interrupted):
        train(whole.recipe, tmp_path / "cut", device="cpu", command="", observer=_StopAt())
    (path,) = (tmp_path / "cut").iterdir()
    resume(path, device="cpu", observer=Observer())
    ours, theirs = (load_file(run.checkpoint("last") / "group.safetensors") for run in (whole, Run.open(path)))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_only_training_opens_the_teacher(teacher: Path, distilkit: Callable[..., Result], tmp_path: Path) -> None:
    mentor = tmp_path / "mentor"
    shutil.copytree(teacher, mentor)
    path = train_tiny(tmp_path, f"teacher.run={mentor}")
    shutil.rmtree(mentor)
    for command in ("evaluate", "ensemble-eval", "prune-branches", "export"):
        assert distilkit(command, path, "--json").status == 0
    assert load(path / "recipe.toml").teacher is not None
