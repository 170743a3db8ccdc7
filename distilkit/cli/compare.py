"""`distilkit compare`."""

from pathlib import Path
from typing import Annotated

import typer

from distilkit.cli import options


def compare(
    run: Annotated[
        list[Path] | None, typer.Argument(metavar="[RUN]...", help="Runs to compare. Without any: all finished ones.")
    ] = None,
    runs: options.Runs = options.RUNS,
    json_output: options.Json = False,
) -> None:
    """What distillation bought: errors and costs of runs beside each other.

    Example:

      distilkit compare runs/baseline-1 runs/one-1
    """
    from distilkit import console
    from distilkit.analysis.cost import named_uses
    from distilkit.workflows.compare import compare as workflow

    document = workflow(run or [], runs)
    if json_output:
        console.print_json(document)
        return
    runs_of: dict[str, set[str]] = {}
    for row in document["rows"]:
        runs_of.setdefault(row["name"], set()).add(row["run"])
    rows = []
    for row in document["rows"]:
        low, high = row["interval95"]
        rows.append(
            [
                row["name"] if len(runs_of[row["name"]]) == 1 else Path(row["run"]).name,
                row["deployed"],
                f"{row['top1_error']:.2f}",
                f"{low:.1f}-{high:.1f}",
                f"{row['parameters']:,}",
                console.scientific(row["flops"]),
                console.scientific(row["train_flops"]),
                _megabytes(row["bytes"]),
            ]
        )
    console.print_table(
        "top-1 errors on the test images, %",
        ["run", "deployed", "top-1", "95 %", "weights", "TeCost", "TrCost", "MB"],
        rows,
        "interval: Wilson's, over test images; one training of each says nothing of the spread over seeds. "
        "Costs: FLOPs of one image, 2 per multiply-add; MB: of what is deployed, as safetensors",
    )
    uncounted = {row["run"]: named_uses(row["uncounted"]) for row in document["rows"] if row["uncounted"]}
    for path, names in uncounted.items():
        console.print_line(f"{path}: not counted, so its costs are too low: {names}")


def _megabytes(count: int | None) -> str:
    """Two digits or more."""
    if count is None:
        return "-"
    return f"{count / 1e6:.1f}" if count >= 1e6 else f"{count / 1e6:.2f}"
