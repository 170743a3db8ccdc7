"""The command line keeps its word: exit statuses, JSON alone on stdout, messages that help, the run that is meant."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Result
from safetensors.torch import load_file, save_file

import distilkit as package
from distilkit.workflows.evaluation import evaluate as evaluate_workflow
from distilkit.workflows.train import fit as train_workflow

Command = Callable[..., Result]
COMMANDS = (
    "init",
    "doctor",
    *("train", "evaluate", "ensemble-eval", "prune-branches", "robustness", "export", "compare", "report"),
    *("benchmark", "push", "pull", "runs", "recipes"),
)
TAKE_A_RUN = ("evaluate", "ensemble-eval", "prune-branches", "robustness", "export", "compare", "report")
GONE = object()
QUICK = {"robustness": ("--steps", 1, "--directions", 1, "--images", 50), "report": ("--no-figures",)}


@pytest.fixture
def refused(distilkit: Command) -> Callable[..., str]:
    """refused(words, *arguments): exit status 2, a JSON failure alone on stdout, the same message and a hint on stderr.

    `words` must be in the message or the hint. Returns both.
    """

    def check(words: tuple[object, ...], *arguments: object) -> str:
        result = distilkit(arguments[0], "--json", *arguments[1:])
        assert result.status == 2, result
        document = result.json
        assert set(document) == {"schema", "error"}
        assert document["schema"] == 1
        error = document["error"]
        assert set(error) == {"kind", "message", "hint", "faults"}
        assert error["message"]
        text = f"{error['message']}\n{error['hint'] or ''}"
        for word in words:
            assert str(word) in text
        assert f"error: {error['message']}" in result.err
        hints = [error["hint"], *(fault["hint"] for fault in error["faults"])]
        assert any(hints), f"no hint: {error['message']}"
        assert "hint:" in result.err
        return text

    return check


@pytest.fixture
def one(one_run: Path, tmp_path: Path) -> Path:
    """A finished run of ONE that may be damaged."""
    return copy(one_run, tmp_path / "runs" / "one")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.toml"
    file.write_text(TINY, encoding="utf-8")
    return file


def copy(run: Path, to: Path) -> Path:
    shutil.copytree(run, to)
    return to


def record(run: Path, **changed: object) -> dict[str, Any]:
    """run.json, after changing some of its keys; a key that becomes `GONE` goes."""
    document: dict[str, Any] = json.loads((run / "run.json").read_text(encoding="utf-8")) | changed
    if changed:
        document = {key: value for key, value in document.items() if value is not GONE}
        (run / "run.json").write_text(json.dumps(document), encoding="utf-8")
    return document


def checkpoint(run: Path, pointer: str = "last") -> Path:
    return run / "checkpoints" / (run / "checkpoints" / pointer).read_text().strip()


@contextmanager
def program(*arguments: object, cwd: Path) -> "Iterator[subprocess.Popen[str]]":
    """distilkit as a process of its own, the way a shell starts it; whatever happens, it does not outlive the block."""
    with subprocess.Popen(
        [sys.executable, "-m", "distilkit", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(package.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


# As a process of its own


def test_a_command_leaves_json_alone_on_stdout_and_status_0(one_run: Path, tmp_path: Path) -> None:
    """Export, since its libraries are the most talkative, below Python too."""
    with program("export", one_run, "--output", tmp_path / "model.onnx", "--json", cwd=tmp_path) as process:
        out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert json.loads(out)["passed"] is True
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.card.md", "model.onnx"]


def test_a_wrong_path_leaves_status_2_and_no_traceback(tmp_path: Path) -> None:
    with program("evaluate", "no/such/run", cwd=tmp_path) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert out == ""
    assert "no/such/run" in err
    assert "Traceback" not in err


def test_a_reader_that_leaves_early_sees_no_traceback(one_run: Path, tmp_path: Path) -> None:
    with program("compare", one_run, "--json", cwd=tmp_path) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        err = process.stderr.read()
        process.wait(timeout=60)
    assert "Traceback" not in err
    assert "Exception" not in err


@pytest.mark.parametrize(
    ("signum", "status", "flags"), [(signal.SIGINT, 130, ()), (signal.SIGTERM, 143, ("--json",))], ids=["INT", "TERM"]
)
def test_a_signal_saves_the_training_and_resume_finishes_it(
    signum: signal.Signals,
    status: int,
    flags: tuple[str, ...],
    recipe: Path,
    tmp_path: Path,
    distilkit: Command,
    refused: Callable[..., str],
) -> None:
    with program("train", recipe, "--set", "train.epochs=12", "--device", "cpu", *flags, cwd=tmp_path) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        for line in process.stderr:
            if line.startswith("epoch 1/12"):
                break
        process.send_signal(signal.SIGSTOP)
        (run,) = (tmp_path / "runs").iterdir()
        assert record(run)["state"] == "running"
        refused((run,), "train", "--resume", run, "--device", "cpu")  # Two must not write to one folder.
        process.send_signal(signal.SIGCONT)
        process.send_signal(signum)
        err = process.stderr.read()
        out = process.stdout.read()
        process.wait(timeout=60)
    assert process.returncode == status
    assert "Traceback" not in err
    assert signum.name in err
    assert record(run)["state"] == "interrupted"
    assert len((run / "metrics.jsonl").read_text().splitlines()) < 12
    assert checkpoint(run).is_dir()

    result = distilkit("train", "--resume", run, "--json", "--device", "cpu")
    assert result.status == 0
    assert result.json["state"] == "done"
    assert result.json["epochs"] == 12
    assert record(run)["state"] == "done"
    epochs = [json.loads(line)["epoch"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert epochs == list(range(1, 13))
    if flags:  # One JSON document on stdout, whatever happens.
        assert json.loads(out)["schema"] == 1
        assert signum.name in json.loads(out)["error"]["message"]
    else:
        assert out == ""


# What there is


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("command", [(), *((command,) for command in COMMANDS)], ids=" ".join)
def test_help_names_every_command_and_shows_examples(command: tuple[str, ...], flag: str, distilkit: Command) -> None:
    result = distilkit(*command, flag)
    assert result.status == 0
    assert result.err == ""
    if command:
        assert f"distilkit {command[0]}" in result.out
        assert "Example" in result.out
        assert "--json" in result.out
    else:
        assert all(name in result.out for name in COMMANDS)


def test_version(distilkit: Command) -> None:
    assert distilkit("--version") == Result(0, f"distilkit {package.__version__}\n", "")


def test_help_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from distilkit import cli\n"
        "try: cli.main(['train', '--help'])\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    root = str(Path(package.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines()[-1] == "False"


# A command line that cannot be understood


USAGE_FAULTS = {
    "unknown command": (("trane",), "trane"),
    "unknown option": (("evaluate", "--splt", "test"), "--splt"),
    "an option's value is missing": (("train", "--set"), "--set"),
    "unknown format": (("export", "--format", "exe"), "exe"),
    "unknown mode": (("export", "--mode", "both"), "both"),
    "unknown split": (("evaluate", "--split", "val"), "val"),
    "unknown device": (("train", "quickstart", "--device", "tpu"), "tpu"),
    "unknown kind of directions": (("robustness", "--directions-kind", "square"), "square"),
    "not a number": (("robustness", "--steps", "three"), "--steps"),
    "opset out of range": (("export", "--opset", "3"), "--opset"),
    "one argument too many": (("prune-branches", "here", "there"), "there"),
}


@pytest.mark.parametrize(("arguments", "word"), USAGE_FAULTS.values(), ids=USAGE_FAULTS)
def test_a_usage_error_is_named_on_stderr_with_status_2(
    arguments: tuple[str, ...], word: str, distilkit: Command
) -> None:
    result = distilkit(*arguments)
    assert result.status == 2
    assert result.out == ""
    assert word in result.err
    assert "error" in result.err.lower()


@pytest.mark.parametrize(("arguments", "word"), USAGE_FAULTS.values(), ids=USAGE_FAULTS)
def test_a_usage_error_has_a_json_document_and_a_hint(
    arguments: tuple[str, ...], word: str, refused: Callable[..., str]
) -> None:
    refused((word,), *arguments)


def test_which_recipe_is_asked_for_where_none_is_named(refused: Callable[..., str]) -> None:
    refused(("recipe",), "train")


@pytest.mark.parametrize(
    "extra", [("--set", "train.epochs=3"), ("--dry-run",), ("--seeds", "0,1")], ids=lambda extra: extra[0]
)
def test_resume_refuses_what_it_would_ignore(
    extra: tuple[str, ...], one_run: Path, refused: Callable[..., str]
) -> None:
    refused((extra[0], "--resume"), "train", "--resume", one_run, *extra)


def test_a_recipe_beside_resume_must_be_the_runs_own_unless_changes_are_accepted(
    one: Path, recipe: Path, distilkit: Command, refused: Callable[..., str]
) -> None:
    record(one, state="interrupted", final=GONE)
    named = ("train", recipe, "--resume", one)
    text = refused(("method.temperature", "train.epochs", "--accept-changes"), *named, "--set", "method.temperature=4")
    assert "2" in text
    assert "6" in text
    assert distilkit(*named, "--set", "train.epochs=6", "--json").json["state"] == "done"
    record(one, state="interrupted", final=GONE)
    result = distilkit(*named, "--set", "train.epochs=7", "--accept-changes", "--json")
    assert result.json["epochs"] == 7
    assert "train.epochs" in result.err
    assert "epochs = 7" in (one / "recipe.toml").read_text()


@pytest.mark.parametrize("seeds", ["", "0,0", "0,-1", "0,one", "1.5"])
def test_seeds_must_be_distinct_numbers(seeds: str, recipe: Path, refused: Callable[..., str]) -> None:
    refused(("--seeds", seeds), "train", recipe, "--seeds", seeds)


BAD_NUMBERS = {
    "no steps": ("--steps", 0),
    "no directions": ("--directions", 0),
    "no images": ("--images", 0),
    "a negative distance": ("--max-distance", -1),
    "no distance": ("--max-distance", 0),
    "a distance that is no number": ("--max-distance", "nan"),
    "an endless distance": ("--max-distance", "inf"),
    "a threshold without its magnitude": ("--max-increase", 5),
    "a magnitude without its threshold": ("--at", 2),
    "a threshold that nothing can exceed": ("--max-increase", "nan", "--at", 2),
    "a magnitude that is no number": ("--at", "nan", "--max-increase", 5),
    "an endless magnitude": ("--at", "inf", "--max-increase", 5),
    "a negative magnitude": ("--at", -1, "--max-increase", 5),
    "a negative seed": ("--seed", -1),
}


@pytest.mark.parametrize("arguments", BAD_NUMBERS.values(), ids=BAD_NUMBERS)
def test_robustness_refuses_numbers_that_mean_nothing(
    arguments: tuple[object, ...], one_run: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    refused((arguments[0],), "robustness", one_run, "--output", tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


def test_a_bad_recipe_shows_all_faults_at_once_with_their_places(tmp_path: Path, distilkit: Command) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(
        'name = "x"\n[data]\ndataset = "digitz"\n[method]\nname = "one"\ntemperatur = 3\n[train]\nepochs = "many"\n'
    )
    result = distilkit("train", file, "--set", "optimizer.lr=fast", "--json")
    assert result.status == 2
    error = result.json["error"]
    faults = {fault["key"]: fault for fault in error["faults"]}
    assert set(faults) >= {"data.dataset", "method.temperatur", "train.epochs", "optimizer.lr"}
    assert all(set(fault) == {"place", "key", "problem", "hint"} for fault in error["faults"])
    assert [faults[key]["place"] for key in ("data.dataset", "method.temperatur", "train.epochs")] == [
        f"{file}:3",
        f"{file}:6",
        f"{file}:8",
    ]
    assert faults["optimizer.lr"]["place"] == "--set optimizer.lr=fast"
    for word in ("digits", "temperature", "bad.toml:6", "--set optimizer.lr=fast"):
        assert word in result.err
    assert list(tmp_path.iterdir()) == [file]


def test_a_recipe_that_is_not_there_names_the_built_in_ones(tmp_path: Path, refused: Callable[..., str]) -> None:
    refused(("quickstrat", "quickstart"), "train", "quickstrat")
    refused(("nowhere.toml",), "train", tmp_path / "nowhere.toml")
    refused((tmp_path,), "train", tmp_path)


# Which run is meant


@pytest.mark.parametrize("command", TAKE_A_RUN)
def test_without_any_run_the_hint_says_how_to_make_one(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(("runs", "distilkit train"), command)
    assert list(tmp_path.iterdir()) == []


def test_without_a_name_the_newest_finished_run_is_taken_and_named(
    one_run: Path, baseline_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distilkit: Command
) -> None:
    """Newest by when it began; the names say the opposite, and so do the folders' times."""
    monkeypatch.chdir(tmp_path)
    newest = copy(one_run, tmp_path / "runs" / "a")
    older = copy(baseline_run, tmp_path / "runs" / "b")
    unfinished = [
        copy(one_run, tmp_path / "runs" / f"unfinished-{state}") for state in ("running", "interrupted", "failed")
    ]
    record(newest, created="2026-01-03T00:00:00+00:00")
    record(older, created="2026-01-02T00:00:00+00:00")
    for path in unfinished:
        record(path, created="2026-01-04T00:00:00+00:00", state=path.name.partition("-")[2])
    distilkit("prune-branches", newest, "--output", tmp_path / "runs" / "pruned")
    (tmp_path / "runs" / "a-file").write_text("")
    (tmp_path / "runs" / "a-folder").mkdir()

    assert distilkit("evaluate", "--json").json["run"] == "runs/a"
    assert "runs/a" in distilkit("evaluate").out
    assert distilkit("ensemble-eval", "--json").json["run"] == "runs/a"
    assert distilkit("prune-branches", "--json").json["run"] == "runs/a"
    assert distilkit("robustness", *QUICK["robustness"], "--json").json["runs"][0]["run"] == "runs/a"
    assert {row["run"] for row in distilkit("compare", "--json").json["rows"]} == {"runs/a", "runs/b"}
    assert distilkit("evaluate", "--runs", tmp_path / "runs", "--json").json["run"] == str(tmp_path / "runs" / "a")


def test_export_takes_the_newest_run_too(
    one_run: Path, baseline_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distilkit: Command
) -> None:
    monkeypatch.chdir(tmp_path)
    record(copy(baseline_run, tmp_path / "runs" / "newest"), created="2036-01-01T00:00:00+00:00")
    copy(one_run, tmp_path / "runs" / "older")
    document = distilkit("export", "--json").json
    assert document["run"] == "runs/newest"
    assert (tmp_path / document["file"]).is_file()


def test_an_unfinished_run_alone_must_be_named(
    one: Path, monkeypatch: pytest.MonkeyPatch, distilkit: Command, refused: Callable[..., str]
) -> None:
    record(one, state="interrupted", final=GONE)
    monkeypatch.chdir(one.parents[1])
    refused(("runs/one",), "evaluate")
    assert distilkit("evaluate", one, "--json").status == 0


@pytest.mark.parametrize("command", TAKE_A_RUN)
def test_an_unfinished_run_that_is_named_gives_an_answer_or_a_reason(
    command: str, one: Path, tmp_path: Path, distilkit: Command
) -> None:
    record(one, state="interrupted", final=GONE)
    result = distilkit(command, one, *QUICK.get(command, ()), "--json")
    assert result.status in (0, 2), result
    if result.status == 2:
        assert result.json["error"]["hint"]


@pytest.mark.parametrize("command", [*TAKE_A_RUN, "train --resume"])
def test_what_is_not_a_run_is_refused_for_what_it_is(
    command: str, one_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    monkeypatch.chdir(tmp_path)
    copy(one_run, tmp_path / "runs" / "one")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("nothing")
    missing = tmp_path / "missing"
    words = command.split()
    assert "exist" in refused((missing,), *words, missing)
    assert "run.json" in refused((foreign,), *words, foreign)
    refused(("runs/one",), *words, "runs/two")


def test_a_file_in_the_place_of_a_run_is_not_said_to_be_missing(one: Path, refused: Callable[..., str]) -> None:
    assert "does not exist" not in refused((one / "run.json",), "evaluate", one / "run.json")


@pytest.mark.parametrize("command", ["ensemble-eval", "prune-branches", "train --resume", "compare", "report"])
def test_a_pruned_model_is_refused_where_only_a_run_will_do(
    command: str, one: Path, tmp_path: Path, distilkit: Command, refused: Callable[..., str]
) -> None:
    distilkit("prune-branches", one)
    refused((one / "pruned", "pruned"), *command.split(), one / "pruned")


def test_a_damaged_run_beside_it_does_not_keep_a_command_from_its_own_run(
    one: Path, distilkit: Command, refused: Callable[..., str]
) -> None:
    broken = one.with_name("broken")
    broken.mkdir()
    (broken / "run.json").write_text('{"format": 1, "state": "do')
    runs = one.parent
    assert distilkit("evaluate", one, "--runs", runs, "--json").status == 0
    assert "mispelt" in refused(("mispelt",), "evaluate", runs / "mispelt", "--runs", runs)
    newest = distilkit("evaluate", "--runs", runs, "--json")
    assert newest.status == 0, newest.err
    assert newest.json["run"] == str(one)


# Members, checkpoints, splits


@pytest.mark.parametrize("command", ["evaluate", "prune-branches", "robustness", "export"])
def test_an_unknown_member_is_refused_and_the_known_are_named(
    command: str, one_run: Path, refused: Callable[..., str]
) -> None:
    refused(("student_9", "student_0", "student_1", "student_2"), command, one_run, "--member", "student_9")


@pytest.mark.parametrize("command", ["evaluate", "ensemble-eval", "prune-branches", "robustness", "export"])
@pytest.mark.parametrize("name", ["step_7", "best", "latest", "../checkpoints/last", ""])
def test_an_unknown_checkpoint_is_refused_and_the_known_are_named(
    command: str, name: str, one_run: Path, refused: Callable[..., str]
) -> None:
    refused((name, "step_36"), command, one_run, "--checkpoint", name)


@pytest.mark.parametrize("command", ["evaluate", "ensemble-eval"])
def test_a_run_without_validation_images_has_no_such_split(
    command: str, one_run: Path, refused: Callable[..., str]
) -> None:
    refused(("validation",), command, one_run, "--split", "validation")


def test_an_ensemble_of_one_is_refused(baseline_run: Path, refused: Callable[..., str]) -> None:
    refused((baseline_run, "single"), "export", baseline_run, "--mode", "ensemble")
    refused((baseline_run,), "ensemble-eval", baseline_run)


@pytest.mark.parametrize("command", ["evaluate", "ensemble-eval", "robustness", "train"])
def test_a_device_that_is_not_there_is_refused(
    command: str,
    one_run: Path,
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., str],
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    where = (recipe, "--runs", tmp_path / "runs") if command == "train" else (one_run,)
    refused(("CUDA", "--device"), command, *where, "--device", "cuda")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "arguments", [("--mode", "single", "--members"), ("--mode", "ensemble", "--member", "student_1")]
)
def test_an_option_of_the_other_mode_is_not_ignored(
    arguments: tuple[str, ...], one_run: Path, refused: Callable[..., str]
) -> None:
    refused(("--member",), "export", one_run, *arguments)


def test_a_member_that_the_mode_names_is_the_only_one_named(one_run: Path, refused: Callable[..., str]) -> None:
    refused(("student_9", "student_0"), "export", one_run, "--mode", "member:student_9")
    refused(("member:NAME",), "export", one_run, "--mode", "member:")
    refused(("--member",), "export", one_run, "--mode", "member:student_1", "--member", "student_2")
    refused(("--members", "ensemble"), "export", one_run, "--mode", "member:student_1", "--members")


def test_what_a_pruned_model_has_not_is_refused(
    one_run: Path, tmp_path: Path, distilkit: Command, refused: Callable[..., str]
) -> None:
    pruned = tmp_path / "small"
    distilkit("prune-branches", one_run, "--output", pruned)
    refused(("student_1", "student_0"), "evaluate", pruned, "--member", "student_1")
    refused(("--checkpoint",), "evaluate", pruned, "--checkpoint", "last")
    refused((pruned, "pruned"), "export", pruned, "--mode", "ensemble")


# Where results go


def unwritable(command: str, run: Path, output: Path) -> tuple[object, ...]:
    name = output / "model.onnx" if command == "export" else output
    return (command, run, *QUICK.get(command, ()), "--output", name)


@pytest.mark.parametrize("command", ["prune-branches", "robustness", "export"])
def test_a_file_in_the_place_of_the_output_folder_is_refused(
    command: str, one_run: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    output = tmp_path / "taken"
    output.write_text("mine")
    refused((output, "--output"), *unwritable(command, one_run, output))
    refused((output, "--output"), *unwritable(command, one_run, output / "deeper"))
    assert output.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_folder_in_the_place_of_the_exported_file_is_refused(
    one_run: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    folder = tmp_path / "model.onnx"
    folder.mkdir()
    refused((folder,), "export", one_run, "--output", folder)
    assert list(tmp_path.iterdir()) == [folder]
    assert list(folder.iterdir()) == []


def test_a_file_in_the_place_of_the_runs_folder_is_refused(
    recipe: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    refused((taken, "--runs"), "train", recipe, "--runs", taken)
    refused((taken,), "evaluate", "--runs", taken)
    assert taken.read_text() == "mine"


# Damage


def test_a_checkpoint_cut_short_is_named_as_damaged(one: Path, refused: Callable[..., str]) -> None:
    file = checkpoint(one) / "group.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    for command in ("evaluate", "ensemble-eval", "prune-branches", "export", "robustness"):
        assert "damaged" in refused((file,), command, one)
    assert not {"exports", "pruned", "robustness"} & {path.name for path in one.iterdir()}


def test_a_single_changed_byte_in_a_checkpoint_is_found(one: Path, refused: Callable[..., str]) -> None:
    file = checkpoint(one) / "group.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert "damaged" in refused((file,), "evaluate", one)


def test_the_gates_weights_are_checked_before_the_ensemble_is(one: Path, refused: Callable[..., str]) -> None:
    file = checkpoint(one) / "method.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert "damaged" in refused((file,), "ensemble-eval", one)
    assert "damaged" in refused((file,), "export", one, "--mode", "ensemble")


def spoil(file: Path, damage: str) -> None:
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-20])
    else:
        file.unlink()


@pytest.mark.parametrize(
    ("part", "damage"),
    [
        ("group.safetensors", "cut"),
        ("method.safetensors", "gone"),
        ("optimizer.safetensors", "cut"),
        ("state.json", "cut"),
        ("state.json", "gone"),
    ],
)
def test_resume_takes_the_whole_checkpoint_before_a_damaged_one_and_says_so(
    part: str, damage: str, one: Path, distilkit: Command
) -> None:
    final = record(one, state="interrupted")["final"]
    record(one, final=GONE)
    file = checkpoint(one) / part
    spoil(file, damage)
    result = distilkit("train", "--resume", one, "--json")
    assert result.status == 0
    assert file.parent.name in result.err
    assert "step 30" in result.err
    assert result.json["errors"] == final["errors"]
    assert [json.loads(line)["epoch"] for line in (one / "metrics.jsonl").read_text().splitlines()] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]
    assert distilkit("evaluate", one, "--json").json["top1_error"] == pytest.approx(
        final["errors"]["student_0"]["top1"]
    )


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_resume_is_refused_where_every_checkpoint_is_damaged(
    damage: str, one: Path, refused: Callable[..., str]
) -> None:
    record(one, state="interrupted", final=GONE)
    for file in (one / "checkpoints").glob("*/optimizer.safetensors"):
        spoil(file, damage)
    before = (one / "metrics.jsonl").read_bytes()
    text = refused((one,), "train", "--resume", one)
    assert "--checkpoint" not in text  # `train` has no such option.
    assert (one / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("pointer", ["step_999", "", "../../elsewhere", "step_36\nstep_30", "\0"])
def test_a_pointer_to_no_checkpoint_is_refused(pointer: str, one: Path, refused: Callable[..., str]) -> None:
    (one / "checkpoints" / "last").write_text(pointer)
    refused((one,), "evaluate", one)


def test_a_checkpoint_folder_that_is_gone_is_refused(one: Path, refused: Callable[..., str]) -> None:
    shutil.rmtree(one / "checkpoints")
    refused((one,), "evaluate", one)
    refused((one,), "export", one)


RUN_JSON = {
    "not JSON": "{",
    "empty": "",
    "a list": "[]",
    "binary": "\udcff\udcfe",
    "a newer format": '{"format": 999, "state": "done"}',
    "no format": '{"state": "done"}',
    "nothing but its format": '{"format": 1, "state": "done"}',
}


@pytest.mark.parametrize("command", [*TAKE_A_RUN, "train --resume"])
@pytest.mark.parametrize("name", ["not JSON", "nothing but its format"])
def test_every_command_names_a_run_json_that_cannot_be_used(
    name: str, command: str, one: Path, refused: Callable[..., str]
) -> None:
    (one / "run.json").write_text(RUN_JSON[name])
    refused((one / "run.json",), *command.split(), one)


@pytest.mark.parametrize("content", RUN_JSON.values(), ids=RUN_JSON)
def test_a_run_json_that_cannot_be_used_is_named(content: str, one: Path, refused: Callable[..., str]) -> None:
    (one / "run.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    text = refused((one / "run.json",), "evaluate", one)
    if "999" in content:
        assert "999" in text
        assert "format" in text


@pytest.mark.parametrize("key", ["data", "final", "members", "leader"])
@pytest.mark.parametrize("command", TAKE_A_RUN)
def test_a_run_json_that_lacks_a_key_gives_an_answer_or_is_refused(
    command: str, key: str, one: Path, distilkit: Command
) -> None:
    record(one, **{key: GONE})
    result = distilkit(command, one, *QUICK.get(command, ()), "--json")
    assert result.status in (0, 2), result
    if result.status == 2:
        assert str(one) in result.json["error"]["message"]


@pytest.mark.parametrize("content", [None, "name = ", 'name = "x"\n[method]\nname = "two"\n'])
def test_a_recipe_toml_of_a_run_that_cannot_be_used_is_named(
    content: str | None, one: Path, distilkit: Command
) -> None:
    if content is None:
        (one / "recipe.toml").unlink()
    else:
        (one / "recipe.toml").write_text(content)
    for command in ("evaluate", "compare"):
        result = distilkit(command, one, "--json")
        assert result.status == 2
        assert str(one / "recipe.toml") in result.err


# Weights of a pruned model


@pytest.fixture
def pruned(one_run: Path, tmp_path: Path, distilkit: Command) -> Path:
    assert distilkit("prune-branches", one_run, "--output", tmp_path / "pruned").status == 0
    return tmp_path / "pruned"


def test_weights_that_do_not_fit_are_all_listed_together(pruned: Path, refused: Callable[..., str]) -> None:
    file = pruned / "model.safetensors"
    weights = load_file(file)
    kernel = next(name for name, tensor in weights.items() if tensor.ndim == 4)
    matrix = next(name for name, tensor in weights.items() if tensor.ndim == 2)
    missing = next(name for name in weights if name.endswith("running_var"))
    del weights[missing]
    weights["surplus.weight"] = torch.zeros(1)
    weights[kernel] = weights[kernel][:, :, :1].contiguous()
    weights[matrix] = weights[matrix].T.contiguous()
    save_file(weights, file)
    for command in ("evaluate", "robustness", "export"):
        text = refused((file, missing, "surplus.weight", kernel, matrix), command, pruned, *QUICK.get(command, ()))
        assert str(list(weights[kernel].shape)) in text


def test_weights_of_a_pruned_model_that_cannot_be_read_are_named(pruned: Path, refused: Callable[..., str]) -> None:
    file = pruned / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    refused((file,), "evaluate", pruned)
    file.unlink()
    refused((file,), "evaluate", pruned)


def test_a_single_changed_byte_in_a_pruned_models_weights_is_found(pruned: Path, refused: Callable[..., str]) -> None:
    """config.json has their digest; without looking at it one byte is enough for errors of 100 % and status 0."""
    file = pruned / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 0x40
    file.write_bytes(content)
    for command in ("evaluate", "robustness", "export"):
        refused((file,), command, pruned)


CONFIGS = {
    "not JSON": "{",
    "a list": "[]",
    "a newer format": '{"format": 999}',
    "nothing but its format": '{"format": 1}',
}


@pytest.mark.parametrize("content", CONFIGS.values(), ids=CONFIGS)
def test_a_config_json_that_cannot_be_used_is_named(content: str, pruned: Path, refused: Callable[..., str]) -> None:
    (pruned / "config.json").write_text(content)
    refused((pruned / "config.json",), "evaluate", pruned)


def test_a_pruned_model_of_an_unknown_architecture_is_refused(pruned: Path, refused: Callable[..., str]) -> None:
    config = json.loads((pruned / "config.json").read_text())
    (pruned / "config.json").write_text(json.dumps(config | {"architecture": "resnet9"}))
    refused(("resnet9",), "evaluate", pruned)


# Faults of ours


@pytest.fixture
def fault_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """What the file that a message names says."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))

    def read(message: str) -> str:
        (file,) = re.findall(re.escape(str(folder)) + r"\S+", message)
        return Path(file).read_text(encoding="utf-8")

    return read


@pytest.mark.parametrize("flags", [(), ("--json",)], ids=["people", "json"])
def test_a_fault_of_ours_leaves_status_3_and_its_traceback_in_a_file(
    flags: tuple[str, ...],
    one_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    distilkit: Command,
    fault_files: Callable[[str], str],
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("a tensor fell over")

    monkeypatch.setattr(evaluate_workflow, "evaluate", fail)
    result = distilkit("evaluate", one_run, *flags)
    assert result.status == 3
    assert "a tensor fell over" in result.err
    text = fault_files(result.err)
    assert "Traceback" in text
    assert "a tensor fell over" in text
    assert "in fail" in text
    if flags:
        error = result.json["error"]
        assert set(error) == {"kind", "message", "hint", "faults"}
        assert error["kind"] != "user"
        assert fault_files(error["message"]) == text
    else:
        assert result.out == ""


def test_a_fault_of_ours_in_training_marks_the_run_as_failed(
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    distilkit: Command,
    fault_files: Callable[[str], str],
) -> None:
    def fail(*args: object) -> None:
        raise IndexError("step out of range")

    monkeypatch.setattr(train_workflow.Trainer, "fit", fail)
    result = distilkit("train", recipe, "--runs", tmp_path / "runs")
    assert result.status == 3
    assert "step out of range" in fault_files(result.err)
    (run,) = (tmp_path / "runs").iterdir()
    assert record(run)["state"] == "failed"


def test_an_interrupted_command_leaves_status_130(
    one_run: Path, monkeypatch: pytest.MonkeyPatch, distilkit: Command
) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate_workflow, "evaluate", interrupt)
    assert distilkit("evaluate", one_run).status == 130
