"""Tensors of a safetensors file, which may be a stranger's."""

import errno
from pathlib import Path

from safetensors.torch import load as parse_tensors
from safetensors.torch import load_file
from torch import Tensor

from distilkit.errors import require_plain_file
from distilkit.memory import free_memory
from distilkit.reading import LARGEST_JSON


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, which take memory when they are looked at: the file is mapped.

    Raises `OSError`, also where it is no plain file that fits into the free memory, or `SafetensorError`.
    """
    require_plain_file(file, free_memory())
    with file.open("rb") as content:
        head = int.from_bytes(content.read(8), "little")
    if LARGEST_JSON < head <= file.stat().st_size:
        # safetensors takes up to 100 MB, of which names without tensors may be made.
        raise OSError(errno.EFBIG, f"its head has {head:,} bytes, and {LARGEST_JSON:,} are the most", str(file))
    try:
        str(file).encode()
    except UnicodeEncodeError:  # a path that safetensors cannot be told
        return parse_tensors(file.read_bytes())
    return load_file(file)
