"""What a process is started with: streams that are closed, full or without letters, and a terminal of no width."""

import io
import os
import re
import sys
from typing import Any

from distilkit.errors import UserError


def prepare() -> None:
    """Make stdin, stdout and stderr such that they can be read and written, whatever they are."""
    # What is opened next would take a closed one's number, and what a library prints would land in a checkpoint.
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123 - to the end
    if _is_file(sys.stdout, 1):
        answer: Any = _Answer(1, "w", closefd=False)
        sys.stdout = io.TextIOWrapper(answer, encoding=sys.stdout.encoding)
    if _is_file(sys.stderr, 2):
        messages: Any = _Messages(2, "w", closefd=False)
        sys.stderr = io.TextIOWrapper(messages, encoding=sys.stderr.encoding, line_buffering=True)
    for stream in (sys.stdout, sys.stderr):
        # What the terminal's encoding has no letter for is spelled out: a name in Greek is no failure.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    for name in ("COLUMNS", "LINES"):
        # Rich takes a superscript two for a number, and makes room for a billion columns.
        if not re.fullmatch("[0-9]{1,4}", os.environ.get(name, "80")):
            del os.environ[name]


def forget_stdout() -> None:
    """Send what stdout still holds, and all that follows, nowhere: Python would complain of it when it flushes."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_file(stream: object, number: int) -> bool:
    """Whether this is the process's own stream, and no terminal: what is there may be on a disk, which may be full."""
    try:
        return type(stream) is io.TextIOWrapper and stream.fileno() == number and not stream.isatty()
    except (OSError, ValueError):  # one that a test has put in its place
        return False


class _Answer(io.FileIO):
    """stdout: what cannot be written there is the user's to mend, and not to be tried again."""

    def write(self, data: Any) -> int:
        try:
            return _write_all(super().write, data)
        except BrokenPipeError:
            raise
        except OSError as error:
            forget_stdout()
            raise UserError(
                f"what is printed cannot be written: {error.strerror or error}", "free space, or print elsewhere"
            ) from error


class _Messages(io.FileIO):
    """stderr: where a log has no room left, what is said there is lost, and the training is not."""

    def write(self, data: Any) -> int:
        try:
            return _write_all(super().write, data)
        except BrokenPipeError:
            raise
        except OSError:
            return len(data)


def _write_all(write: Any, data: Any) -> int:
    rest = memoryview(data)
    while rest:
        # Nothing where a pipe would block: then what is left is lost.
        rest = rest[write(rest) or len(rest) :]
    return len(data)
