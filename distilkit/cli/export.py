"""`distilkit export`."""

from typing import Annotated, Any, Literal

import typer

from distilkit.cli import completion, options
from distilkit.errors import UserError


def export(
    run: options.Run = None,
    mode: Annotated[
        str,
        typer.Option(
            "--mode",
            metavar="single|ensemble|member:NAME",
            help="The leader, the method's own ensemble, or another student.",
            autocompletion=completion.export_modes,
        ),
    ] = "single",
    format: Annotated[
        Literal["onnx", "pt2", "openvino"],
        typer.Option("--format", help="ONNX, a torch.export program, or OpenVINO's .xml and .bin (an extra)."),
    ] = "onnx",
    members: Annotated[
        bool, typer.Option("--members", help="With --mode ensemble: each student's logits as outputs too.")
    ] = False,
    member: options.Member = None,
    checkpoint: options.Checkpoint = None,
    data: options.DataRoot = None,
    opset: Annotated[
        int | None, typer.Option("--opset", help="ONNX opset, 18 and above; without it the exporter's own.")
    ] = None,
    input: Annotated[
        Literal["float", "uint8"],
        typer.Option("--input", help="Pixels in [0, 1], or bytes that the graph itself scales."),
    ] = "float",
    layout: Annotated[
        Literal["nchw", "nhwc"], typer.Option("--layout", help="Channels first, or channels last.")
    ] = "nchw",
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, max=65536, help="The only batch size; without it any.")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option("--size", metavar="N|dynamic", help="Other pixels to a side than in training, or any H x W."),
    ] = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="Weights and computation in half precision.")] = False,
    quantize: Annotated[
        Literal["int8", "dynamic"] | None,
        typer.Option("--quantize", help="A second file in 8-bit integers, compared with the first."),
    ] = None,
    calibration: Annotated[
        Literal["minmax", "percentile"] | None,
        typer.Option("--calibration", help="How activations' ranges are found; without it minmax."),
    ] = None,
    calibration_images: Annotated[
        int | None,
        typer.Option("--calibration-images", min=1, help="Training images to calibrate on; without it 512."),
    ] = None,
    reduce_range: Annotated[
        bool | None,
        typer.Option("--reduce-range/--full-range", help="Weights of 7 or 8 bits; without it what this CPU needs."),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option("--max-drop", metavar="POINTS", help="Exit 1 if 8 bits raise the test error by more."),
    ] = None,
    min_speedup: Annotated[
        float | None,
        typer.Option("--min-speedup", metavar="FACTOR", help="Exit 1 if 8 bits are not so many times as fast."),
    ] = None,
    speedup_batch: Annotated[
        int | None,
        typer.Option(
            "--speedup-batch",
            metavar="N",
            min=1,
            max=65536,
            help="The batch size at which --min-speedup counts; without it at 1 and at 32.",
        ),
    ] = None,
    device: options.FileDevice = "cpu",
    output: options.Output = None,
    trust_code: options.TrustCode = False,
    runs: options.Runs = options.RUNS,
    json_output: options.Json = False,
) -> None:
    """One file to deploy, checked against PyTorch on real images before it says done.

    Exit status 1 when the file disagrees with PyTorch in its own runtime, or the 8-bit file fails --max-drop or
    --min-speedup; the file at fault is then kept under a name that ends in .failed.

    Examples:

      distilkit export --mode single --format onnx

      distilkit export --mode ensemble --members --output one_e.onnx

      distilkit export --mode member:student_1 --input uint8 --layout nhwc

      distilkit export --format openvino --size dynamic

      distilkit export --quantize int8 --max-drop 0.5 --min-speedup 1.2
    """
    side = _side(size)
    if quantize is None:
        for option, value in (
            ("--calibration", calibration),
            ("--calibration-images", calibration_images),
            ("--reduce-range or --full-range", reduce_range),
            ("--max-drop", max_drop),
            ("--min-speedup", min_speedup),
            ("--speedup-batch", speedup_batch),
        ):
            if value is not None:
                raise UserError(f"{option} belongs to --quantize", "--quantize int8")
    from distilkit.cli import console
    from distilkit.export.form import Form
    from distilkit.models.own import code_trusted
    from distilkit.workflows.deploy.export import export as workflow
    from distilkit.workflows.deploy.quantize import Quantization

    with code_trusted(trust_code, console.tell):
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
            form=Form(pixels=input, layout=layout, batch=batch, half=fp16, side=side),
            quantization=quantize
            and Quantization(
                quantize, calibration, calibration_images, max_drop, min_speedup, reduce_range, speedup_batch
            ),
            device=device,
        )
    console.print_json(document) if json_output else _show(document)
    if not document["passed"]:
        if quantized := document.get("quantized"):
            what, file = "the 8-bit file fails its check", quantized["file"]
        else:
            what, file = "the export is wrong", document["file"]
        console.tell(f"error: {what}: {document['reason']}; kept as {file}", "red")
        if quantized:
            console.tell(f"hint: the {document['precision']} file is whole: {document['file']}", "yellow")
        raise typer.Exit(1)


def _side(text: str | None) -> int | Literal["dynamic"] | None:
    if text in (None, "dynamic"):
        return text  # type: ignore[return-value]
    assert text is not None
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= 4096:
        raise UserError(f"--size must be a number of pixels, 1 to 4096, or dynamic, not {text!r}", "--size dynamic")
    return int(text)


def _show(document: dict[str, Any]) -> None:
    from distilkit.cli import console

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
            *_other_rows(document),
            ["checked", "passed" if document["passed"] or "quantized" in document else "FAILED"],
        ],
    )
    console.print_line(f"written: {' and '.join(document['files'])}")
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
            "FLOPs of one image: 2 per multiply-add; latency: the files on this machine, measured in turn in one run",
        )
    if "quantized" in document:
        _show_quantized(document["quantized"])


def _other_rows(document: dict[str, Any]) -> list[list[str]]:
    rows = [
        [f"at {at['height']} x {at['width']} pixels", f"{at['max_abs_difference']:.2e}, {at['top1_agreement']:.2f} %"]
        for at in document["sizes"][1:]
    ]
    if test := document["test"]:
        low, high = test["interval95"]
        figure = f"{test['top1_error']:.2f} ({low:.2f} to {high:.2f}) on {test['images']:,} images"
        rows.append(["top-1 test error of the file, %", figure])
    return rows


def _show_quantized(quantized: dict[str, Any]) -> None:
    from distilkit.cli import console

    before, after = quantized["before"], quantized["after"]
    rows = [
        ["bytes", f"{before['bytes']:,}", f"{after['bytes']:,}", f"{quantized['bytes_ratio']:.2f} x"],
        [
            "top-1 test error, %",
            *(f"{s['top1_error']:.2f} ({s['interval95'][0]:.2f} to {s['interval95'][1]:.2f})" for s in (before, after)),
            f"{quantized['drop']:+.2f} points",
        ],
    ]
    for batch, factor in quantized["speedup"].items():
        for figure, name in (("median_ms", "median"), ("p95_ms", "95th percentile")):
            rows.append(
                [
                    f"ms, {batch.replace('_', ' ')}, {name}",
                    *(f"{side['latency_ms'][batch][figure]:.3f}" for side in (before, after)),
                    f"{factor:.2f} x as fast" if figure == "median_ms" else "",
                ]
            )
    how = "weights only"
    if quantized["calibration"]:
        how = f"{quantized['calibration']} over {quantized['calibration_images']} training images"
    console.print_table(
        f"8 bits ({quantized['scheme']}; {how})",
        ["", "before", "after", "change"],
        rows,
        f"error: all {quantized['images']:,} test images, with Wilson's 95 % interval; latency: ONNX Runtime on this "
        "CPU, measured in turn in one run",
    )
    if quantized["slower_at"]:
        at = " and ".join(batch.replace("_", " ") for batch in quantized["slower_at"])
        console.print_line(f"8 bits are SLOWER than floating point on this machine at {at}")
    for check in quantized["checks"]:
        console.print_line(f"{'passed' if check['passed'] else 'FAILED'}: {check['message']}")
    console.print_line(f"written: {quantized['file']}")
