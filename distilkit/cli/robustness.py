"""`distilkit robustness`."""

import statistics as statistics_of
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from distilkit.cli import options
from distilkit.errors import UserError


def robustness(
    run: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[RUN]...", help="Runs or pruned models; several share one plot."),
    ] = None,
    max_distance: Annotated[float, typer.Option("--max-distance", help="The largest magnitude d.")] = 5.0,
    steps: Annotated[int, typer.Option("--steps", help="Steps from 0 to the largest magnitude.")] = 10,
    directions: Annotated[int, typer.Option("--directions", help="Random directions, one curve each.")] = 5,
    images: Annotated[int, typer.Option("--images", help="Images of each split, drawn by --seed.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", help="Draws directions and images.")] = 0,
    statistics: Annotated[
        Literal["frozen", "recomputed"],
        typer.Option("--statistics", help="Batch norm's statistics: as trained (the paper), or from training images."),
    ] = "frozen",
    directions_kind: Annotated[
        Literal["unit", "filter-normalised"],
        typer.Option("--directions-kind", help="Unit length (the paper), or each filter scaled to its own norm."),
    ] = "unit",
    max_increase: Annotated[
        float | None,
        typer.Option("--max-increase", metavar="POINTS", help="Fail if the test error rises by more at --at."),
    ] = None,
    at: Annotated[float | None, typer.Option("--at", metavar="D", help="The magnitude that is checked.")] = None,
    member: options.Member = None,
    checkpoint: options.Checkpoint = None,
    data: options.DataRoot = None,
    output: options.Output = None,
    device: options.Device = "auto",
    trust_code: options.TrustCode = False,
    runs: options.Runs = options.RUNS,
    json_output: options.Json = False,
) -> None:
    """How flat the optimum is: errors while all parameters are moved along random directions (ONE, section 4.5).

    With --max-increase and --at it is a check: exit status 1 when the mean test error rises by more.

    Examples:

      distilkit robustness

      distilkit robustness models/small --max-increase 5 --at 2
    """
    if (max_increase is None) != (at is None):
        raise UserError(
            "--max-increase and --at go together", "--max-increase 5 --at 2: at most 5 points at magnitude 2"
        )

    from distilkit import console
    from distilkit.models.own import code_trusted
    from distilkit.workflows.robustness import Settings, Threshold
    from distilkit.workflows.robustness import robustness as workflow

    with code_trusted(trust_code):
        document = workflow(
            run or [],
            runs,
            Settings(max_distance, steps, directions, images, seed, statistics, directions_kind),
            threshold=None if max_increase is None or at is None else Threshold(max_increase, at),
            member=member,
            checkpoint=checkpoint,
            data_root=data,
            output=output,
            device=device,
            observer=console.TerminalObserver(),
        )
    console.print_json(document) if json_output else _show(document)
    for check in document["checks"]:
        verdict = "passed" if check["passed"] else "FAILED"
        console.tell(
            f"{verdict}: {check['run']}: the test error rises by {check['increase']:.2f} points at d = "
            f"{check['at']:g}, mean over directions ({check['max_increase']:g} are allowed)",
            "green" if check["passed"] else "red",
        )
    if not document["passed"]:
        raise typer.Exit(1)


def _show(document: dict[str, Any]) -> None:
    from distilkit import console

    for run in document["runs"]:
        rows = []
        for index, magnitude in enumerate(run["magnitudes"]):
            cells = [f"{magnitude:g}"]
            for key, digits in (("curves", 2), ("cross_entropy", 4)):
                for split in ("train", "test"):
                    values = [curve[index] for curve in run[key][split]]
                    spread = f" +- {statistics_of.stdev(values):.{digits}f}" if len(values) > 1 else ""
                    cells.append(f"{statistics_of.fmean(values):.{digits}f}{spread}")
            rows.append(cells)
        settings = document["settings"]
        console.print_table(
            f"{run['run']}, {run['member']}: mean and deviation over {settings['directions']} directions",
            ["d", "train error, %", "test error, %", "train nats", "test nats"],
            rows,
            f"nats: cross-entropy; batch norm statistics {settings['statistics']}; "
            f"directions {settings['directions_kind']}; "
            f"norm of all parameters {run['parameter_norm']:.1f}; "
            f"{run['images']['train']} training and {run['images']['test']} test images",
        )
    for file in document["files"]:
        console.print_line(f"written: {file}")
