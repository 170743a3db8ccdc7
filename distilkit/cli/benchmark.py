"""`distilkit benchmark`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from distilkit.cli import completion, options
from distilkit.errors import UserError


def benchmark(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FILE|RUN]...",
            help="Exported files and runs. Without one: the newest finished run.",
            autocompletion=completion.files_and_runs,
        ),
    ] = None,
    batch: Annotated[str, typer.Option("--batch", metavar="1,32,128", help="Batch sizes.")] = "1,32,128",
    threads: Annotated[str, typer.Option("--threads", metavar="1,2", help="Numbers of threads.")] = "1",
    repetitions: Annotated[
        int, typer.Option("--repetitions", min=1, max=100_000, help="Turns that each one has, after three to warm up.")
    ] = 50,
    compile: Annotated[
        bool, typer.Option("--compile", help="A run's network compiled by PyTorch as well (takes a minute).")
    ] = False,
    device: options.FileDevice = "cpu",
    trust_code: Annotated[
        bool,
        typer.Option(
            "--trust-code",
            help="Allow this command to execute the module of a network of your own (package.module:builder), and "
            "what a .pt2 file holds: such a file is code.",
        ),
    ] = False,
    runs: options.Runs = options.RUNS,
    json_output: options.Json = False,
) -> None:
    """How fast exported files answer here, beside PyTorch; all take turns, so that a busy moment hits them all.

    A run stands for its leader in PyTorch and for the files in its exports/, except .pt2 without --trust-code.

    Examples:

      distilkit benchmark

      distilkit benchmark single.onnx single-int8.onnx --batch 1,128 --threads 1,2
    """
    batches, counts = _numbers("--batch", batch), _numbers("--threads", threads)

    from distilkit.cli import console
    from distilkit.models.own import code_trusted
    from distilkit.workflows.deploy.benchmark import benchmark as workflow

    with code_trusted(trust_code, console.tell):
        document = workflow(
            paths or [],
            runs,
            batches=batches,
            threads=counts,
            repetitions=repetitions,
            compile=compile,
            observer=console.TerminalObserver(),
            device=device,
        )
    console.print_json(document) if json_output else _show(document)


def _numbers(option: str, text: str) -> list[int]:
    """ "1,32" -> [1, 32]. Raises `UserError` for anything but numbers of 1 or more."""
    numbers = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if min(numbers) < 1 or max(numbers) > 65536:
        raise UserError(f"{option} must be whole numbers of 1 or more, with commas, not {text!r}", f"{option} 1,32")
    return list(dict.fromkeys(numbers))


def _labels(names: set[str]) -> dict[str, str]:
    """A file's or a run's own name where no other has the same, else the path."""
    short = {name: Path(name).name for name in names}
    return {name: label if list(short.values()).count(label) == 1 else name for name, label in short.items()}


def _show(document: dict[str, Any]) -> None:
    from distilkit.cli import console

    for run in document["runs"]:
        console.print_line(f"timed: {run}")
    labels = _labels({result["name"] for result in document["results"]})
    places = dict.fromkeys((result["threads"], result["batch"]) for result in document["results"])
    for threads, batch in places:
        rows = [
            [
                labels[result["name"]],
                result["kind"],
                f"{result['median_ms']:.3f}",
                f"{result['p95_ms']:.3f}",
                f"{result['images_per_second']:,.0f}",
                f"{result['speedup_over_eager']:.2f}" if result["speedup_over_eager"] > 0 else "-",
            ]
            for result in document["results"]
            if (result["threads"], result["batch"]) == (threads, batch)
        ]
        console.print_table(
            f"batch size {batch}, {threads} thread{'s' * (threads > 1)}",
            ["", "by", "median ms", "95 % ms", "images/s", "x eager"],
            rows,
        )
    console.print_line(
        f"milliseconds for one batch, over {document['repetitions']} turns that all took one after another; "
        + ("random pixels, on the CPU" if document["device"] == "cpu" else "random pixels, on CUDA and back to the CPU")
    )
    if document["ratios"]:
        console.print_table(
            "the ensemble beside the leader alone",
            ["run", "threads", "batch", "time ratio", "FLOPs ratio"],
            [
                [
                    Path(ratio["run"]).name,
                    str(ratio["threads"]),
                    str(ratio["batch"]),
                    f"{ratio['latency_ratio']:.2f}",
                    f"{ratio['flops_ratio']:.2f}",
                ]
                for ratio in document["ratios"]
            ],
        )
