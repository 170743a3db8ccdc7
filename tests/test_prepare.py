"""A dry run, a training and a run that goes on are prepared alike: one recipe with nothing left open, one teacher."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import train_tiny
from safetensors.torch import save_file

from distilkit.models import registry
from distilkit.observer import Observer
from distilkit.recipe import Recipe
from distilkit.runs.run import Run
from distilkit.training.interrupt import Interrupted
from distilkit.training.processes import join
from distilkit.workflows.train.images import load
from distilkit.workflows.train.prepare import prepare
from distilkit.workflows.train.train import dry_run, resume


@pytest.fixture
def weights(tmp_path: Path) -> tuple[str, str]:
    """Settings of a teacher that is a file of weights for digits."""
    torch.manual_seed(0)
    file = tmp_path / "teacher.safetensors"
    save_file(registry.create("resnet8", 10, 1).state_dict(), file)
    return "teacher.architecture=resnet8", f"teacher.weights='{file}'"


@pytest.mark.parametrize("size", [(), ("teacher.image_size=16",)])
@pytest.mark.parametrize(("constants", "mean"), [((), None), (("teacher.mean=[0.25]", "teacher.std=[0.5]"), 0.25)])
def test_a_file_of_weights_is_normalised_by_its_own_constants_else_by_the_datas(
    constants: tuple[str, ...],
    mean: float | None,
    size: tuple[str, ...],
    weights: tuple[str, str],
    tiny: Callable[..., Recipe],
    tmp_path: Path,
) -> None:
    prepared = prepare(tiny(*weights, *constants, *size), tmp_path / "runs", join("cpu"), Observer())
    data = load(prepared.recipe)
    prepared.take_constants(data)
    assert prepared.teacher is not None
    teacher: Any = prepared.teacher.classifiers[0]
    assert data.spec.mean is not None
    normalize = (teacher.classifier if size else teacher).normalize
    assert normalize.mean.item() == pytest.approx(data.spec.mean[0] if mean is None else mean)


def test_a_dry_run_plans_what_the_training_records(
    tiny: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    plan = dry_run(tiny("train.precision=auto"))
    run = Run.open(train_tiny(tmp_path, "train.precision=auto", "train.epochs=1"))
    for key in ("precision", "threads", "members", "flops", "bytes"):
        assert plan[key] == run.record[key]
    settings = run.recipe.settings()
    assert "auto" not in settings.values()
    assert settings["group.split_at"] == plan["split_at"]


def test_a_run_goes_on_with_its_recipe_named_and_what_that_leaves_open_as_it_began(
    weights: tuple[str, str], tiny: Callable[..., Recipe], tmp_path: Path
) -> None:
    class Stop(Observer):
        def epoch_finished(self, line: Any) -> None:
            raise Interrupted(2, "step_1", tmp_path)

    names = tmp_path / "names.txt"
    names.write_text("\n".join(Run.open(train_tiny(tmp_path, "train.epochs=1")).data.classes))
    (finished,) = (tmp_path / "runs").iterdir()
    settings = (*weights, f"teacher.classes='{names}'", "teacher.allow_weak=true", "train.precision=auto")
    with pytest.raises(Interrupted):
        train_tiny(tmp_path, *settings, observer=Stop())
    (path,) = set((tmp_path / "runs").iterdir()) - {finished}
    before = Run.open(path).recipe
    assert resume(path, device="cpu", observer=Observer(), recipe=tiny(*settings))["state"] == "done"
    assert Run.open(path).recipe == before
