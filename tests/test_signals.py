"""Ctrl-C and SIGTERM at any moment of any command: 130 or 143, one sentence, nothing half written, and it can go on.

Every moment is a process of its own, see kill_harness.py. tests/test_kills.py has the training's steps, evaluation and
checkpoints, and the bits of what is resumed; here is what lies before and after, and every other command.
"""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from comparing import assert_same_run
from conftest import TINY, Result
from fuzzing import onnx_files
from kill_harness import Harness, Moment
from PIL import Image

from distilkit.runs.run import Run

INT, TERM = signal.SIGINT, signal.SIGTERM
CHANGES = ("group.students=2", "tracking.name=none")


@pytest.fixture(scope="module")
def harness() -> Iterator[Harness]:
    with Harness(["distilkit.workflows.comparison.report", "distilkit.report.figures"]) as harness:
        yield harness


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    recipe = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    recipe.write_text(TINY.replace('precision = "fp32"', ""), encoding="utf-8")
    return ("train", recipe, *(word for change in CHANGES for word in ("--set", change)), "--device", "cpu", "--json")


@pytest.fixture(scope="module")
def uninterrupted(harness: Harness, arguments: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    fixed = ("--set", "train.precision=fp32")
    finished = harness.run(*arguments, *fixed, "--runs", tmp_path_factory.mktemp("whole"))
    assert finished.status == 0, finished.err
    return Path(finished.json["run"])


def moment_name(moment: object) -> str | None:
    return f"{moment.phase} #{moment.occurrence}" if isinstance(moment, Moment) else None


def answered(ended: object, signum: int) -> None:
    """130 or 143, the signal's name, one JSON document, no traceback."""
    status, out, err = ended  # type: ignore[misc]
    assert status == 128 + signum, (status, err)
    assert "Traceback" not in err
    assert signal.Signals(signum).name in err
    document = json.loads(out)
    assert document["error"]["kind"] == "interrupted"
    assert document["error"]["hint"]


# Before there is a run


BEFORE = (
    Moment("call distilkit.recipe:load", 1, INT),
    Moment("call distilkit.workflows.train.prepare:build_learner", 1, TERM),
    Moment("call distilkit.data.datasets:load", 1, INT),
    Moment("call sklearn.datasets:load_digits", 1, TERM),
    Moment("call distilkit.training.precision:choose", 1, INT),
)


@pytest.mark.parametrize("moment", BEFORE, ids=moment_name)
def test_before_there_is_a_run_a_signal_leaves_nothing(
    moment: Moment, harness: Harness, arguments: tuple[object, ...], tmp_path: Path
) -> None:
    answered(harness.run(*arguments, "--runs", tmp_path / "runs", moments=[moment]), moment.signum)
    assert not (tmp_path / "runs").exists()


def test_ctrl_c_while_images_are_decoded(harness: Harness, image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY.replace('"digits"', f'"image-folder"\nroot = "{image_folder}"'))
    moments = [Moment("call distilkit.data.image_folder:decode", 30, INT)]
    words = ("train", tmp_path / "tiny.toml", "--runs", tmp_path / "runs", "--device", "cpu", "--json")
    answered(harness.run(*words, moments=moments), INT)
    assert not (tmp_path / "runs").exists()


# A run


DURING = (
    Moment("call distilkit.workflows.train.fit:Trainer", 1, TERM),
    Moment("call distilkit.runs.metrics:keep_until", 1, INT),
    Moment("step", 1, INT),
    Moment("call distilkit.workflows.train.fit:_final", 1, TERM),
    Moment("call distilkit.workflows.train.fit:finished_card", 1, INT),
)


MORE = (
    Moment("evaluation", 1, INT),
    Moment("half optimizer.safetensors", 1, INT),
    Moment("before README.md", 1, TERM),
)


@pytest.mark.parametrize(
    "moment", [*DURING, *(pytest.param(moment, marks=pytest.mark.long) for moment in MORE)], ids=moment_name
)
def test_a_run_that_was_interrupted_says_so_and_ends_as_if_it_had_not_been(
    moment: Moment, harness: Harness, arguments: tuple[object, ...], uninterrupted: Path, tmp_path: Path
) -> None:
    fixed = ("--set", "train.precision=fp32", "--runs", tmp_path / "runs")
    ended = harness.run(*arguments, *fixed, moments=[moment])
    answered(ended, moment.signum)
    (run,) = (tmp_path / "runs").iterdir()
    assert json.loads((run / "run.json").read_text())["state"] == "interrupted"
    assert f"distilkit train --resume {run}" in ended.json["error"]["hint"]
    finished = harness.run("train", "--resume", run, "--device", "cpu", "--json")
    assert finished.status == 0, finished.err
    assert_same_run(uninterrupted, run)


@pytest.mark.parametrize("second", [INT, TERM])
def test_two_signals_in_a_row_before_the_first_step(
    second: signal.Signals, harness: Harness, arguments: tuple[object, ...], tmp_path: Path
) -> None:
    """The second comes while the first is being answered, or is the one that is answered: no traceback either way."""
    moments = [
        Moment("call distilkit.training.precision:choose", 1, INT),
        Moment("call distilkit.cli.console:report_interruption", 1, second),
    ]
    ended = harness.run(*arguments, "--runs", tmp_path / "runs", moments=moments)
    assert ended.status == 128 + second
    assert "Traceback" not in ended.err
    assert not (tmp_path / "runs").exists()


# Every other command


ROBUSTNESS = ("robustness", "--steps", "1", "--directions", "1", "--images", "20")
BENCHMARK = ("benchmark", "--repetitions", "1", "--batch", "1")
EXPORT = "distilkit.workflows.deploy.export"
COMMANDS: tuple[tuple[tuple[str, ...], Moment], ...] = (
    (("evaluate",), Moment("call distilkit.runs.checkpoint:load_part", 1, INT)),
    (("evaluate",), Moment("call distilkit.workflows.evaluation.evaluate:predict", 1, TERM)),
    (("ensemble-eval",), Moment("call distilkit.data.datasets:load", 1, INT)),
    (("ensemble-eval",), Moment("call distilkit.workflows.evaluation.ensemble_eval:_figures", 1, TERM)),
    (("prune-branches",), Moment("call distilkit.workflows.deploy.prune_branches:_difference", 1, INT)),
    (("prune-branches",), Moment("before model.safetensors", 1, TERM)),
    (ROBUSTNESS, Moment("call distilkit.workflows.evaluation.robustness:_measured", 1, INT)),
    (ROBUSTNESS, Moment("call matplotlib.figure:Figure.savefig", 1, TERM)),
    (ROBUSTNESS, Moment("before robustness.png", 1, INT)),
    (("export",), Moment(f"call {EXPORT}:_write", 1, INT)),
    (("report",), Moment("call distilkit.workflows.comparison.report:_tested", 1, INT)),
    (("report", "--no-evaluate"), Moment("before report.html", 1, TERM)),
    (
        ("benchmark", "--repetitions", "1", "--batch", "1"),
        Moment("call distilkit.workflows.deploy.benchmark:_compile", 1, INT),
    ),
    (("push", "--to", "{run}/../published"), Moment("call distilkit.workflows.share.push:prune_branches", 1, TERM)),
)
EXPORTS: tuple[tuple[tuple[str, ...], Moment], ...] = (
    (("export",), Moment(f"call {EXPORT}:_error", 1, TERM)),
    (("export",), Moment("call distilkit.export.onnx:write_atomically", 1, TERM)),
    (("export",), Moment("call os:fsync", 1, INT)),
    (("export",), Moment(f"call {EXPORT}:check_file", 1, INT)),
    (("export",), Moment("before single.onnx", 1, INT)),
    ((*BENCHMARK, "--compile"), Moment("call torch._inductor.compile_fx:compile_fx", 1, INT)),
)
QUANTIZE: tuple[tuple[tuple[str, ...], Moment], ...] = tuple(
    (("export", "--quantize", "int8"), Moment(phase, occurrence, signum))
    for phase, occurrence, signum in (
        ("call distilkit.export.onnx:write_atomically", 2, INT),
        ("call distilkit.workflows.deploy.quantize:_judged", 2, TERM),
        ("call distilkit.workflows.deploy.quantize:interleaved_latency", 1, INT),
        ("before single-int8.onnx", 1, TERM),
    )
)
# What may be there then: the whole file that the 8-bit one is made of.
WHOLE = {"exports", "exports/single.onnx"}


def files(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if path.name != ".lock"
    }


def command_name(value: object) -> str | None:
    return " ".join(value) if isinstance(value, tuple) and not isinstance(value, Moment) else moment_name(value)


def left_as_it_was(words: tuple[str, ...], moment: Moment, harness: Harness, run: Path, may: set[str]) -> None:
    before = files(run.parent)
    device = ("--device", "cpu") if words[0] not in ("prune-branches", "export", "push") else ()
    more = [word.format(run=run) for word in words[1:]]
    answered(harness.run(words[0], run, *more, *device, "--json", moments=[moment]), moment.signum)
    after = files(run.parent)
    new = {name.removeprefix(f"{run.name}/") for name in after.keys() - before.keys()}
    # A folder for results may have been made; in it is what is whole.
    assert {name for name in new if after.get(f"{run.name}/{name}", b"") is not None} <= may, new
    assert {name: after[name] for name in before} == before
    assert Run.open(run).record["state"] == "done"


@pytest.fixture
def copied(uninterrupted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(uninterrupted, tmp_path / "runs" / "one"))


@pytest.mark.parametrize(("words", "moment"), COMMANDS, ids=command_name)
def test_an_interrupted_command_leaves_the_run_as_it_was(
    words: tuple[str, ...], moment: Moment, harness: Harness, copied: Path
) -> None:
    left_as_it_was(words, moment, harness, copied, set())


@pytest.mark.long
@pytest.mark.parametrize(("words", "moment"), EXPORTS, ids=command_name)
def test_an_interrupted_export_leaves_the_run_as_it_was(
    words: tuple[str, ...], moment: Moment, harness: Harness, copied: Path
) -> None:
    left_as_it_was(words, moment, harness, copied, set())


@pytest.mark.long
@pytest.mark.parametrize(("words", "moment"), QUANTIZE, ids=command_name)
def test_an_interrupted_quantisation_leaves_the_file_that_was_whole(
    words: tuple[str, ...], moment: Moment, harness: Harness, copied: Path
) -> None:
    left_as_it_was(words, moment, harness, copied, WHOLE)


@pytest.mark.parametrize(
    "moment",
    [
        Moment("call distilkit.workflows.deploy.predict:open_file", 1, TERM),
        Moment("call distilkit.workflows.deploy.predict:run", 2, INT),
        Moment("call distilkit.workflows.deploy.predict:decode", 40, TERM),
    ],
    ids=moment_name,
)
def test_an_interrupted_prediction_answers_with_its_status(moment: Moment, harness: Harness, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(onnx_files()[0])
    for number in range(100):
        Image.fromarray(np.full((8, 8), number, np.uint8)).save(tmp_path / f"{number:03}.png")
    answered(harness.run("predict", tmp_path / "model.onnx", tmp_path, "--json", moments=[moment]), moment.signum)


@pytest.mark.long
def test_two_signals_in_a_row_during_an_export(harness: Harness, copied: Path) -> None:
    """The second cuts the clearing away short; what it leaves has no final name."""
    moments = [Moment(f"call {EXPORT}:check_file", 1, INT), Moment(f"call {EXPORT}:_remove", 1, TERM)]
    ended = harness.run("export", copied, moments=moments)
    assert ended.status == 128 + TERM
    assert "Traceback" not in ended.err
    assert not list(copied.rglob("single.onnx"))
    again = harness.run("export", copied, "--json")
    assert again.status == 0, again.err
    assert {path.name for path in (copied / "exports").iterdir()} == {"single.onnx", "single.card.md"}


# At any time at all


@pytest.mark.long
@pytest.mark.parametrize("signum", [INT, TERM])
def test_whenever_a_signal_comes_there_is_no_traceback(
    signum: signal.Signals, one_run: Path, tmp_path: Path, distilkit: Callable[..., Result]
) -> None:
    """The real command, while Python imports what it needs and after; the moments are drawn from the clock."""
    program = [sys.executable, "-m", "distilkit", "evaluate", str(one_run), "--device", "cpu", "--runs", str(tmp_path)]
    start = time.monotonic()
    assert subprocess.run(program, capture_output=True, check=False).returncode == 0
    whole = time.monotonic() - start
    statuses = []
    for place in range(1, 12):
        process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        time.sleep(whole * place / 12)
        process.send_signal(signum)
        _, err = process.communicate(timeout=120)
        # Before the first line of distilkit Python itself answers, and it does so with a traceback for Ctrl-C.
        if "Traceback" in err and "distilkit/cli" not in err:
            assert place < 4, (place, process.returncode, err)
            continue
        assert "Traceback" not in err, (place, err)
        # When a library has seen the interruption, Python ends itself by the signal: for a shell that is the same.
        assert process.returncode in (0, 128 + signum, -signum), (place, process.returncode, err)
        statuses.append(process.returncode if "interrupted by" in err else 0)
    assert {128 + signum, -signum} & set(statuses), statuses
