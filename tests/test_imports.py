"""Rooms import downwards only, and starting up stays light."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "distilkit"

# From the top of the house to the bottom: a room may import those that stand after it, and itself.
ROOMS = [
    "cli",
    "workflows",
    "report",
    "training",
    "export",
    "runs",
    "analysis",
    "learners",
    "recipe",
    "methods",
    "groups",
    "models",
    "data",
    "shipped",
    "reading",
    "threads",
    "hardware",
    "memory",
    "working_folder",
    "observer",
    "randomness",
    "errors",
    "spelling",
    "_version",
]


def _room(module: str) -> str:
    return module.split(".")[1] if module.count(".") else ""


def _imports(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "distilkit":
                found |= {f"distilkit.{alias.name}" for alias in node.names}
    return {module for module in found if module.startswith("distilkit.")} - {"distilkit.__version__"}


def _upward(files: dict[str, set[str]]) -> list[str]:
    """ "room -> module" for every arrow that runs upwards."""
    return [
        f"{room} -> {module}"
        for room, modules in files.items()
        for module in sorted(modules)
        if ROOMS.index(_room(module)) < ROOMS.index(room)
    ]


def _rooms_on_disk() -> dict[str, set[str]]:
    rooms: dict[str, set[str]] = {}
    for file in PACKAGE.rglob("*.py"):
        room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room not in ("__init__", "__main__"):
            rooms.setdefault(room, set()).update(_imports(file))
    return rooms


def test_imports_run_downwards_only() -> None:
    rooms = _rooms_on_disk()
    assert set(rooms) == set(ROOMS)
    assert _upward(rooms) == []


def test_an_import_that_runs_upwards_would_be_seen() -> None:
    assert _upward({"methods": {"distilkit.recipe"}, "errors": {"distilkit.data.base"}}) == [
        "methods -> distilkit.recipe",
        "errors -> distilkit.data.base",
    ]


def test_help_and_version_answer_without_torch() -> None:
    for arguments in (["--help"], ["--version"], ["train", "--help"]):
        code = (
            "import sys, distilkit.cli\n"
            "try: distilkit.cli.main(sys.argv[1:])\n"
            "except SystemExit as e: assert not e.code, e.code\n"
            "heavy = {'torch', 'torchvision', 'onnxruntime', 'numpy', 'matplotlib'} & set(sys.modules)\n"
            "assert not heavy, heavy"
        )
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_predicting_imports_no_torch_and_neither_does_the_package() -> None:
    code = (
        "import sys, distilkit, distilkit.cli.predict, distilkit.workflows.deploy.predict, distilkit.cli.console\n"
        "assert callable(distilkit.load) and 'onnxruntime' in sys.modules\n"
        "heavy = {'torch', 'torchvision', 'onnx', 'matplotlib', 'sklearn', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_training_on_digits_does_not_import_torchvision() -> None:
    code = (
        "import sys, tempfile, pathlib\n"
        "from distilkit.recipe import load\n"
        "from distilkit.workflows.train import train\n"
        "train.dry_run(load('quickstart'))\n"
        "assert 'torch' in sys.modules\n"
        "assert 'torchvision' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
