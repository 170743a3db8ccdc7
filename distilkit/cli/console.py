"""Everything that a person or a script sees: tables and JSON on stdout, progress and messages on stderr."""

import json
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.text import Text

from distilkit.errors import UserError
from distilkit.observer import Observer, TrainingPlan
from distilkit.runs.metrics import finite
from distilkit.spelling import plain

# The rest of rich is imported where it is drawn with: `predict` starts the sooner.
if TYPE_CHECKING:
    from rich.live import Live
    from rich.progress import Progress, TaskID
    from rich.table import Table

SCHEMA = 1
_BAR_WIDTH = 24
_WIDE = 100
_NARROW = 60
_WIDTH_OF_FILES = 400  # columns, more than any table needs

stdout = Console(highlight=False)
stderr = Console(stderr=True, highlight=False)

Lines = str | Sequence[str]
"""One line, whatever names in it hold; or several."""


def _lines(text: Lines) -> Sequence[str]:
    return [text] if isinstance(text, str) else text


def _text(text: Lines, style: str = "") -> Text:
    """Text for the terminal, with what would steer it or begin another line spelled out."""
    return Text("\n".join(map(plain, _lines(text))), style=style)


def print_json(document: Mapping[str, Any]) -> None:
    """One JSON object on stdout: the schema's version, then the document; null for what is not finite."""
    print_text(json_text(document))


def json_text(document: Mapping[str, Any]) -> str:
    """The object that `print_json` prints."""
    return json.dumps({"schema": SCHEMA, **finite(document)}, allow_nan=False, indent=1) + "\n"


def print_text(text: str) -> None:
    """Text on stdout, as it is: neither folded nor coloured."""
    sys.stdout.write(text)
    sys.stdout.flush()


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Lines]],
    note: Lines | None = None,
    *,
    to: Console | None = None,
) -> None:
    """A table on stdout; the first column is text, the others are figures. `note`: what the figures mean."""
    from rich import box
    from rich.table import Table

    to = to or stdout
    table = Table(header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(_text(column), justify="left" if index == 0 else "right", overflow="fold", no_wrap=index > 0)
    for row in rows:
        table.add_row(*(_text(cell) for cell in row))
    # Title and note outside the table: inside it they would be folded to its width.
    to.print(_text(title, style="bold"), soft_wrap=True)
    wide = Measurement.get(to, to.options.update(max_width=_WIDTH_OF_FILES), table).minimum
    if to.width < min(wide, _NARROW):
        # The table would lose figures at its edge.
        for first, *others in rows:
            print_line(first, to=to)
            for column, cell in zip(columns[1:], others, strict=True):
                print_line(f"  {column}: {' '.join(_lines(cell))}", to=to)
    else:
        to.print(table)
    if note:
        to.print(_text(note, style="dim"), soft_wrap=True)


def print_errors(
    title: str, errors: Mapping[str, Any], intervals: Mapping[str, Any], selected: Mapping[str, Any], more: str = ""
) -> None:
    """A run's final errors, and by which rule the epoch was selected; `more`: what the note says beside that."""
    rows = [
        [name, percent(error["top1"]), "{:.2f}-{:.2f}".format(*intervals[name]), percent(error["top5"])]
        for name, error in errors.items()
    ]
    note = f"interval: Wilson's, over test images; {selected['rule']} (epoch {selected['epoch']})"
    print_table(title, ["classifier", "top-1", "95 %", "top-5"], rows, f"{note}; {more}" if more else note)


def print_bars(
    title: str, columns: Sequence[str], rows: Sequence[tuple[Sequence[str], float]], note: str | None = None
) -> None:
    """A table on stdout whose rows end in a bar: their cells, and a share from 0 to 1. The first column is text.

    The bar is drawn in a terminal; elsewhere it is a row of `#`, and nothing is folded or cut off.
    """
    from rich import box
    from rich.bar import Bar
    from rich.table import Table

    table = Table(header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(_text(column), justify="left" if index == 0 else "right", overflow="fold", no_wrap=index > 0)
    table.add_column("", no_wrap=True)
    width = _BAR_WIDTH if stdout.width >= _WIDE else _BAR_WIDTH // 2
    longest = max((share for _, share in rows), default=0.0) or 1.0
    for cells, share in rows:
        bar: RenderableType = Bar(longest, 0, share, width=width, color="cyan")
        if not stdout.is_terminal:
            bar = _text("#" * round(_BAR_WIDTH * share / longest))
        table.add_row(*(_text(cell) for cell in cells), bar)
    stdout.print(_text(title, style="bold"), soft_wrap=True)
    (stdout if stdout.is_terminal else Console(highlight=False, width=_WIDTH_OF_FILES)).print(table)
    if note:
        stdout.print(_text(note, style="dim"), soft_wrap=True)


def print_line(text: Lines, *, to: Console | None = None) -> None:
    """A line on stdout, neither folded nor coloured."""
    (to or stdout).print(_text(text), soft_wrap=True)


def print_code(text: str, language: str) -> None:
    """Source text on stdout: in the language's colours in a terminal, elsewhere as it is."""
    if not stdout.is_terminal:
        print_text(text)
        return
    from rich.syntax import Syntax

    shown = _text([line.expandtabs(4) for line in text.rstrip("\n").split("\n")]).plain
    stdout.print(Syntax(shown, language, theme="ansi_dark", background_color="default", word_wrap=True))


def of_file(file: TextIO) -> Console:
    """What `print_table` and `print_line` can write to instead of stdout: plain text, in which nothing is folded."""
    return Console(file=file, highlight=False, width=_WIDTH_OF_FILES, color_system=None, force_terminal=False)


def amount(count: int) -> str:
    """Bytes as a person reads them: "12 kB", "3.4 MB"."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    # What rounds to 1000 belongs to the next unit.
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "B" or value >= 9.95 else f"{value:.1f} {units[0]}"


def tell(text: Lines, style: str = "") -> None:
    """A line for people, on stderr."""
    stderr.print(_text(text, style=style), soft_wrap=True)


def annotate(command: str) -> None:
    """A workflow command for GitHub's runner on stderr, as `report.checks.annotations` has written it."""
    stderr.print(Text(command), soft_wrap=True)


def report_user_error(error: UserError, as_json: bool) -> None:
    """What was wrong and what to type; with `as_json` also as the JSON document of a failure."""
    if as_json:
        _print_failure(
            error.kind,
            "\n  ".join([error.problem, *error.files]),
            error.hint,
            [{"place": f.place, "key": f.key, "problem": f.problem, "hint": f.hint} for f in error.faults],
        )
    tell([f"error: {error.problem}", *(f"  {file}" for file in error.files)], "red")
    for fault in error.faults:
        tell(f"  {fault.place}: {fault.problem}")
        if fault.hint:
            tell(f"      hint: {fault.hint}", "yellow")
    if error.hint:
        tell(f"hint: {error.hint}", "yellow")


def report_usage_error(message: str, usage: str, hint: str, as_json: bool) -> None:
    """A command line that cannot be understood."""
    if as_json:
        _print_failure("usage", message, hint, [])
    if usage:
        tell(usage.splitlines())
    tell(f"error: {message}", "red")
    tell(f"hint: {hint}", "yellow")


def report_interruption(message: str, hint: str, as_json: bool) -> None:
    """The command was interrupted; `message` says what was saved."""
    if as_json:
        _print_failure("interrupted", message, hint, [])
    tell(message)
    tell(f"hint: {hint}", "yellow")


def report_fault_of_ours(error: BaseException, as_json: bool) -> None:
    """The traceback goes to a file; the message says which. Where no file can be written, it goes to stderr."""
    details = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="distilkit-fault-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            file.write(details)
        where = f"in {file.name}"
    except OSError:
        tell(details.splitlines())
        where = "above"
    message = f"a fault in distilkit: {type(error).__name__}: {error}; the details are {where}"
    if as_json:
        _print_failure("fault", message, None, [])
    tell(f"error: {message}", "red")


def _print_failure(kind: str, message: str, hint: str | None, faults: list[dict[str, Any]]) -> None:
    with suppress(UserError):  # stdout is full: what there is to say is said on stderr
        print_json({"error": {"kind": kind, "message": message, "hint": hint, "faults": faults}})


def percent(value: float | None) -> str:
    """An error in percent, two decimals."""
    return "-" if value is None else f"{value:.2f}"


def scientific(value: float) -> str:
    """FLOPs as the papers print them: 1.383e8."""
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{mantissa}e{int(exponent)}"


class TerminalObserver(Observer):
    """Progress on stderr: a live display in a terminal, otherwise a plain line per epoch."""

    def __init__(self) -> None:
        self.live: Live | None = None
        self.plan: TrainingPlan | None = None
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        self.table: Table | None = None
        self.losses = ""
        self.started = 0.0
        self.steps_done = 0

    def note(self, message: str) -> None:
        """A line."""
        (self.live.console if self.live else stderr).print(_text(message), soft_wrap=True)

    def training_started(self, plan: TrainingPlan) -> None:
        """What trains, and where it can be found."""
        self.plan, self.started = plan, time.monotonic()
        self.steps_done = plan.start_step
        tell(
            f"{plan.run}: {plan.method}, {plan.architecture}, {', '.join(plan.members)} (leader {plan.leader}); "
            f"{plan.images:,} images, {plan.epochs} epochs, {plan.precision} on {plan.device}"
        )
        if plan.start_step:
            tell(f"continuing after step {plan.start_step} of {plan.epochs * plan.steps_per_epoch}")
        if stderr.is_terminal:
            self._start_live(plan.epochs * plan.steps_per_epoch, "epoch 1", plan.start_step)

    def steps_finished(self, epoch: int, step_in_epoch: int, losses: Mapping[str, float]) -> None:
        """Move the bar, show the epoch's losses so far."""
        assert self.plan is not None
        self.steps_done = (epoch - 1) * self.plan.steps_per_epoch + step_in_epoch
        if self.bar is not None and self.task is not None:
            self.losses = _losses(losses, self.plan)
            self.bar.update(self.task, completed=self.steps_done, description=f"epoch {epoch}/{self.plan.epochs}")
            self._refresh()

    def epoch_finished(self, line: Mapping[str, Any]) -> None:
        """Errors of every member and of the ensemble."""
        assert self.plan is not None
        if self.live is not None:
            # Between two evaluations the last figures stay.
            self.table = _epoch_table(line) if "test" in line else self.table
            self._refresh()
            return
        left = (time.monotonic() - self.started) / max(1, self.steps_done - self.plan.start_step)
        left *= self.plan.epochs * self.plan.steps_per_epoch - self.steps_done
        split = "test" if "test" in line else "train"
        errors = ", ".join(f"{name} {error['top1']:.2f}" for name, error in line[split]["errors"].items())
        losses = _losses(line["loss"], self.plan)
        tell(
            f"epoch {line['epoch']}/{self.plan.epochs}  loss {losses}  {split} error % {errors}  "
            f"lr {line['lr']:.4g}  {line['images_per_second']:,.0f} images/s  {timedelta(seconds=round(left))} left"
        )

    def training_finished(self) -> None:
        """Leave the last state on the screen."""
        self._stop_live()

    def progress(self, what: str, done: int, total: int) -> None:
        """A bar, in a terminal only."""
        if not stderr.is_terminal:
            return
        if self.live is None:
            self._start_live(total, what, 0)
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=done, total=total, description=plain(what))
        if done >= total:
            self._stop_live()

    def _start_live(self, total: int, what: str, done: int) -> None:
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=stderr,
        )
        self.task = self.bar.add_task(plain(what), total=total, completed=done)
        self.live = Live(self.bar, console=stderr, refresh_per_second=8)
        self.live.start()

    def _refresh(self) -> None:
        if self.live is not None and self.bar is not None:
            parts: list[RenderableType] = [
                self.bar,
                _text(f"loss {self.losses}"),
                *([self.table] if self.table else []),
            ]
            self.live.update(Group(*parts))

    def _stop_live(self) -> None:
        if self.live is not None:
            self.live.stop()
        self.live = self.bar = self.task = self.table = None


def _losses(losses: Mapping[str, float], plan: TrainingPlan) -> str:
    """The total, and every term: its sum over students, and what each of them has of it."""
    terms = []
    for name, value in losses.items():
        students = plan.summed_over.get(name, len(plan.members))
        each = f" ({value / students:.3f} per student)" if students > 1 else ""
        terms += [f"{name} {value:.3f}{each}"] if name != "total" else []
    return f"{losses['total']:.3f}: {', '.join(terms)}"


def _epoch_table(line: Mapping[str, Any]) -> "Table":
    from rich.table import Table

    table = Table(
        title=f"epoch {line['epoch']}: lr {line['lr']:.4g}, ramp {line['ramp']:.2f}, "
        f"{line['images_per_second']:,.0f} images/s",
        title_justify="left",
    )
    splits = [split for split in ("validation", "test") if split in line]
    table.add_column("error, %")
    table.add_column("train top-1", justify="right")
    for split in splits:
        table.add_column(f"{split} top-1", justify="right")
        table.add_column(f"{split} top-5", justify="right")
    for name in line["test"]["errors"]:
        cells = [percent(line["train"]["errors"].get(name, {}).get("top1"))]
        for split in splits:
            error = line[split]["errors"][name]
            cells += [percent(error["top1"]), percent(error["top5"])]
        table.add_row(_text(name), *cells)
    return table


def relative(path: Path | str) -> str:
    """A path as a person would type it."""
    path = Path(path)
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
