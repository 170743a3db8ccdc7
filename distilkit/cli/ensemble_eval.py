"""`distilkit ensemble-eval`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from distilkit.cli import completion, options


def ensemble_eval(
    run: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RUN]...",
            help="A run, or several whose leaders form one ensemble.",
            autocompletion=completion.run_folders,
        ),
    ] = None,
    split: Annotated[
        Literal["train", "validation", "test"], typer.Option("--split", help="Which images to evaluate on.")
    ] = "test",
    checkpoint: options.Checkpoint = None,
    data: options.DataRoot = None,
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
    trust_code: options.TrustCode = False,
    runs: options.Runs = options.RUNS,
    json_output: options.Json = False,
) -> None:
    """Every student, every ensemble, and how differently the students see the images.

    Examples:

      distilkit ensemble-eval

      distilkit ensemble-eval runs/baseline-1 runs/baseline-2 runs/baseline-3
    """
    from distilkit.cli import console
    from distilkit.models.own import code_trusted
    from distilkit.workflows.evaluation.ensemble_eval import ensemble_eval as workflow

    with code_trusted(trust_code, console.tell):
        document = workflow(
            run or [],
            runs,
            split=split,
            checkpoint=checkpoint,
            data_root=data,
            device=device,
            precision=precision,
            observer=console.TerminalObserver(),
        )
    console.print_json(document) if json_output else _show(document)


def _show(document: dict[str, Any]) -> None:
    from distilkit.cli import console

    rows = [_row(name, figures) for name, figures in document["members"].items()]
    rows.append(["members' mean", f"{document['mean']:.2f} +- {document['std']:.2f}", "", "", ""])
    rows += [_row(name, figures) for name, figures in document["ensembles"].items()]
    for name, figures in document["leave_one_out"].items():
        rows.append(_row(f"  without {name}", figures["mean_of_logits"]))
    where = document["run"] if isinstance(document["run"], str) else " + ".join(document["run"])
    flops = document["flops"]
    console.print_table(
        f"{where}, {document['images']:,} {document['split']} images: errors in %",
        ["classifier", "top-1", "95 %", "top-5", "cross-entropy"],
        rows,
        f"without ...: the mean of the others' logits. Diversity {document['diversity']:.4f} (mean distance of two "
        "students' predictions); TeCost "
        f"{console.scientific(flops['ensemble'])} FLOPs for all, {console.scientific(flops['single'])} for one",
    )
    names = list(document["members"])
    console.print_table(
        "agreement: % of images on which two students predict the same class",
        ["", *names],
        [[name, *(f"{100 * document['agreement'][name][other]:.1f}" for other in names)] for name in names],
    )


def _row(name: str, figures: dict[str, Any]) -> list[str]:
    low, high = figures["interval95"]
    return [
        name,
        f"{figures['top1_error']:.2f}",
        f"{low:.2f}-{high:.2f}",
        f"{figures['top5_error']:.2f}",
        f"{figures['cross_entropy']:.4f}",
    ]
