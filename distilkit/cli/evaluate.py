"""`distilkit evaluate`."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from distilkit.cli import completion, options

GATES = "Gates (exit status 1 when one fails)"


def evaluate(
    model: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="Runs, pruned models, exported files (.onnx, .pt2, .xml). Without it: the newest finished run.",
            autocompletion=completion.run_folders,
        ),
    ] = None,
    split: Annotated[
        Literal["train", "validation", "test"], typer.Option("--split", help="Which images to evaluate on.")
    ] = "test",
    member: options.Member = None,
    checkpoint: options.Checkpoint = None,
    data: options.DataRoot = None,
    predictions: Annotated[
        Path | None,
        typer.Option("--predictions", metavar="FILE", help="Write every image with its prediction: .csv or .parquet."),
    ] = None,
    coverage: Annotated[
        bool, typer.Option("--coverage", help="Also the error against the share of images that is answered.")
    ] = False,
    max_error: Annotated[
        float | None, typer.Option("--max-error", metavar="PERCENT", help="Largest top-1 error.", rich_help_panel=GATES)
    ] = None,
    max_class_error: Annotated[
        float | None,
        typer.Option(
            "--max-class-error", metavar="PERCENT", help="Largest error of any single class.", rich_help_panel=GATES
        ),
    ] = None,
    max_balanced_error: Annotated[
        float | None,
        typer.Option(
            "--max-balanced-error",
            metavar="PERCENT",
            help="Largest mean of the classes' errors.",
            rich_help_panel=GATES,
        ),
    ] = None,
    max_calibration_error: Annotated[
        float | None,
        typer.Option(
            "--max-calibration-error", metavar="PERCENT", help="Largest calibration error.", rich_help_panel=GATES
        ),
    ] = None,
    no_worse_than: Annotated[
        Path | None,
        typer.Option(
            "--no-worse-than",
            metavar="MODEL",
            help="At most as many errors as this model has on the same images.",
            rich_help_panel=GATES,
        ),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            "--margin", metavar="POINTS", help="By how much --no-worse-than may be missed.", rich_help_panel=GATES
        ),
    ] = None,
    confident: Annotated[
        bool,
        typer.Option(
            "--confident", help="Judge by the worse end of the 95 % interval, not the estimate.", rich_help_panel=GATES
        ),
    ] = False,
    junit: Annotated[
        Path | None,
        typer.Option("--junit", metavar="FILE", help="Write the gates as JUnit XML as well.", rich_help_panel=GATES),
    ] = None,
    github: Annotated[
        bool,
        typer.Option(
            "--github", help="Print the gates as GitHub annotations as well, on stderr.", rich_help_panel=GATES
        ),
    ] = False,
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
    trust_code: options.TrustCode = False,
    runs: options.Runs = options.RUNS,
    json_output: options.Json = False,
) -> None:
    """Errors of anything that predicts, with their intervals, and the gates that it must pass to ship.

    Examples:

      distilkit evaluate

      distilkit evaluate runs/one_resnet32-20260101T120000Z --member student_1 --split train

      distilkit evaluate single.onnx --data photos --max-error 5 --max-class-error 12 --confident
    """
    import time

    from distilkit.cli import console
    from distilkit.report import checks as reports
    from distilkit.runs.atomic import appearing, writable
    from distilkit.workflows.evaluation.evaluate import Asked, Gates
    from distilkit.workflows.evaluation.evaluate import evaluate as workflow

    started = time.monotonic()
    gates = Gates(
        max_error, max_class_error, max_balanced_error, max_calibration_error, no_worse_than, margin, confident
    )
    named = [*(model or []), *([no_worse_than] if no_worse_than else [])]
    # ONNX Runtime alone executes nothing of the user's, and starts the sooner without torch.
    alone = bool(model) and all(path.suffix == ".onnx" for path in named)
    with nullcontext() if alone and not trust_code else _trusting(trust_code):
        document = workflow(
            model or [None],
            runs,
            Asked(split, data, member, checkpoint, device, precision),
            gates=gates,
            predictions=predictions,
            coverage=coverage,
            observer=console.TerminalObserver(),
        )
    if junit:
        with writable(junit.parent), appearing(junit) as partial:
            partial.write_bytes(reports.junit(document["checks"], time.monotonic() - started, "distilkit evaluate"))
    if json_output:
        console.print_json(document)
    else:
        for each in document.get("models", [document]):
            _show(each)
    for check in document["checks"]:
        verdict = "passed" if check["passed"] else "FAILED"
        console.tell(f"{verdict}: {check['run']}: {check['message']}", "green" if check["passed"] else "red")
    if github:
        for line in reports.annotations(document["checks"]):
            console.annotate(line)
    if not document["passed"]:
        raise typer.Exit(1)


def _trusting(trust_code: bool) -> Any:
    # Imported here: it needs torch.
    from distilkit.cli import console
    from distilkit.models.own import code_trusted

    return code_trusted(trust_code, console.tell)


def _show(document: dict[str, Any]) -> None:
    from distilkit.cli import console

    low, high = document["interval95"]
    entropy, averages = document["cross_entropy"], document["averages"]
    console.print_table(
        f"{document['run']}, {document['member']}, {document['images']:,} {document['split']} images",
        ["measure", "value"],
        [
            ["top-1 error, %", f"{document['top1_error']:.2f}  (95 %: {low:.2f} to {high:.2f})"],
            ["top-5 error, %", console.percent(document["top5_error"])],
            ["balanced error, %", console.percent(document["balanced_error"])],
            [
                "precision, recall, F1, %",
                f"{averages['precision']:.2f}, {averages['recall']:.2f}, {averages['f1']:.2f}",
            ],
            ["cross-entropy, nats", f"{entropy:.4f}"],
            ["calibration error, %", console.percent(document["calibration_error"])],
        ],
        "interval: Wilson's, over images; it says nothing of other trainings; precision and so on: means over classes",
    )
    known = [(error, name) for name, error in document["per_class_error"].items() if error is not None]
    worst = sorted(known, key=lambda pair: (-pair[0], pair[1]))[:10]
    title = "errors by class, %" if len(known) <= 10 else f"the 10 worst of {len(known)} classes, error in %"
    console.print_table(title, ["class", "top-1 error"], [[name, console.percent(error)] for error, name in worst])
    if document["confusions"]:
        rows = [[each["class"], each["taken_for"], str(each["images"])] for each in document["confusions"]]
        console.print_table("the most frequent confusions", ["class", "taken for", "images"], rows)
    if "coverage" in document:
        rows = [
            [f"{each['answered']:.0f}", f"{each['threshold']:.3f}", console.percent(each["error"])]
            for each in document["coverage"]
        ]
        console.print_table("error among the images that are answered", ["answered, %", "threshold", "error, %"], rows)
    if "compared" in document:
        found = document["compared"]
        low, high = found["interval95"]
        ours, theirs = found["only_ours_wrong"], found["only_theirs_wrong"]
        console.print_line(
            f"against {found['other']} on the same {found['images']:,} images: {found['difference']:+.2f} points of "
            f"error (95 %: {low:+.2f} to {high:+.2f}; McNemar's exact p {found['mcnemar_p']:.3g})"
        )
        console.print_line(f"only this one is wrong on {ours:,} of them, only the other on {theirs:,}")
    if "predictions" in document:
        console.print_line(f"written: {document['predictions']}")
