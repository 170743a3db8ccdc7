"""RandAugment and random erasing, whose numbers come from seed, step and position, against torchvision's own."""

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Result
from torch import Tensor
from torchvision.transforms import v2

from distilkit.data import datasets, rand_augment
from distilkit.data.base import DataSpec, Split
from distilkit.data.resident import TrainingImages, epoch_order
from distilkit.data.variation import VariedImages, draw_erasings, erased
from distilkit.errors import UserError
from distilkit.randomness import generator
from distilkit.recipe import Recipe, load

CPU = torch.device("cpu")
ALL: dict[str, Any] = {"rand_augment": 2, "random_erasing": 0.5, "mixup": 0.2, "cutmix": 1.0}
SETTINGS: dict[str, dict[str, Any]] = {
    "rand_augment": {"rand_augment": 2},
    "random_erasing": {"random_erasing": 0.5},
    "mixup": {"mixup": 0.4},
    "cutmix": {"cutmix": 1.0},
    "all": ALL,
}


def spec_of(channels: int, size: int, classes: int = 10) -> DataSpec:
    names = tuple(str(c) for c in range(classes))
    return DataSpec("test", names, channels, size, 40, 40, (0.2, 0.5, 0.9)[:channels], (0.3,) * channels, "none")


def varied(channels: int = 3, size: int = 16, seed: int = 3, **settings: Any) -> VariedImages:
    draws = torch.Generator().manual_seed(channels + size)
    images_NHWC = torch.randint(1, 256, (40, size, size, channels), generator=draws, dtype=torch.uint8)
    split = Split(images_NHWC.permute(0, 3, 1, 2), torch.randint(10, (40,), generator=draws))
    source = TrainingImages(split, augment="crop-flip", seed=seed, device=CPU)
    return VariedImages(source, spec=spec_of(channels, size), seed=seed, device=CPU, **settings)


# ------------------------------------------------------------------------------------------------------------ batches


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", SETTINGS)
def test_the_parts_of_several_processes_are_the_batch_of_one(name: str, channels: int) -> None:
    training = varied(channels, **SETTINGS[name])
    indices = epoch_order(0, 0, len(training))[:21]
    for step in (5, 6, 7):  # with all of them, mixup and CutMix in turn
        images, labels = training.batch(indices, step)
        for bounds in ([0, 7, 14, 21], [0, 11, 21], [0, 20, 21], [0, 1, 21]):
            parts = [training.batch(indices, step, slice(a, b)) for a, b in pairwise(bounds)]
            assert torch.equal(torch.cat([part for part, _ in parts]), images)
            assert torch.equal(torch.cat([part for _, part in parts]), labels)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_batch_depends_on_seed_and_step_and_on_nothing_drawn_before(name: str) -> None:
    indices = torch.arange(32)
    expected, labels = varied(**SETTINGS[name]).batch(indices, 7)

    torch.manual_seed(99)
    other = varied(**SETTINGS[name])
    for step in range(3):
        other.batch(indices, step)
    state = torch.random.get_rng_state()
    images, same = other.batch(indices, 7)
    assert torch.equal(images, expected)
    assert torch.equal(same, labels)
    assert torch.equal(torch.random.get_rng_state(), state), "dropout must draw what it would have drawn"

    assert not torch.equal(other.batch(indices, 8)[0], expected)
    assert not torch.equal(varied(seed=4, **SETTINGS[name]).batch(indices, 7)[0], expected)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 16)])
def test_batches_lie_in_channels_last_memory_and_the_stored_images_are_left_alone(
    name: str, channels: int, size: int
) -> None:
    training = varied(channels, size, **SETTINGS[name])
    plain = varied(channels, size)
    before, _ = plain.batch(torch.arange(40), 0)
    for part in (slice(None), slice(3, 9)):
        images, labels = training.batch(torch.arange(40), 0, part)
        count = len(range(40)[part])
        assert images.shape == (count, channels, size, size)
        assert images.is_contiguous(memory_format=torch.channels_last)
        blended, mixed = name in ("mixup", "all"), name in ("mixup", "cutmix", "all")
        assert images.dtype == (torch.float32 if blended else torch.uint8)
        assert (labels.dtype, labels.shape) == ((torch.float32, (count, 10)) if mixed else (torch.int64, (count,)))
        if blended:
            assert images.min() >= 0
            assert 0.1 < images.max() <= 1 + 1e-6
    assert len(training) == 40
    assert torch.equal(plain.batch(torch.arange(40), 0)[0], before)


# -------------------------------------------------------------------------------------------------------- RandAugment


def variants(magnitude: int, image: Tensor) -> list[Tensor]:
    """What every operation, in both directions where it has two, makes of an image [C, H, W]."""
    operation = rand_augment.RandAugment(image.shape[-1], magnitude, CPU)
    count = 1 + 2 * len(rand_augment.MOVING + rand_augment.SIGNED) + len(rand_augment.UNSIGNED)
    return list(operation(image.expand(count, -1, -1, -1), torch.arange(count)[None]))


def photograph(channels: int, size: int) -> Tensor:
    """Smooth, with noise, and of middling contrast: every operation shows."""
    draws = torch.Generator().manual_seed(size)
    coarse = torch.rand((1, channels, 4, 4), generator=draws)
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")[0]
    noise = torch.rand((channels, size, size), generator=draws)
    return (30 + 160 * smooth + 30 * noise).byte()


@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 8), (3, 33)])
@pytest.mark.parametrize("magnitude", [0, 9, 20, 30])
def test_every_operation_is_one_of_torchvisions_to_the_bit(magnitude: int, channels: int, size: int) -> None:
    image = photograph(channels, size)
    ours = {variant.numpy().tobytes() for variant in variants(magnitude, image)}
    theirs = set()
    reference = v2.RandAugment(num_ops=1, magnitude=magnitude)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(500):
            theirs.add(reference(image).numpy().tobytes())
    assert ours == theirs
    if (magnitude, channels, size) == (20, 3, 32):
        assert len(ours) == 23, "every operation and direction does something else to this image"


def test_every_image_draws_its_own_operations_with_equal_chances() -> None:
    drawn_NG = rand_augment.draw(20_000, 2, generator(0, "test"))
    for drawn_G in drawn_NG:
        counts = Counter(drawn_G.tolist())
        assert sorted(counts) == list(range(23))
        pairs = range(1, 19)
        for variant, count in counts.items():
            expected = 20_000 / 14 / (2 if variant in pairs else 1)
            assert count == pytest.approx(expected, abs=4.5 * expected**0.5)
    # The second operation does not follow from the first, nor an image's from its neighbour's.
    assert torch.corrcoef(drawn_NG.double())[0, 1].abs() < 0.03
    assert torch.corrcoef(torch.stack([drawn_NG[0, 1:], drawn_NG[0, :-1]]).double())[0, 1].abs() < 0.03


def test_a_batch_is_its_images_one_by_one_each_operation_after_the_other() -> None:
    operation = rand_augment.RandAugment(16, 20, CPU)
    images = torch.stack([photograph(3, 16).roll(shift, 2) for shift in range(16)]).repeat(3, 1, 1, 1)
    drawn_NB = rand_augment.draw(48, 3, generator(1, "test"))
    batch = operation(images, drawn_NB)
    for image, drawn_N, made in zip(images, drawn_NB.T, batch, strict=True):
        for variant in drawn_N:
            image = operation(image[None], variant.view(1, 1))[0]
        assert torch.equal(made, image)
    assert len({made.numpy().tobytes() for made in batch}) > 40


# ------------------------------------------------------------------------------------------------------------- erasing


def test_erased_rectangles_are_torchvisions() -> None:
    images = torch.randint(1, 256, (60, 3, 12, 12), dtype=torch.uint8, generator=generator(0, "images"))
    boxes_4B = draw_erasings(60, 12, 0.7, generator(0, "boxes"))
    colour = torch.tensor([7, 8, 9], dtype=torch.uint8)
    made = erased(images, boxes_4B, colour)
    erasures = 0
    for image, (top, left, height, width), result in zip(images, boxes_4B.T.tolist(), made, strict=True):
        expected = v2.functional.erase(image, top, left, height, width, colour[:, None, None])
        assert torch.equal(result, expected)
        erasures += height > 0
    assert 30 < erasures < 54


@pytest.mark.parametrize("size", [8, 32])
def test_rectangles_are_drawn_as_torchvision_draws_them(size: int) -> None:
    count = 6000
    top, left, height, width = draw_erasings(count, size, 1.0, generator(0, "boxes")).double()
    assert ((top >= 0) & (left >= 0) & (top + height <= size) & (left + width <= size)).all()
    assert max(height.max(), width.max()) < size
    reference = v2.RandomErasing(p=1.0)
    image = torch.zeros(3, size, size)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [reference.make_params([image]) for _ in range(count)]
    for key, ours in zip("ijhw", (top, left, height, width), strict=True):
        theirs = torch.tensor([float(params[key]) for params in drawn], dtype=torch.float64)
        error = (theirs.var() / count + ours.var() / count).sqrt()
        assert float((ours.mean() - theirs.mean()).abs()) < 4 * float(error), key
        assert float(ours.std()) == pytest.approx(float(theirs.std()), rel=0.06), key
    share = (height * width).mean() / size**2
    assert 0.12 < share < 0.21


def test_the_chance_of_erasing_is_the_recipes_and_the_colour_the_data_sets() -> None:
    for chance in (0.0, 0.25, 1.0):
        height = draw_erasings(8000, 32, chance, generator(0, "boxes"))[2]
        assert float((height > 0).double().mean()) == pytest.approx(chance, abs=0.02)
    plain, _ = varied().batch(torch.arange(40), 0)
    images, _ = varied(random_erasing=1.0).batch(torch.arange(40), 0)
    changed_BHW = (images != plain).any(1)
    assert changed_BHW.flatten(1).any(1).all()
    colours = images.permute(0, 2, 3, 1)[changed_BHW]
    # The mean of spec_of: 0.2, 0.5, 0.9.
    assert colours.unique(dim=0).tolist() == [[51, 128, 230]]


# ------------------------------------------------------------------------------------------------------------- recipes


def test_nothing_is_varied_by_default(tiny: Callable[..., Recipe]) -> None:
    section = tiny().data
    assert (section.rand_augment, section.rand_augment_magnitude, section.random_erasing) == (0, None, 0)
    assert (section.mixup, section.cutmix) == (0, 0)


def test_the_magnitude_has_a_default_where_there_is_one(tiny: Callable[..., Recipe]) -> None:
    assert tiny("data.rand_augment=2").data.rand_augment_magnitude == 9
    assert tiny("data.rand_augment=2", "data.rand_augment_magnitude=0").data.rand_augment_magnitude == 0
    assert "rand_augment_magnitude" not in tiny().to_toml()


def test_switching_rand_augment_off_takes_the_magnitude_of_the_recipe_below_with_it(tmp_path: Path) -> None:
    recipe = load("modern_resnet20", ["data.rand_augment=0"])
    assert recipe.data.rand_augment_magnitude is None
    file = tmp_path / "both.toml"
    file.write_text('extends = "quickstart"\n[data]\nrand_augment = 0\nrand_augment_magnitude = 5\n', encoding="utf-8")
    with pytest.raises(UserError) as raised:
        load(file)
    (fault,) = raised.value.faults
    assert fault.place == f"{file}:4"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("data.rand_augment_magnitude=5",), ("changes nothing", "data.rand_augment = 2")),
        (("data.rand_augment=2", "data.rand_augment_magnitude=31"), ("an integer from 0 to 30",)),
        (("data.rand_augment=-1",), ("an integer from 0 to 10",)),
        (("data.rand_augment=true",), ("an integer from 0 to 10",)),
        (("data.random_erasing=1.5",), ("a number from 0 to 1",)),
        (("data.mixup=0.001",), ("0, or a number from 0.01 to 100",)),
        (("data.cutmix=-1",), ("0, or a number from 0.01 to 100",)),
        (("data.cutmix=inf",), ("must be finite",)),
        (("data.mix_up=0.2",), ("unknown key 'mix_up'", "did you mean 'mixup'?")),
        (("train.cutmix=1.0",), ("unknown key 'cutmix'", "belongs in [data]")),
    ],
)
def test_what_makes_no_sense_is_a_fault_with_its_place(
    settings: tuple[str, ...], words: tuple[str, ...], tiny: Callable[..., Recipe]
) -> None:
    with pytest.raises(UserError) as raised:
        tiny(*settings)
    (fault,) = raised.value.faults
    assert fault.place == f"--set {settings[-1]}"
    for word in words:
        assert word in str(fault)


def test_zero_written_as_an_integer_is_zero(tiny: Callable[..., Recipe]) -> None:
    recipe = tiny("data.mixup=0", "data.cutmix=1", "data.random_erasing=0")
    assert (recipe.data.mixup, recipe.data.cutmix, recipe.data.random_erasing) == (0.0, 1.0, 0.0)


def test_a_small_training_with_everything_on(distilkit: Callable[..., Result], tmp_path: Path) -> None:
    """Through the command line, as whole numbers too; images of one channel and 8 pixels."""
    settings = ("data.rand_augment=1", "data.random_erasing=1", "data.mixup=1", "data.cutmix=1", "train.epochs=1")
    words = [word for setting in settings for word in ("--set", setting)]
    result = distilkit("train", "quickstart_one", *words, "--runs", tmp_path, "--device", "cpu", "--json")
    assert result.status == 0
    assert datasets.spec("digits", tmp_path).channels == 1
    assert result.json["state"] == "done"
