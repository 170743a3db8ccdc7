"""`python -m distilkit`, and the command `distilkit`."""

import os
import signal
from typing import NoReturn


def main() -> NoReturn:
    """Import the command line, which takes some tenths of a second, and run it."""
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
