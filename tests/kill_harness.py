"""Trainings in processes of their own that can be killed at a named moment, started in milliseconds.

Run as a program, this file is a small server: it imports everything, trains nothing (torch with one thread, whose
autograd has not run yet, survives a fork), and forks a child for every order that it reads from stdin. The child calls
distilkit's command line. `Harness` is the client; tests use nothing else.

A moment is a phase, which occurrence of it, and a signal that the child then sends itself. The phases:

    step                     before a training step
    evaluation               before a batch of an evaluation
    half NAME                in the middle of writing the file NAME: half of it is there
    half line                in the middle of adding an epoch's line to metrics.jsonl
    flush NAME               before NAME is flushed to the disk
    before NAME, after NAME  before and after a file or folder takes its final name NAME (step_N for every checkpoint)
    half removed             in the middle of removing an old checkpoint
    agreed                   after the processes have agreed whether to stop or to save
    lock                     before the run's lock is asked for
    after line               an epoch's line is in metrics.jsonl, its checkpoint is not written
    call MODULE:NAME         before a function of that module is called: distilkit.workflows.deploy.export:check_file

"half" phases stop in mid-write for SIGKILL only; for other signals the write goes on, as it does in life.
"""

import contextlib
import functools
import importlib
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self, TextIO

REPOSITORY = Path(__file__).parents[1]
# The interpreter's names (PEP 578) for what changes files.
CHANGING = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "shutil.rmtree"}


class Moment(NamedTuple):
    phase: str
    occurrence: int = 1
    signum: int = signal.SIGKILL


class Finished(NamedTuple):
    """How a child ended. `status`: as `subprocess` gives it, -9 for SIGKILL."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.out)
        return document


class Child:
    """A training in a process of its own."""

    def __init__(self, harness: "Harness", pid: int, folder: Path) -> None:
        self.harness, self.pid, self.folder = harness, pid, folder

    def wait(self, timeout: float = 120) -> Finished:
        """Wait until it has ended; it is killed if that takes longer than `timeout` seconds, and the test fails."""
        answer = self.harness.ask({"wait": self.pid, "timeout": timeout}, timeout + 30)
        out, err = ((self.folder / name).read_text(encoding="utf-8") for name in ("out", "err"))
        assert answer["ended"], f"process {self.pid} had not ended after {timeout} s:\n{err}"
        return Finished(answer["status"], out, err)

    def wait_until_stopped(self, timeout: float = 120) -> None:
        """Wait until it has stopped itself with SIGSTOP."""
        answer = self.harness.ask({"wait": self.pid, "timeout": timeout, "stopped": True}, timeout + 30)
        assert answer.get("stopped"), (self.folder / "err").read_text(encoding="utf-8")

    def send(self, signum: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, signum)


class Harness:
    """The client: a context manager around one server. `preload`: modules that it imports besides a training's."""

    def __init__(self, preload: Iterable[str] = ()) -> None:
        self.preload = tuple(preload)

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="distilkit-kills-"))
        self.errors = (self.folder / "server").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, __file__, *self.preload],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        )
        self.started = 0
        return self

    def __exit__(self, *args: object) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process.stdout.close()
        self.errors.close()
        shutil.rmtree(self.folder)

    def start(
        self,
        *arguments: object,
        moments: Iterable[Moment] = (),
        environment: Mapping[str, str] | None = None,
        audit: Path | None = None,
        hands_off: Path | None = None,
        doubles: bool = False,
    ) -> Child:
        """Start `distilkit *arguments` with its own working folder.

        `audit`: look at the run folders below this folder before every operation on their files, see `_audit`.
        `hands_off`: end with status 97 if this process changes a file below that folder. `doubles`: train in float64.
        """
        self.started += 1
        folder = self.folder / str(self.started)
        folder.mkdir()
        answer = self.ask(
            {
                "arguments": [str(argument) for argument in arguments],
                "moments": list(moments),
                "environment": dict(environment or {}),
                "audit": str(audit) if audit else None,
                "hands_off": str(hands_off) if hands_off else None,
                "doubles": doubles,
                "folder": str(folder),
            },
            120,
        )
        return Child(self, answer["pid"], folder)

    def run(self, *arguments: object, **options: Any) -> Finished:
        """Start `distilkit *arguments` and wait for its end."""
        return self.start(*arguments, **options).wait()

    def start_ranks(
        self,
        world: int,
        *arguments: object,
        moments: Mapping[int, Iterable[Moment]] | None = None,
        hands_off: Path | None = None,
        doubles: bool = False,
    ) -> list[Child]:
        """Start `distilkit *arguments` as `world` processes of one training, as torchrun does; `moments` by rank.

        `hands_off`: where only the first may write.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        return [
            self.start(
                *arguments,
                moments=(moments or {}).get(rank, ()),
                environment={key: str(value) for key, value in {**common, "RANK": rank, "LOCAL_RANK": rank}.items()},
                hands_off=hands_off if rank else None,
                doubles=doubles,
            )
            for rank in range(world)
        ]

    def run_ranks(self, world: int, *arguments: object, **options: Any) -> list[Finished]:
        """Start `world` processes and wait for their ends."""
        return [child.wait() for child in self.start_ranks(world, *arguments, **options)]

    def ask(self, order: dict[str, Any], timeout: float) -> dict[str, Any]:
        """Give the server an order; returns its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], timeout)
        line = self.process.stdout.readline() if ready else b""
        if not line:
            self.errors.seek(0)
            raise AssertionError(f"the server of the test harness does not answer:\n{self.errors.read()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


# ------------------------------------------------------------------------------------------------- inside the children


class _Watch:
    """Counts the phases and sends this process the signals that belong to them."""

    def __init__(self, moments: Iterable[tuple[str, int, int]]) -> None:
        self.signals = {(phase, occurrence): signum for phase, occurrence, signum in moments}
        self.seen: Counter[str] = Counter()

    def reached(self, phase: str, half: Callable[[], object] | None = None) -> None:
        """A phase is reached; `half` does half of what follows, for a kill in its middle."""
        self.seen[phase] += 1
        signum = self.signals.get((phase, self.seen[phase]))
        if signum is None:
            return
        if half is not None and signum == signal.SIGKILL:
            half()
        os.kill(os.getpid(), signum)


def _plain(path: Path) -> str:
    """A file's name without what changes from one checkpoint to the next, and without ".partial-"."""
    return re.sub(r"step_\d+", "step_N", path.name).removeprefix(".partial-")


def _watch(moments: Iterable[tuple[str, int, int]]) -> None:
    """Wrap everything that a training does to its folder, so that it can be ended there."""
    from filelock import FileLock

    from distilkit.runs import checkpoint
    from distilkit.runs import metrics as log
    from distilkit.training import evaluate
    from distilkit.training.trainer import Trainer

    watch = _Watch(moments)
    save_file, write, rmtree = checkpoint.save_file, log._write, shutil.rmtree
    rename, replace, write_text, flush = Path.rename, Path.replace, Path.write_text, checkpoint._flush

    def before(function: Callable[..., Any], phase: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            watch.reached(phase)
            return function(*args, **kwargs)

        return wrapped

    def after(function: Callable[..., Any], phase: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            watch.reached(phase)
            return result

        return wrapped

    def half_tensors(tensors: Any, file: Path) -> None:
        def half() -> None:
            save_file(tensors, file)
            os.truncate(file, file.stat().st_size // 2)

        watch.reached(f"half {_plain(file)}", half)
        save_file(tensors, file)

    def half_text(self: Path, text: str, *args: Any, **kwargs: Any) -> int:
        watch.reached(f"half {_plain(self)}", lambda: write_text(self, text[: len(text) // 2], *args, **kwargs))
        return write_text(self, text, *args, **kwargs)

    def half_lines(stream: TextIO, text: str) -> None:
        def half() -> None:
            stream.write(text[: len(text) // 2])
            stream.flush()

        new_line = not Path(stream.name).name.startswith(".partial-")
        watch.reached("half line" if new_line else f"half {_plain(Path(stream.name))}", half)
        write(stream, text)
        if new_line:
            watch.reached("after line")

    def half_removed(path: Path, *args: Any, **kwargs: Any) -> None:
        if Path(path).name.startswith("step_"):
            watch.reached("half removed", lambda: next(Path(path).glob("*.safetensors")).unlink())
        rmtree(path, *args, **kwargs)

    def moved(function: Callable[..., Path]) -> Callable[..., Path]:
        def wrapped(self: Path, target: Path) -> Path:
            watch.reached(f"before {_plain(target)}")
            result = function(self, target)
            watch.reached(f"after {_plain(target)}")
            return result

        return wrapped

    def flushed(path: Path) -> None:
        watch.reached(f"flush {_plain(path)}")
        flush(path)

    Trainer._step = before(Trainer._step, "step")  # type: ignore[method-assign]
    Trainer._agree = after(Trainer._agree, "agreed")  # type: ignore[method-assign]
    FileLock.acquire = before(FileLock.acquire, "lock")
    evaluate.errors = before(evaluate.errors, "evaluation")
    checkpoint.save_file = half_tensors  # type: ignore[assignment]
    checkpoint._flush = flushed
    checkpoint.shutil.rmtree = half_removed  # type: ignore[assignment]
    log._write = half_lines
    Path.write_text = half_text  # type: ignore[assignment,method-assign]
    Path.rename = moved(rename)  # type: ignore[method-assign]
    Path.replace = moved(replace)  # type: ignore[method-assign]
    for phase, _, _ in moments:
        if phase.startswith("call "):
            module, _, name = phase.removeprefix("call ").partition(":")
            owner = functools.reduce(getattr, name.split(".")[:-1], importlib.import_module(module))
            last = name.split(".")[-1]
            setattr(owner, last, before(getattr(owner, last), phase))


def _audit(runs: Path) -> None:
    """Before every operation on a file below `runs`, look at what a kill at this moment would leave there.

    What the pointers name loads with true digests, and so does the newest checkpoint that has been reported as
    written. The number of looks goes to stderr in the end; a fault ends the process with status 99.
    """
    from distilkit.errors import UserError
    from distilkit.runs import checkpoint

    reported: list[Path] = []
    looks, looking = 0, False
    save = checkpoint.save

    def saved(*args: Any, **kwargs: Any) -> Path:
        reported.append(save(*args, **kwargs))
        return reported[-1]

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal looks, looking
        below = bool(arguments) and isinstance(arguments[0], str | Path) and str(arguments[0]).startswith(str(runs))
        if looking or event not in CHANGING or not below:
            return
        looking, looks = True, looks + 1
        try:
            folders = {
                folder / name
                for folder in runs.glob("*/checkpoints")
                for pointer in ("last", "best")
                if (name := checkpoint.pointed(folder, pointer)) is not None
            }
            for folder in {*folders, *reported[-1:]}:
                checkpoint.load(folder)
        except UserError as error:
            os.write(2, f"before {event} {arguments[0]}: {error}\n".encode())
            os._exit(99)
        finally:
            looking = False

    checkpoint.save = saved
    sys.addaudithook(look)
    import atexit

    atexit.register(lambda: os.write(2, f"looked {looks} times\n".encode()))


def _keep_hands_off(folder: Path) -> None:
    """End this process with status 97 when it changes anything below a folder."""

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        below = bool(arguments) and isinstance(arguments[0], str | Path) and str(arguments[0]).startswith(str(folder))
        reads = event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if event in CHANGING and below and not reads:
            os.write(2, f"{event} {arguments[0]}\n".encode())
            os._exit(97)

    sys.addaudithook(look)


def _train_in_doubles() -> None:
    """Train in float64, where rounding errors stay so small that they change no ReLU's side."""
    from distilkit.training.trainer import Trainer

    create = Trainer.__init__

    def doubled(self: Trainer, recipe: Any, learner: Any, *args: Any, **kwargs: Any) -> None:
        create(self, recipe, learner.double(), *args, **kwargs)

    Trainer.__init__ = doubled  # type: ignore[method-assign]


# ----------------------------------------------------------------------------------------------------------- the server


def _child(order: dict[str, Any]) -> None:
    """Become `distilkit`, never to return."""
    import atexit

    from distilkit import cli

    status = 98
    folder = Path(order["folder"])
    os.chdir(folder)
    os.environ.update(order["environment"])
    for name, descriptor in (("out", 1), ("err", 2)):
        file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    sys.argv = ["distilkit", *order["arguments"]]
    try:
        if order["moments"]:
            _watch(order["moments"])
        if order["audit"]:
            _audit(Path(order["audit"]))
        if order["hands_off"]:
            _keep_hands_off(Path(order["hands_off"]))
        if order["doubles"]:
            _train_in_doubles()
        cli.main(order["arguments"])
    except SystemExit as exit_:
        status = int(exit_.code or 0)
    except BaseException as error:  # noqa: BLE001 - it must not run on as a second server
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _wait(pid: int, timeout: float, stopped: bool) -> dict[str, Any]:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
        if found and os.WIFSTOPPED(status):
            if stopped:
                return {"stopped": True}
        elif found:
            return {"ended": True, "status": os.waitstatus_to_exitcode(status)}
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return {"ended": False}


def _serve() -> None:
    # Answers go where stdout was; what anyone else prints goes to stderr.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import fvcore.nn  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import torch
    import torch.utils.tensorboard

    import distilkit.workflows.train.train  # noqa: F401

    for module in sys.argv[1:]:
        importlib.import_module(module)
    torch.set_num_threads(1)
    # The first optimizer imports torch._dynamo, which takes two seconds.
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1).step()
    children: set[int] = set()
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            answer = _wait(order["wait"], order["timeout"], order.get("stopped", False))
            if "ended" in answer:
                children.discard(order["wait"])
        else:
            pid = os.fork()
            if pid == 0:
                _child(order)
            children.add(pid)
            answer = {"pid": pid}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    _serve()
