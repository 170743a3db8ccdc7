"""Ctrl-C and SIGTERM: the first asks the training to save at the next step, the second ends it at once.

Outside of the training's steps either ends the command where it is, as Python's own KeyboardInterrupt does. Imports no
torch: the command line needs some of it before anything else.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

ECHO = 2.0
"""Seconds within which the same signal, sent again to one process of several, is the first one's echo."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, where nothing has to be saved first."""


class Interrupted(Exception):  # noqa: N818 - nothing went wrong
    """The run was asked to stop, and its state has been saved.

    `signum`: SIGINT or SIGTERM; `saved`: a checkpoint, None where there is none yet.
    """

    def __init__(self, signum: int, saved: str | None, run: Path) -> None:
        stands = f"saved as {saved} in {run}" if saved else f"nothing of {run} was trained yet"
        super().__init__(f"interrupted by {signal.Signals(signum).name}; {stands}")
        self.signum = signum
        self.saved = saved
        self.run = run


class StopRequest:
    """`signum` is the signal that asked for a stop, or 0 while none did."""

    def __init__(self) -> None:
        self.signum = 0
        self.asked_at = 0.0
        # A launcher hands the signal that it was sent on to its processes, which SLURM has sent it as well.
        self.echo = ECHO if int(os.environ.get("WORLD_SIZE", "1")) > 1 else 0.0

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """Remember the first signal; leave at once on the second (checkpoints are whole at every moment)."""
        if not self.signum:
            self.signum, self.asked_at = signum, time.monotonic()
        elif signum != self.signum or time.monotonic() - self.asked_at >= self.echo:
            os._exit(128 + signum)


def signum_of(error: KeyboardInterrupt) -> int:
    """Which signal it was that ended the command."""
    return signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT


def leave_at_once(signum: int, frame: FrameType | None) -> None:
    """Answer a second signal, while the first one is being answered."""
    os._exit(128 + signum)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Catch SIGINT and SIGTERM inside the block; outside the main thread, where Python allows no handlers, none."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {signum: signal.signal(signum, request.handle) for signum in (signal.SIGINT, signal.SIGTERM)}
    ended_early = True
    try:
        yield request
        ended_early = False
    finally:
        # One of several that ends early has its last words to write, and its launcher's signals may still come.
        if not (ended_early and request.echo):
            for signum, handler in before.items():
                signal.signal(signum, handler)
