"""`distilkit doctor`: whatever is missing or broken, it says so, and what to do."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Result

import distilkit as package
from distilkit.workflows.project import doctor as workflow
from distilkit.workflows.project.doctor import Package, doctor

Command = Callable[..., Result]
ROOT = Path(package.__file__).parents[1]
# What other tests import too; trackers take seconds.
COMMON = tuple(each for each in workflow.PACKAGES if each.brings is None)
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workflow, "PACKAGES", COMMON)
    monkeypatch.setattr(workflow, "RECIPES", ("quickstart_one",))
    monkeypatch.setattr(workflow, "SECONDS", 0.0)


def row(document: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [each for each in document["packages"] if each["name"] == name]
    return dict(found)


def test_a_machine_that_works_is_described_and_timed(distilkit: Command) -> None:
    result = distilkit("doctor", "--json")
    assert result.err == ""
    document = result.json
    assert result.status == 0, document["problems"]
    assert document["passed"] is True
    assert all(each["state"] == "works" and each["version"] for each in document["packages"])
    assert row(document, "torch")["version"] == torch.__version__.partition("+")[0]
    assert "CPUExecutionProvider" in document["onnxruntime_providers"]
    assert document["cpu"]["usable_cores"] >= 1
    assert document["threads"]["torch"] == torch.get_num_threads()
    assert document["storage"]["writable"] is True
    assert document["storage"]["free_bytes"] > 0
    (speed,) = document["speed"]
    assert speed["recipe"] == "quickstart_one"
    assert min(speed["fp32"], speed["bf16"]) > 0
    assert not (Path.cwd() / "runs").exists()


def test_people_see_tables_and_quick_times_nothing(distilkit: Command) -> None:
    out = distilkit("doctor", "--quick").out
    for word in ("torchvision", "this machine", "cores", "CPUExecutionProvider", "writable", "works"):
        assert word in out
    assert "images/s" not in out
    assert "images/s" in distilkit("doctor").out


@pytest.mark.parametrize("name", [each.name for each in COMMON])
@pytest.mark.parametrize("how", ["missing", "broken"])
def test_every_package_may_be_missing_or_broken(how: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = {each.name: each.module for each in COMMON}[name]

    def import_(wanted: str) -> Any:
        if wanted.partition(".")[0] == module.partition(".")[0]:
            if how == "missing":
                raise ModuleNotFoundError(f"No module named {wanted!r}", name=wanted)
            raise OSError("libsomething.so.12: cannot open shared object file\nand more")
        return importlib.import_module(wanted)

    monkeypatch.setattr(workflow, "_import", import_)
    document = doctor(Path("runs"))
    assert document["passed"] is False
    assert row(document, name)["state"] == how
    (problem,) = document["problems"]
    assert name in problem["problem"]
    assert "pip install" in problem["hint"]
    if how == "broken":
        assert "libsomething.so.12" in problem["problem"]
        assert "and more" not in problem["problem"]
    assert document["speed"] is None


def test_an_extra_that_is_not_there_is_no_problem_and_how_to_get_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    extras = (Package("no-such", "no_such_package", "timm"), Package("exits", "exits_at_once", "trackers"))
    monkeypatch.setattr(workflow, "PACKAGES", extras)
    (Path.cwd() / "exits_at_once.py").write_text("raise SystemExit(3)")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    document = doctor(Path("runs"), quick=True)
    assert document["passed"] is True
    assert row(document, "no-such")["state"] == "missing"
    assert row(document, "no-such")["install"] == "pip install 'distilkit[timm]'"
    assert row(document, "exits")["state"] == "broken"
    assert any("exits" in str(warning["problem"]) for warning in document["warnings"])


def test_the_extras_that_are_asked_after_are_those_of_the_package() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = importlib.reload(workflow).PACKAGES

    def names(lines: list[str]) -> set[str]:
        return {line.partition(">")[0].partition("[")[0].strip().lower() for line in lines}

    for each in asked:
        assert each.name in (names(extras[each.brings]) if each.brings else names(project["dependencies"])), each
    needed = names(project["dependencies"]) - {each.name for each in asked if each.brings is None}
    # Those without which no command starts, and one that comes with jinja2.
    assert needed == {"typer", "rich", "markupsafe"}


@pytest.mark.parametrize(
    ("module", "text", "words"),
    [
        ("torchvision", 'raise RuntimeError("operator torchvision::nms does not exist")', "operator torchvision::nms"),
        ("torch", 'raise OSError("libcudart.so.13: cannot open shared object file")', "libcudart.so.13"),
    ],
)
def test_a_broken_installation_is_survived_by_the_program_itself(
    module: str, text: str, words: str, tmp_path: Path
) -> None:
    (tmp_path / "broken" / module).mkdir(parents=True)
    (tmp_path / "broken" / module / "__init__.py").write_text(text)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'broken'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    code = (
        "from distilkit.workflows.project import doctor\n"
        "doctor.PACKAGES = doctor.PACKAGES[:3]\n"
        "from distilkit import cli\n"
        "cli.main(['doctor', '--json'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    assert any(words in problem["problem"] for problem in document["problems"])
    assert "Traceback" not in done.stderr


def test_torchvision_of_another_torch_is_found_though_it_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    def no_operator(*_: object) -> None:
        raise RuntimeError("Couldn't load custom C++ ops.")

    monkeypatch.setattr(torchvision.ops, "nms", no_operator)
    document = doctor(Path("runs"), quick=True)
    assert document["passed"] is False
    assert "do not fit together" in str(document["problems"][0]["problem"])


def test_a_version_too_old_is_named_with_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"distilkit": {"torch": ">=99.1"}, "torchvision": {"torch": "==1.0"}}
    monkeypatch.setattr(workflow, "_requirements", lambda name: asked.get(name, {}))
    document = doctor(Path("runs"), quick=True)
    assert ">=99.1" in str(document["problems"][0]["hint"])
    assert any("made for torch 1.0" in str(each["problem"]) for each in document["warnings"])


def test_little_room_and_odd_threads_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(10**9, 9 * 10**8, 64_000_000))
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    document = doctor(Path("runs"), quick=True)
    assert document["passed"] is True
    text = "\n".join(f"{each['problem']} {each['hint']}" for each in document["warnings"])
    assert "OMP_NUM_THREADS" in text
    assert "distilkit runs prune" in text
    if Path("/dev/shm").is_dir():
        assert "--shm-size" in text
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert any("'many'" in str(each["problem"]) for each in doctor(Path("runs"), quick=True)["warnings"])


def test_a_folder_that_cannot_hold_runs_is_a_problem(distilkit: Command) -> None:
    Path("file").touch()
    result = distilkit("doctor", "--quick", "--runs", "file/runs")
    assert result.status == 1
    assert "--runs FOLDER" in result.err
