"""CONTRIBUTING.md's examples, carried out as they stand: a method, an architecture, a data set, one new file each."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES = {
    re.match(r"# (\S+)\n", code)[1]: code  # type: ignore[index]
    for code in re.findall(r"^```python\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)
}
COMMANDS = [line.removeprefix("distilkit ") for line in re.findall(r"^distilkit train .*$", TEXT, flags=re.MULTILINE)]

# One process, for most of its time goes into importing torch. The answers, one line each, after the last.
PROGRAM = """
import contextlib, io, json, shlex, sys
import distilkit, distilkit.cli
said = []
for command in sys.argv[2:]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        distilkit.cli.main([*shlex.split(command), "--device", "cpu", "--runs", sys.argv[1], "--json"])
    said.append(json.loads(out.getvalue()))
print(json.dumps([distilkit.__file__, said]))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the three commands say with a copy of the package to which the three files were added."""
    folder = tmp_path_factory.mktemp("fork")
    shutil.copytree(ROOT / "distilkit", folder / "distilkit", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    for name, code in FILES.items():
        assert not (folder / name).exists()
        (folder / name).write_text(code, encoding="utf-8")
    wrong = [*COMMANDS, "train quickstart --dry-run --set method.name=consensu --set data.dataset=four-nin"]
    wrong.append("train quickstart --dry-run --set method.name=consensus --set method.temprature=2")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder / "runs"), *wrong],
        env={**os.environ, "PYTHONPATH": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    file, said = json.loads(done.stdout)
    assert Path(file).is_relative_to(folder)
    documents: list[dict[str, Any]] = said
    return documents


def test_there_are_a_method_an_architecture_and_a_data_set_in_one_file_each() -> None:
    assert [Path(name).parent.as_posix() for name in FILES] == [
        "distilkit/methods",
        "distilkit/models",
        "distilkit/data",
    ]
    assert len(COMMANDS) == 3


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_example_trains(place: int, answers: list[dict[str, Any]]) -> None:
    assert "error" not in answers[place], answers[place]
    path = Path(answers[place]["run"])
    record = json.loads((path / "run.json").read_text(encoding="utf-8"))
    assert record["state"] == "done"
    recipe = tomllib.loads((path / "recipe.toml").read_text(encoding="utf-8"))
    for setting in [word for word in shlex.split(COMMANDS[place]) if "=" in word]:
        key, value = setting.split("=")
        section, name = key.split(".")
        assert str(recipe[section][name]) in (value, f"{value}.0")


def test_recipes_know_the_new_names_and_keys(answers: list[dict[str, Any]]) -> None:
    faults = {fault["key"]: fault for fault in answers[3]["error"]["faults"]}
    assert faults["method.name"]["hint"] == "did you mean 'consensus'?"
    assert faults["data.dataset"]["hint"] == "did you mean 'four-nine'?"
    (fault,) = answers[4]["error"]["faults"]
    assert fault["key"] == "method.temprature"
    assert "temperature" in fault["hint"]


@pytest.mark.parametrize("name", FILES)
def test_an_example_is_clean(name: str) -> None:
    """As the linter and the formatter would have it in the package."""
    for command in (["check", "--no-cache"], ["format", "--check", "--no-cache"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--stdin-filename", name, "-"],
            input=FILES[name],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
