"""`distilkit compare`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from distilkit.cli import completion, options
from distilkit.errors import UserError

if TYPE_CHECKING:
    from distilkit.workflows.comparison.tables import Table

Format = Literal["table", "markdown", "csv", "latex", "json"]
Sort = Literal["name", "method", "error", "seed", "parameters", "flops", "train-flops", "bytes"]

COSTS = "Costs: FLOPs of one image, 2 per multiply-add; MB: of what is deployed, as safetensors"
WELCH = (
    "interval: Welch's 95 %, over seeds, of the leaders' top-1 error; where it holds 0 the two are not told apart. No "
    "correction for several comparisons"
)
MOST_PAIRS = 30
"""More differences are not printed in a terminal."""

EACH_COLUMNS = (
    *("group", "run", "name", "dataset", "architecture", "method", "deployed", "seed", "epochs", "test_images"),
    *("top1_error", "interval95_low", "interval95_high", "top5_error"),
    *("parameters", "flops", "train_flops", "activations", "bytes"),
)
GROUP_COLUMNS = (
    *("group", "dataset", "architecture", "method", "deployed", "seeds", "epochs", "test_images"),
    *("top1_error_mean", "top1_error_deviation", "top5_error_mean", "top5_error_deviation"),
    *("parameters", "flops", "train_flops", "activations", "bytes"),
)
DIFFERENCE_COLUMNS = (
    *("baseline", "difference", "difference_low", "difference_high", "difference_reason"),
    "difference_remarks",
)


def compare(
    run: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RUN]...",
            help="Runs to compare. Without any: all finished ones.",
            autocompletion=completion.run_folders,
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option("--baseline", metavar="NAME", help="The recipe that all others are compared with."),
    ] = None,
    each: Annotated[
        bool, typer.Option("--each", help="A row for every run, also where several seeds of a recipe are there.")
    ] = False,
    sort: Annotated[Sort | None, typer.Option("--sort", help="Order the rows by this, smallest first.")] = None,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Exit with status 1 where runs differ in what is not the question."),
    ] = False,
    format: Annotated[Format, typer.Option("--format", help="How to write the table.")] = "table",
    output: options.Output = None,
    runs: options.Runs = options.RUNS,
    json_output: options.Json = False,
) -> None:
    """What distillation bought: errors and costs of runs beside each other.

    Seeds of one recipe are taken together: mean, deviation, and each difference with Welch's interval.

    Examples:

      distilkit compare runs/baseline-1 runs/one-1

      distilkit compare --baseline quickstart_baseline

      distilkit compare --format latex --output table.tex
    """
    if json_output and format not in ("table", "json"):
        raise UserError(f"--json and --format {format} are two formats", "leave one of them out")
    from distilkit.cli import console
    from distilkit.runs.atomic import write_text
    from distilkit.workflows.comparison.compare import compare as workflow

    document = workflow(run or [], runs, baseline=baseline, sort=sort)
    format = "json" if json_output else format
    several = not each and any(len(group["seeds"]) > 1 for group in document["groups"])
    if format == "table":
        if output is None:
            _show(document, several, None)
        else:
            write_text(output, _as_text(document, several))
    else:
        text = _exported(document, format, several)
        if output is None:
            console.print_text(text)
        else:
            write_text(output, text)
    if output is not None:
        console.tell(f"written to {output}")
    if strict and document["remarks"]:
        raise typer.Exit(1)


def _exported(document: dict[str, Any], format: Format, several: bool) -> str:
    from distilkit.cli import console
    from distilkit.workflows.comparison import tables

    if format == "json":
        return console.json_text(document)
    if format == "csv":
        if document["baseline"] is None and len(document["differences"]) > 0:
            console.tell("the differences of all pairs are no columns of this table: choose one recipe with --baseline")
        rows, columns = _plain_rows(document, several)
        return tables.spreadsheet_text(rows, columns)
    chosen = [_main_table(document, several, wide=True)]
    if document["differences"] and document["baseline"] is None and several:
        chosen.append(_difference_table(document))
    for remark in document["remarks"]:
        console.tell(remark["text"], "yellow")
    return tables.markdown(chosen) if format == "markdown" else tables.latex(chosen)


def _plain_rows(document: dict[str, Any], several: bool) -> tuple[list[dict[str, Any]], list[str]]:
    """Figures as numbers, for CSV."""
    rows: list[dict[str, Any]] = []
    for row in document["groups" if several else "rows"]:
        plain = dict(row)
        if several:
            for error in ("top1_error", "top5_error"):
                plain |= {f"{error}_{key}": row[error][key] for key in ("mean", "deviation")}
        else:
            plain |= {"interval95_low": row["interval95"][0], "interval95_high": row["interval95"][1]}
        found = _difference_of(document, row)
        if found is not None:
            low, high = found["interval95"] or (None, None)
            plain |= {
                "baseline": found["baseline"],
                "difference": found["difference"],
                "difference_low": low,
                "difference_high": high,
                "difference_reason": found["reason"],
                "difference_remarks": _kinds(found),
            }
        rows.append(plain)
    columns = list(GROUP_COLUMNS if several else EACH_COLUMNS)
    return rows, columns if document["baseline"] is None else [*columns, *DIFFERENCE_COLUMNS]


def _difference_of(document: dict[str, Any], row: Mapping[str, Any]) -> dict[str, Any] | None:
    """The group's difference from the chosen baseline; it is the leader's, and no ensemble's."""
    leaders = {group["group"]: group["deployed"] for group in document["groups"] if group["leader"]}
    if document["baseline"] is None or row["deployed"] != leaders[row["group"]]:
        return None
    return next((each for each in document["differences"] if each["group"] == row["group"]), None)


def _as_text(document: dict[str, Any], several: bool) -> str:
    import io

    from distilkit.cli import console

    stream = io.StringIO()
    _show(document, several, console.of_file(stream))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def _show(document: dict[str, Any], several: bool, to: Any) -> None:
    """The tables for a person; `to`: a console of `console.of_file`, or None for stdout."""
    from distilkit.analysis.cost import named_uses
    from distilkit.cli import console

    if to is None and not console.stdout.is_terminal:
        # Nothing is folded for a reader that is no terminal.
        console.print_text(_as_text(document, several))
        return
    table = _main_table(document, several, wide=False)
    console.print_table(table.title, table.columns, table.rows, table.note, to=to)
    pairs = document["differences"]
    if pairs and (several or document["baseline"] is not None):
        if len(pairs) > MOST_PAIRS and document["baseline"] is None and to is None:
            console.print_line(
                f"{len(pairs)} pairs of recipes: choose one to compare with (--baseline NAME); --json has them all"
            )
        else:
            table = _difference_table(document)
            console.print_table(table.title, table.columns, table.rows, table.note, to=to)
    elif pairs and not several and all(len(group["seeds"]) == 1 for group in document["groups"]):
        console.print_line(
            "one seed of each recipe: nothing can be concluded from their differences (train --seeds 0,1,2)", to=to
        )
    for remark in document["remarks"]:
        console.print_line(remark["text"], to=to)
    uncounted = {row["run"]: named_uses(row["uncounted"]) for row in document["rows"] if row["uncounted"]}
    for path, names in uncounted.items():
        console.print_line(f"{path}: not counted, so its costs are too low: {names}", to=to)


def _main_table(document: dict[str, Any], several: bool, *, wide: bool) -> "Table":
    """One row per run, or per recipe. `wide`: the difference from the baseline stands in the same table."""
    from distilkit.workflows.comparison.tables import Table

    against = document["baseline"] if wide else None
    extra = () if against is None else (f"minus {against}", "95 % interval")
    costs = ("weights", "TeCost", "TrCost", "MB")
    explained = f" {WELCH}." if against is not None else ""
    if several:
        # In a terminal there is no room to name the leader, which is what is deployed unless something is said.
        columns = ("recipe", *(("deployed",) if wide else ()), "top-1", "dev.", "seeds", *extra, *costs)
        rows = [
            (
                *(
                    (group["group"], group["deployed"])
                    if wide
                    else (group["group"] if group["leader"] else f"{group['group']}: {group['deployed']}",)
                ),
                f"{group['top1_error']['mean']:.2f}",
                _deviation(group["top1_error"]["deviation"]),
                str(len(group["seeds"])),
                *(_difference_cells(_difference_of(document, group)) if extra else ()),
                *_cost_cells(group),
            )
            for group in document["groups"]
        ]
        note = f"top-1: mean over seeds; dev.: the sample's deviation over seeds, none for one seed.{explained} {COSTS}"
    else:
        columns = ("run", "deployed", "top-1", "95 %", *extra, *costs)
        runs_of: dict[str, set[str]] = {}
        for row in document["rows"]:
            runs_of.setdefault(row["name"], set()).add(row["run"])
        rows = [
            (
                row["name"] if len(runs_of[row["name"]]) == 1 else Path(row["run"]).name,
                row["deployed"],
                f"{row['top1_error']:.2f}",
                "{:.1f}-{:.1f}".format(*row["interval95"]),
                *(_difference_cells(_difference_of(document, row)) if extra else ()),
                *_cost_cells(row),
            )
            for row in document["rows"]
        ]
        note = (
            "interval: Wilson's, over test images; one training of each says nothing of the spread over seeds."
            f"{explained} {COSTS}"
        )
    return Table("top-1 errors on the test images, %", columns, tuple(rows), note)


def _difference_table(document: dict[str, Any]) -> "Table":
    from distilkit.workflows.comparison.tables import Table

    against = document["baseline"]
    marked = any(_kinds(pair) for pair in document["differences"])
    rows = [
        (
            pair["group"] if against is not None else f"{pair['group']} minus {pair['baseline']}",
            *_difference_cells(pair),
            ", ".join(map(str, pair["seeds"])),
            *((_kinds(pair),) if marked else ()),
        )
        for pair in document["differences"]
    ]
    title = "differences of the top-1 error, points"
    title = title if against is None else f"{title}: each recipe minus {against}"
    reasons = dict.fromkeys(pair["reason"] for pair in document["differences"] if pair["reason"])
    note = ". ".join([WELCH, *reasons])
    columns = ("recipe", "difference", "95 % interval", "seeds", *(("differ in",) if marked else ()))
    return Table(title, columns, tuple(rows), note)


def _kinds(pair: Mapping[str, Any]) -> str:
    """In what two recipes differ that compare; what does not compare has its reason."""
    return ", ".join(remark["kind"] for remark in pair["remarks"]) if pair["comparable"] else ""


def _difference_cells(pair: Mapping[str, Any] | None) -> Sequence[str]:
    if pair is None:
        return ("", "")
    difference = "-" if pair["difference"] is None else f"{pair['difference']:+.2f}"
    if pair["interval95"] is not None:
        low, high = pair["interval95"]
        return (difference, f"{low:.2f} to {high:.2f}")
    return (difference, str(pair["reason"]).partition(":")[0].partition(",")[0])


def _cost_cells(row: Mapping[str, Any]) -> Sequence[str]:
    from distilkit.cli import console

    return (
        f"{row['parameters']:,}",
        console.scientific(row["flops"]),
        console.scientific(row["train_flops"]),
        _megabytes(row["bytes"]),
    )


def _deviation(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _megabytes(count: int | None) -> str:
    """Two digits or more."""
    if count is None:
        return "-"
    return f"{count / 1e6:.1f}" if count >= 1e6 else f"{count / 1e6:.2f}"
