"""Exact: resuming, accumulating, averaging and scaling change nothing that they should not change.

test_trainer.py has the loop itself and its signals, test_kills.py the deaths, test_distributed.py several processes.
"""

import json
import signal
import statistics
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from comparing import Crash, CrashAt, StopAt, assert_same_run, largest_difference, tensors
from conftest import TINY, Result, train_tiny
from safetensors.torch import load_file
from torch import Tensor, nn

from distilkit.errors import SettingError, UserError
from distilkit.learners.build import build_learner
from distilkit.models import registry
from distilkit.models.resnet_cifar import resnet8
from distilkit.observer import Observer
from distilkit.recipe import Recipe
from distilkit.runs.run import Run
from distilkit.training.evaluate import evaluate_members
from distilkit.training.processes import make_accelerator
from distilkit.training.trainer import Trainer, check_settings
from distilkit.workflows.train import fit as workflow
from distilkit.workflows.train.train import resume, train

Command = Callable[..., Result]
CPU = torch.device("cpu")
# So near to the largest number that gradients overflow again and again.
SCALER: dict[str, Any] = {"init_scale": 2.0**127, "growth_interval": 2}


def interrupted(recipe: Recipe, folder: Path, observer: Observer) -> Path:
    """Train until the observer ends it; returns the run."""
    with pytest.raises((workflow.Interrupted, Crash)):
        train(recipe, folder, device="cpu", command="distilkit train tiny.toml", observer=observer)
    (path,) = folder.iterdir()
    return path


def check_resumes(folder: Path, *settings: str, observer: Observer | None = None) -> Path:
    """Train without and with an interruption in the middle of the second epoch; both must end as the same run."""
    (folder / "whole").mkdir()
    whole = train_tiny(folder / "whole", *settings)
    path = interrupted(Run.open(whole).recipe, folder / "cut", observer or StopAt(2, 3))
    assert resume(path, device="cpu", observer=Observer())["state"] == "done"
    assert_same_run(whole, path)
    return path


# Resuming


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param((), id="one, branches"),
        pytest.param(("group.kind=networks",), id="one, networks"),
        pytest.param(("method.name=independent",), id="independent, branches"),
        pytest.param(("method.name=independent", "group.kind=networks"), id="independent, networks"),
        pytest.param(("train.accumulation=3",), id="accumulation"),
        pytest.param(("train.ema=0.9", "data.validation=0.1"), id="moving average"),
        pytest.param(("train.ema=0.9", "train.accumulation=2", "optimizer.name=adamw"), id="average, AdamW"),
        pytest.param(("model.norm=none", "method.gate=false", "optimizer.lr=0.01"), id="no batch norm"),
        pytest.param(("schedule.name=cosine", "schedule.warmup_epochs=1", "data.augment=crop-flip"), id="warm-up"),
        pytest.param(("data.augment=random-resized-crop", "train.clip_norm=0.5"), id="resized crops"),
        pytest.param(("train.precision=bf16", "method.name=baseline"), id="bf16"),
        pytest.param(("train.deterministic=true", "method.name=baseline"), id="deterministic"),
    ],
)
def test_resuming_in_mid_epoch_gives_the_bits_of_the_uninterrupted_run(
    settings: tuple[str, ...], tmp_path: Path
) -> None:
    check_resumes(tmp_path, *settings)


@pytest.mark.parametrize(
    ("epoch", "step", "start"), [(1, 1, None), (1, 5, "step_4"), (2, 1, "step_6"), (2, 5, "step_10")]
)
def test_a_checkpoint_every_few_steps_is_where_a_crash_goes_on_from(
    epoch: int, step: int, start: str | None, tmp_path: Path
) -> None:
    settings = ("train.checkpoint_steps=2", "train.ema=0.8")
    (tmp_path / "whole").mkdir()
    whole = train_tiny(tmp_path / "whole", *settings)
    path = interrupted(Run.open(whole).recipe, tmp_path / "cut", CrashAt(epoch, step))
    assert Run.open(path).record["state"] == "failed"
    plans = []

    class Started(Observer):
        def training_started(self, plan: Any) -> None:
            plans.append(plan)

    resume(path, device="cpu", observer=Started())
    assert plans[0].start_step == (0 if start is None else int(start.removeprefix("step_")))
    assert_same_run(whole, path)


def test_checkpoints_come_at_the_steps_that_the_recipe_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    save = workflow.checkpoints.save

    def seen(folder: Path, name: str, *args: Any, **kwargs: Any) -> Path:
        written.append(name)
        return save(folder, name, *args, **kwargs)

    monkeypatch.setattr(workflow.checkpoints, "save", seen)
    train_tiny(tmp_path, "train.checkpoint_steps=4", "train.checkpoint_epochs=2", "method.name=baseline")
    assert written == ["step_4", "step_8", "step_12"]
    written.clear()
    train_tiny(tmp_path, "train.checkpoint_minutes=0.000001", "train.checkpoint_epochs=2", "method.name=baseline")
    assert written == [f"step_{step}" for step in range(1, 13)]


@pytest.fixture
def rarely_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA, where the losses are read every 50 steps only, because reading waits for the device."""
    create = Trainer.__init__

    def as_on_cuda(self: Trainer, *args: Any, **kwargs: Any) -> None:
        create(self, *args, **kwargs)
        self.look_every = 50

    monkeypatch.setattr(Trainer, "__init__", as_on_cuda)


@pytest.mark.usefixtures("rarely_looking")
@pytest.mark.parametrize("checkpoint_steps", [0, 2])
def test_a_signal_is_answered_at_the_next_step_however_rarely_the_losses_are_read(
    checkpoint_steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = f"train.checkpoint_steps={checkpoint_steps}"
    (tmp_path / "whole").mkdir()
    whole = train_tiny(tmp_path / "whole", setting)
    step = Trainer._step

    def signalled(self: Trainer, number: int, *args: Any) -> None:
        step(self, number, *args)
        if number == 8:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", signalled)
        path = interrupted(Run.open(whole).recipe, tmp_path / "cut", Observer())
    assert Run.open(path).checkpoint("last").name == "step_9"
    resume(path, device="cpu", observer=Observer())
    assert_same_run(whole, path)


def resnet8_dropout(num_classes: int, channels: int = 3, norm: registry.Norm = "batch") -> nn.Module:
    """resnet8 that drops half of its pooled features, in every branch."""
    network = resnet8(num_classes, channels, norm)
    network.flatten = nn.Sequential(nn.Flatten(), nn.Dropout(0.5))
    return network


def test_dropout_draws_after_an_interruption_what_it_would_have_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.names()
    monkeypatch.setitem(
        registry._architectures, "resnet8_dropout", registry._Architecture(resnet8_dropout, split_at="layer3")
    )
    path = check_resumes(tmp_path, "model.architecture=resnet8_dropout", "train.accumulation=2")
    # It does draw: the same network without dropout, which has the same weights at first, ends elsewhere.
    (tmp_path / "plain").mkdir()
    assert largest_difference(path, train_tiny(tmp_path / "plain", "train.accumulation=2")) > 1e-3


def test_the_gradients_scale_goes_on_shrinking_and_growing_as_if_nothing_had_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With fp16's scaler, which Accelerate makes on CUDA only: steps whose gradients overflow are skipped."""

    def scaled(*args: Any) -> Accelerator:
        accelerator = make_accelerator(*args)
        accelerator.scaler = torch.amp.GradScaler("cpu", **SCALER)
        return accelerator

    monkeypatch.setattr(workflow, "make_accelerator", scaled)
    scales = []
    update = torch.amp.GradScaler.update

    def seen(self: torch.amp.GradScaler, *args: Any) -> None:
        update(self, *args)
        scales.append(self.get_scale())

    monkeypatch.setattr(torch.amp.GradScaler, "update", seen)
    (tmp_path / "whole").mkdir()
    whole = train_tiny(tmp_path / "whole", "train.epochs=3")
    path = interrupted(Run.open(whole).recipe, tmp_path / "cut", StopAt(2, 2))
    state = json.loads((Run.open(path).checkpoint("last") / "state.json").read_text())
    assert state["scaler"]["scale"] == scales[7]
    assert state["scaler"] != torch.amp.GradScaler("cpu", **SCALER).state_dict(), "a fresh one would go on otherwise"
    resume(path, device="cpu", observer=Observer())
    assert scales[:18] == scales[18:], "18 steps without and with an interruption"
    changes = [second / first for first, second in pairwise(scales[:18])]
    assert {0.5, 1.0, 2.0} == set(changes[:8]) == set(changes[8:]), "it shrinks, stays and grows, all along"
    assert_same_run(whole, path)


# Accumulation


NO_BATCH_NORM = ("model.norm=none", "method.gate=false", "method.rampup_epochs=0")


def in_doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train in float64: a rounding error in float32, at the kink of a ReLU, can grow to 1e-4 within twenty steps."""
    create = Trainer.__init__

    def doubled(self: Trainer, recipe: Recipe, learner: nn.Module, *args: Any, **kwargs: Any) -> None:
        create(self, recipe, learner.double(), *args, **kwargs)

    monkeypatch.setattr(Trainer, "__init__", doubled)


def with_accumulation(folder: Path, parts: int, *settings: str) -> Path:
    (folder / str(parts)).mkdir()
    return train_tiny(folder / str(parts), f"train.accumulation={parts}", *settings)


def distance_from_start(run: Path) -> float:
    opened = Run.open(run)
    start = build_learner(opened.recipe, opened.data.spec()).group.state_dict()
    return max(float((value - start[key]).abs().max()) for key, value in tensors_of_group(run).items())


@pytest.mark.parametrize(
    ("kind", "batch_size", "parts", "smallest"),
    [("branches", 256, 4, 17), ("networks", 323, 4, 5), ("branches", 256, 7, 17)],
    ids=["uneven parts of 17", "networks; 5 images in at most 2 parts", "7 parts"],
)
def test_accumulation_equals_the_large_batch(
    kind: str, batch_size: int, parts: int, smallest: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 1297 % batch_size == smallest
    in_doubles(monkeypatch)
    settings = (
        *NO_BATCH_NORM,
        f"group.kind={kind}",
        f"train.batch_size={batch_size}",
        "group.students=2",
        "train.clip_norm=1.0",
    )
    runs = [with_accumulation(tmp_path, count, *settings) for count in (1, parts)]
    assert distance_from_start(runs[0]) > 0.03, "otherwise equality says nothing"
    assert largest_difference(*runs) < 1e-12
    for one, other in zip(*(Run.open(run).metrics() for run in runs), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-9)
        assert one["train"]["errors"] == other["train"]["errors"]
        # A sum over images, in another order.
        assert one["train"]["diversity"] == pytest.approx(other["train"]["diversity"], rel=1e-9)


def test_accumulation_equals_the_large_batch_in_float32_up_to_rounding(tmp_path: Path) -> None:
    settings = (*NO_BATCH_NORM, "optimizer.lr=0.005")
    runs = [with_accumulation(tmp_path, parts, *settings) for parts in (1, 4)]
    assert distance_from_start(runs[0]) > 0.01
    assert largest_difference(*runs) < 1e-6


def tensors_of_group(run: Path) -> dict[str, Tensor]:
    return load_file(Run.open(run).checkpoint("last") / "group.safetensors")


def test_with_batch_norm_accumulation_normalises_each_part_by_itself(tmp_path: Path) -> None:
    runs = [with_accumulation(tmp_path, parts, "method.name=baseline") for parts in (1, 4)]
    assert largest_difference(*runs) > 1e-3
    # Batch norm sees every part of the twelve steps.
    batches = [int(tensors_of_group(run)["networks.student_0.bn1.num_batches_tracked"]) for run in runs]
    assert batches == [12, 48]
    losses = [Run.open(run).metrics()[-1]["loss"]["total"] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)


# Moving average


def test_the_average_of_the_weights_is_deployed_and_equals_a_slow_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distilkit: Command
) -> None:
    recorded: list[dict[str, Tensor]] = []
    step = Trainer._step

    def seen(self: Trainer, *args: Any) -> None:
        step(self, *args)
        recorded.append({key: value.detach().clone() for key, value in self.learner.state_dict().items()})

    monkeypatch.setattr(Trainer, "_step", seen)
    run = Run.open(train_tiny(tmp_path, "train.ema=0.8", "train.epochs=3"))
    assert len(recorded) == 18
    average = {key: value.double() for key, value in recorded[0].items()}
    for step_number, weights in enumerate(recorded[1:], start=1):
        decay = min(0.8, (1 + step_number) / (10 + step_number))
        for key, value in weights.items():
            average[key] = decay * average[key] + (1 - decay) * value.double()
    saved = tensors(run.checkpoint("last"))
    raw = {key.removeprefix("raw/"): value for key, value in saved.items() if key.startswith("raw/")}
    assert raw.keys() == recorded[-1].keys()
    assert all(torch.equal(raw[key], recorded[-1][key]) for key in raw)
    for key, reference in average.items():
        part, _, name = key.partition(".")
        deployed = saved[f"{part}/{name}"]
        if deployed.is_floating_point():
            torch.testing.assert_close(deployed.double(), reference, rtol=1e-5, atol=1e-6)
    different = sum(not torch.equal(raw[f"group.{key}"], value) for key, value in tensors_of_group(run.path).items())
    assert different > 20, "the average is not what trains"

    # Figures are the average's, in the run's own lines and in what evaluate says.
    shown = distilkit("evaluate", run.path, "--json", "--device", "cpu").json
    line = run.metrics()[-1]["test"]
    assert shown["top1_error"] == pytest.approx(line["errors"]["student_0"]["top1"])
    assert shown["cross_entropy"] == pytest.approx(line["cross_entropy"]["student_0"], rel=1e-5)
    learner = run.learner()
    learner.load_state_dict(raw)
    trained = evaluate_members(learner, run.data.load(("test",)).splits["test"], Accelerator(cpu=True))
    assert abs(trained["cross_entropy"]["student_0"] - shown["cross_entropy"]) > 1e-3


def test_an_average_begins_and_ends_where_the_recipe_was_changed_to_have_it_or_not(
    tmp_path: Path, tiny: Callable[..., Recipe]
) -> None:
    plain, averaged = tiny("train.epochs=3"), tiny("train.epochs=3", "train.ema=0.9")
    path = interrupted(averaged, tmp_path / "ends", StopAt(1, 4))
    raw = load_file(Run.open(path).checkpoint("last") / "raw.safetensors")
    with pytest.raises(workflow.Interrupted):
        resume(path, device="cpu", observer=StopAt(1, 5), recipe=plain, accept_changes=True)
    # What trains goes on, and is what is deployed from now on: the same as without any average.
    reference = interrupted(plain, tmp_path / "plain", StopAt(1, 5))
    assert largest_difference(path, reference) == 0
    assert raw.keys() == {f"group.{key}" for key in tensors_of_group(path)} | {
        key for key in raw if key.startswith("method.")
    }

    path = interrupted(plain, tmp_path / "begins", StopAt(1, 4))
    with pytest.raises(workflow.Interrupted):
        resume(path, device="cpu", observer=StopAt(1, 5), recipe=averaged, accept_changes=True)
    saved = tensors(Run.open(path).checkpoint("last"))
    assert all(torch.equal(saved[f"raw/group.{key}"], value) for key, value in tensors_of_group(path).items())
    assert largest_difference(path, reference) == 0


# Settings that cannot be trained


@pytest.mark.parametrize(
    ("settings", "images", "processes", "key", "words"),
    [
        (("train.sync_batch_norm=true",), 1297, 1, "train.sync_batch_norm", "CUDA"),
        (("train.batch_size=8", "train.accumulation=8"), 1297, 1, "train.batch_size", "needs 2"),
        (("train.batch_size=8", "train.accumulation=4"), 1297, 2, "train.batch_size", "2 processes and 4 parts"),
        (("train.batch_size=8",), 1297, 8, "train.batch_size", "8 processes"),
        (("model.norm=none", "train.batch_size=8", "train.accumulation=2"), 1297, 8, "train.batch_size", "needs 1"),
        (("train.batch_size=64",), 12, 8, "train.batch_size", "8 processes"),
    ],
)
def test_what_cannot_be_trained_here_names_the_setting(
    settings: tuple[str, ...], images: int, processes: int, key: str, words: str, tiny: Callable[..., Recipe]
) -> None:
    with pytest.raises(SettingError) as error:
        check_settings(tiny("method.name=baseline", *settings), images, CPU, processes)
    assert error.value.setting == key
    assert words in error.value.problem
    assert error.value.hint


@pytest.mark.parametrize(
    ("settings", "images", "processes"),
    [
        (("train.batch_size=16", "train.accumulation=8"), 1297, 1),
        (("train.batch_size=16",), 1297, 8),
        (("model.norm=none", "train.batch_size=16", "train.accumulation=2"), 1297, 8),
        (("train.batch_size=64",), 16, 8),
    ],
)
def test_what_is_just_enough_is_accepted(
    settings: tuple[str, ...], images: int, processes: int, tiny: Callable[..., Recipe]
) -> None:
    check_settings(tiny("method.name=baseline", *settings), images, CPU, processes)


@pytest.mark.parametrize("setting", ["train.sync_batch_norm=true", "train.accumulation=200"])
def test_a_setting_that_cannot_be_trained_here_leaves_status_2_its_place_and_no_run(
    setting: str, tiny: Callable[..., Recipe], tmp_path: Path, distilkit: Command
) -> None:
    tiny()
    result = distilkit("train", tmp_path / "tiny.toml", "--set", setting, "--runs", tmp_path / "runs", "--json")
    assert result.status == 2
    (fault,) = result.json["error"]["faults"]
    # The batch size is the setting that is too small, and it stands in the file.
    line = TINY[: TINY.index("batch_size")].count("\n") + 1
    assert fault["place"] == (f"--set {setting}" if "sync" in setting else f"{tmp_path / 'tiny.toml'}:{line}")
    assert fault["hint"]
    assert not (tmp_path / "runs").exists()


# Deterministic algorithms


@pytest.mark.parametrize("wanted", [True, False])
def test_deterministic_holds_during_the_training_and_not_after_it(wanted: bool, tmp_path: Path) -> None:
    flags = []

    class Looking(Observer):
        def steps_finished(self, epoch: int, step_in_epoch: int, losses: Mapping[str, float]) -> None:
            flags.append((torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark))
            if len(flags) == 8:
                raise Crash

    recipe = Run.open(
        train_tiny(tmp_path, f"train.deterministic={str(wanted).lower()}", "train.epochs=2", "method.name=baseline")
    ).recipe
    torch.backends.cudnn.benchmark = True
    try:
        interrupted(recipe, tmp_path / "again", Looking())
        assert torch.backends.cudnn.benchmark
    finally:
        torch.backends.cudnn.benchmark = False
    assert flags == [(wanted, not wanted)] * 8
    assert not torch.are_deterministic_algorithms_enabled()


# Several seeds


def test_each_of_several_seeds_is_the_single_training_with_that_seed(
    tmp_path: Path, tiny: Callable[..., Recipe], distilkit: Command
) -> None:
    tiny()
    arguments = ("train", tmp_path / "tiny.toml", "--set", "data.validation=0.1", "--device", "cpu", "--json")
    document = distilkit(*arguments, "--runs", tmp_path / "runs", "--seeds", "4,0,2").json
    assert document["seeds"] == [4, 0, 2]
    names = [Path(run["run"]).name.rpartition("-")[0] for run in document["runs"]]
    assert names == ["tiny-seed4", "tiny-seed0", "tiny-seed2"]
    assert sorted(Path(run["run"]) for run in document["runs"]) == sorted((tmp_path / "runs").iterdir())
    assert set(document["errors"]) == {"student_0", "student_1", "student_2", "gated"}
    for name, figures in document["errors"].items():
        each = [Run.open(Path(run["run"])).record["final"]["errors"][name]["top1"] for run in document["runs"]]
        assert figures["mean_top1"] == pytest.approx(statistics.fmean(each))
        assert figures["std_top1"] == pytest.approx(statistics.stdev(each))
        assert len(set(each)) > 1
    for seed, sibling in zip(document["seeds"], document["runs"], strict=True):
        alone = distilkit(*arguments, "--runs", tmp_path / "alone", "--set", f"train.seed={seed}").json
        assert_same_run(Path(alone["run"]), Path(sibling["run"]))


# Another recipe


@pytest.fixture
def unfinished(tmp_path: Path, tiny: Callable[..., Recipe]) -> Path:
    return interrupted(tiny(), tmp_path / "runs", StopAt(2, 2))


def contents(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}


def test_a_changed_recipe_is_refused_with_every_difference(
    unfinished: Path, tmp_path: Path, tiny: Callable[..., Recipe], distilkit: Command
) -> None:
    tiny()
    before = contents(unfinished)
    changes = ("--set", "method.temperature=5.0", "--set", "train.epochs=4", "--set", "optimizer.lr=0.01")
    result = distilkit("train", tmp_path / "tiny.toml", "--resume", unfinished, *changes, "--json")
    assert result.status == 2
    message = result.json["error"]["message"]
    for difference in (
        "method.temperature was 3.0, now 5.0",
        "train.epochs was 2, now 4",
        "optimizer.lr was 0.05, now 0.01",
    ):
        assert difference in message
    assert message.count(", now ") == 3
    assert "--accept-changes" in result.json["error"]["hint"]
    assert contents(unfinished) == before


def test_an_accepted_change_is_trained_and_written_down(
    unfinished: Path, tmp_path: Path, tiny: Callable[..., Recipe], distilkit: Command
) -> None:
    tiny()
    changes = ("--set", "method.temperature=5.0", "--set", "train.epochs=3", "--accept-changes")
    result = distilkit("train", tmp_path / "tiny.toml", "--resume", unfinished, *changes, "--json")
    assert result.status == 0, result.err
    assert result.json["epochs"] == 3
    run = Run.open(unfinished)
    (noted,) = run.record["recipe_changes"]
    assert noted["after"] == "step_8"
    assert sorted(noted["changes"]) == ["method.temperature was 3.0, now 5.0", "train.epochs was 2, now 3"]
    assert run.recipe == tiny(
        "method.temperature=5.0", "train.epochs=3", "data.storage=resident", f"train.threads={run.recipe.train.threads}"
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("model.architecture=resnet14",), "do not fit"),
        (("group.students=2",), "do not fit"),
        (("method.gate=false",), "do not fit"),
        (("method.name=baseline",), "do not fit"),
        (("optimizer.name=adamw",), "momentum_buffer"),
        (("train.batch_size=128",), "steps an epoch"),
        (("data.validation=0.2",), "images of train"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_change_that_the_checkpoint_does_not_fit_is_refused_and_leaves_the_run_as_it_was(
    settings: tuple[str, ...], words: str, unfinished: Path, tmp_path: Path, tiny: Callable[..., Recipe]
) -> None:
    before = contents(unfinished)
    with pytest.raises(UserError, match=words) as error:
        resume(unfinished, device="cpu", observer=Observer(), recipe=tiny(*settings), accept_changes=True)
    assert error.value.hint
    after = contents(unfinished)
    assert {path: after[path] for path in before} == before
    assert resume(unfinished, device="cpu", observer=Observer())["state"] == "done"


def test_a_run_without_a_checkpoint_does_not_begin_with_another_recipe(
    tmp_path: Path, tiny: Callable[..., Recipe]
) -> None:
    path = interrupted(tiny(), tmp_path / "runs", CrashAt(1, 2))
    before = contents(path)
    with pytest.raises(UserError, match="has no checkpoint that a changed recipe could go on from"):
        resume(path, device="cpu", observer=Observer(), recipe=tiny("train.seed=1"), accept_changes=True)
    assert contents(path) == before
