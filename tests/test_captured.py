"""A step that is written down once and replayed trains as the step does that is computed anew each time.

The recording is a CUDA graph's, played on the CPU by `played_back.py`; what a device does with it is tested where there
is one.
"""

from pathlib import Path
from typing import Any

import contestants
import pytest
import torch
from comparing import Crash, CrashAt, assert_same_run, largest_difference
from conftest import train_tiny
from played_back import PlayedBack
from torch import Tensor

from distilkit.errors import SettingError, UserError
from distilkit.observer import Observer
from distilkit.recipe import load
from distilkit.training import captured, compiled
from distilkit.training import trainer as trainers
from distilkit.training import update as updates
from distilkit.training.captured import CapturedStep
from distilkit.training.trainer import check_settings
from distilkit.workflows.train.train import resume

# A quarter and an eighth are the same in float32, in which a graph's learning rate is, and in float64.
SETTINGS = ("optimizer.lr=0.125", "train.epochs=4", "schedule.milestones=[0.5]", "schedule.gamma=0.5")


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[PlayedBack]:
    """Every graph of a training, on the CPU."""
    made: list[PlayedBack] = []

    def graph() -> PlayedBack:
        made.append(PlayedBack())
        return made[-1]

    monkeypatch.setattr(updates, "CudaGraph", graph)
    monkeypatch.setattr(trainers, "check_graph", lambda *_: None)
    return made


@pytest.mark.parametrize(
    "settings",
    [
        ("method.name=one",),
        ("method.name=one", "method.detach_target=false", "group.kind=networks"),
        ("method.name=okddip",),
        ("method.name=okddip", "method.peer_targets=random", "method.mix=logits"),
        ("method.name=dml", "group.kind=networks"),
        ("method.name=cl-ilr",),
        ("method.name=baseline", "train.clip_norm=0.5", "train.label_smoothing=0.1"),
        ("method.name=one", "optimizer.name=adamw", "optimizer.lr=0.0009765625"),
        ("method.name=one", "train.ema=0.9", "schedule.warmup_epochs=1"),
        ("method.name=one", "data.augment=crop", "data.mixup=0.2"),
        ("method.name=one", "train.precision=bf16"),
        ("method.name=one", "schedule.name=cosine"),
    ],
    ids=lambda settings: " ".join(settings),
)
def test_replayed_steps_train_as_computed_ones(
    settings: tuple[str, ...], graphs: list[PlayedBack], tmp_path: Path
) -> None:
    usual = SETTINGS if not any("schedule.name" in each for each in settings) else SETTINGS[:2]
    for name in ("computed", "replayed"):
        (tmp_path / name).mkdir()
    computed = train_tiny(tmp_path / "computed", *usual, *settings)
    assert not graphs
    replayed = train_tiny(tmp_path / "replayed", *usual, *settings, "train.cuda_graph=true")
    (graph,) = graphs
    assert graph.replays == 4 * 5 - captured.WARM_UP, "all but the first steps and every epoch's last, smaller one"
    if any("cosine" in each or "warmup" in each for each in settings):
        # Rates that float32 has no number for.
        assert largest_difference(computed, replayed) < 1e-3
    else:
        assert_same_run(computed, replayed)


@pytest.mark.parametrize("place", [(2, 2), (1, 5)], ids=["in mid-epoch", "before an epoch's last, smaller batch"])
def test_a_run_with_a_graph_goes_on_where_it_was_broken_off(
    place: tuple[int, int], graphs: list[PlayedBack], tmp_path: Path
) -> None:
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    settings = (*SETTINGS, "train.cuda_graph=true", "train.checkpoint_steps=1")
    whole = train_tiny(tmp_path / "whole", *settings)
    with pytest.raises(Crash):
        train_tiny(tmp_path / "broken", *settings, observer=CrashAt(*place))
    (broken,) = (tmp_path / "broken" / "runs").iterdir()
    resume(broken, device="cpu", observer=Observer())
    assert len(graphs) == 3
    assert graphs[2].replays >= 2 * 5 - captured.WARM_UP
    assert_same_run(whole, broken)


def test_a_teachers_weight_is_that_of_its_time(graphs: list[PlayedBack], tmp_path: Path, one_run: Path) -> None:
    for name in ("computed", "replayed"):
        (tmp_path / name).mkdir()
    settings = (*SETTINGS, f"teacher.run={one_run}", "teacher.rampup_epochs=3")
    computed = train_tiny(tmp_path / "computed", *settings)
    replayed = train_tiny(tmp_path / "replayed", *settings, "train.cuda_graph=true")
    assert graphs[0].replays
    assert_same_run(computed, replayed)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize(
    "settings",
    [
        ("method.name=one",),
        ("method.name=okddip", "method.peer_targets=random"),
        ("method.name=one", "train.precision=bf16"),
        ("method.name=one", "optimizer.name=adamw", "optimizer.lr=0.0009765625", "train.clip_norm=1"),
    ],
    ids=lambda settings: " ".join(settings),
)
def test_a_devices_graph_trains_as_its_computed_steps(settings: tuple[str, ...], tmp_path: Path) -> None:
    for name in ("computed", "replayed"):
        (tmp_path / name).mkdir()
    settings = (*SETTINGS, "train.deterministic=true", *settings)
    computed = train_tiny(tmp_path / "computed", *settings, device="cuda")
    replayed = train_tiny(tmp_path / "replayed", *settings, "train.cuda_graph=true", device="cuda")
    assert largest_difference(computed, replayed) < 1e-5


def test_what_changes_outside_of_the_tensors_is_not_seen_by_a_replay() -> None:
    """The emulation has the fault that it is there to find."""
    factor = 2.0
    step = CapturedStep(lambda x: x * factor, PlayedBack())
    results = [float(step(torch.tensor([1.0]))) for _ in range(4)]
    factor = 3.0
    assert (results, float(step(torch.tensor([5.0])))) == ([2.0] * 4, 10.0)


def test_a_result_is_the_callers_own() -> None:
    step = CapturedStep(lambda x: x + 1, PlayedBack())
    results = [step(torch.tensor([float(number)])) for number in range(6)]
    assert torch.cat(results).tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def test_inputs_of_another_shape_or_type_do_not_fit() -> None:
    step = CapturedStep(lambda x: x.float() + 1, PlayedBack())
    assert step.fits(torch.zeros(3))
    step(torch.zeros(3))
    assert step.fits(torch.ones(3))
    assert not step.fits(torch.zeros(2))
    assert not step.fits(torch.zeros(3, dtype=torch.uint8))


def test_a_step_that_waits_for_the_device_cannot_be_recorded() -> None:
    step = CapturedStep(lambda x: x * float(x.sum()), PlayedBack())
    for _ in range(captured.WARM_UP):
        step(torch.ones(2))
    with pytest.raises(RuntimeError, match="would wait"):
        step(torch.ones(2))


@pytest.mark.parametrize(
    ("settings", "device", "processes", "said"),
    [
        ((), "cpu", 1, "needs a CUDA device"),
        ((), "cuda", 2, "here are 2"),
        (("train.accumulation=2",), "cuda", 1, "train.accumulation is above 1"),
        (("train.precision=fp16",), "cuda", 1, "fp16 decides"),
    ],
)
def test_where_a_step_cannot_be_a_graph_the_setting_is_named(
    settings: tuple[str, ...], device: str, processes: int, said: str
) -> None:
    recipe = load("quickstart", ["train.cuda_graph=true", *settings])
    with pytest.raises(SettingError, match=said) as caught:
        check_settings(recipe, 1297, torch.device(device), processes)
    assert caught.value.setting == "train.cuda_graph"


COMPILED = {
    "one": ("method.name=one",),
    "okddip": ("method.name=okddip",),
    "dml on networks": ("method.name=dml", "group.kind=networks"),
    "cl-ilr": ("method.name=cl-ilr",),
    "baseline in bf16": ("method.name=baseline", "train.precision=bf16"),
}


@pytest.mark.parametrize(
    "settings",
    [pytest.param(keys, id=name, marks=() if name == "one" else pytest.mark.long) for name, keys in COMPILED.items()],
)
def test_the_losses_are_one_graph_without_breaks(
    settings: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced by Dynamo and AOTAutograd as `torch.compile` does, and run operator by operator."""
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    for name in ("eager", "compiled"):
        (tmp_path / name).mkdir()
    settings = ("train.epochs=1", "method.rampup_epochs=0", *settings)
    if "method.name=baseline" in settings:
        settings = tuple(each for each in settings if "rampup" not in each)
    eager = train_tiny(tmp_path / "eager", *settings)
    traced = train_tiny(tmp_path / "compiled", *settings, "train.compile=true")
    tolerance = 2e-2 if "train.precision=bf16" in settings else 2e-4
    assert largest_difference(eager, traced) < tolerance


@pytest.mark.long
@pytest.mark.parametrize("method", ["one", "okddip"])
def test_compiled_losses_have_the_eager_ones_gradients(method: str) -> None:
    learner, twin = (contestants.learner_of(contestants.recipe_of(method), contestants.data(10)) for _ in range(2))
    split = contestants.data(16).splits["train"]
    compiled.compile_losses(twin)
    found = []
    for each in (learner, twin):
        output = each.double()(split.images[:], split.labels, 0.5)
        output.loss.backward()
        found.append((output.loss.detach(), {name: value.grad for name, value in each.named_parameters()}))
    (eager, gradients), (made, theirs) = found
    torch.testing.assert_close(made, eager)
    torch.testing.assert_close(theirs, gradients)


def test_without_a_compiler_no_run_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import TorchDynamoException

    def failing(*_: Any, **__: Any) -> Any:
        def call(*_: Tensor) -> Tensor:
            raise TorchDynamoException("there is no compiler")

        return call

    monkeypatch.setattr(torch, "compile", failing)
    with pytest.raises(UserError) as caught:
        train_tiny(tmp_path, "train.compile=true")
    (fault,) = caught.value.faults
    assert (fault.key, "there is no compiler" in fault.problem) == ("train.compile", True)
    assert not (tmp_path / "runs").exists()
