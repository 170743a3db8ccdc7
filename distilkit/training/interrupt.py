"""Ctrl-C and SIGTERM: the first asks the training to save at the next step, the second ends it at once."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType


class Interrupted(Exception):  # noqa: N818 - nothing went wrong
    """The run was asked to stop, and its state has been saved. `signum`: SIGINT or SIGTERM; `saved`: a checkpoint."""

    def __init__(self, signum: int, saved: str, run: Path) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}; saved as {saved} in {run}")
        self.signum = signum
        self.saved = saved
        self.run = run


class StopRequest:
    """`signum` is the signal that asked for a stop, or 0 while none did."""

    def __init__(self) -> None:
        self.signum = 0

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """Remember the first signal; leave at once on the second (checkpoints are whole at every moment)."""
        if self.signum:
            os._exit(128 + signum)
        self.signum = signum


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Catch SIGINT and SIGTERM inside the block; outside the main thread, where Python allows no handlers, none."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {signum: signal.signal(signum, request.handle) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
