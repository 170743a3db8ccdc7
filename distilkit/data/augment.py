"""Augmentation of whole batches of uint8 images, on the device that holds them.

What is random is drawn apart from what it is applied to: draws are made on the CPU, for all images of a global batch,
so that every device and any number of processes sees the same images.

Shape suffixes: N stored images, G images of a global batch, B images of this process, C channels, H height, W width.
Images are NHWC here: a row of a channels-last image is W * C adjacent bytes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# The usual settings of inception-style crops, as in torchvision's RandomResizedCrop.
SCALE = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
TRIES = 10


def names() -> tuple[str, ...]:
    """List the augmentations, as a recipe spells them."""
    return ("none", "crop", "crop-flip", "random-resized-crop")


def padding(size: int) -> int:
    """Return the padding at each side in pixels, which bounds the shifts: 4 for CIFAR's 32, 1 for the digits' 8."""
    return size // 8


def padded(images_NHWC: Tensor, pad: int, mirror: bool) -> Tensor:
    """Put the images in black frames, [N, H + 2 pad, W + 2 pad, C]; with `mirror`, add them all mirrored, [2 N, ...].

    Black is 0 before normalisation, as in torchvision's RandomCrop on images. It costs (1 + 2 pad / H)^2 times the
    images' own memory, twice that with `mirror`: 480 MB for CIFAR.
    """
    N, H, W, C = images_NHWC.shape
    frames = images_NHWC.new_zeros((2 * N if mirror else N, H + 2 * pad, W + 2 * pad, C))
    frames[:N, pad : pad + H, pad : pad + W] = images_NHWC
    if mirror:
        frames[N:, pad : pad + H, pad : pad + W] = images_NHWC.flip(2)
    return frames


def crops(frames: Tensor, pad: int, places_3B: Tensor) -> Tensor:
    """Cut one window [H, W, C] out of each of B `padded` images: [B, H, W, C], in one gather.

    `places_3B`: frame, dy and dx of each, int64, on the device of the frames. The gather copies rows: W * C bytes that
    are adjacent both in what is read and in what is written, so that it is as fast as memory and not as indexing.
    """
    _, framed_H, framed_W, C = frames.shape
    H, W = framed_H - 2 * pad, framed_W - 2 * pad
    frame, dy, dx = places_3B
    starts_B = ((frame * framed_H + dy) * framed_W + dx) * C
    starts_BH = starts_B[:, None] + torch.arange(H, device=frames.device) * (framed_W * C)
    # Every place where a row can begin, as a view: row i is the W * C bytes from byte i on.
    rows = frames.as_strided((max(0, frames.numel() - W * C + 1), W * C), (1, 1))
    return rows.index_select(0, starts_BH.view(-1)).view(-1, H, W, C)


def draw_crops(count: int, pad: int, mirror: bool, draws: torch.Generator) -> Tensor:
    """Draw where each crop starts and whether it is mirrored.

    int64 [3, G]: rows dy and dx in 0..2 pad, mirrored in 0..1.
    """
    shifts_2G = torch.randint(2 * pad + 1, (2, count), generator=draws)
    mirrored_G = torch.randint(2, (1, count), generator=draws) if mirror else torch.zeros((1, count), dtype=torch.int64)
    return torch.cat([shifts_2G, mirrored_G])


def draw_resized_crops(count: int, size: int, draws: torch.Generator) -> Tensor:
    """Draw boxes of random area and shape in square images: int64 [5, G], see `place_resized_crops`."""
    return place_resized_crops(draw_numbers(count, draws), size, size)


def draw_numbers(count: int, draws: torch.Generator) -> Tensor:
    """Draw what `place_resized_crops` makes boxes of: float64 [2 TRIES + 3, G], uniform in [0, 1).

    As many for every image, whatever its size: a loop until a box fits would draw for an image as often as another
    image failed.
    """
    tries = torch.rand((2, TRIES, count), generator=draws, dtype=torch.float64).reshape(2 * TRIES, count)
    return torch.cat([tries, torch.rand((3, count), generator=draws, dtype=torch.float64)])


def place_resized_crops(numbers_KG: Tensor, height: int, width: int) -> Tensor:
    """Turn `draw_numbers` into boxes in images of `height` x `width` pixels.

    int64 [5, G]: rows top, left, height, width (pixels), mirrored (0..1). As torchvision's RandomResizedCrop samples
    them (scale (0.08, 1), ratio (3/4, 4/3)): of ten tries at an area and a log-uniform ratio the first whose box
    fits; if none does, the largest central box whose ratio is allowed, which is the whole of a square image.
    """
    area_draw, ratio_draw = numbers_KG[:TRIES], numbers_KG[TRIES : 2 * TRIES]
    top_draw, left_draw, mirror_draw = numbers_KG[2 * TRIES :]
    area = height * width * (SCALE[0] + (SCALE[1] - SCALE[0]) * area_draw)
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    ratio = torch.exp(low + (high - low) * ratio_draw)
    widths, heights = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()

    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = fits.long().argmax(0, keepdim=True)
    found = fits.any(0)
    most_height = min(height, max(1, round(width / RATIO[0])))
    most_width = min(width, max(1, round(height * RATIO[1])))
    heights = torch.where(found, heights.gather(0, first)[0], most_height)
    widths = torch.where(found, widths.gather(0, first)[0], most_width)

    # A uniform number in [0, 1) makes a whole one in 0..height - box.
    top = torch.where(found, (top_draw * (height - heights + 1)).long(), (height - most_height) // 2)
    left = torch.where(found, (left_draw * (width - widths + 1)).long(), (width - most_width) // 2)
    return torch.stack([top, left, heights, widths, (mirror_draw < 0.5).long()])


def resized_crops(images_NHWC: Tensor, boxes_5B: Tensor) -> Tensor:
    """Resize each image's box to the whole image, bilinearly, rounded to uint8: [B, H, W, C].

    One sampling of the batch. Sampling points are held within the box's outermost pixel centres, so that this equals
    cutting the box out first and resizing it then. A box is never larger than what it becomes: no antialiasing.
    """
    B, H, W = images_NHWC.shape[:3]
    top, left, height, width, mirrored = boxes_5B.to(images_NHWC.device, torch.float32)
    y_BH = _sample_points(top, height, H)
    x_BW = _sample_points(left, width, W)
    x_BW = torch.where(mirrored[:, None].bool(), x_BW.flip(1), x_BW)
    grid = torch.stack([x_BW[:, None, :].expand(B, H, W), y_BH[:, :, None].expand(B, H, W)], dim=-1)
    floats = images_NHWC.permute(0, 3, 1, 2).float()
    resized = F.grid_sample(floats, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return resized.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()


def _sample_points(start_B: Tensor, length_B: Tensor, size: int) -> Tensor:
    """Spread `size` pixel centres over [start, start + length), in grid_sample's coordinates [-1, 1]: [B, size]."""
    centres = (torch.arange(size, device=start_B.device) + 0.5) / size
    pixels = start_B[:, None] + length_B[:, None] * centres
    inside = pixels.clamp(start_B[:, None] + 0.5, (start_B + length_B)[:, None] - 0.5)
    return inside * (2 / size) - 1
