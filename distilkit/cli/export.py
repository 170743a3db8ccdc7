"""`distilkit export`."""

from typing import Annotated, Any, Literal

import typer

from distilkit.cli import options


def export(
    run: options.Run = None,
    mode: Annotated[
        Literal["single", "ensemble"], typer.Option("--mode", help="One student, or the method's own ensemble.")
    ] = "single",
    format: Annotated[Literal["onnx"], typer.Option("--format", help="The file's format.")] = "onnx",
    members: Annotated[
        bool, typer.Option("--members", help="With --mode ensemble: each student's logits as outputs too.")
    ] = False,
    member: options.Member = None,
    checkpoint: options.Checkpoint = None,
    data: options.DataRoot = None,
    opset: Annotated[
        int | None, typer.Option("--opset", min=18, max=30, help="ONNX opset; without it the exporter's own.")
    ] = None,
    output: options.Output = None,
    trust_code: options.TrustCode = False,
    runs: options.Runs = options.RUNS,
    json_output: options.Json = False,
) -> None:
    """One file to deploy, checked against PyTorch on real images before it says done.

    Exit status 1 when ONNX Runtime disagrees with PyTorch; the file is then kept under a name that says so.

    Examples:

      distilkit export --mode single --format onnx

      distilkit export --mode ensemble --members --output one_e.onnx
    """
    from distilkit import console
    from distilkit.models.own import code_trusted
    from distilkit.workflows.export import export as workflow

    with code_trusted(trust_code):
        document = workflow(
            run,
            runs,
            mode=mode,
            format=format,
            member=member,
            members=members,
            checkpoint=checkpoint,
            output=output,
            data_root=data,
            opset=opset,
            observer=console.TerminalObserver(),
        )
    console.print_json(document) if json_output else _show(document)
    if not document["passed"]:
        console.tell(f"error: the export is wrong: {document['reason']}; kept as {document['file']}", "red")
        raise typer.Exit(1)


def _show(document: dict[str, Any]) -> None:
    from distilkit import console

    sizes = ", ".join(map(str, document["batch_sizes"]))
    console.print_table(
        f"{document['run']}: {document['mode']}, {document['member']}",
        ["", "value"],
        [
            ["bytes", f"{document['bytes']:,}"],
            ["outputs", ", ".join(document["outputs"])],
            ["compared with PyTorch on", f"{document['images_compared']} test images, batch sizes {sizes}"],
            ["largest difference", f"{document['max_abs_difference']:.2e} (tolerance {document['tolerance']:.0e})"],
            ["same class, %", f"{document['top1_agreement']:.2f}"],
            ["checked", "passed" if document["passed"] else "FAILED"],
        ],
    )
    console.print_line(f"written: {document['file']}")
    if "deployed" in document:
        deployed = document["deployed"]
        batches = list(deployed["single"]["latency_ms"])
        console.print_table(
            "deployed: one student beside the ensemble",
            ["", "parameters", "FLOPs", *(f"median ms, {batch.replace('_', ' ')}" for batch in batches)],
            [
                [
                    name,
                    f"{figures['parameters']:,}",
                    console.scientific(figures["flops"]),
                    *(f"{figures['latency_ms'][batch]['median_ms']:.3f}" for batch in batches),
                ]
                for name, figures in deployed.items()
            ],
            "FLOPs of one image: 2 per multiply-add; latency: ONNX Runtime on this CPU, measured in turn in one run",
        )
