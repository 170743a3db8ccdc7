"""The working folder holds data, perhaps a stranger's: neither modules nor configuration are taken from it.

The command line switches off what Python would import from it (`__main__.py`); a network of the user's own is found in
it because the user has asked for that (`models/own.py`). Here is what libraries would take by themselves.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from distilkit.errors import UserError

SAFE_PATH = {"PYTHONSAFEPATH": "1"}
"""In its environment, an interpreter that is started for a line of code does not import from the working folder."""

# Native libraries that are searched in the working folder before the system's: the first by NVIDIA's cuSPARSELt, with
# which PyTorch comes and whose run path has an empty part, the second by the linker that torch.compile calls.
_LIBRARIES = ("libcuda.so.1", "libgcc_s.so.1")
# Where glibc looks as well, below each folder that it searches.
_BELOW = ("glibc-hwcaps", "tls", "haswell", "avx512_1", "x86_64", "atomics")


@contextmanager
def environment(settings: Mapping[str, str]) -> Iterator[None]:
    """What processes that are started inside the block find in their environment."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def elsewhere() -> Iterator[None]:
    """Stand in distilkit's own folder inside the block, for libraries that look for configuration where they stand.

    The whole process stands there, so nothing in the block may use relative paths, in no thread.
    """
    with contextlib.chdir(Path(__file__).parent):
        yield


def require_no_libraries() -> None:
    """Raise `UserError` where the working folder holds a native library that would be taken for the system's."""
    for name in _LIBRARIES:
        below = (file for folder in _BELOW for file in Path(folder).rglob(name))
        if os.path.lexists(name) or next(below, None):
            raise UserError(
                f"the working folder holds a library {name}, which PyTorch would load in place of the system's",
                "type the command in another folder, or remove the file",
            )
