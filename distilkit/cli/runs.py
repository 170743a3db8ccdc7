"""`distilkit runs`: the list of runs, and its commands `show` and `prune`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from distilkit.cli import completion, options
from distilkit.errors import UserError

Sort = Literal["age", "name", "method", "seed", "state", "epochs", "error", "size"]

States = Annotated[
    list[str] | None,
    typer.Option(
        "--state", metavar="STATE", help="Only those that are finished, running, interrupted, failed or broken."
    ),
]
Method = Annotated[
    str | None,
    typer.Option("--method", metavar="NAME", help="Only runs of this method.", autocompletion=completion.method_names),
]
Name = Annotated[
    str | None,
    typer.Option("--name", metavar="PATTERN", help="Only runs whose recipe or folder matches, such as 'one*'."),
]

COLUMNS = ("run", "state", "age", "size")
MOST_NAMES = 3
WIDE = 120
"""Columns of a terminal from which on everything stands in one line."""

app = typer.Typer(
    invoke_without_command=True,
    no_args_is_help=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def runs(
    context: typer.Context,
    state: States = None,
    method: Method = None,
    name: Name = None,
    sort: Annotated[Sort, typer.Option("--sort", help="Order by this; the youngest, or the smallest, first.")] = "age",
    reverse: Annotated[bool, typer.Option("--reverse", help="The other way round.")] = False,
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="At most so many.")] = None,
    runs: options.Runs = options.RUNS,
    json_output: options.Json = False,
) -> None:
    """List the runs, newest first: what was trained, how far it got, its error, age and size.

    Examples:

      distilkit runs

      distilkit runs --state interrupted --name 'one*'

      distilkit runs --sort error --limit 10

      distilkit runs show runs/one_resnet32-20260101T120000Z

      distilkit runs prune --older-than 30d --keep 1
    """
    if context.invoked_subcommand is not None:
        typed = [key for key in context.params if str(context.get_parameter_source(key)).endswith("COMMANDLINE")]
        if typed:
            option = "--json" if typed[0] == "json_output" else f"--{typed[0]}"
            command = f"distilkit runs {context.invoked_subcommand}"
            raise UserError(f"{option} stands before {context.invoked_subcommand}", f"{command} ... {option}")
        return
    from distilkit.cli import console
    from distilkit.workflows.project.runs import Filter, list_runs

    document = list_runs(runs, Filter(state or (), method, name), sort=sort, reverse=reverse, limit=limit)
    if json_output:
        console.print_json(document)
        return
    if not document["runs"]:
        console.tell(f"no run in {runs}/ fits" if state or method or name else f"there is no run in {runs}/")
        return
    _show_list(document)


@app.command("show")
def show(
    run: options.Run = None,
    runs: options.Runs = options.RUNS,
    json_output: options.Json = False,
) -> None:
    """One run: what its recipe changes, its figures, its files, and what later commands added.

    Examples:

      distilkit runs show

      distilkit runs show runs/one_resnet32-20260101T120000Z
    """
    from distilkit.cli import console
    from distilkit.workflows.project.show_run import show_run

    document = show_run(run, runs)
    console.print_json(document) if json_output else _show_one(document)


@app.command("prune")
def prune(
    older_than: Annotated[
        str | None,
        typer.Option("--older-than", metavar="AGE", help="Only runs begun so long ago: 90m, 12h, 30d, 8w."),
    ] = None,
    state: States = None,
    method: Method = None,
    name: Name = None,
    keep: Annotated[
        int | None,
        typer.Option(
            "--keep", metavar="N", help="Spare the N newest runs of every recipe, and its N newest finished ones."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be deleted; delete nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
    runs: options.Runs = options.RUNS,
    json_output: options.Json = False,
) -> None:
    """Delete runs, after showing which and asking. A run that a training writes to is never deleted.

    With --keep, a recipe with another seed is another recipe. Links are not followed.

    Examples:

      distilkit runs prune --older-than 30d --keep 1 --dry-run

      distilkit runs prune --state interrupted --state failed --yes
    """
    import sys

    from distilkit.cli import console
    from distilkit.workflows.project import runs as workflow

    if yes and dry_run:
        raise UserError("--dry-run deletes nothing, --yes deletes without asking", "leave one of them out")
    age = None if older_than is None else workflow.seconds(older_than)
    plan = workflow.plan_pruning(runs, workflow.Filter(state or (), method, name, age), keep=keep)
    if not dry_run and not yes and plan.candidates and not sys.stdin.isatty():
        raise UserError(
            f"{_counted(plan)} would be deleted, and nobody is there to ask",
            "look first with --dry-run; --yes deletes without asking",
        )
    if not json_output or not yes:
        _show_plan(plan, json_output)
    go_on = bool(plan.candidates) and not dry_run
    if go_on and not yes:
        go_on = typer.confirm(f"delete {_counted(plan)}?", err=True)
    observer = console.TerminalObserver()
    outcome: dict[str, Any] = {"deleted": [], "bytes": 0, "spared": plan.spared}
    if go_on:
        outcome = workflow.prune(plan, observer.progress)
    if json_output:
        console.print_json(
            {"runs_folder": str(runs), "dry_run": dry_run, "candidates": plan.candidates, **outcome},
        )
        return
    if go_on:
        for spared in outcome["spared"][len(plan.spared) :]:
            console.tell(f"kept {spared['run']}: {spared['reason']}", "yellow")
        console.print_line(f"deleted: {len(outcome['deleted'])} runs, {console.amount(outcome['bytes'])}")
    elif plan.candidates:
        console.print_line("nothing was deleted")


def _counted(plan: Any) -> str:
    from distilkit.cli import console

    count = len(plan.candidates)
    return f"{count} run{'s' if count != 1 else ''} ({console.amount(plan.bytes)})"


def _show_plan(plan: Any, as_json: bool) -> None:
    from distilkit.cli import console

    to = console.stderr if as_json else console.stdout
    if plan.candidates:
        rows = [
            [Path(row["run"]).name, row["state"], _age(row["age_seconds"]), console.amount(row["bytes"])]
            for row in plan.candidates
        ]
        console.print_table(f"to be deleted from {plan.runs}/: {_counted(plan)}", COLUMNS, rows, to=to)
    else:
        console.print_line("no run is to be deleted", to=to)
    by_reason: dict[str, list[str]] = {}
    for spared in plan.spared:
        by_reason.setdefault(spared["reason"], []).append(spared["run"])
    for reason, names in by_reason.items():
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        console.print_line(f"kept, {reason}: {', '.join(names[:MOST_NAMES])}{more}", to=to)


def _show_list(document: dict[str, Any]) -> None:
    """One line for each run where there is room, else a second one for what was trained."""
    import io

    from distilkit.cli import console

    wide = not console.stdout.is_terminal or console.stdout.width >= WIDE
    rows = []
    for row in document["runs"]:
        name = Path(row["run"]).name
        what = [str(row[key] or "-") for key in ("method", "architecture", "dataset")]
        epochs = row["epochs"]
        cells = [
            "-" if row["seed"] is None else str(row["seed"]),
            row["state"],
            f"{epochs['done']}/{'-' if epochs['total'] is None else epochs['total']}",
            console.percent(row["top1_error"]),
            _age(row["age_seconds"]),
            console.amount(row["bytes"]),
        ]
        rows.append([name, *what, *cells] if wide else [[name, f"  {', '.join(what)}"], *cells])
    what_columns = ["method", "architecture", "data"] if wide else []
    columns = ["run", *what_columns, "seed", "state", "epochs", "error", "age", "size"]
    shown, total = len(document["runs"]), document["total"]
    title = f"{document['runs_folder']}/: {total} run{'s' if total != 1 else ''}"
    title += f", {shown} shown" if shown < total else ""
    note = f"error: the leader's, top-1 on the test images, %. Together {console.amount(document['bytes'])}"
    if console.stdout.is_terminal:
        console.print_table(title, columns, rows, note)
    else:
        # Nothing is folded or cut off for a reader that is no terminal.
        stream = io.StringIO()
        console.print_table(title, columns, rows, note, to=console.of_file(stream))
        console.print_text("".join(line.rstrip() + "\n" for line in stream.getvalue().splitlines()))
    for row in document["runs"]:
        if row["problem"]:
            console.print_line(f"{row['run']} is broken: {row['problem']}")


def _show_one(document: dict[str, Any]) -> None:
    from distilkit.cli import console

    epochs = document["epochs"] or {"done": "-", "total": "-"}
    data = document["data"]
    counts = ", ".join(f"{count:,} {split}" for split, count in data["images"].items())
    console.print_table(
        f"{document['run']}: {document['state']}",
        ["", "value"],
        [
            ["method", document["method"]],
            ["architecture", document["architecture"]],
            ["members", ", ".join(document["members"])],
            ["leader", document["leader"]],
            ["data", f"{data['dataset']}, {data['classes']} classes, {counts} images"],
            ["seed", str(document["seed"])],
            ["epochs", f"{epochs['done']} of {epochs['total']}"],
            ["begun", f"{document['created'][:19].replace('T', ' ')} UTC, {_age(document['age_seconds'])} ago"],
            ["device", str(document["device"])],
            ["distilkit", str(document["distilkit"])],
        ],
    )
    if document["errors"]:
        intervals = {name: error["interval95"] for name, error in document["errors"].items()}
        console.print_errors("errors on the test images, %", document["errors"], intervals, document["selected"])
        best = document["best_on_test"]
        errors = ", ".join(f"{name} {error['top1']:.2f}" for name, error in best["errors"].items())
        console.print_line(f"best on test (epoch {best['epoch']}; {best['note']}): {errors}")
    changes, base = document["recipe"]["changes"], document["recipe"]["base"]
    against = f"the built-in recipe {base}" if base else "the defaults"
    if changes:
        console.print_table(
            f"settings that differ from {against}",
            ["setting", "there", "here"],
            [[each["key"], _setting(each["base"]), _setting(each["run"])] for each in changes],
        )
    else:
        console.print_line(f"its recipe is that of {against}")
    console.print_table(
        f"files, {console.amount(sum(each['bytes'] for each in document['files']))}",
        ["path", "files", "size", "written by"],
        [
            [each["path"], str(each["files"]), console.amount(each["bytes"]), each["command"] or "-"]
            for each in document["files"]
        ],
    )
    for each in document["files"]:
        for file in each["contents"]:
            console.print_line(f"  {file}")
    if document["command"]:
        console.print_line(f"made by: {document['command']}")


def _setting(value: object) -> str:
    return "-" if value is None else str(value)


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
