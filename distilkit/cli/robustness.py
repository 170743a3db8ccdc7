"""`distilkit robustness`."""

import statistics as statistics_of
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from distilkit.cli import completion, options
from distilkit.errors import UserError


def robustness(
    run: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RUN]...",
            help="Runs or pruned models; several share one plot.",
            autocompletion=completion.run_folders,
        ),
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
    rise: Annotated[
        float,
        typer.Option("--rise", metavar="POINTS", help="Report at which magnitude the error rose so far."),
    ] = 10.0,
    inputs: Annotated[
        str | None,
        typer.Option(
            "--inputs", metavar="KINDS", help="Perturb the images as well: all, or noise,blur,brightness,contrast,jpeg."
        ),
    ] = None,
    parameters: Annotated[
        bool, typer.Option("--parameters/--no-parameters", help="Whether parameters are perturbed.")
    ] = True,
    max_error: Annotated[
        float | None,
        typer.Option("--max-error", metavar="PERCENT", help="Fail if the test error of the model as it is is larger."),
    ] = None,
    max_increase: Annotated[
        float | None,
        typer.Option("--max-increase", metavar="POINTS", help="Fail if the test error rises by more at --at."),
    ] = None,
    at: Annotated[float | None, typer.Option("--at", metavar="D", help="The magnitude that is checked.")] = None,
    thresholds: Annotated[
        Path | None, typer.Option("--thresholds", metavar="FILE", help="A TOML file of checks; see docs/robustness.md.")
    ] = None,
    junit: Annotated[
        Path | None, typer.Option("--junit", metavar="FILE", help="Write the checks as JUnit XML as well.")
    ] = None,
    github: Annotated[
        bool, typer.Option("--github", help="Print the checks as GitHub annotations as well, on stderr.")
    ] = False,
    member: options.Member = None,
    checkpoint: options.Checkpoint = None,
    data: options.DataRoot = None,
    output: options.Output = None,
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
    trust_code: options.TrustCode = False,
    runs: options.Runs = options.RUNS,
    json_output: options.Json = False,
) -> None:
    """How flat the optimum is: errors while all parameters are moved along random directions (ONE, section 4.5).

    With --max-increase and --at, or --thresholds, it is a check: exit status 1 when one fails.

    Examples:

      distilkit robustness

      distilkit robustness models/small --max-error 10 --max-increase 5 --at 2

      distilkit robustness --inputs all --thresholds robustness.toml --junit robustness.xml
    """
    if (max_increase is None) != (at is None):
        raise UserError(
            "--max-increase and --at go together", "--max-increase 5 --at 2: at most 5 points at magnitude 2"
        )

    import time

    from distilkit.analysis import corruption
    from distilkit.cli import console
    from distilkit.models.own import code_trusted
    from distilkit.report import checks as reports
    from distilkit.runs.atomic import appearing, writable
    from distilkit.workflows.evaluation.robustness import Settings
    from distilkit.workflows.evaluation.robustness import robustness as workflow
    from distilkit.workflows.evaluation.robustness_checks import (
        Thresholds,
        error_threshold,
        read_thresholds,
        threshold_of_options,
    )

    started = time.monotonic()
    wanted = read_thresholds(thresholds) if thresholds else Thresholds()
    if max_error is not None:
        wanted = wanted.with_error(error_threshold(max_error))
    if max_increase is not None and at is not None:
        wanted = wanted.with_parameters(threshold_of_options(max_increase, at))
    kinds = [kind.strip() for kind in inputs.split(",")] if inputs else []
    kinds = list(corruption.names()) if kinds == ["all"] else kinds
    with code_trusted(trust_code, console.tell):
        document = workflow(
            run or [],
            runs,
            Settings(
                max_distance,
                steps,
                directions,
                images,
                seed,
                statistics,
                directions_kind,
                rise,
                parameters,
                tuple(kinds),
                precision,
            ),
            thresholds=wanted,
            member=member,
            checkpoint=checkpoint,
            data_root=data,
            output=output,
            device=device,
            observer=console.TerminalObserver(),
        )
    if junit:
        with writable(junit.parent), appearing(junit) as partial:
            partial.write_bytes(reports.junit(document["checks"], time.monotonic() - started))
    console.print_json(document) if json_output else _show(document)
    for check in document["checks"]:
        verdict = "passed" if check["passed"] else "FAILED"
        console.tell(f"{verdict}: {check['run']}: {check['message']}", "green" if check["passed"] else "red")
    if github:
        for line in reports.annotations(document["checks"]):
            console.annotate(line)
    if not document["passed"]:
        raise typer.Exit(1)


def _show(document: dict[str, Any]) -> None:
    from distilkit.cli import console

    for run in document["runs"]:
        if "curves" in run:
            _show_curves(run, document["settings"])
        if "inputs" in run:
            _show_inputs(run)
    for file in document["files"]:
        console.print_line(f"written: {file}")


def _show_curves(run: dict[str, Any], settings: dict[str, Any]) -> None:
    from distilkit.cli import console

    rows = []
    for index, magnitude in enumerate(run["magnitudes"]):
        cells = [f"{magnitude:g}"]
        for key, digits in (("curves", 2), ("cross_entropy", 4)):
            for split in run[key]:
                values = [curve[index] for curve in run[key][split]]
                spread = f" +- {statistics_of.stdev(values):.{digits}f}" if len(values) > 1 else ""
                cells.append(f"{statistics_of.fmean(values):.{digits}f}{spread}")
        rows.append(cells)
    console.print_table(
        f"{run['run']}, {run['member']}: mean and deviation over {settings['directions']} directions",
        ["d", *(f"{split} error, %" for split in run["curves"]), *(f"{split} nats" for split in run["curves"])],
        rows,
        f"nats: cross-entropy; batch norm statistics {settings['statistics']}; "
        f"directions {settings['directions_kind']}; "
        f"norm of all parameters {run['parameter_norm']:.1f}; "
        f"{' and '.join(f'{count} {split}' for split, count in run['images'].items())} images",
    )
    found = run["sharpness"]
    rise, area = found["magnitude"]["mean"], _spread(found["area"], 2)
    where = f"at d = {_spread(found['magnitude'], 2)}" if rise < float("inf") else "nowhere on this grid"
    console.print_line(
        f"sharpness: the test error rises by {area} points on average up to d = {run['magnitudes'][-1]:g}, "
        f"and by {found['rise']:g} points {where} (mean and deviation over directions)"
    )


def _show_inputs(run: dict[str, Any]) -> None:
    from distilkit.cli import console

    found = run["inputs"]
    amounts = "; ".join(
        f"{kind}: {', '.join(f'{amount:g}' for amount in found['amounts'][kind])} {found['units'][kind]}"
        for kind in found["errors"]
    )
    console.print_table(
        f"{run['run']}, {run['member']}: test error in % on perturbed images, by severity",
        ["perturbation", "none", *(str(1 + index) for index in range(len(next(iter(found["errors"].values())))))],
        [
            [kind, f"{found['clean']:.2f}", *(f"{error:.2f}" for error in errors)]
            for kind, errors in found["errors"].items()
        ],
        f"mean of all perturbed: {found['mean']:.2f}; {run['images']['test']} test images; 1 to 5 mean {amounts}",
    )


def _spread(found: dict[str, Any], digits: int) -> str:
    deviation = f" +- {found['deviation']:.{digits}f}" if found["deviation"] is not None else ""
    return f"{found['mean']:.{digits}f}{deviation}"
