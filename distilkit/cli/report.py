"""`distilkit report`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from distilkit.cli import completion, options


def report(
    run: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RUN]...",
            help="Runs to report on. Without any: all finished ones.",
            autocompletion=completion.run_folders,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="The page. Without it: report.html beside the first run."),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(
            "--figures", metavar="FOLDER", help="Where SVG and PNG for papers go. Without it: beside the page."
        ),
    ] = None,
    no_figures: Annotated[bool, typer.Option("--no-figures", help="Write the page alone.")] = False,
    no_evaluate: Annotated[
        bool,
        typer.Option(
            "--no-evaluate", help="Leave out what needs the test images: errors by class, confusion, reliability."
        ),
    ] = False,
    details: Annotated[
        int, typer.Option("--details", metavar="N", min=0, help="Show up to N runs in full, of all recipes in turn.")
    ] = 24,
    benchmark: Annotated[
        Path | None,
        typer.Option("--benchmark", metavar="FILE", help="Latencies: what `distilkit benchmark --json` printed."),
    ] = None,
    data: options.DataRoot = None,
    device: options.Device = "auto",
    trust_code: options.TrustCode = False,
    runs: options.Runs = options.RUNS,
    json_output: options.Json = False,
) -> None:
    """Runs beside each other as one HTML page, and as figures for papers: errors, costs, curves, what seeds say.

    Examples:

      distilkit report

      distilkit report runs/baseline-1 runs/one-1 --output comparison.html
    """
    from distilkit.cli import console
    from distilkit.errors import UserError
    from distilkit.models.own import code_trusted
    from distilkit.workflows.comparison.report import report as workflow

    if figures is not None and no_figures:
        raise UserError("--figures and --no-figures contradict each other", "leave one of them out")
    with code_trusted(trust_code, console.tell):
        document = workflow(
            run or [],
            runs,
            output=output,
            figures=figures,
            draw=not no_figures,
            evaluate=not no_evaluate,
            details=details,
            benchmark=benchmark,
            data_root=data,
            device=device,
            observer=console.TerminalObserver(),
        )
    console.print_json(document) if json_output else _show(document)


LISTED = 10


def _show(document: dict[str, Any]) -> None:
    from distilkit.cli import console

    paths = [run["run"] for run in document["runs"]]
    more = f" and {len(paths) - LISTED} more" if len(paths) > LISTED else ""
    console.print_line(f"of {', '.join(paths[:LISTED])}{more}")
    for sentence in [*document["summary"], *(f"note: {note}" for note in document["notes"])]:
        console.print_line(sentence)
    if document["figures"]:
        console.print_line(
            f"{len(document['figures'])} figures in {console.relative(Path(document['figures'][0]).parent)}/"
        )
    console.print_line(f"wrote {console.relative(document['output'])}")
