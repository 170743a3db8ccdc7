"""Sharpness in two numbers, thresholds in a file, and verdicts as people, JUnit and GitHub read them."""

import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from distilkit.analysis import corruption, sharpness
from distilkit.errors import UserError
from distilkit.report import checks as reports
from distilkit.workflows.evaluation.robustness_checks import read_thresholds

Command = Callable[..., Any]
QUICK = ("--steps", "2", "--directions", "2", "--images", "60", "--device", "cpu")


def test_the_area_of_a_straight_rise_is_half_its_end() -> None:
    found = sharpness.area([0.0, 1.0, 2.0, 4.0], [[10.0, 12.0, 14.0, 18.0], [10.0, 10.0, 10.0, 10.0]])
    assert found.values == (4.0, 0.0)
    assert (found.mean, found.deviation) == (2.0, statistics.stdev([4.0, 0.0]))
    assert sharpness.area([0.0, 1.0], [[5.0, 7.0]]).deviation is None


def test_the_magnitude_of_a_rise_lies_where_the_line_crosses() -> None:
    curves = [[10.0, 10.0, 20.0], [10.0, 15.0, 15.0], [10.0, 12.0, 13.0], [10.0, math.nan, 0.0]]
    found = sharpness.reach([0.0, 2.0, 4.0], curves, 5.0)
    assert found.values == (3.0, 2.0, math.inf, 2.0)
    assert (found.mean, found.deviation) == (2.5, None), "with one that never rises: the median"
    assert sharpness.reach([0.0, 2.0, 4.0], curves[:2], 5.0).mean == 2.5
    # A rise that a curve takes back counts where it was first.
    assert sharpness.reach([0.0, 1.0, 2.0], [[10.0, 20.0, 10.0]], 5.0).values == (0.5,)


def test_a_thresholds_file_is_read_whole(tmp_path: Path) -> None:
    file = tmp_path / "thresholds.toml"
    file.write_text(
        "[[parameters]]\nat = 2\nmax_increase = 5\n[[parameters]]\nat = 4.0\nmax_increase = 20\n"
        '[[sharpness]]\nrise = 10\nmin_magnitude = 1.5\n[[inputs]]\nperturbation = "noise"\nseverity = 3\n'
        "max_increase = 10\n"
    )
    thresholds = read_thresholds(file)
    assert [threshold.at for threshold in thresholds.parameters] == [2.0, 4.0]
    assert (thresholds.sharpness[0].min_magnitude, thresholds.inputs[0].severity) == (1.5, 3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[parameters]]\nat = 2\n", r"parameters\[1\]\.max_increase: field required"),
        ("[[parameters]]\nat = 0\nmax_increase = 1\n", r"parameters\[1\]\.at: input should be greater than 0"),
        ("[[parameters]]\nat = 1\nmax_increase = nan\n", r"parameters\[1\]\.max_increase: input should be a finite"),
        ("[[parameters]]\natt = 1\nat = 1\nmax_increase = 1\n", r"no parameters\[1\]\.att; .*did you mean 'at'"),
        ("[[parametres]]\nat = 1\n", r"no parametres; there are error, parameters, .*did you mean 'parameters'"),
        ("[parameters]\nat = 1\n", "parameters: input should be a valid tuple"),
        ('[[inputs]]\nperturbation = "nois"\nseverity = 1\nmax_increase = 1\n', "no perturbation of images 'nois'"),
        ('[[inputs]]\nperturbation = "noise"\nseverity = 6\nmax_increase = 1\n', r"inputs\[1\]\.severity: .*less than"),
        ("", "holds no threshold"),
        ("[[parameters]\n", "cannot be read"),
    ],
)  # fmt: skip
def test_every_fault_of_a_thresholds_file_is_named(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "thresholds.toml"
    file.write_text(text)
    with pytest.raises(UserError, match=said):
        read_thresholds(file)


def test_a_missing_thresholds_file_is_named(tmp_path: Path, distilkit: Command) -> None:
    failed = distilkit("robustness", "--thresholds", tmp_path / "none.toml", "--json")
    assert (failed.status, failed.json["error"]["message"]) == (2, f"there is no thresholds file {tmp_path}/none.toml")


CHECKS: list[dict[str, Any]] = [
    {"run": "runs/a-1", "name": "test error at d = 2", "message": "rises by 1.00 points", "passed": True},
    {"run": "runs/b-2", "name": "noise, severity 3", "message": "rises by 50 %\nof all <&>", "passed": False},
]


def test_junit_holds_a_case_for_each_check_and_the_failures_messages() -> None:
    root = ElementTree.fromstring(reports.junit(CHECKS, 1.5))
    (suite,) = root
    assert root.tag == "testsuites"
    for element in (root, suite):
        assert (element.get("tests"), element.get("failures"), element.get("errors")) == ("2", "1", "0")
        assert element.get("time") == "1.500"
    passed, failed = suite
    assert (passed.get("classname"), passed.get("name")) == ("a-1", "test error at d = 2")
    assert passed.find("failure") is None
    assert failed.find("failure").text == "rises by 50 %\nof all <&>"
    assert failed.find("failure").get("type") == "threshold"


def test_annotations_are_one_line_each_and_escaped() -> None:
    assert reports.annotations(CHECKS) == [
        "::notice title=test error at d = 2::a-1: rises by 1.00 points",
        "::error title=noise%2C severity 3::b-2: rises by 50 %25%0Aof all <&>",
    ]


@pytest.fixture
def measured(one_run: Path, tmp_path: Path, distilkit: Command) -> dict[str, Any]:
    """Everything that is measured, of a small run, with checks that fail and pass."""
    folder = tmp_path / "measured"
    folder.mkdir()
    (folder / "thresholds.toml").write_text(
        '[[sharpness]]\nrise = 200\nmin_magnitude = 1\n[[inputs]]\nperturbation = "noise"\nseverity = 5\n'
        "max_increase = -200\n"
    )
    done = distilkit(
        "robustness", one_run, *QUICK, "--inputs", "brightness", "--thresholds", folder / "thresholds.toml",
        "--junit", folder / "deep" / "checks.xml", "--github", "--output", folder, "--json",
    )  # fmt: skip
    return {"status": done.status, "document": done.json, "stderr": done.err, "folder": folder}


def test_the_kinds_that_a_threshold_needs_are_measured_too(measured: dict[str, Any]) -> None:
    (run,) = measured["document"]["runs"]
    assert list(run["inputs"]["errors"]) == ["brightness", "noise"]
    assert run["inputs"]["clean"] == run["curves"]["test"][0][0]
    assert all(len(errors) == 5 for errors in run["inputs"]["errors"].values())


def test_verdicts_are_in_the_document_the_exit_status_junit_and_annotations(measured: dict[str, Any]) -> None:
    assert measured["status"] == 1
    document = measured["document"]
    assert [(check["kind"], check["passed"]) for check in document["checks"]] == [
        ("sharpness", True),
        ("inputs", False),
    ]
    assert document["passed"] is False
    assert document["checks"][0]["magnitude"] is None, "it never rises by 200 points"
    root = ElementTree.parse(measured["folder"] / "deep" / "checks.xml").getroot()
    assert (root.get("tests"), root.get("failures")) == ("2", "1")
    lines = [line for line in measured["stderr"].splitlines() if line.startswith("::")]
    assert [line.split()[0] for line in lines] == ["::notice", "::error"]


def test_the_sharpness_in_the_document_is_that_of_its_curves(measured: dict[str, Any]) -> None:
    (run,) = measured["document"]["runs"]
    found = sharpness.area(run["magnitudes"], run["curves"]["test"])
    assert run["sharpness"]["area"] == {
        "mean": pytest.approx(found.mean),
        "deviation": pytest.approx(found.deviation),
        "values": pytest.approx(list(found.values)),
    }
    kept = json.loads((measured["folder"] / "robustness.json").read_text())
    assert kept["runs"][0]["sharpness"] == run["sharpness"]


def test_images_alone_can_be_perturbed(one_run: Path, tmp_path: Path, distilkit: Command) -> None:
    done = distilkit(
        "robustness", one_run, *QUICK, "--no-parameters", "--inputs", "contrast", "--output", tmp_path, "--json"
    )
    assert done.status == 0
    assert "curves" not in done.json["runs"][0]
    assert [Path(file).name for file in done.json["files"]] == ["robustness.json"]
    people = distilkit("robustness", one_run, *QUICK, "--no-parameters", "--inputs", "all", "--output", tmp_path)
    assert all(kind in people.out for kind in ("noise", "blur", "brightness", "contrast", "jpeg"))
    nothing = distilkit("robustness", one_run, "--no-parameters", "--json")
    assert (nothing.status, nothing.json["error"]["hint"]) == (2, "add --inputs all")
    unknown = distilkit("robustness", one_run, "--inputs", "blurr", "--json")
    assert (unknown.status, unknown.json["error"]["hint"]) == (2, "did you mean 'blur'?")


def test_a_sharpness_threshold_beyond_the_grid_is_refused(one_run: Path, tmp_path: Path, distilkit: Command) -> None:
    (tmp_path / "t.toml").write_text("[[sharpness]]\nrise = 10\nmin_magnitude = 9\n")
    refused = distilkit("robustness", one_run, *QUICK, "--thresholds", tmp_path / "t.toml", "--json")
    assert (refused.status, refused.json["error"]["hint"]) == (2, "--max-distance 9")


DOCS = Path(__file__).parents[1] / "docs"


def test_the_file_that_the_documentation_shows_is_a_thresholds_file(tmp_path: Path) -> None:
    shown = (DOCS / "robustness.md").read_text().split("```toml\n")[1].split("```")[0]
    (tmp_path / "t.toml").write_text(shown)
    assert len(read_thresholds(tmp_path / "t.toml").all) == 4


def test_the_documented_severities_are_those_that_are_applied() -> None:
    text = (DOCS / "robustness.md").read_text()
    for name, kind in corruption.CORRUPTIONS.items():
        assert f"| {name} | {' | '.join(f'{amount:g}' for amount in kind.amounts)} |" in text


def test_the_workflow_file_calls_the_command_with_options_that_it_has(
    one_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distilkit: Command
) -> None:
    steps = yaml.safe_load((DOCS / "robustness-ci.yml").read_text())["jobs"]["robustness"]["steps"]
    (command,) = [step["run"] for step in steps if step.get("run", "").startswith("distilkit")]
    monkeypatch.chdir(tmp_path)
    assert distilkit("prune-branches", one_run, "--output", "models/small").status == 0
    Path("robustness.toml").write_text("[[parameters]]\nat = 1\nmax_increase = 100\n")
    words = [word for word in command.split()[1:] if word not in ("--data", "images")]
    assert distilkit(*words, *QUICK).status == 0
    assert Path("robustness.xml").is_file()
    assert Path("robustness/robustness.json").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--directions", "99999999999999999999"), "--directions must be at most 10,000"),
        (("--steps", "1000000000"), "--steps must be at most 10,000"),
        (("--max-distance", "1e308"), "--max-distance must be at most 1e+38"),
        (("--max-increase", "5", "--at", "1e307"), "--at must be at most 1e+38"),
    ],
)
def test_a_grid_beyond_memory_or_float32_is_refused_at_once(
    words: tuple[str, ...], said: str, one_run: Path, distilkit: Command
) -> None:
    result = distilkit("robustness", one_run, *words)
    assert (result.status, said in result.err) == (2, True), result.err
