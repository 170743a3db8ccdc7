"""Writing what people and later commands read: whole or not at all, and never through a stranger's links."""

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from distilkit.errors import UserError
from distilkit.runs import layout as files
from distilkit.runs import metrics as log


def write_json(file: Path, document: dict[str, Any]) -> None:
    """Write JSON atomically, without NaN or infinity. Raises `UserError` when the file cannot be written."""
    write_text(file, json.dumps(log.finite(document), indent=1, allow_nan=False) + "\n")


def write_text(file: Path, text: str) -> None:
    """Write a small file atomically. Raises `UserError` when it cannot be written."""
    if not file.name or file.is_dir():
        raise UserError(f"{file} is a folder; what is written is a file", "name a file")
    try:
        with appearing(file) as partial:
            # Of a folder's name that is no UTF-8 the bytes are spelled out.
            partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror or error}") from error


@contextmanager
def appearing(file: Path) -> Iterator[Path]:
    """Where to write what is to be `file`: it takes that name when the block ends, and goes where the block fails.

    Raises `OSError` when it cannot be written, `UserError` where it can only be a folder, or is a device or a pipe: the
    finished file would take its place, `/dev/null`'s too.
    """
    # Its ending stays, by which writers choose a format.
    if not file.name:
        raise UserError(f"{file} is a folder, not a file", f"name the file: {file / 'FILE'}")
    if file.exists() and not (file.is_file() or file.is_dir()):
        raise UserError(f"{file} is no plain file, and would be replaced", "name a file")
    partial = file.with_name(f".partial-{file.name}")
    try:
        # Whatever lies there of that name, a link that leads elsewhere perhaps, is not written through.
        partial.unlink(missing_ok=True)
        yield partial
        partial.replace(file)
    except BaseException:
        # What is half written gives its space back, which may be what was wanting.
        with suppress(OSError):
            partial.unlink()
        raise


def inside(path: Path, name: str) -> Path:
    """The folder `name` of a run or a pruned model, to be written to.

    Raises `UserError` where it, or something in it, is a link that leads out of `path`.
    """
    # Not all of `path`: the Hugging Face hub's cache makes links of all that is downloaded.
    refuse_links(path / name, path)
    return path / name


def refuse_links(folder: Path, path: Path) -> None:
    """A run may come from a stranger: what is written into it must not arrive at another place."""
    try:
        entries = [folder, *folder.iterdir()] if folder.is_dir() else [folder]
        links = [entry for entry in entries if entry != path and entry.is_symlink()]
        out = [link for link in links if not link.resolve().is_relative_to(path.resolve())]
    except (OSError, RuntimeError):  # a link that leads in a circle, or a folder that cannot be read
        out = [folder]
    if out:
        names = ", ".join(str(link) for link in sorted(out)[:5])
        raise UserError(
            f"{path} is to be written to, and has links that lead out of it: {names}",
            "put the files themselves there, or remove the links",
        )


def lock(folder: Path) -> FileLock:
    """The lock of a run's folder, to be acquired; who holds it already makes that raise `filelock.Timeout`.

    Raises `OSError` where a link or no plain file lies in its place: a lock is opened to be written, and emptied.
    """
    path = folder / files.LOCK
    try:
        found = path.lstat()
    except FileNotFoundError:
        return FileLock(path, timeout=0)
    # A second name of somebody's file, too; of a lock that was copied by links there is nothing to lose.
    if not stat.S_ISREG(found.st_mode) or (found.st_nlink > 1 and found.st_size):
        raise OSError(errno.EINVAL, "its lock is a link or no plain file; remove it if nobody trains there", str(path))
    return FileLock(path, timeout=0)


@contextmanager
def writable(folder: Path) -> Iterator[Path]:
    """Make a folder for results. Raises `UserError` when it, or what the block writes, cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "Permission denied")
        yield folder
    except OSError as error:
        # What is made on the way, in the folder for temporary files perhaps, may be what there is no room for.
        name = Path(str(error.filename or folder))
        if name.is_relative_to(folder) or not name.is_absolute():
            problem, hint = f"{folder} cannot be written", "choose another with --output"
        else:
            problem, hint = f"{name} cannot be written", "free space there; TMPDIR names the folder for temporary files"
        raise UserError(f"{problem}: {error.strerror or error}", hint) from error
