"""What a process is started with: streams that are closed, full or without letters, and a terminal of no width."""

import io
import os
import sys
from typing import Any


def prepare() -> None:
    """Make stdin, stdout and stderr such that they can be written to and read, whatever they are."""
    # What is opened next would take a closed one's number, and what a library prints would land in a checkpoint.
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123 - to the end
    if _is_log(sys.stderr):
        messages: Any = _Messages(2, "w", closefd=False)
        sys.stderr = io.TextIOWrapper(messages, encoding=sys.stderr.encoding, line_buffering=True)
    for stream in (sys.stdout, sys.stderr):
        # What the terminal's encoding has no letter for is spelled out: a name in Greek is no failure.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    for name in ("COLUMNS", "LINES"):
        # Rich takes for a number what has Unicode's digits alone, such as a superscript two.
        if not os.environ.get(name, "").isascii():
            del os.environ[name]


def stdout_refuses() -> str | None:
    """Why stdout takes no more, None where it does. What it would not take is forgotten, and so is what follows."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        forget()
        return error.strerror or str(error)
    return None


def forget() -> None:
    """Send what stdout still holds, and all that follows, nowhere: Python would complain of it when it flushes."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_log(stream: object) -> bool:
    """Whether this is the process's own stderr, and no terminal."""
    try:
        return type(stream) is io.TextIOWrapper and stream.fileno() == 2 and not stream.isatty()
    except (OSError, ValueError):  # one that a test has put in its place
        return False


class _Messages(io.FileIO):
    """stderr in a file, which may have no room left: what is said there is lost then, and the training is not."""

    def write(self, data: Any) -> int:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[super().write(rest) or len(rest) :]
        except BrokenPipeError:
            raise
        except OSError:
            pass
        return len(data)
