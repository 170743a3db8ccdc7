"""`distilkit evaluate`."""

from typing import Annotated, Any, Literal

import typer

from distilkit.cli import options


def evaluate(
    run: options.Run = None,
    split: Annotated[
        Literal["train", "validation", "test"], typer.Option("--split", help="Which images to evaluate on.")
    ] = "test",
    member: options.Member = None,
    checkpoint: options.Checkpoint = None,
    data: options.DataRoot = None,
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
    trust_code: options.TrustCode = False,
    runs: options.Runs = options.RUNS,
    json_output: options.Json = False,
) -> None:
    """Errors of the deployed model, with their intervals; RUN may be a pruned model's folder.

    Examples:

      distilkit evaluate

      distilkit evaluate runs/one_resnet32-20260101T120000Z --member student_1 --split train
    """
    from distilkit.cli import console
    from distilkit.models.own import code_trusted
    from distilkit.workflows.evaluation.evaluate import evaluate as workflow

    with code_trusted(trust_code, console.tell):
        document = workflow(
            run,
            runs,
            member=member,
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

    low, high = document["interval95"]
    entropy = document["cross_entropy"]
    console.print_table(
        f"{document['run']}, {document['member']}, {document['images']:,} {document['split']} images",
        ["measure", "value"],
        [
            ["top-1 error, %", f"{document['top1_error']:.2f}  (95 %: {low:.2f} to {high:.2f})"],
            ["top-5 error, %", console.percent(document["top5_error"])],
            ["cross-entropy, nats", f"{entropy:.4f}"],
            ["calibration error, %", console.percent(document["calibration_error"])],
        ],
        "interval: Wilson's, over images; it says nothing of other trainings",
    )
    known = [(error, name) for name, error in document["per_class_error"].items() if error is not None]
    worst = sorted(known, key=lambda pair: (-pair[0], pair[1]))[:10]
    title = "errors by class, %" if len(known) <= 10 else f"the 10 worst of {len(known)} classes, error in %"
    console.print_table(title, ["class", "top-1 error"], [[name, console.percent(error)] for error, name in worst])
