"""What is deployed keeps up with what is trained: the average's warm-up, recalibrated statistics, the check."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn

from distilkit.data.base import Split
from distilkit.groups.build import build_group
from distilkit.groups.group import Group
from distilkit.observer import Observer
from distilkit.recipe import Recipe
from distilkit.runs.deployed_check import describe
from distilkit.runs.run import Run
from distilkit.training.average import MovingAverage
from distilkit.training.deployed import check_deployed, fixed_images, recalibrate
from distilkit.training.interrupt import Interrupted
from distilkit.workflows.train.train import resume, train

Tiny = Callable[..., Recipe]


class Weight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))


@pytest.mark.parametrize("warmup", [True, False])
def test_the_average_follows_its_formula(warmup: bool) -> None:
    module = Weight()
    average = MovingAverage(module, 0.9, warmup=warmup)  # type: ignore[arg-type]
    expected = 0.0
    for step in range(200):
        with torch.no_grad():
            module.weight.fill_(float(step % 7))
        average.update_parameters(module)
        decay = min(0.9, (1 + step) / (10 + step)) if warmup else 0.9
        expected = step % 7 if step == 0 else decay * expected + (1 - decay) * (step % 7)
    assert float(average.module.weight) == pytest.approx(expected, rel=1e-5)
    assert average.steps == 200


def group_of(architecture: str = "resnet8") -> Group:
    return build_group(
        kind="branches",
        architecture=architecture,
        members=("student_0", "student_1"),
        split_at=None,
        num_classes=10,
        channels=1,
        size=32,
        mean=(0.5,),
        std=(0.25,),
        seed=3,
    )


@pytest.fixture(scope="module")
def split() -> Split:
    images = torch.randint(0, 256, (100, 1, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return Split(images, torch.arange(100) % 10)


def test_recalibrated_statistics_are_the_mean_over_the_batches(split: Split) -> None:
    group = group_of()
    before = copy.deepcopy(group.state_dict())
    inputs: list[Tensor] = []
    first = next(module for module in group.modules() if isinstance(module, nn.BatchNorm2d))
    hook = first.register_forward_pre_hook(lambda _, given: inputs.append(given[0].detach()))
    recalibrate(group, split, 70, 32, Accelerator(cpu=True))
    hook.remove()
    assert [len(given) for given in inputs] == [32, 32]  # of 70, the 6 that are left over are not used
    mean = torch.stack([given.mean((0, 2, 3)) for given in inputs]).mean(0)
    variance = torch.stack([given.var((0, 2, 3)) for given in inputs]).mean(0)
    assert torch.allclose(first.running_mean, mean, atol=1e-5)  # type: ignore[arg-type]
    assert torch.allclose(first.running_var, variance, rtol=1e-4)  # type: ignore[arg-type]
    after = group.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {name for name in after if name.endswith(("running_mean", "running_var"))}
    assert first.momentum == 0.1
    once = {name: after[name].clone() for name in changed}
    recalibrate(group, split, 70, 32, Accelerator(cpu=True))
    assert all(torch.equal(group.state_dict()[name], once[name]) for name in changed)


def test_images_are_fixed_and_evenly_spread(split: Split) -> None:
    assert fixed_images(split, 4).tolist() == [0, 25, 50, 75]
    assert fixed_images(split, 1000).tolist() == list(range(100))


def test_statistics_that_lag_are_found_and_said(split: Split) -> None:
    group = group_of()
    with torch.no_grad():
        # Labels that the network itself gives with each batch's own statistics: it is right then.
        network = copy.deepcopy(group).train()
        labels = torch.cat([network(part).logits_SBC[0].argmax(-1) for part in split.images.tensor_split(2)])
    own = Split(split.images, labels)
    lagging = check_deployed(group, group, 0, own, 50, torch.device("cpu"))
    assert lagging is not None
    assert lagging.trained_error == 0.0
    assert lagging.deployed_error >= 50.0
    assert lagging.lags
    assert "set train.recalibrate = 2000" in describe(lagging.document())
    recalibrate(group, own, 100, 50, Accelerator(cpu=True))
    mended = check_deployed(group, group, 0, own, 50, torch.device("cpu"))
    assert mended is not None
    assert mended.deployed_error < 20.0


@pytest.mark.parametrize("ema", ["0", "0.9"])
def test_what_was_recalibrated_is_evaluated_saved_and_resumed_to_the_same_bits(
    ema: str, tiny: Tiny, tmp_path: Path
) -> None:
    recipe = tiny("train.recalibrate=100", f"train.ema={ema}", "train.epochs=2", "data.validation=0.2")

    class Stop(Observer):
        def epoch_finished(self, line: dict[str, object]) -> None:  # type: ignore[override]
            raise KeyboardInterrupt

    whole = Run.open(Path(str(train(recipe, tmp_path / "whole", device="cpu", command="", observer=Observer())["run"])))
    with pytest.raises((Interrupted, KeyboardInterrupt)):
        train(recipe, tmp_path / "cut", device="cpu", command="", observer=Stop())
    (path,) = (tmp_path / "cut").iterdir()
    resume(path, device="cpu", observer=Observer())
    cut = Run.open(path)
    files = {file.name for file in whole.checkpoint("last").glob("*.safetensors")}
    assert ("average.safetensors" in files) == (ema != "0")
    assert "raw.safetensors" in files
    for name in files:
        ours, theirs = (load_file(run.checkpoint("last") / name) for run in (whole, cut))
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
    # What is deployed has other statistics than what trains, and is what was evaluated.
    deployed = load_file(whole.checkpoint("last") / "group.safetensors")
    raw = load_file(whole.checkpoint("last") / "raw.safetensors")
    assert any(not torch.equal(deployed[key], raw[f"group.{key}"]) for key in deployed if "running_mean" in key)


def test_a_short_training_with_a_slow_average_deploys_what_it_learnt(tiny: Tiny, tmp_path: Path) -> None:
    def error(*settings: str) -> float:
        recipe = tiny("train.ema=0.999", "train.epochs=3", *settings)
        document = train(recipe, tmp_path / "-".join(settings or ("x",)), device="cpu", command="", observer=Observer())
        run = Run.open(Path(str(document["run"])))
        return float(run.metrics()[-1]["test"]["errors"]["student_0"]["top1"])

    assert error("train.ema_warmup=false") - error() > 20.0


def test_a_training_says_at_its_end_where_what_is_deployed_lags(tiny: Tiny, tmp_path: Path) -> None:
    notes: list[str] = []
    observer = Observer()
    observer.note = notes.append  # type: ignore[method-assign]
    recipe = tiny("train.ema=0.999", "train.ema_warmup=false", "train.epochs=3")
    document = train(recipe, tmp_path / "lags", device="cpu", command="", observer=observer)
    check = Run.open(Path(str(document["run"]))).record["deployed_check"]
    assert check["lags"]
    assert check["images"] == 1000
    assert check["deployed_error"] - check["trained_error"] > 20
    assert any("the moving average, lag behind; set train.recalibrate" in note for note in notes)
    document = train(tiny("train.epochs=3"), tmp_path / "well", device="cpu", command="", observer=Observer())
    assert not Run.open(Path(str(document["run"]))).record["deployed_check"]["lags"]
