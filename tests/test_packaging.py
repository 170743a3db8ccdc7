"""What is shipped: wheel and sdist have the package, its types and the built-in recipes."""

import email
import email.policy
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with wheel and sdist."""
    folder = tmp_path_factory.mktemp("dist")
    # hatchling itself, as pip and build call it, without an environment of its own that would need the network.
    code = f"import hatchling.build as b; b.build_sdist({str(folder)!r}); b.build_wheel({str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (file,) = built.glob("distilkit-*.whl")
    return file


def test_the_sdist_holds_what_a_wheel_is_built_from_and_what_tests_it(built: Path) -> None:
    (file,) = built.glob("distilkit-*.tar.gz")
    with tarfile.open(file) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder, pattern in (("distilkit", "*.py"), ("recipes", "*.toml"), ("tests", "*.py"), ("docs", "*.md")):
        assert {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob(pattern)} <= names
    assert {"pyproject.toml", "README.md", "LICENSE", "CITATION.cff", "distilkit/py.typed", "tools/oldest.py"} <= names
    assert {".github/workflows/test.yml", ".pre-commit-config.yaml", "Containerfile"} <= names, "tests read them"
    assert not [name for name in names if name.startswith((".venv", "runs/", ".git/")) or name.endswith(".pyc")]


def test_the_wheel_says_what_it_is_and_needs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        said = email.message_from_bytes(archive.read(name), policy=email.policy.default)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert said["License-Expression"] == "Apache-2.0"
    assert said["Requires-Python"] == ">=3.11"
    assert {"timm", "tracking", "openvino", "dev"} <= set(said.get_all("Provides-Extra"))
    needed = {str(line).partition(">=")[0] for line in said.get_all("Requires-Dist") if "extra ==" not in str(line)}
    assert needed == {line.partition(">=")[0] for line in project["dependencies"]}


def test_the_wheel_holds_every_module_the_types_and_every_recipe(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "distilkit").rglob("*.py")}
    recipes = {f"distilkit/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "recipes").rglob("*.toml")}
    assert modules <= names
    assert "distilkit/recipes/cifar10/one_resnet32_cifar10.toml" in recipes
    assert recipes <= names
    assert {"distilkit/py.typed", "distilkit/names.json"} <= names
    templates = {f"distilkit/report/templates/report.{kind}" for kind in ("html.jinja", "css", "js")}
    assert templates <= names
    assert not [name for name in names if name.startswith(("tests/", "docs/"))]


def test_built_in_recipes_are_found_in_an_unpacked_wheel(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "import distilkit, sys; assert distilkit.__file__.startswith(sys.argv[1]), distilkit.__file__\n"
        "from distilkit.recipe import builtin, load\n"
        "assert load('one_resnet32').group.students == 3\n"
        "assert load('one_resnet32_cifar10').data.dataset == 'cifar10'\n"
        "assert all(str(path).startswith(sys.argv[1]) for path in builtin().values())"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_command_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"distilkit": "distilkit.__main__:main"}
    assert project["requires-python"] == ">=3.11"
