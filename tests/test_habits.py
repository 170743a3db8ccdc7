"""The files around the code: they parse, agree with one another, and name what is there."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import FAST

import distilkit

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, flags=re.MULTILINE))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read_yaml(file: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.load(file.read_text(encoding="utf-8"), yaml.BaseLoader)
    return document


def test_there_are_workflows_for_tests_documents_and_releases() -> None:
    assert [file.stem for file in WORKFLOWS] == ["docs", "release", "test"]


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_a_workflow_may_do_no_more_than_it_must_and_calls_targets_that_there_are(file: Path) -> None:
    workflow = read_yaml(file)
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert set(job.get("needs", "").split()) <= set(workflow["jobs"])
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step), (name, step)
            assert "@" in step.get("uses", "@"), step
            for target in re.findall(r"\bmake ([a-z-]+)", step.get("run", "")):
                assert target in TARGETS | {"test-", "docs"}, target
        writes = {key for key, value in job.get("permissions", {}).items() if value == "write"}
        assert writes <= {"id-token", "pages"}
        assert not writes or "environment" in job


@pytest.mark.parametrize("name", ["robustness-ci.yml", "gate-ci.yml"])
def test_the_workflow_to_copy_uses_the_same_actions_as_ours(name: str) -> None:
    def used(file: Path) -> set[str]:
        return set(re.findall(r"uses: (actions/\S+)", file.read_text(encoding="utf-8")))

    printed = used(ROOT / "docs" / name)
    assert printed
    assert printed <= set().union(*map(used, WORKFLOWS)), "dependabot does not look into docs/"


def test_the_test_matrix_is_the_pythons_that_the_package_names() -> None:
    matrix = read_yaml(ROOT / ".github" / "workflows" / "test.yml")["jobs"]["test"]["strategy"]["matrix"]
    named = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)]
    assert matrix["python"] == named
    assert PROJECT["requires-python"] == f">={named[0]}"


def test_the_citation_names_this_version_and_both_papers() -> None:
    citation = read_yaml(ROOT / "CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "license"} <= set(citation)
    assert citation["version"] == distilkit.__version__
    papers = {
        paper["title"]: [author["family-names"] for author in paper["authors"]] for paper in citation["references"]
    }
    assert papers == {
        "Knowledge Distillation by On-the-Fly Native Ensemble": ["Lan", "Zhu", "Gong"],
        "Online Knowledge Distillation with Diverse Peers": ["Chen", "Mei", "Wang", "Feng", "Chen"],
    }


def test_hooks_are_the_tools_of_make_lint() -> None:
    (repository,) = read_yaml(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    entries = [hook["entry"] for hook in repository["hooks"]]
    for tool in ("ruff check", "ruff format", "mypy"):
        assert any(entry.startswith(f".venv/bin/{tool}") for entry in entries)
        assert f"$(BIN)/{tool}" in MAKEFILE
    for hook in repository["hooks"]:
        re.compile(hook.get("files", ""))


def test_the_fast_files_and_the_named_targets_are_there() -> None:
    files = {file.stem.removeprefix("test_") for file in (ROOT / "tests").glob("test_*.py")}
    assert files >= FAST
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^make ([a-z-]+)", contributing, flags=re.MULTILINE)) <= TARGETS


def test_every_dependency_says_from_which_version_on() -> None:
    command = [sys.executable, ROOT / "tools" / "oldest.py"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    oldest = dict(line.split("==") for line in lines)
    assert oldest["torch"] == "2.11"
    assert oldest["timm"] == "1.0.15"
    assert {re.split("[>=]", line)[0] for line in PROJECT["dependencies"]} <= set(oldest)


@pytest.mark.parametrize(
    ("requirements", "named"),
    [(["torch"], "torch"), (["torch<3"], "torch<3"), (["rich>=1", "rich>=2"], "rich has two minimums, 1 and 2")],
)
def test_a_dependency_without_one_minimum_is_refused(
    requirements: list[str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    import oldest

    with pytest.raises(ValueError, match=re.escape(named)):
        oldest.constraints(requirements)
    assert oldest.constraints(["a[b]>=1.2,<2; python_version > '3'", "c >= 3"]) == {"a": "1.2", "c": "3"}
