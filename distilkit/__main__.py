"""`python -m distilkit`, and the command `distilkit`."""

import os
import sys


def _leave_the_working_folder_out() -> None:
    """Undo what `python -m` does: it puts the working folder first, where any file could stand for any module.

    The folder that holds distilkit itself, a checkout that is not installed, is still searched, but last.
    """
    try:
        here = os.getcwd()  # noqa: PTH109 - pathlib would be imported from there
    except OSError:  # it is gone; the command line says so
        return
    if sys.path[0] in ("", here):
        del sys.path[0]
        if here == os.path.dirname(os.path.dirname(os.path.realpath(__file__))):  # noqa: PTH120
            sys.path.append(here)


if __name__ == "__main__" and not sys.flags.safe_path:
    _leave_the_working_folder_out()

import signal  # noqa: E402
from typing import NoReturn  # noqa: E402


def main() -> NoReturn:
    """Import the command line, which takes some tenths of a second, and run it."""
    # Every interpreter that is started from here, by any library, would put the working folder first as well.
    os.environ["PYTHONSAFEPATH"] = "1"
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        # Until the command line answers Ctrl-C itself: an interruption is no fault, and has no traceback.
        signal.signal(signal.SIGINT, _leave)
    from distilkit import cli

    signal.signal(signal.SIGINT, before)
    cli.main()


def _leave(signum: int, frame: object) -> None:
    os.write(2, b"interrupted by SIGINT\n")
    os._exit(128 + signum)


if __name__ == "__main__":
    main()
