"""Batches of training images: the same whoever makes them, and equal to cropping image by image."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as torchvision_functional

from distilkit.data import augment
from distilkit.data.base import Split
from distilkit.data.resident import TrainingImages, epoch_order, evaluation_batches
from distilkit.errors import SettingError
from distilkit.randomness import generator

CPU = torch.device("cpu")


def make_split(count: int = 40, channels: int = 3, size: int = 16) -> Split:
    draws = torch.Generator().manual_seed(count + channels + size)
    images_NHWC = torch.randint(1, 256, (count, size, size, channels), generator=draws, dtype=torch.uint8)
    return Split(images_NHWC.permute(0, 3, 1, 2), torch.randint(10, (count,), generator=draws))


def resident(split: Split, name: str, seed: int = 3) -> TrainingImages:
    return TrainingImages(split, augment=name, seed=seed, device=CPU)


@pytest.mark.parametrize("name", augment.names())
@pytest.mark.parametrize("channels", [1, 3])
def test_the_parts_of_several_processes_are_the_batch_of_one(name, channels):
    training = resident(make_split(channels=channels), name)
    indices = epoch_order(0, 0, len(training))[:21]
    images, labels = training.batch(indices, step=5)
    for bounds in ([0, 21], [0, 7, 14, 21], [0, 11, 21], [0, 20, 21], [0, 0, 21]):
        parts = [training.batch(indices, 5, slice(a, b)) for a, b in pairwise(bounds)]
        assert torch.equal(torch.cat([part for part, _ in parts]), images)
        assert torch.equal(torch.cat([part for _, part in parts]), labels)
    strided = [training.batch(indices, 5, slice(rank, None, 2)) for rank in (0, 1)]
    assert torch.equal(strided[0][0], images[0::2])
    assert torch.equal(strided[1][1], labels[1::2])


@pytest.mark.parametrize("name", augment.names())
def test_a_batch_depends_on_seed_and_step_and_on_nothing_drawn_before(name):
    split = make_split()
    indices = torch.arange(32)
    first = resident(split, name)
    expected = first.batch(indices, 7)[0]

    torch.manual_seed(99)
    other = resident(split, name)
    for step in range(3):
        other.batch(indices, step)
    torch.rand(5)
    assert torch.equal(other.batch(indices, 7)[0], expected)

    changes = not torch.equal(first.batch(indices, 8)[0], expected)
    reseeded = not torch.equal(resident(split, name, seed=4).batch(indices, 7)[0], expected)
    assert changes == reseeded == (name != "none")


@pytest.mark.parametrize("name", augment.names())
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 16), (3, 6)])
def test_batches_are_uint8_in_channels_last_memory_and_leave_the_stored_images_alone(name, channels, size):
    split = make_split(channels=channels, size=size)
    before = split.images.clone()
    training = resident(split, name)
    untouched, _ = training.batch(torch.arange(9), 0)
    images, labels = training.batch(torch.arange(9), 0)
    assert images.shape == (9, channels, size, size)
    assert images.dtype == torch.uint8
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert labels.dtype == torch.int64
    assert torch.equal(labels, split.labels[:9])

    expected = untouched.clone()
    images.zero_()
    assert torch.equal(training.batch(torch.arange(9), 0)[0], expected)
    assert torch.equal(split.images, before)


def test_no_augmentation_gives_the_images_as_they_are_stored():
    split = make_split()
    indices = torch.tensor([5, 0, 39, 5])
    images, labels = resident(split, "none").batch(indices, 0)
    assert torch.equal(images, split.images[indices])
    assert torch.equal(labels, split.labels[indices])


@pytest.mark.parametrize("name", ["crop", "crop-flip"])
@pytest.mark.parametrize(("channels", "size", "pad"), [(3, 32, 4), (1, 8, 1), (3, 20, 2), (3, 6, 0)])
def test_a_batch_equals_padding_cropping_and_mirroring_image_by_image(name, channels, size, pad):
    split = make_split(channels=channels, size=size)
    indices = epoch_order(1, 2, 40)
    images, labels = resident(split, name, seed=11).batch(indices, 6)

    dy, dx, mirrored = augment.draw_crops(40, pad, name == "crop-flip", generator(11, "augment", 6)).tolist()
    for place, index in enumerate(indices.tolist()):
        image = split.images[index].numpy()
        image = image[:, :, ::-1] if mirrored[place] else image  # first: dx counts from the mirrored image's left
        image = np.pad(image, ((0, 0), (pad, pad), (pad, pad)))
        image = image[:, dy[place] : dy[place] + size, dx[place] : dx[place] + size]
        assert np.array_equal(images[place].numpy(), image)
        assert labels[place] == split.labels[index]
    assert any(mirrored) == (name == "crop-flip")


def test_padding_is_an_eighth_of_the_size():
    assert [augment.padding(size) for size in (32, 8, 7, 224)] == [4, 1, 0, 28]


def test_crops_start_everywhere_equally_often_and_half_are_mirrored():
    dy, dx, mirrored = augment.draw_crops(20_000, 4, True, generator(0, "augment", 0))
    # 81 places: 247 times each, give or take 16.
    counts = torch.bincount(dy * 9 + dx, minlength=81)
    assert counts.numel() == 81
    assert counts.min() > 160
    assert counts.max() < 340
    assert abs(mirrored.float().mean() - 0.5) < 0.02
    assert augment.draw_crops(100, 4, False, generator(0, "augment", 0))[2].sum() == 0


def test_crop_alone_never_mirrors():
    # Columns rise from left to right in every image: mirrored, they would fall.
    columns = torch.arange(10, 170, 10, dtype=torch.uint8).expand(30, 16, 16)[..., None]
    split = Split(columns.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last), torch.zeros(30).long())
    middles = resident(split, "crop").batch(torch.arange(30), 0)[0][:, 0, 8, 4:12].int()
    assert (middles.diff(dim=1) > 0).all()
    both = resident(split, "crop-flip").batch(torch.arange(30), 0)[0][:, 0, 8, 4:12].int()
    rising = (both.diff(dim=1) > 0).all(1)
    assert 0 < rising.sum() < 30


def test_resized_crops_equal_cutting_out_and_resizing_image_by_image():
    split = make_split(count=60, size=24)
    indices = torch.arange(60)
    images, _ = resident(split, "random-resized-crop", seed=5).batch(indices, 9)
    boxes = augment.draw_resized_crops(60, 24, generator(5, "augment", 9))
    for index, (top, left, height, width, mirrored) in enumerate(boxes.T.tolist()):
        expected = torchvision_functional.resized_crop(
            split.images[index].float(), top, left, height, width, [24, 24], antialias=False
        )
        expected = expected.flip(2) if mirrored else expected
        # Half a level from rounding, and a hair for the order of the interpolation's sums.
        assert (images[index].float() - expected).abs().max() <= 0.51


@settings(max_examples=30, deadline=None)
@given(size=st.integers(2, 64), seed=st.integers(0, 1000))
def test_resized_crops_lie_within_the_image(size, seed):
    top, left, height, width, mirrored = augment.draw_resized_crops(64, size, generator(seed, "augment"))
    for start, length in ((top, height), (left, width)):
        assert start.min() >= 0
        assert length.min() >= 1
        assert (start + length).max() <= size
    assert set(mirrored.tolist()) <= {0, 1}


def test_resized_crops_cover_the_areas_and_shapes_they_are_meant_to():
    top, left, height, width, mirrored = augment.draw_resized_crops(20_000, 224, generator(0, "augment")).double()
    area, ratio = height * width / 224**2, width / height
    whole = (height == 224) & (width == 224)
    # Rounding to whole pixels moves the smallest boxes' area and ratio by a few per cent.
    assert 0.075 < area.min() < 0.09
    assert area[~whole].max() > 0.95
    assert 0.72 < ratio.min() < 0.77
    assert 1.30 < ratio.max() < 1.38
    assert abs(ratio.log().mean()) < 0.01
    assert abs(mirrored.mean() - 0.5) < 0.02

    torch.manual_seed(0)
    image = torch.zeros(3, 224, 224)
    theirs = torch.tensor([RandomResizedCrop.get_params(image, augment.SCALE, augment.RATIO) for _ in range(4000)])
    their_area = theirs[:, 2] * theirs[:, 3] / 224**2
    # Means and quantiles of 4,000 draws are good to about 0.004 and 0.008.
    assert abs(area.mean() - their_area.mean()) < 0.015
    for part in (0.1, 0.5, 0.9):
        assert abs(area.quantile(part) - their_area.double().quantile(part)) < 0.025
    for ours, row in ((top, 0), (left, 1)):
        assert abs(ours.mean() - theirs[:, row].double().mean()) < 4


def test_the_whole_image_is_taken_where_ten_tries_fail():
    # Of one pixel, only a box of one pixel fits; with luck against it, that is the fallback too.
    boxes = augment.draw_resized_crops(500, 1, generator(0, "augment"))
    assert torch.equal(boxes[:4], torch.tensor([0, 0, 1, 1])[:, None].expand(4, 500))


def test_an_unknown_augmentation_is_a_setting_at_fault():
    with pytest.raises(SettingError, match="crop_flip") as caught:
        resident(make_split(), "crop_flip")
    assert caught.value.setting == "augment"
    assert caught.value.hint == "did you mean 'crop-flip'?"


def test_an_epoch_is_a_permutation_of_its_own():
    orders = [epoch_order(0, epoch, 100) for epoch in range(3)]
    for order in orders:
        assert order.dtype == torch.int64
        assert sorted(order.tolist()) == list(range(100))
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], epoch_order(1, 0, 100))
    torch.manual_seed(1)
    assert torch.equal(orders[2], epoch_order(0, 2, 100))


@pytest.mark.parametrize("batch_size", [1, 7, 20, 64])
def test_evaluation_sees_every_image_once_in_order(batch_size):
    split = make_split(count=20)
    batches = list(evaluation_batches(split, batch_size, CPU))
    assert [len(labels) for _, labels in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert torch.equal(torch.cat([images for images, _ in batches]), split.images)
    assert torch.equal(torch.cat([labels for _, labels in batches]), split.labels)
    assert all(images.is_contiguous(memory_format=torch.channels_last) for images, _ in batches)
