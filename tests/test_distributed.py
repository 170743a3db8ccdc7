"""Several processes: the same images, the same weights, one folder, one voice; and what happens when one of them dies.

Most trainings here are started as torchrun starts them, but in milliseconds (see kill_harness.py); the two launchers
themselves start one or two each.
"""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from comparing import Crash, largest_difference, untimed
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st
from kill_harness import REPOSITORY, Harness, Moment
from safetensors.torch import load_file
from torch import Tensor, nn

from distilkit.data.base import Split
from distilkit.data.resident import EVALUATION_BATCH, TrainingImages
from distilkit.groups.outputs import GroupOutput
from distilkit.learners.build import build_learner
from distilkit.runs import checkpoint as checkpoints
from distilkit.runs.run import Run
from distilkit.training.evaluate import evaluate_members
from distilkit.training.interrupt import StopRequest, stop_requests
from distilkit.training.trainer import batch_bounds

# Everything that could depend on the number of processes, but for batch norm and dropout: 24 steps, of which every
# sixth has 7 images; gradients in parts; clipping; an average; three students that teach each other.
NO_BATCH_NORM = (
    "model.norm=none",
    "method.gate=false",
    "method.rampup_epochs=0",
    "train.accumulation=2",
    "train.clip_norm=1.0",
    "train.ema=0.5",
    "data.validation=10",
    "train.epochs=4",
    "train.checkpoint_steps=4",
)


@pytest.fixture(scope="module")
def harness() -> Iterator[Harness]:
    with Harness() as harness:
        yield harness


def recipe_file(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "tiny.toml"
    file.write_text(TINY, encoding="utf-8")
    return file


def training(folder: Path, *changes: str) -> tuple[object, ...]:
    """The words of a training in `folder`, on the CPU, with JSON."""
    words = (word for change in changes for word in ("--set", change))
    return ("train", recipe_file(folder), *words, "--runs", folder / "runs", "--device", "cpu", "--json")


def only(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def one_process(harness: Harness, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of NO_BATCH_NORM, in float64."""
    folder = tmp_path_factory.mktemp("one_process")
    finished = harness.start(*training(folder, *NO_BATCH_NORM), doubles=True).wait()
    assert finished.status == 0, finished.err
    return only(folder / "runs")


def assert_close_runs(first: Path, second: Path, tolerance: float) -> None:
    """Weights, average, optimizer and losses to a tolerance, errors exactly."""
    for part in ("group", "optimizer", "raw"):
        assert largest_difference(first, second, part) < tolerance
    ours, theirs = Run.open(first), Run.open(second)
    for one, other in zip(ours.metrics(), theirs.metrics(), strict=True):
        one, other = untimed(one), untimed(other)
        assert one["loss"] == pytest.approx(other["loss"], rel=max(1e-9, tolerance))
        assert one["train"]["errors"] == other["train"]["errors"]
        assert one["test"]["errors"] == other["test"]["errors"]
        assert one["test"]["cross_entropy"] == pytest.approx(other["test"]["cross_entropy"], rel=1e-4)
        assert {key: one[key] for key in ("epoch", "step", "lr")} == {
            key: other[key] for key in ("epoch", "step", "lr")
        }
    assert ours.checkpoint().name == theirs.checkpoint().name


# Arithmetic


@given(images=st.integers(2, 5000), batch_size=st.integers(2, 700), processes=st.integers(1, 9))
def test_batches_cover_every_image_once_and_leave_batch_norm_two_for_each_process(
    images: int, batch_size: int, processes: int
) -> None:
    bounds = batch_bounds(images, batch_size, processes)
    covered = [index for first, last in bounds for index in range(first, last)]
    assert covered == list(range(images))
    sizes = [last - first for first, last in bounds]
    assert all(size == batch_size for size in sizes[:-2])
    if len(sizes) > 1 and batch_size >= 2 * processes:
        assert min(sizes) >= 2 * processes
        for first, last in bounds:
            count = last - first
            parts = [(rank + 1) * count // processes - rank * count // processes for rank in range(processes)]
            assert sum(parts) == count
            assert max(parts) - min(parts) <= 1
            assert min(parts) >= 2
    # Another number of processes changes the batches only where the last one is too small for it.
    last = images % batch_size or batch_size
    if last >= 2 * processes:
        assert bounds == batch_bounds(images, batch_size, 1)


@pytest.mark.parametrize("augment", ["none", "crop", "crop-flip", "random-resized-crop"])
@settings(max_examples=20, deadline=None)
@given(count=st.integers(2, 40), processes=st.integers(1, 5), parts=st.integers(1, 3), step=st.integers(0, 10**6))
def test_the_parts_of_all_processes_are_the_global_batch_with_its_augmentation(
    augment: str, count: int, processes: int, parts: int, step: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (50, 3, 8, 8), generator=generator, dtype=torch.uint8)
    split = Split(pixels, torch.arange(50))
    images = TrainingImages(split, augment=augment, seed=3, device=torch.device("cpu"))
    indices = torch.randperm(50, generator=generator)[:count]
    whole, labels = images.batch(indices, step)
    pieces = []
    for rank in range(processes):
        first, last = rank * count // processes, (rank + 1) * count // processes
        for part in range(parts):
            edges = [first + (last - first) * edge // parts for edge in (part, part + 1)]
            pieces.append(images.batch(indices, step, slice(*edges)))
    assert torch.equal(torch.cat([piece[0] for piece in pieces]), whole)
    assert torch.equal(torch.cat([piece[1] for piece in pieces]), labels)


class _Group(nn.Module):
    """Two members that read their logits off the images: pixel k of channel m is member m's logit of class k."""

    members = ("student_0", "student_1")

    def forward(self, images: Tensor) -> Any:
        logits_BSC = images[:, :, 0, :].float() / 16
        return GroupOutput(logits_SBC=logits_BSC.transpose(0, 1), features=(), trunk=None, members=self.members)


class _Learner:
    def __init__(self) -> None:
        self.group = _Group()
        self.method = SimpleNamespace(ensemble_name=None, peers=lambda members: members, weights=lambda outputs: {})
        self.training = True

    def train(self, mode: bool = True) -> None:
        self.training = mode

    def eval(self) -> None:
        self.training = False


class _Accelerator:
    """One of several processes, whose sums are added up by the test."""

    def __init__(self, rank: int, world: int) -> None:
        self.process_index, self.num_processes, self.device = rank, world, torch.device("cpu")

    def reduce(self, value: Tensor, how: str) -> Tensor:
        assert how == "sum"
        return value


@settings(max_examples=25, deadline=None)
@given(images=st.integers(1, 10 * EVALUATION_BATCH["cpu"]), world=st.integers(1, 9), seed=st.integers(0, 2**31))
def test_evaluation_counts_every_image_once_whatever_the_number_of_processes(
    images: int, world: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (images, 2, 1, 10), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 10, (images,), generator=generator)
    learner = _Learner()
    parts = [
        evaluate_members(learner, Split(pixels, labels), _Accelerator(rank, world))  # type: ignore[arg-type]
        for rank in range(world)
    ]
    assert learner.training
    for member, name in enumerate(_Group.members):
        logits = (pixels[:, member, 0].double() / 16).tolist()
        wrong, cross_entropy = 0, 0.0
        for row, label in zip(logits, labels.tolist(), strict=True):
            # A tie with another class counts as wrong.
            wrong += any(value >= row[label] for index, value in enumerate(row) if index != label)
            cross_entropy += math.log(sum(math.exp(value - row[label]) for value in row))
        assert sum(part["errors"][name]["top1"] for part in parts) == pytest.approx(100 * wrong / images)
        assert sum(part["cross_entropy"][name] for part in parts) == pytest.approx(cross_entropy / images, rel=1e-5)


# Weights


@pytest.mark.parametrize("world", [2, 3])
def test_without_batch_norm_several_processes_end_with_the_weights_of_one(
    world: int, harness: Harness, one_process: Path, tmp_path: Path
) -> None:
    """In float64 to 1e-12: no image, augmentation or weight of a part can have been another."""
    ends = harness.run_ranks(world, *training(tmp_path, *NO_BATCH_NORM), hands_off=tmp_path / "runs", doubles=True)
    assert [end.status for end in ends] == [0] * world, ends
    run = only(tmp_path / "runs")
    assert_close_runs(one_process, run, 1e-12)
    assert Run.open(run).record["processes"] == world
    assert [line["epoch"] for line in Run.open(run).metrics()] == [1, 2, 3, 4]
    # One voice: the main process alone prints its document and tells how far it is.
    assert ends[0].json["state"] == "done"
    assert "epoch 4/4" in ends[0].err
    for other in ends[1:]:
        assert (other.out, other.err) == ("", "")
    start = build_learner(Run.open(run).recipe, Run.open(run).data.spec()).group.state_dict()
    # Not by opening the run: weights in float64 are refused, as those of another model.
    moved = load_file(Run.open(run).checkpoint() / "group.safetensors")
    assert max(float((moved[key] - start[key]).abs().max()) for key in start) > 0.05, "otherwise equality says nothing"


def test_with_batch_norm_several_processes_differ_by_its_statistics_alone(harness: Harness, tmp_path: Path) -> None:
    """Each process normalises by its own part of a batch; so does accumulation, part by part."""
    changes = ("method.name=independent", "group.students=2", "train.epochs=4")
    runs = {}
    for world in (1, 2):
        ends = harness.run_ranks(world, *training(tmp_path / str(world), *changes))
        assert [end.status for end in ends] == [0] * world
        runs[world] = only(tmp_path / str(world) / "runs")
    lines = {world: Run.open(run).metrics() for world, run in runs.items()}
    assert largest_difference(runs[1], runs[2]) > 1e-3
    for one, other in zip(lines[1], lines[2], strict=True):
        assert one["loss"]["total"] == pytest.approx(other["loss"]["total"], rel=0.05)
    # The first step is the same but for the statistics: every image is in it, and nothing has been learnt.
    assert lines[1][0]["loss"]["total"] != lines[2][0]["loss"]["total"]
    # Each process has counted its own batches, as many as there were steps; the main one's statistics are kept.
    for run in runs.values():
        state = Run.open(run).learner().group.state_dict()
        counts = {int(value) for key, value in state.items() if key.endswith("num_batches_tracked")}
        assert counts == {24}
    # What is written is what was evaluated, although every process has measured other statistics.
    run = Run.open(runs[2])
    for name, errors in lines[2][-1]["test"]["errors"].items():
        if name in run.record["members"]:
            shown = harness.run("evaluate", run.path, "--member", name, "--device", "cpu", "--json").json
            assert shown["top1_error"] == pytest.approx(errors["top1"])


def test_several_processes_train_several_seeds(harness: Harness, tmp_path: Path) -> None:
    changes = ("model.norm=none", "method.name=baseline", "train.epochs=1")
    words = training(tmp_path, *changes)
    ends = harness.run_ranks(2, *words, "--seeds", "0,5", hands_off=tmp_path / "runs", doubles=True)
    assert [end.status for end in ends] == [0, 0], ends
    document = ends[0].json
    assert ends[1].out == ""
    assert [Run.open(Path(run["run"])).recipe.train.seed for run in document["runs"]] == [0, 5]
    alone = harness.start(*training(tmp_path / "alone", *changes, "train.seed=5"), doubles=True).wait()
    assert largest_difference(Path(alone.json["run"]), Path(document["runs"][1]["run"])) < 1e-12


def test_students_of_different_architectures_train_in_two_processes_as_in_one(harness: Harness, tmp_path: Path) -> None:
    students = 'group.students=["resnet8", "resnet14"]'
    changes = ("model.norm=none", "method.name=dml", students, "method.rampup_epochs=0", "train.epochs=1")
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert harness.start(*training(alone, *changes), doubles=True).wait().status == 0
    ends = harness.run_ranks(2, *training(together, *changes), doubles=True)
    assert [end.status for end in ends] == [0, 0], ends
    assert largest_difference(only(alone / "runs"), only(together / "runs")) < 1e-12


# Going on with another number of processes


@pytest.mark.parametrize(
    ("first", "second", "signum"),
    [
        (1, 2, signal.SIGKILL),
        (2, 1, signal.SIGTERM),
        (2, 3, signal.SIGKILL),
        *(
            pytest.param(*words, marks=pytest.mark.long)
            for words in ((1, 2, signal.SIGTERM), (2, 1, signal.SIGKILL), (2, 3, signal.SIGTERM))
        ),
    ],
)
def test_a_run_goes_on_with_another_number_of_processes(
    first: int, second: int, signum: signal.Signals, harness: Harness, one_process: Path, tmp_path: Path
) -> None:
    moments = {rank: [Moment("step", 9, signum)] for rank in range(first)}
    ends = harness.run_ranks(first, *training(tmp_path, *NO_BATCH_NORM), moments=moments, doubles=True)
    killed = signum == signal.SIGKILL
    assert [end.status for end in ends] == [-signal.SIGKILL if killed else 143] * first, ends
    run = only(tmp_path / "runs")
    # SIGKILL: of the eight steps that were done the eighth was saved; SIGTERM: step nine is finished and saved.
    assert checkpoints.pointed(run / "checkpoints", "last") == ("step_8" if killed else "step_9")
    ends = harness.run_ranks(second, "train", "--resume", run, "--device", "cpu", "--json", doubles=True)
    assert [end.status for end in ends] == [0] * second, ends
    assert_close_runs(one_process, run, 1e-12)


def test_a_number_of_processes_that_changes_the_batches_is_refused(harness: Harness, tmp_path: Path) -> None:
    """A last batch of five images is none for three processes, of which each needs two."""
    changes = ("method.name=baseline", "data.validation=12")
    ended = harness.run(*training(tmp_path, *changes), moments=[Moment("step", 4, signal.SIGTERM)])
    assert ended.status == 143
    run = only(tmp_path / "runs")
    ends = harness.run_ranks(3, "train", "--resume", run, "--device", "cpu", "--json")
    assert [end.status for end in ends] == [2, 2, 2]
    assert "6 steps an epoch" in ends[0].json["error"]["message"]
    assert "number of processes" in ends[0].json["error"]["hint"]
    assert harness.run("train", "--resume", run, "--device", "cpu").status == 0


# Signals and deaths


@pytest.mark.parametrize(
    ("rank", "signum"),
    [
        (0, signal.SIGTERM),
        (1, signal.SIGINT),
        *(pytest.param(*words, marks=pytest.mark.long) for words in ((0, signal.SIGINT), (1, signal.SIGTERM))),
    ],
)
def test_a_signal_to_one_process_is_answered_by_all(
    rank: int, signum: signal.Signals, harness: Harness, one_process: Path, tmp_path: Path
) -> None:
    moments = {rank: [Moment("step", 11, signum)]}
    ends = harness.run_ranks(2, *training(tmp_path, *NO_BATCH_NORM), moments=moments, doubles=True)
    assert [end.status for end in ends] == [128 + signum] * 2, ends
    run = only(tmp_path / "runs")
    assert Run.open(run).record["state"] == "interrupted"
    assert checkpoints.pointed(run / "checkpoints", "last") == "step_11"
    assert signum.name in ends[0].json["error"]["message"]
    assert harness.start("train", "--resume", run, "--device", "cpu", doubles=True).wait().status == 0
    assert_close_runs(one_process, run, 1e-12)


@pytest.mark.parametrize("echo", ["agreed", "half optimizer.safetensors", "after last"])
def test_a_signal_that_a_launcher_repeats_does_not_end_the_saving(echo: str, harness: Harness, tmp_path: Path) -> None:
    """SLURM sends SIGTERM to the launcher and to its processes; the launcher then sends it to its processes."""
    count = {"agreed": 3, "half optimizer.safetensors": 1, "after last": 1}[echo]
    term = signal.SIGTERM
    moments = {0: [Moment("step", 3, term), Moment(echo, count, term)], 1: [Moment("agreed", 3, term)]}
    ends = harness.run_ranks(2, *training(tmp_path, "method.name=baseline"), moments=moments)
    assert [end.status for end in ends] == [143, 143], ends
    run = Run.open(only(tmp_path / "runs"))
    assert run.record["state"] == "interrupted"
    assert run.checkpoint("last").name == "step_3"


@pytest.mark.parametrize("world", ["1", "2"])
def test_one_of_several_that_ends_early_is_not_cut_off_by_its_launcher(
    world: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", world)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with stop_requests():
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
        with pytest.raises(Crash), stop_requests() as request:
            raise Crash
        assert (signal.getsignal(signal.SIGTERM) == request.handle) == (world == "2")
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_the_same_signal_is_an_echo_only_for_one_of_several_processes_and_only_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def asked(world: str, second: signal.Signals, after: float) -> list[int]:
        left.clear()
        monkeypatch.setenv("WORLD_SIZE", world)
        request = StopRequest()
        request.handle(signal.SIGTERM, None)
        now[0] += after
        request.handle(second, None)
        assert request.signum == signal.SIGTERM
        return left

    assert asked("1", signal.SIGTERM, 0.0) == [143]
    assert asked("2", signal.SIGTERM, 0.1) == []
    assert asked("2", signal.SIGTERM, 30.0) == [143]
    assert asked("2", signal.SIGINT, 0.1) == [130]


@pytest.mark.parametrize(
    ("dies", "moment"),
    [
        (1, Moment("step", 9)),
        (0, Moment("step", 9)),
        (0, Moment("half group.safetensors", 3)),
        (1, Moment("evaluation", 3)),
    ],
    ids=["rank 1, step", "rank 0, step", "rank 0, saving", "rank 1, evaluation"],
)
def test_a_process_that_dies_ends_the_others_with_a_message_and_the_run_goes_on(
    dies: int, moment: Moment, harness: Harness, one_process: Path, tmp_path: Path
) -> None:
    started = time.monotonic()
    ends = harness.run_ranks(2, *training(tmp_path, *NO_BATCH_NORM), moments={dies: [moment]}, doubles=True)
    assert time.monotonic() - started < 60
    assert ends[dies].status == -signal.SIGKILL
    left = ends[1 - dies]
    assert left.status == 2, left
    run = only(tmp_path / "runs")
    assert "another process of this training has ended" in left.err
    assert f"distilkit train --resume {run}" in left.err
    assert "Traceback" not in left.err
    if dies == 1:
        assert "another process" in left.json["error"]["message"]
        assert Run.open(run).record["state"] == "failed"
    assert harness.start("train", "--resume", run, "--device", "cpu", doubles=True).wait().status == 0
    assert_close_runs(one_process, run, 1e-12)


def test_a_main_process_that_cannot_begin_leaves_the_others_with_a_message(harness: Harness, tmp_path: Path) -> None:
    words = training(tmp_path, "method.name=baseline")
    (tmp_path / "runs").write_text("no folder")
    ends = harness.run_ranks(2, *words)
    assert [end.status for end in ends] == [2, 2], ends
    assert str(tmp_path / "runs") in ends[0].json["error"]["message"]
    assert "another process of this training has ended" in ends[1].err
    assert ends[1].out == ""


def test_a_run_that_another_training_writes_to_is_refused_to_all_processes(harness: Harness, tmp_path: Path) -> None:
    words = training(tmp_path, "method.name=baseline")
    first = harness.start(*words, moments=[Moment("step", 4, signal.SIGSTOP)])
    first.wait_until_stopped()
    run = only(tmp_path / "runs")
    ends = harness.run_ranks(2, "train", "--resume", run, "--device", "cpu", "--json")
    assert [end.status for end in ends] == [2, 2], ends
    assert "another training is writing" in ends[0].json["error"]["message"]
    assert "another process of this training has ended" in ends[1].err
    first.send(signal.SIGCONT)
    assert first.wait().status == 0


# The launchers


def launched(launcher: str, folder: Path, *arguments: object) -> "subprocess.Popen[str]":
    """Two processes on the CPU, as docs/distributed.md starts them, at a port that is free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = {
        "accelerate": (
            *("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
            *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", port),
        ),
        "torchrun": ("torch.distributed.run", "--nproc_per_node", "2", "--master-port", port),
    }[launcher]
    return subprocess.Popen(
        [sys.executable, "-m", *words, "-m", "distilkit", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# The launchers' own processes are found there.
needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc to find a process by rank")


def process_of(rank: int, run: Path) -> int:
    """The process of a rank that trains below this folder."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and f"RANK={rank}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                found += [int(folder.name)] if str(run).encode() in words else []
        except OSError:
            continue  # It has ended meanwhile.
    (process,) = found
    return process


def test_accelerate_launch_gives_the_weights_of_one_process_and_one_of_everything(
    harness: Harness, tmp_path: Path
) -> None:
    """Twenty-four steps in float32; a small rate, so that rounding at a ReLU's kink stays small."""
    changes = ("model.norm=none", "method.gate=false", "train.epochs=4", "optimizer.lr=0.003", "schedule.name=constant")
    with launched("accelerate", tmp_path, *training(tmp_path, *changes)) as process:
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    document = json.loads(out)
    assert document["schema"] == 1
    assert document["state"] == "done"
    run = only(tmp_path / "runs")
    assert Path(document["run"]) == run
    assert [line["epoch"] for line in Run.open(run).metrics()] == [1, 2, 3, 4]
    assert [err.count(f"epoch {epoch}/4") for epoch in (1, 2, 3, 4)] == [1, 1, 1, 1]
    assert "in 2 processes" in err
    assert len(list((run / "tensorboard").glob("events*"))) == 1
    alone = harness.run(*training(tmp_path / "alone", *changes))
    reference = Path(alone.json["run"])
    assert largest_difference(reference, run) < 1e-5
    for one, other in zip(Run.open(reference).metrics(), Run.open(run).metrics(), strict=True):
        assert one["test"]["errors"] == other["test"]["errors"]
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
    assert document["errors"] == alone.json["errors"]
    start = build_learner(Run.open(run).recipe, Run.open(run).data.spec()).group.state_dict()
    # Not by opening the run: weights in float64 are refused, as those of another model.
    moved = load_file(Run.open(run).checkpoint() / "group.safetensors")
    assert max(float((moved[key] - start[key]).abs().max()) for key in start) > 0.02, "otherwise equality says nothing"


@needs_proc
def test_torchrun_ends_when_a_process_is_killed_says_so_and_the_run_can_be_finished(
    harness: Harness, tmp_path: Path
) -> None:
    words = training(tmp_path, "train.epochs=500", "method.name=baseline", "train.checkpoint_steps=1")
    with launched("torchrun", tmp_path, *words) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        for line in process.stderr:
            if line.startswith("epoch 2/500"):
                break
        killed = time.monotonic()
        os.kill(process_of(1, tmp_path / "runs"), signal.SIGKILL)
        err, out = process.stderr.read(), process.stdout.read()
        process.wait(timeout=60)
    assert time.monotonic() - killed < 60
    assert process.returncode != 0
    run = only(tmp_path / "runs")
    assert "another process of this training has ended" in err
    assert f"distilkit train --resume {run}" in err
    assert json.loads(out)["error"]["kind"] == "user"
    reached = len(Run.open(run).metrics())
    assert 2 <= reached < 500
    recipe = recipe_file(tmp_path)
    shorter = (
        "--set",
        f"train.epochs={reached + 2}",
        "--set",
        "method.name=baseline",
        "--set",
        "train.checkpoint_steps=1",
    )
    finished = harness.run("train", recipe, *shorter, "--resume", run, "--accept-changes", "--device", "cpu", "--json")
    assert finished.status == 0, finished.err
    assert finished.json["epochs"] == reached + 2
    assert [line["epoch"] for line in Run.open(run).metrics()] == list(range(1, reached + 3))


@needs_proc
def test_sigterm_to_torchrun_and_its_processes_at_once_saves_the_run(tmp_path: Path) -> None:
    """As SLURM sends it to everything that belongs to a job."""
    words = training(tmp_path, "train.epochs=500", "method.name=baseline")
    with launched("torchrun", tmp_path, *words) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        for line in process.stderr:
            if line.startswith("epoch 1/500"):
                break
        for pid in (process.pid, process_of(0, tmp_path / "runs"), process_of(1, tmp_path / "runs")):
            os.kill(pid, signal.SIGTERM)
        out = process.stdout.read()
        process.stderr.read()
        process.wait(timeout=60)
    assert process.returncode != 0
    run = Run.open(only(tmp_path / "runs"))
    assert run.record["state"] == "interrupted"
    assert "SIGTERM" in json.loads(out)["error"]["message"]
    assert run.checkpoint("last").name in json.loads(out)["error"]["message"]
