"""`evaluate` on anything that predicts: figures against scikit-learn and SciPy, gates, predictions, bad input."""

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import yaml
from conftest import Result, train_tiny
from scipy.stats import binomtest
from sklearn import metrics as sklearn
from test_folders import fill, make

from distilkit.analysis import predictions
from distilkit.analysis.metrics import evaluate_logits
from distilkit.analysis.predictions import Predictions, paired, per_class
from distilkit.errors import UserError
from distilkit.workflows.evaluation.gates import Gates

Command = Callable[..., Result]


def drawn(count: int = 400, classes: int = 6, seed: int = 0) -> Predictions:
    draws = np.random.default_rng(seed)
    labels = draws.integers(0, classes - 1, count)  # no image of the last class
    logits = draws.normal(size=(count, classes))
    logits[np.arange(count), labels] += draws.normal(1.2, 1.0, count)
    names = [f"{place}.png" for place in range(count)]
    return Predictions(logits, labels, names, names)


def test_figures_are_those_of_scikit_learn_and_of_the_tensors_engine() -> None:
    found = drawn()
    wrong, taken = found.wrong(), found.taken()
    tensors = evaluate_logits(torch.from_numpy(found.logits), torch.from_numpy(found.labels))
    assert 100 * wrong.mean() == pytest.approx(tensors.top1_error)
    assert 100 * found.wrong(5).mean() == pytest.approx(tensors.top5_error)
    assert found.losses().mean() == pytest.approx(tensors.cross_entropy)
    confidence = found.probabilities.max(1)
    assert predictions.calibration_error(confidence, ~wrong) == pytest.approx(tensors.calibration_error)
    assert found.confusion().tolist() == sklearn.confusion_matrix(found.labels, taken, labels=range(6)).tolist()
    balanced = sklearn.recall_score(found.labels, taken, average="macro", labels=range(5))
    assert predictions.balanced_error(found.labels, wrong, 6) == pytest.approx(100 - 100 * balanced)
    precision, recall, f1, support = sklearn.precision_recall_fscore_support(found.labels, taken, labels=range(5))
    for place, of in enumerate(per_class(found.confusion())[:5]):
        assert of["precision"] == pytest.approx(100 * precision[place])
        assert of["recall"] == pytest.approx(100 * recall[place])
        assert of["f1"] == pytest.approx(100 * f1[place])
        assert of["images"] == support[place]
    assert per_class(found.confusion())[5]["recall"] is None
    assert sklearn.log_loss(found.labels, found.probabilities, labels=range(6)) == pytest.approx(found.losses().mean())


def test_ties_and_nan_count_against_the_classifier() -> None:
    logits = np.array([[0.0, 0.0], [1.0, np.nan], [2.0, 1.0]])
    found = Predictions(logits, np.array([0, 0, 0]), ["a", "b", "c"], ["a", "b", "c"])
    assert found.wrong().tolist() == [True, True, False]
    assert found.taken().tolist()[::2] == [1, 0]


def test_a_paired_comparison_is_its_formula() -> None:
    ours = np.array([True] * 9 + [False] * 41 + [True] * 5)
    theirs = np.array([False] * 9 + [False] * 37 + [True] * 4 + [True] * 5)
    found = paired(ours, theirs)
    assert (found.only_ours, found.only_theirs, found.images) == (9, 4, 55)
    assert found.difference == pytest.approx(100 * 5 / 55)
    ends = binomtest(9, 13).proportion_ci(0.95, method="exact")
    assert found.interval95[0] == pytest.approx(100 * (2 * ends.low - 1) * 13 / 55)
    assert found.interval95[1] == pytest.approx(100 * (2 * ends.high - 1) * 13 / 55)
    assert found.p == pytest.approx(binomtest(9, 13, 0.5).pvalue)
    assert paired(ours, ours).interval95 == (0.0, 0.0)


def test_a_confident_gate_is_judged_by_the_worse_end() -> None:
    found, classes = drawn(), tuple("abcdef")
    error = 100 * found.wrong().mean()
    estimate, confident = (
        Gates(max_error=error + 1, max_balanced_error=60, max_calibration_error=60, confident=sure)
        for sure in (False, True)
    )
    loose, strict = (gates.verdicts("m", found, classes) for gates in (estimate, confident))
    assert [check["passed"] for check in loose] == [True, True, True]
    assert not strict[0]["passed"]
    assert all(check["bound"] > check["value"] for check in strict)
    assert strict == confident.verdicts("m", found, classes), "the bootstrap is seeded"


def test_a_class_without_images_never_passes() -> None:
    (check,) = Gates(max_class_error=100).verdicts("m", drawn(), tuple("abcdef"))
    assert not check["passed"]
    assert check["message"].startswith("no image of f, so")


def test_only_equal_images_are_paired() -> None:
    ours, theirs = drawn(), drawn(seed=1)
    with pytest.raises(UserError, match="not evaluated on the same images"):
        Gates(no_worse_than=Path("x")).comparison(
            "m", ours, Predictions(theirs.logits, theirs.labels, theirs.names, ["y", *theirs.digests[1:]]), Path("x")
        )
    back = Predictions(ours.logits[::-1], ours.labels[::-1], ours.names[::-1], ours.digests[::-1])
    check, figures = Gates(no_worse_than=Path("x")).comparison("m", ours, back, Path("x"))
    assert (figures["difference"], check["passed"]) == (0.0, True)


@pytest.mark.parametrize(
    ("gates", "problem"),
    [
        (Gates(max_error=101), "--max-error must be 0 to 100 percent, not 101"),
        (Gates(max_class_error=float("nan")), "--max-class-error must be"),
        (Gates(margin=1), "--margin says by how much"),
        (Gates(confident=True), "--confident says how a gate is judged"),
    ],
)
def test_limits_out_of_range_are_refused(gates: Gates, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        gates.check()


RECIPE = """
name = "own"
[data]
dataset = "image-folder"
root = "{root}"
image_size = 8
[model]
architecture = "resnet8"
[method]
name = "one"
[train]
epochs = 1
batch_size = 4
precision = "fp32"
"""


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run on a folder of images, its pruned model and every exported format."""
    from distilkit.observer import Observer
    from distilkit.recipe import load
    from distilkit.workflows.train.train import train

    folder = tmp_path_factory.mktemp("shipped")
    root = make(folder / "data", train=None, test={"x.png": "PNG", "y.jpg": "JPEG"})
    (folder / "own.toml").write_text(RECIPE.format(root=root), encoding="utf-8")
    recipe = load(folder / "own.toml", [])
    run = Path(train(recipe, folder / "runs", device="cpu", command="", observer=Observer())["run"])
    return {"folder": folder, "data": root, "run": run}


def words(*parts: Any) -> list[str]:
    return [str(part) for part in parts]


def test_every_form_of_a_model_has_the_same_error(shipped: dict[str, Path], distilkit: Command) -> None:
    run, data = shipped["run"], shipped["data"]
    assert distilkit("prune-branches", run).status == 0
    forms = [run, run / "pruned"]
    for format in ("onnx", "pt2"):
        forms.append(Path(distilkit("export", run, "--format", format, "--json").json["file"]))
    forms.append(
        Path(distilkit("export", run, "--input", "uint8", "--layout", "nhwc", "--batch", "3", "--json").json["file"])
    )
    done = distilkit("evaluate", *forms, "--data", data, "--no-worse-than", run, "--trust-code", "--json")
    assert done.status == 0, done.err
    errors = [model["top1_error"] for model in done.json["models"]]
    assert errors == [errors[0]] * len(forms)
    entropies = [model["cross_entropy"] for model in done.json["models"]]
    assert entropies == pytest.approx([entropies[0]] * len(forms), rel=1e-4)
    # Another process has not written it itself.
    command = words(sys.executable, "-m", "distilkit", "evaluate", forms[3], "--data", data)
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "--trust-code" in refused.stderr


def test_an_onnx_file_is_evaluated_without_torch(shipped: dict[str, Path], distilkit: Command) -> None:
    file = distilkit("export", shipped["run"], "--json").json["file"]
    script = (
        "import sys\nfrom distilkit.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as left:\n    assert not left.code, left.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    command = words(
        sys.executable, "-c", script, "evaluate", file, "--data", shipped["data"], "--max-error", 100, "--json"
    )
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == 4


def test_gates_predictions_and_reports(shipped: dict[str, Path], tmp_path: Path, distilkit: Command) -> None:
    file = distilkit("export", shipped["run"], "--json").json["file"]
    ask = ("evaluate", file, "--data", shipped["data"])
    passed = distilkit(*ask, "--max-error", "100", "--predictions", tmp_path / "p.csv", "--coverage", "--json")
    assert passed.status == 0, passed.err
    assert passed.json["coverage"][-1]["error"] == pytest.approx(passed.json["top1_error"])
    rows = list(csv.DictReader((tmp_path / "p.csv").read_text(encoding="utf-8").splitlines()))
    assert list(rows[0])[:6] == ["image", "label", "prediction", "confidence", "loss", "top1_class"]
    assert [Path(row["image"]).name for row in rows] == ["x.png", "y.jpg"] * 2
    wrong = sum(row["label"] != row["prediction"] for row in rows)
    assert 100 * wrong / len(rows) == passed.json["top1_error"]
    assert np.mean([float(row["loss"]) for row in rows]) == pytest.approx(passed.json["cross_entropy"])
    failed = distilkit(*ask, "--max-error", "0", "--confident", "--junit", tmp_path / "gates.xml", "--github", "--json")
    assert failed.status == 1
    assert not failed.json["passed"]
    suite = ElementTree.parse(tmp_path / "gates.xml").getroot()[0]
    assert (suite.get("name"), suite.get("failures")) == ("distilkit evaluate", "1")
    assert "::error title=error::" in failed.err


def test_bad_input_is_one_message_each(shipped: dict[str, Path], tmp_path: Path, distilkit: Command) -> None:
    file = distilkit("export", shipped["run"], "--json").json["file"]
    digits = train_tiny(tmp_path)
    other = distilkit("export", digits, "--json").json["file"]
    moved = Path(shutil.copy(file, tmp_path / "moved.onnx"))
    fill(tmp_path / "birds" / "bird")
    for command, problem in (
        (("evaluate", file, "--max-error", "101"), "--max-error must be 0 to 100 percent"),
        (("evaluate", moved), "does not say where its images are"),
        (("evaluate", file, "--split", "validation"), "held no validation images out"),
        (("evaluate", file, "--member", "student_1"), "has neither members nor checkpoints"),
        (("evaluate", file, "--data", tmp_path / "birds"), "bird is none of the model's 2 classes"),
        (("evaluate", file, "--no-worse-than", other), "have other classes"),
        (("evaluate", file, file, "--predictions", tmp_path / "p.csv"), "--predictions is of one model"),
        (("robustness", shipped["run"], "--max-error", "-1"), "--max-error must be 0 to 100 percent"),
    ):
        done = distilkit(*command)
        assert done.status == 2, (command, done.out)
        assert problem in " ".join(done.err.split())


def test_robustness_has_a_gate_on_the_error_itself(shipped: dict[str, Path], distilkit: Command) -> None:
    ask = ("robustness", shipped["run"], "--steps", "1", "--directions", "1")
    assert distilkit(*ask, "--max-increase", "100", "--at", "1", "--max-error", "100").status == 0
    failed = distilkit(*ask, "--max-increase", "100", "--at", "1", "--max-error", "0", "--json")
    assert failed.status == 1
    assert [check["kind"] for check in failed.json["checks"]] == ["error", "parameters"]
    assert (
        distilkit("robustness", shipped["run"], "--no-parameters", "--inputs", "noise", "--max-error", "0").status == 1
    )


def test_the_workflow_to_copy_runs_through_the_installed_command(
    shipped: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distilkit: Command
) -> None:
    file = Path(__file__).parents[1] / "docs" / "gate-ci.yml"
    steps = yaml.safe_load(file.read_text(encoding="utf-8"))["jobs"]["gate"]["steps"]
    (command,) = [step["run"] for step in steps if step.get("run", "").startswith("distilkit")]
    monkeypatch.chdir(tmp_path)
    assert distilkit("prune-branches", shipped["run"], "--output", "models/small").status == 0
    make(tmp_path / "images", test={"x.png": "PNG", "y.jpg": "JPEG"})
    script = [sys.executable, "-m", "distilkit", *command.split()[1:]]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr  # one epoch on six images passes no gate of 10 %
    assert ElementTree.parse("gate.xml").getroot().get("tests") == "2"
    assert Path("predictions.csv").is_file()
    assert "::error title=error::" in done.stderr
