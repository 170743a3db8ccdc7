"""What was built apart, used together: mixed groups of two libraries, strong recipes on streamed images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distilkit.recipe import load
from distilkit.runs.run import Run

Command = Callable[..., Any]


EVERYTHING = (
    "data.rand_augment=2",
    "data.random_erasing=0.5",
    "data.mixup=0.4",
    "data.cutmix=1.0",
    "train.ema=0.9",
    "train.label_smoothing=0.1",
    "optimizer.decay_norms_and_biases=false",
)


def settings(image_folder: Path, *more: str) -> list[str]:
    shared = ("data.dataset=image-folder", f"data.root={image_folder}", "data.image_size=32", "train.epochs=2")
    shared = (*shared, "train.batch_size=8", "train.precision=fp32", "optimizer.lr=0.02")
    return [word for setting in (*shared, *more) for word in ("--set", setting)]


@pytest.fixture
def train(image_folder: Path, tmp_path: Path, distilkit: Command) -> Callable[..., Run]:
    def run(recipe: str, *more: str) -> Run:
        arguments = settings(image_folder, *more)
        done = distilkit("train", recipe, *arguments, "--runs", tmp_path / "runs", "--device", "cpu", "--json")
        assert done.status == 0, done.err
        return Run.open(Path(done.json["run"]))

    return run


def test_networks_of_two_libraries_learn_from_each_other_and_each_is_deployed_as_what_it_is(
    train: Callable[..., Run], tmp_path: Path, distilkit: Command
) -> None:
    run = train("quickstart_dml", 'group.students=["resnet8", "torchvision:shufflenet_v2_x0_5"]')
    architectures = {"student_0": "resnet8", "student_1": "torchvision:shufflenet_v2_x0_5"}
    assert run.record["architectures"] == architectures
    assert run.record["parts"]["student_0"]["flops"] != run.record["parts"]["student_1"]["flops"]
    for member, architecture in architectures.items():
        folder = tmp_path / member
        assert distilkit("prune-branches", run.path, "--member", member, "--output", folder).status == 0
        alone = distilkit("evaluate", folder, "--device", "cpu", "--json").json
        together = distilkit("evaluate", run.path, "--member", member, "--device", "cpu", "--json").json
        assert alone["top1_error"] == together["top1_error"]
        assert architecture in (folder / "config.json").read_text()
        exported = distilkit("export", folder, "--output", tmp_path / f"{member}.onnx", "--json").json
        assert exported["passed"], exported["reason"]
    whole = distilkit("export", run.path, "--mode", "ensemble", "--output", tmp_path / "both.onnx", "--json").json
    assert whole["passed"], whole["reason"]


@pytest.mark.parametrize("augment", ["crop-flip", "none"])
def test_streamed_images_are_varied_and_mixed_as_resident_ones(augment: str, train: Callable[..., Run]) -> None:
    lines = []
    for storage in ("resident", "stream"):
        run = train(
            "quickstart", "model.architecture=resnet8", f"data.augment={augment}", f"data.storage={storage}",
            "train.accumulation=2", "data.workers=1", "optimizer.weight_decay=0.001", *EVERYTHING,
        )  # fmt: skip
        assert load(run.path / "recipe.toml").data.storage == storage
        lines.append([(line["loss"], line["train"], line["test"]["cross_entropy"]) for line in run.metrics()])
    assert lines[0] == lines[1]


def test_a_torchvision_network_with_branches_goes_through_a_strong_streamed_training(
    train: Callable[..., Run], tmp_path: Path, distilkit: Command
) -> None:
    run = train(
        "quickstart", "model.architecture=torchvision:mobilenet_v3_small", "data.storage=stream", "data.workers=0",
        "optimizer.weight_decay=0.001", *EVERYTHING,
    )  # fmt: skip
    assert run.recipe.group.split_at
    robust = distilkit(
        "robustness", run.path, "--steps", 1, "--directions", 1, "--images", 8, "--device", "cpu", "--inputs", "jpeg",
        "--output", tmp_path / "robust", "--json",
    )  # fmt: skip
    assert robust.status == 0
    assert distilkit("ensemble-eval", run.path, "--device", "cpu").status == 0
    assert distilkit("export", run.path, "--output", tmp_path / "m.onnx").status == 0
