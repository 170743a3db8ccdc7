"""What is shipped: the wheel has the package, its types and the built-in recipes."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # hatchling itself, as pip calls it, without an environment of its own that would need the network.
    code = f"import hatchling.build; hatchling.build.build_wheel({str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (file,) = folder.glob("distilkit-*.whl")
    return file


def test_the_wheel_holds_every_module_the_types_and_every_recipe(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "distilkit").rglob("*.py")}
    recipes = {f"distilkit/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "recipes").rglob("*.toml")}
    assert modules <= names
    assert "distilkit/recipes/cifar10/one_resnet32_cifar10.toml" in recipes
    assert recipes <= names
    assert "distilkit/py.typed" in names
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
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"distilkit": "distilkit.cli:main"}
    assert project["requires-python"] == ">=3.11"
