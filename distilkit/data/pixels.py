"""One image file to pixels: the same for training, evaluation and `distilkit predict`.

Imports neither torch nor anything that does: `predict` needs none, and starts the sooner.

Shape suffixes: C channels, H height, W width.
"""

import functools
import importlib
import struct
import threading
import zlib
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from distilkit.errors import require_plain_file

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

# What Pillow's readers raise on files that are empty, cut short, not images, or made to exhaust memory. Its limit on
# pixels (Image.MAX_IMAGE_PIXELS: a warning beyond it, an error beyond twice that) stays in force.
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
FORMATS = {
    "JPEG": "JPEG",
    "PNG": "PNG",
    "WEBP": "WebP",
    "GIF": "GIF",
    "BMP": "BMP",
    "TIFF": "TIFF",
    "PPM": "PPM",
    "AVIF": "AVIF",
    "JPEG2000": "JPEG 2000",
    "ICO": "ICO",
    "TGA": "TGA",
}
"""The formats that are read: Pillow's name of each, and the one for people.

Pillow goes by a file's content, and knows formats for which it starts other programs (EPS: Ghostscript) or that are no
pictures. It reads a phone's MPO as JPEG. TGA has no mark of its own, and is tried last.
"""
_JPEG, _JPEG2000 = (".jpg", ".jpeg", ".jpe", ".jfif"), (".jp2", ".j2k")
_NETPBM = (".ppm", ".pgm", ".pbm", ".pnm")
_OTHERS = (".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".ico", ".tga")
_ENDINGS = (*_JPEG, *_JPEG2000, *_NETPBM, *_OTHERS)
# What files of `FORMATS` begin with; TGA has no such mark. WebP's and AVIF's are further on.
_MARKS = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"GIF87a",
    b"GIF89a",
    b"II*\0",
    b"MM\0*",
    b"\0\0\0\x0cjP  ",
    b"\xff\x4f\xff\x51",
    b"\0\0\1\0",
)
_MARK_BYTES = 12
# What other programs leave beside pictures: no file of theirs is one, and nobody has to hear of it.
_LEFT_BEHIND = {"thumbs.db", "desktop.ini", "@eadir", "__macosx"}
# Pixels: of larger pictures, some at a time are converted; still larger ones are decoded one after another. A file of
# some kilobytes may hold hundreds of millions.
_AT_ONCE, _ALONE = 2**22, 2**26
_LARGE = threading.Lock()
# Beyond this ratio of its sides, only the middle of a picture is resized: nothing else of it can be seen.
LONGEST = 4


class Framing(NamedTuple):
    """How a picture of any size becomes a square of `size` pixels, with `channels` 1 (grey) or 3 (RGB).

    Its shorter side is brought to `short_side` pixels, and the central square of `size` is cut out; equal ones leave
    the picture's whole central square. Bilinear with antialiasing; a square of that size stays as it is.
    """

    size: int
    short_side: int
    channels: int


def decode(path: Path | str, framing: Framing) -> Pixels:
    """Read one file as uint8 [size, size, C], turned as its EXIF data says. Raises one of `UNREADABLE`."""
    with open_image(path) as image:
        large = image.width * image.height > _ALONE
        with _LARGE if large else nullcontext():
            ImageOps.exif_transpose(image, in_place=True)
            return framed(to_mode(image, framing.channels), framing)


def open_image(file: Path | str | IO[bytes]) -> Image.Image:
    """Open an image of one of `FORMATS`, as far as its head. Nothing else in distilkit opens images.

    Raises one of `UNREADABLE` for any other file, and before it is opened for a pipe or a device.
    """
    if isinstance(file, Path | str):
        require_plain_file(file)
    return Image.open(file, formats=_formats())


@functools.cache
def _formats() -> tuple[str, ...]:
    # These alone are imported, a tenth of what `Image.init` imports. Pillow before 11.3 has no AVIF, and `Image.open`
    # ends in a KeyError for a name that is not known.
    for plugin in ("Jpeg", "Png", "WebP", "Gif", "Bmp", "Tiff", "Ppm", "Avif", "Jpeg2K", "Ico", "Tga"):
        with suppress(ImportError):
            importlib.import_module(f"PIL.{plugin}ImagePlugin")
    return tuple(name for name in FORMATS if name in Image.OPEN)


def is_left_behind(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or some other program's: it counts as nothing.

    "._cat.png" is what macOS leaves beside cat.png on foreign disks, "@eaDir" what a network drive has previews in.
    """
    return name.startswith(".") or name.lower() in _LEFT_BEHIND


def is_picture(file: str) -> bool:
    """Whether a file in a folder is taken for a picture: by its ending, else by its first bytes.

    Whether one of a known ending can be read shows itself when it is decoded, and is a fault of that file then. The
    others are opened: only plain files.
    """
    if file.lower().endswith(_ENDINGS):
        return True
    try:
        require_plain_file(file)
        with open(file, "rb") as content:  # noqa: PTH123 - for millions of them
            head = content.read(_MARK_BYTES)
    except OSError:
        return False
    riff = head.startswith(b"RIFF") and head[8:12] == b"WEBP"
    return head.startswith(_MARKS) or riff or (head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis"))


def to_mode(image: Image.Image, channels: int) -> Image.Image:
    """Convert any image to 8-bit RGB, or grey for one channel; see `to_rgb`."""
    colour = to_rgb(image)
    return colour if channels == 3 else colour.convert("L")


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any image to 8-bit RGB: 16-bit greys scaled (Pillow itself would clip them), transparency laid on white.

    One that is RGB already is returned as it is. Raises `ValueError` for what has no range to scale from (floating
    point, 32-bit integers).
    """
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    width, height = image.size
    rows = max(1, _AT_ONCE // max(1, width))
    if height <= rows:
        return _to_rgb(image)
    # Strip by strip: on the way a pixel takes up to forty bytes.
    colour = Image.new("RGB", image.size)
    for top in range(0, height, rows):
        colour.paste(_to_rgb(image.crop((0, top, width, min(top + rows, height)))), (0, top))
    return colour


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range")
    if image.mode.startswith("I"):
        grey_HW = np.asarray(image).astype(np.int64)
        if grey_HW.min() < 0 or grey_HW.max() > 65535:
            raise ValueError("grey levels outside 16 bits")
        # 65535 / 257 = 255
        return Image.fromarray(((grey_HW + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def reason(path: Path | str, error: BaseException) -> str:
    """Say why a file cannot be read."""
    if isinstance(error, UnidentifiedImageError):  # whose own words are the path again
        formats = ", ".join(FORMATS.values())
        return f"not an image of a format that is read ({formats})" if Path(path).stat().st_size else "empty"
    if isinstance(error, MemoryError):
        return "too little memory to decode it"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def framed(image: Image.Image, framing: Framing) -> Pixels:
    """Bring a picture in its final mode to uint8 [size, size, C]."""
    size, short_side, _ = framing
    if short_side == size:
        return as_array(ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR))
    width, height = image.size
    short = min(width, height)
    if max(width, height) > LONGEST * short:
        image = ImageOps.fit(image, (min(width, LONGEST * short), min(height, LONGEST * short)))
        width, height = image.size
    # Rounded as torchvision's Resize and CenterCrop round.
    scaled = [short_side if side == short else int(short_side * side / short) for side in (width, height)]
    resized = image.resize((scaled[0], scaled[1]), Image.Resampling.BILINEAR)
    left, top = (round((side - size) / 2) for side in scaled)
    return as_array(resized.crop((left, top, left + size, top + size)))


def as_array(image: Image.Image) -> Pixels:
    """Give the pixels of a grey or RGB picture: uint8 [H, W, C]."""
    pixels = np.asarray(image)
    return pixels[..., np.newaxis] if pixels.ndim == 2 else pixels
