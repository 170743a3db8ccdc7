"""Mixup and CutMix, the soft labels that they make, and what learns from them; parameters that do not decay."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from comparing import Notes, StopAt, assert_same_run, largest_difference
from conftest import TINY, train_tiny
from kill_harness import Harness
from torch import Tensor, nn
from torchvision.transforms import v2

from distilkit.data import datasets
from distilkit.data.base import DataSpec, Split
from distilkit.data.resident import TrainingImages, epoch_order
from distilkit.data.variation import VariedImages
from distilkit.errors import UserError
from distilkit.groups.outputs import GroupOutput
from distilkit.learners.build import build_learner
from distilkit.learners.learner import Learner
from distilkit.learners.teacher import Teacher
from distilkit.methods.losses import cross_entropy
from distilkit.observer import Observer
from distilkit.randomness import seeded
from distilkit.recipe import Recipe
from distilkit.runs import checkpoint as checkpoints
from distilkit.runs.run import Run
from distilkit.training.optimizer import decay_groups, make_optimizer
from distilkit.training.trainer import Trainer
from distilkit.workflows.train import fit as workflow
from distilkit.workflows.train.train import resume, train

CPU = torch.device("cpu")
MIXED = ("data.augment=crop-flip", "data.mixup=0.4", "data.cutmix=1.0")
EVERYTHING = (*MIXED, "data.rand_augment=2", "data.random_erasing=0.5")


def paired(count: int = 12, size: int = 10, **settings: float) -> VariedImages:
    """Image i is one colour, 10 (i + 1), in every pixel, and of class i."""
    split = Split(
        (10 * torch.arange(1, count + 1, dtype=torch.uint8)).view(-1, 1, 1, 1).expand(-1, 1, size, size),
        torch.arange(count),
    )
    spec = DataSpec("test", tuple(map(str, range(count))), 1, size, count, count, (0.5,), (0.2,), "none")
    source = TrainingImages(split, augment="none", seed=0, device=CPU)
    return VariedImages(source, spec=spec, seed=0, device=CPU, **settings)  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------- images and labels


def test_mixup_blends_every_image_and_its_label_with_the_one_before() -> None:
    order = torch.tensor([4, 0, 7, 11, 2, 9])
    for step in range(20):
        images, labels = paired(mixup=0.4).batch(order, step)
        own, other = order, order.roll(1)
        share = labels[0, own[0]].double()
        expected = torch.zeros(6, 12, dtype=torch.float64)
        expected[range(6), own] = share
        expected[range(6), other] += 1 - share
        assert torch.allclose(labels.double(), expected, atol=1e-6)
        pixels = (share * 10 * (own + 1) + (1 - share) * 10 * (other + 1)) / 255
        assert torch.allclose(images.double(), pixels.view(-1, 1, 1, 1).expand_as(images), atol=1e-6)


def test_cutmix_gives_labels_the_shares_of_the_pixels() -> None:
    order = torch.tensor([4, 0, 7, 11, 2, 9])
    shares = []
    for step in range(20):
        images, labels = paired(cutmix=1.0).batch(order, step)
        for own, other, image, label in zip(order, order.roll(1), images, labels, strict=True):
            counted = torch.tensor([float((image == 10 * (c + 1)).double().mean()) for c in range(12)])
            assert torch.allclose(label, counted, atol=1e-6)
            assert counted[own] + counted[other] == pytest.approx(1)
        shares.append(float(labels[0, order[0]]))
    assert len(set(shares)) > 5
    assert min(shares) < 0.5 < 0.9 < max(shares)


@pytest.mark.parametrize(("name", "operator"), [("mixup", v2.MixUp), ("cutmix", v2.CutMix)])
def test_a_whole_batch_is_torchvisions(name: str, operator: Any) -> None:
    order = torch.arange(12)
    images, labels = paired(**{name: 0.7}).batch(order, 3)
    plain, classes = paired().batch(order, 3)
    with seeded(0, "mix", 3):
        torch.multinomial(torch.tensor([1.0]), 1)  # which of the operators: here there is one
        expected, shares = operator(alpha=0.7, num_classes=12)(plain.float() / 255, classes)
    assert torch.equal(labels, shares)
    assert torch.equal(images if images.is_floating_point() else images.float() / 255, expected)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_shares_follow_the_beta_distribution_of_the_recipe(alpha: float) -> None:
    training = paired(size=2, mixup=alpha)
    shares = torch.tensor([float(training.batch(torch.arange(4), step)[1][1, 1]) for step in range(500)])
    # Beta(a, a): mean 1/2, variance 1 / (4 (2 a + 1)).
    variance = 1 / (4 * (2 * alpha + 1))
    assert float(shares.mean()) == pytest.approx(0.5, abs=4 * (variance / 500) ** 0.5)
    assert float(shares.var()) == pytest.approx(variance, rel=0.25)


def test_with_both_each_batch_draws_one_of_the_two() -> None:
    cut = 0
    for step in range(100):
        images, _ = paired(mixup=1.0, cutmix=1.0).batch(torch.arange(12), step)
        assert images.dtype == torch.float32
        levels = torch.unique((images * 255).round().long() % 10)
        # Pixels of CutMix are pixels of the images, multiples of 10; blended ones hardly ever all are.
        cut += levels.tolist() == [0]
    assert 30 < cut < 70


# -------------------------------------------------------------------------------------------------------- soft labels

RECIPES = {
    "baseline": ("method.name=baseline",),
    "independent": ("method.name=independent",),
    "one": ("method.name=one",),
    "one without gate": ("method.name=one", "method.gate=false"),
    "dml": ("method.name=dml",),
    "cl-ilr": ("method.name=cl-ilr", "method.label_weight=0.5"),
    "okddip": ("method.name=okddip",),
    "okddip, entropy": ("method.name=okddip", "method.peer_targets=entropy"),
}


def soft_labels(count: int, classes: int = 10) -> Tensor:
    """Shares of two classes; of one alone in the last row."""
    draws = torch.Generator().manual_seed(1)
    share_B1 = torch.rand((count, 1), generator=draws, dtype=torch.float64)
    share_B1[-1] = 1.0
    first_BC, second_BC = (
        nn.functional.one_hot(torch.randint(classes, (count,), generator=draws), classes) for _ in range(2)
    )
    return share_B1 * first_BC + (1 - share_B1) * second_BC


def expected_cross_entropy(logits_SBC: Tensor, labels_BC: Tensor, smoothing: float) -> float:
    """sum_s mean_b sum_c -t_bc log q_sbc with t = (1 - smoothing) labels + smoothing / C, in numpy."""
    z, t = logits_SBC.detach().numpy(), labels_BC.numpy()
    t = (1 - smoothing) * t + smoothing / t.shape[1]
    log_q = z - np.log(np.exp(z).sum(-1, keepdims=True))
    return float(-(t * log_q).sum(-1).mean(1).sum())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", RECIPES)
def test_every_method_takes_soft_labels_in_its_cross_entropies_alone(
    name: str, smoothing: float, tiny: Callable[..., Recipe]
) -> None:
    recipe = tiny(*RECIPES[name], f"train.label_smoothing={smoothing}")
    learner = build_learner(recipe, datasets.spec("digits", Path())).double().train()
    images = torch.rand((6, 1, 8, 8), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    soft_BC, hard_B = soft_labels(6), torch.arange(6)

    @torch.no_grad()
    def losses(labels: Tensor) -> tuple[GroupOutput, float, dict[str, float]]:
        outputs = learner.group(images)
        total, terms = learner.method(outputs, labels, 0.7)
        return outputs, float(total), {key: float(term) for key, term in terms.items()}

    outputs, total, terms = losses(soft_BC)
    _, hard_total, hard_terms = losses(hard_B)
    expected = expected_cross_entropy(outputs.logits_SBC, soft_BC, smoothing)
    assert terms["cross_entropy"] == pytest.approx(expected, rel=1e-12)
    changes = terms["cross_entropy"] - hard_terms["cross_entropy"]
    changes *= 0.5 if name == "cl-ilr" else 1.0
    if "ensemble_cross_entropy" in terms:
        ensemble_1BC = learner.method.ensemble(outputs)[None]
        expected = expected_cross_entropy(ensemble_1BC, soft_BC, smoothing)
        assert terms["ensemble_cross_entropy"] == pytest.approx(expected, rel=1e-12)
        changes += terms["ensemble_cross_entropy"] - hard_terms["ensemble_cross_entropy"]
    for key in terms.keys() - {"cross_entropy", "ensemble_cross_entropy"}:
        assert terms[key] == pytest.approx(hard_terms[key], rel=1e-12), "distillation looks at no label"
    assert total - hard_total == pytest.approx(changes, rel=1e-9)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_whole_shares_are_labels(smoothing: float) -> None:
    logits_SBC = torch.randn((3, 5, 7), generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([6, 0, 3, 3, 1])
    shares = nn.functional.one_hot(labels, 7)
    hard = cross_entropy(logits_SBC, labels, smoothing)
    assert float(cross_entropy(logits_SBC, shares.float(), smoothing)) == pytest.approx(float(hard), rel=1e-6)
    # Shares are float32 whatever the logits are; under autocast these are bfloat16.
    for dtype in (torch.bfloat16, torch.float64):
        loss = cross_entropy(logits_SBC.to(dtype), shares.float(), smoothing)
        assert float(loss) == pytest.approx(float(hard), rel=0.01)


# ----------------------------------------------------------------------------------------------------------- training


def trainer_of(recipe: Recipe, folder: Path, teacher: Teacher | None = None) -> Trainer:
    spec = datasets.spec("digits", Path())
    data = datasets.load("digits", Path(), download=False)
    return Trainer(recipe, build_learner(recipe, spec), data, Accelerator(cpu=True), folder, Observer(), teacher)


def test_all_off_is_the_training_that_it_was(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    trainer = trainer_of(tiny(), tmp_path)
    assert type(trainer.images) is TrainingImages
    (group,) = trainer.update.optimizer.param_groups
    assert [id(parameter) for parameter in group["params"]] == [id(p) for p in trainer.learner.parameters()]
    assert group["weight_decay"] == 5e-4
    _, labels = trainer.images.batch(torch.arange(9), 0)
    assert labels.dtype == torch.int64


def test_a_mixed_image_counts_as_one_of_the_class_with_the_larger_share(
    tiny: Callable[..., Recipe], tmp_path: Path
) -> None:
    """Steps so small that no weight moves: the errors are those of the first weights on the very batches."""
    recipe = tiny(*MIXED, "method.name=independent", "optimizer.lr=1e-30", "train.epochs=1", "train.accumulation=2")
    run = Run.open(Path(train(recipe, tmp_path, device="cpu", command="test", observer=Observer())["run"]))
    trainer = trainer_of(recipe, tmp_path)
    wrong = torch.zeros(3)
    order = epoch_order(0, 0, len(trainer.images))
    trainer.learner.train()
    for step, (first, last) in enumerate(trainer.bounds):
        indices, count = order[first:last], last - first
        for part in (slice(0, count // 2), slice(count // 2, count)):
            images, shares = trainer.images.batch(indices, step, part)
            logits_SBC = trainer.learner(images, shares, 1.0).logits_SBC
            wrong += (logits_SBC.argmax(-1) != shares.argmax(-1)).sum(-1)
    (line,) = run.metrics()
    for student in range(3):
        shown = line["train"]["errors"][f"student_{student}"]["top1"]
        assert shown == pytest.approx(100 * float(wrong[student]) / len(order))


def test_the_teacher_sees_the_mixed_images(
    baseline_run: Path, tiny: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: dict[str, list[Tensor]] = {"teacher": [], "learner": []}
    see, learn = Teacher.forward, Learner.forward

    def seeing(self: Teacher, images: Tensor) -> Tensor:
        shown["teacher"].append(images)
        return see(self, images)

    def learning(self: Learner, images: Tensor, labels: Tensor, *others: Any, **named: Any) -> Any:
        assert labels.shape == (len(images), 10)
        shown["learner"].append(images)
        return learn(self, images, labels, *others, **named)

    monkeypatch.setattr(Teacher, "forward", seeing)
    monkeypatch.setattr(Learner, "forward", learning)
    recipe = tiny(*MIXED, "method.name=kd", f'teacher.run="{baseline_run}"', "train.epochs=1")
    trained = train(recipe, tmp_path, device="cpu", command="test", observer=Observer())
    assert "teacher" in Run.open(Path(trained["run"])).metrics()[0]["loss"]
    steps = [images for images in shown["learner"] if len(images) > 1]
    assert len(steps) == 6
    # The first look of the teacher is at what its cost is counted on.
    for images, seen in zip(steps, shown["teacher"][-6:], strict=True):
        assert images is seen
        assert images.dtype == torch.float32


def test_resuming_in_mid_epoch_gives_the_bits_of_the_uninterrupted_run(tmp_path: Path) -> None:
    settings = (*EVERYTHING, "train.accumulation=3", "train.ema=0.9", "optimizer.decay_norms_and_biases=false")
    (tmp_path / "whole").mkdir()
    whole = train_tiny(tmp_path / "whole", *settings)
    with pytest.raises(workflow.Interrupted):
        train(Run.open(whole).recipe, tmp_path / "cut", device="cpu", command="test", observer=StopAt(2, 3))
    (path,) = (tmp_path / "cut").iterdir()
    assert resume(path, device="cpu", observer=Observer())["state"] == "done"
    assert_same_run(whole, path)


@pytest.fixture(scope="module")
def harness() -> Iterator[Harness]:
    with Harness() as harness:
        yield harness


def test_processes_and_parts_change_nothing(harness: Harness, tmp_path: Path) -> None:
    """Without batch norm, in float64 to 1e-12, whoever computes which part of a batch."""
    settings = (*EVERYTHING, "model.norm=none", "method.gate=false", "method.rampup_epochs=0", "optimizer.lr=0.01")
    settings = (*settings, "train.epochs=1")
    runs = {}
    for name, world, parts in (("whole", 1, 1), ("parts", 1, 3), ("both", 2, 2)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "tiny.toml").write_text(TINY, encoding="utf-8")
        words = [word for change in (*settings, f"train.accumulation={parts}") for word in ("--set", change)]
        ends = harness.run_ranks(
            world,
            *("train", folder / "tiny.toml", *words, "--runs", folder / "runs", "--device", "cpu", "--json"),
            hands_off=folder / "runs",
            doubles=True,
        )
        assert [end.status for end in ends] == [0] * world, ends
        runs[name] = Path(ends[0].json["run"])
    for name in ("parts", "both"):
        for part in ("group", "optimizer"):
            assert largest_difference(runs["whole"], runs[name], part) < 1e-12, name
        for one, other in zip(Run.open(runs["whole"]).metrics(), Run.open(runs[name]).metrics(), strict=True):
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-9)
            assert one["train"]["errors"] == other["train"]["errors"]


# ------------------------------------------------------------------------------------------------------- weight decay

SPARED = "optimizer.decay_norms_and_biases=false"


@pytest.mark.parametrize("method", ["one", "okddip"])
def test_what_is_spared_is_norms_and_biases_of_group_and_method(method: str, tiny: Callable[..., Recipe]) -> None:
    learner = build_learner(tiny(f"method.name={method}"), datasets.spec("digits", Path()))
    names = {parameter: name for name, parameter in learner.named_parameters()}
    decaying, spared = ({names[parameter] for parameter in group} for group in decay_groups(learner))
    kernels = {
        f"{name}.weight" for name, module in learner.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)
    }
    assert decaying == kernels
    assert spared == set(names.values()) - kernels
    if method == "one":
        assert {"method.gate.fc.bias", "method.gate.bn.weight", "method.gate.bn.bias"} <= spared
    own = {"method.gate.fc.weight"} if method == "one" else {"method.W_L.weight", "method.W_E.weight"}
    assert own <= decaying


def test_norms_of_several_dimensions_are_spared_too() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LayerNorm([4, 6, 6]), nn.GroupNorm(2, 4), nn.Linear(4, 2))
    decaying, spared = decay_groups(module)
    assert {parameter.shape for parameter in decaying} == {(4, 3, 3, 3), (2, 4)}
    assert len(spared) == 6


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_spared_parameters_stay_where_the_others_shrink(name: str, tiny: Callable[..., Recipe]) -> None:
    recipe = tiny(SPARED, f"optimizer.name={name}", "optimizer.lr=0.1", "optimizer.weight_decay=0.5")
    learner = build_learner(recipe, datasets.spec("digits", Path()))
    optimizer = make_optimizer(recipe.optimizer, learner)
    before = {key: value.detach().clone() for key, value in learner.named_parameters()}
    for parameter in learner.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    _, spared = decay_groups(learner)
    # Nesterov takes the momentum's share once more in the first step.
    factor = 1 - 0.1 * 0.5 * (1.9 if name == "sgd" else 1)
    for key, value in learner.named_parameters():
        kept = any(value is parameter for parameter in spared)
        assert torch.allclose(value, before[key] * (1 if kept else factor)), key


def test_sparing_nothing_that_decays_is_a_fault(tiny: Callable[..., Recipe]) -> None:
    with pytest.raises(UserError) as raised:
        tiny(SPARED, "optimizer.weight_decay=0")
    (fault,) = raised.value.faults
    assert fault.place == f"--set {SPARED}"
    assert "weight_decay is 0" in fault.problem


@pytest.mark.parametrize("first", ["true", "false"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_decay_may_change_when_a_run_goes_on(
    first: str, optimizer: str, tiny: Callable[..., Recipe], tmp_path: Path
) -> None:
    """The momentum goes on, by name: only the decay of the steps that follow is another."""
    both = {
        value: tiny(f"optimizer.decay_norms_and_biases={value}", f"optimizer.name={optimizer}", "optimizer.lr=0.01")
        for value in ("true", "false")
    }
    with pytest.raises(workflow.Interrupted):
        train(both[first], tmp_path / "runs", device="cpu", command="test", observer=StopAt(1, 4))
    (path,) = (tmp_path / "runs").iterdir()
    saved = Run.open(path).checkpoint("last")
    with pytest.raises(UserError, match="decay_norms_and_biases"):
        resume(path, device="cpu", observer=Observer(), recipe=both["false" if first == "true" else "true"])
    notes = Notes()
    second = both["false" if first == "true" else "true"]
    state = json.loads((saved / "state.json").read_text())

    trainer = trainer_of(second, tmp_path / "other")
    trainer.checkpoints.mkdir(parents=True)
    trainer.restore(checkpoints.load(saved))
    assert trainer.progress.step == state["step"] == 4
    restored = checkpoints.optimizer_tensors(trainer.update.optimizer, trainer.parameter_names)
    written = checkpoints.load_part(saved, "optimizer")
    assert restored.keys() == written.keys()
    assert all(torch.equal(restored[key], written[key]) for key in written)

    done = resume(path, device="cpu", observer=notes, recipe=second, accept_changes=True)
    assert done["state"] == "done"
    assert any("decay_norms_and_biases" in note for note in notes.notes)
    assert Run.open(path).recipe.optimizer.decay_norms_and_biases is (first == "false")
