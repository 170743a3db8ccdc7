"""What several test files share: small runs on the embedded data set, and the command line in this process."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from distilkit import cli
from distilkit.observer import Observer
from distilkit.recipe import Recipe, load
from distilkit.workflows.train.train import train

pytest_plugins = ("browser", "snippets")

# `make test-fast`: files that tell most for their CPU seconds. Losses and gradients, cuts, recipes and their messages,
# the data's arithmetic, imports; of trainings only very small ones.
FAST = {
    *("augment", "contributing", "counts", "datasets", "group", "habits", "imports", "metrics", "models", "recipe"),
    *("methods_cl_ilr", "methods_dml", "methods_okddip", "methods_one", "methods_teacher"),
    *("recipe_reference", "run_format", "schedule", "split", "statistics", "torch_versions"),
}


def pytest_configure() -> None:
    # A shell has what it puts into the background ignore Ctrl-C, and so would every program that a test starts.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem.removeprefix("test_") in FAST:
            item.add_marker(pytest.mark.fast)


TINY = """
name = "tiny"
[data]
dataset = "digits"
[model]
architecture = "resnet8"
[method]
name = "one"
[train]
epochs = 2
batch_size = 256
precision = "fp32"
[optimizer]
lr = 0.05
"""


class Result(NamedTuple):
    """Exit status and what was printed."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.out)
        return document


@pytest.fixture(scope="session", autouse=True)
def _one_thread_per_test_process(request: pytest.FixtureRequest) -> Iterator[None]:
    """Parallel test processes share the cores; more threads than cores slow all of them down tenfold."""
    before = torch.get_num_threads()
    if hasattr(request.config, "workerinput"):
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _signals_as_they_were() -> Iterator[None]:
    """Where a test calls the command line by itself."""
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture
def distilkit(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run the command line in this process: distilkit("evaluate", run, "--json")."""

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
        with pytest.raises(SystemExit) as exit_:
            cli.main([str(argument) for argument in arguments])
        # The command line leaves them as a process wants them that ends; the one of the tests does not.
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return Result(int(exit_.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Recipe]:
    """A recipe that trains in a second: tiny("method.gate=false")."""

    def recipe(*overrides: str) -> Recipe:
        file = tmp_path / "tiny.toml"
        file.write_text(TINY, encoding="utf-8")
        return load(file, overrides)

    return recipe


def train_tiny(folder: Path, *overrides: str, observer: Observer | None = None, device: str = "cpu") -> Path:
    """Train the tiny recipe below `folder`; returns the run's path."""
    file = folder / "tiny.toml"
    file.write_text(TINY, encoding="utf-8")
    document = train(
        load(file, overrides),
        folder / "runs",
        device=device,
        command="distilkit train tiny.toml",
        observer=observer or Observer(),
    )
    return Path(document["run"])


@pytest.fixture(scope="session")
def one_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of ONE with three branches; to be read, not changed."""
    return train_tiny(tmp_path_factory.mktemp("one"), "train.epochs=6")


@pytest.fixture(scope="session")
def baseline_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the baseline with a validation split; to be read, not changed."""
    return train_tiny(
        tmp_path_factory.mktemp("baseline"), "method.name=baseline", "train.epochs=3", "data.validation=0.2"
    )


@pytest.fixture(scope="session")
def six_runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Finished runs of two methods with three seeds each, by method; to be read, not changed."""
    folder = tmp_path_factory.mktemp("six")
    return [
        train_tiny(folder, f"name={method}-seed{seed}", f"method.name={method}", f"train.seed={seed}", "train.epochs=3")
        for method in ("baseline", "one")
        for seed in (0, 1, 2)
    ]


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images as users have them: train/ and test/, one folder per class; two colours with noise."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 10)):
        for name, colour in (("blue", (40, 40, 200)), ("red", (200, 40, 40))):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(np.array(colour) + generator.normal(0, 25, (36, 36, 3)), 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index:03d}.png")
    return root
