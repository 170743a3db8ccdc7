"""Perturbed images: what each kind does to pixels, and that a fixed seed gives the same images everywhere."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from distilkit.analysis.corruption import CORRUPTIONS, SEVERITIES, corrupt, names


@pytest.fixture
def images() -> torch.Tensor:
    """Five rough pictures [5, 3, 16, 16] away from both ends of the range, so that little is clipped."""
    return torch.randint(90, 160, (5, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_keeps_shape_and_type_and_grows_with_severity(
    name: str, channels: int, images: torch.Tensor
) -> None:
    images = images[:, :channels].contiguous(memory_format=torch.channels_last)
    before, changes = images.clone(), []
    for severity in range(1, SEVERITIES + 1):
        changed = corrupt(images, name, severity, seed=0, start=0)
        assert (changed.shape, changed.dtype) == (images.shape, torch.uint8)
        changes.append(float((changed.float() - images.float()).square().mean()))
    assert torch.equal(images, before), "the images themselves stay"
    assert changes == sorted(changes)
    assert changes[0] > 0
    assert changes[-1] > changes[0]


def test_noise_has_the_deviation_it_says_and_depends_on_seed_severity_and_place() -> None:
    grey = torch.full((40, 3, 32, 32), 128, dtype=torch.uint8)
    for severity, amount in enumerate(CORRUPTIONS["noise"].amounts, start=1):
        noise = corrupt(grey, "noise", severity, seed=0, start=0).float() - 128
        assert float(noise.mean()) == pytest.approx(0, abs=0.5)
        # Rounding to whole levels adds 1/12.
        assert float(noise.std()) == pytest.approx((amount**2 + 1 / 12) ** 0.5, rel=0.02)
    first = corrupt(grey, "noise", 1, seed=0, start=0)
    assert torch.equal(first, corrupt(grey, "noise", 1, seed=0, start=0))
    assert not torch.equal(first, corrupt(grey, "noise", 1, seed=1, start=0))
    assert not torch.equal(first, corrupt(grey, "noise", 1, seed=0, start=250))


def test_brightness_adds_levels_and_stops_at_white() -> None:
    pixels = torch.tensor([0, 100, 250], dtype=torch.uint8).view(1, 1, 1, 3).expand(1, 3, 3, 3)
    assert corrupt(pixels, "brightness", 1, seed=0, start=0)[0, 0, 0].tolist() == [16, 116, 255]


def test_contrast_keeps_each_images_mean(images: torch.Tensor) -> None:
    changed = corrupt(images, "contrast", 2, seed=0, start=0).float()
    assert changed.mean(dim=(1, 2, 3)).tolist() == pytest.approx(images.float().mean(dim=(1, 2, 3)).tolist(), abs=0.5)
    assert float(changed[0].std() / images[0].float().std()) == pytest.approx(0.5, abs=0.01)


def test_blur_of_a_point_is_the_bell_of_its_deviation() -> None:
    point = torch.zeros(1, 3, 15, 15, dtype=torch.uint8)
    point[:, :, 7, 7] = 255
    for severity, sigma in enumerate(CORRUPTIONS["blur"].amounts, start=1):
        x = torch.arange(-7, 8).float()
        bell = torch.exp(-(x**2) / (2 * sigma**2))
        bell[x.abs() > max(1, round(3 * sigma))] = 0
        bell = bell / bell.sum()
        expected = 255 * bell[:, None] * bell[None, :]
        assert torch.allclose(corrupt(point, "blur", severity, seed=0, start=0)[0, 0].float(), expected, atol=0.51)


def test_blur_works_on_pictures_smaller_than_its_kernel() -> None:
    assert corrupt(torch.full((1, 1, 3, 3), 7, dtype=torch.uint8), "blur", 5, seed=0, start=0).eq(7).all()


def test_jpeg_is_what_pillow_writes_and_reads(images: torch.Tensor) -> None:
    changed = corrupt(images, "jpeg", 3, seed=0, start=0)
    for picture, found in zip(images, changed, strict=True):
        file = io.BytesIO()
        Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(file, "JPEG", quality=40)
        assert np.array_equal(np.asarray(Image.open(file)), found.permute(1, 2, 0).numpy())


@pytest.mark.parametrize(("name", "severity"), [("fog", 1), ("noise", 0), ("noise", 6)])
def test_other_kinds_and_severities_are_refused(name: str, severity: int, images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="there is no perturbation"):
        corrupt(images, name, severity, seed=0, start=0)
