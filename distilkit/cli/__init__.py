"""The command line: one small file per command. What is heavy is imported inside the functions."""

import errno
import itertools
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, NoReturn

import typer

from distilkit._version import __version__
from distilkit.cli import (
    benchmark,
    compare,
    completion,
    doctor,
    ensemble_eval,
    evaluate,
    export,
    init,
    models,
    predict,
    prune_branches,
    pull,
    push,
    recipes,
    report,
    robustness,
    runs,
    streams,
    train,
)
from distilkit.errors import UserError, broken_package, first_line, out_of_memory
from distilkit.training.interrupt import Terminated, leave_at_once
from distilkit.working_folder import require_no_libraries

SIGPIPE = 13  # which Python does not know everywhere
LAUNCHERS = ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK")
"""What `accelerate launch` and `torchrun` tell a process in its environment, in numbers."""
_came: list[int] = []
"""SIGINT and SIGTERM, once they have come: Typer makes a status of every interruption, which no more tells which signal
it was; and what was being imported may make an error of its own of it."""

app = typer.Typer(
    name="distilkit",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with: distilkit train quickstart",
)
app.command("init")(init.init)
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("ensemble-eval")(ensemble_eval.ensemble_eval)
app.command("prune-branches")(prune_branches.prune_branches)
app.command("robustness")(robustness.robustness)
app.command("export")(export.export)
app.command("predict")(predict.predict)
app.command("push")(push.push)
app.command("pull")(pull.pull)
app.command("compare")(compare.compare)
app.command("report")(report.report)
app.add_typer(runs.app, name="runs")
app.add_typer(recipes.app, name="recipes")
app.command("benchmark")(benchmark.benchmark)
app.command("models")(models.models)
app.command("doctor")(doctor.doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"distilkit {__version__}")
        raise typer.Exit


@app.callback()
def _distilkit(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Online knowledge distillation: train a small classifier with its own teachers, prune, export to ONNX."""
    for name in LAUNCHERS:
        if not re.fullmatch("-?[0-9]{1,9}", value := os.environ.get(name, "0")):
            raise UserError(
                f"the environment variable {name} must be a whole number, as a launcher sets it, not {value!r}",
                f"unset {name}",
            )
    try:
        os.getcwd()  # noqa: PTH109
    except OSError as error:
        # What torch would load ends the process without a word of ours.
        raise UserError(
            f"the working folder is not there any more: {error.strerror}", "cd to a folder that is there"
        ) from error
    require_no_libraries()


def _as_setting(option: str) -> str | None:
    """How what was typed as an option is set, where a recipe has such a key: "--epochs" by "--set train.epochs=..."."""
    from distilkit.recipe.sections import SECTIONS, known_keys

    key = option.lstrip("-").replace("-", "_")
    section = next((section for section in SECTIONS if key in known_keys(section)), None)
    return f"it is a setting of the recipe: --set {section}.{key}=..." if section else None


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and leave with its exit status.

    0 done; 1 a check that was asked for failed; 2 the input is wrong; 3 a fault of ours, traceback in a file; 130 or
    143 interrupted by SIGINT or SIGTERM; 141 the reader of the output has left, as `head` does (SIGPIPE).
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    streams.prepare()
    if completion.completing(os.environ):
        sys.exit(completion.answer(lambda: app(args=[], prog_name="distilkit")))
    try:
        with _signals():
            status = _status(arguments)
    except BrokenPipeError:
        status = _reader_has_left()
    except SystemExit as leaving:
        # Rich and Click leave by themselves where a pipe is closed, as if something had failed.
        if not isinstance(leaving.__context__, BrokenPipeError):
            raise
        status = _reader_has_left()
    tracking = sys.modules.get("distilkit.training.tracking")  # not imported here: it would import torch
    if tracking is not None and tracking.left_behind():
        # All is written. What such a tracker has left to be done at the end might never come back.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


@contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does, with status and message; where it is ignored, it stays ignored.

    Not so one process of several: it may be waiting for the others, where Python comes to answer no signal.
    """
    _came.clear()
    alone = _alone() and threading.current_thread() is threading.main_thread()
    if not alone or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _stop)
    try:
        yield
    finally:
        _leave_at_once_from_here()


def _alone() -> bool:
    """Whether no launcher started this process as one of several. Asked before the environment was looked at."""
    return os.environ.get("WORLD_SIZE", "1") == "1"


def _stop(signum: int, frame: FrameType | None) -> None:
    _came.append(signum)
    raise Terminated if signum == signal.SIGTERM else KeyboardInterrupt


def _leave_at_once_from_here() -> None:
    """Whatever is left is answering and ending, which a signal may cut short, but not with a traceback."""
    if threading.current_thread() is threading.main_thread():
        for signum in (signal.SIGINT, signal.SIGTERM):
            # Not the training's own, of one process of several: its launcher's signals may still come.
            if signal.getsignal(signum) in (signal.default_int_handler, _stop):
                signal.signal(signum, leave_at_once)


def _interrupted(hint: str, as_json: bool) -> int:
    _leave_at_once_from_here()
    from distilkit.cli import console

    signum = signal.SIGTERM if signal.SIGTERM in _came else signal.SIGINT
    console.report_interruption(f"interrupted by {signum.name}", hint, as_json)
    return 128 + signum


def _wants_json(arguments: Sequence[str]) -> bool:
    """Whether stdout must hold one JSON document, whatever happens."""
    pairs = itertools.pairwise(arguments)
    return "--json" in arguments or "--format=json" in arguments or ("--format", "json") in pairs


def _reader_has_left() -> int:
    """The status of a program that its reader, such as `head`, has left: what a shell reports of SIGPIPE."""
    streams.forget_stdout()
    return 128 + SIGPIPE


def _status(arguments: Sequence[str]) -> int:
    # One process of several prints the JSON document; the others may still have to say why they ended.
    as_json = _wants_json(arguments) and (_alone() or os.environ.get("RANK", "0") == "0")
    try:
        status = app(args=list(arguments), prog_name="distilkit", standalone_mode=False) or 0
        # Typer turns Ctrl-C into this status; a check that failed has 1, and told why.
        return _interrupted("type the command again", as_json) if status == 130 else status
    except UserError as error:
        from distilkit.cli import console

        console.report_user_error(error, as_json)
        return 2
    except KeyboardInterrupt:
        return _interrupted("nothing was being trained; type the command again", as_json)
    except BrokenPipeError:
        raise
    except OSError as error:
        from distilkit.cli import console

        if error.errno not in (errno.ENAMETOOLONG, errno.ELOOP):
            console.report_fault_of_ours(error, as_json)
            return 3
        # Only whoever typed a path, or wrote it into a recipe, can have made it so.
        name = str(error.filename or "a path")
        shown = name if len(name) <= 80 else f"{name[:77]}..."
        console.report_user_error(
            UserError(f"{shown} cannot be opened: {error.strerror}", "name another path"), as_json
        )
        return 2
    except Exception as error:  # noqa: BLE001 - the last resort: every other fault is ours
        from distilkit.cli import console

        if hasattr(error, "format_message"):  # Click's errors, wherever this version of Typer keeps Click.
            context = getattr(error, "ctx", None)
            path = context.command_path if context else "distilkit"
            # Some versions of Typer put pydantic's words in front of the message, and brackets around our own.
            usage = re.sub(r"\[(\[[^\[\]]+\])(\.\.\.)?\]", r"\1", context.get_usage()) if context else ""
            message = error.format_message().replace("Value error, ", "")
            hint = f"{path} --help lists what there is"
            if path.endswith(" train") and (option := getattr(error, "option_name", None)):
                hint = _as_setting(str(option)) or hint
            console.report_usage_error(message, usage, hint, as_json)
            return 2
        signum = getattr(error, "signum", None)
        if signum is not None:  # training.interrupt.Interrupted
            _leave_at_once_from_here()
            console.report_interruption(
                str(error), f"continue with: distilkit train --resume {getattr(error, 'run', 'RUN')}", as_json
            )
            return 128 + int(signum)
        if out_of_memory(error):
            console.report_user_error(
                UserError(
                    f"there is too little memory for this: {first_line(error)}",
                    "free some, or ask for less: fewer images, a smaller batch, another --device",
                ),
                as_json,
            )
            return 2
        if _came:
            # Somebody has caught the interruption, numpy's import perhaps, and has failed of what was left undone.
            return _interrupted("type the command again", as_json)
        if package := broken_package(error):
            console.report_user_error(
                UserError(
                    f"{package} cannot be imported here: {type(error).__name__}: {first_line(error)}",
                    "look at its installation and at the environment variables that it reads: distilkit doctor",
                ),
                as_json,
            )
            return 2
        if type(error).__name__ == "Abort":
            return _interrupted("type the command again", as_json)
        console.report_fault_of_ours(error, as_json)
        return 3
