"""`distilkit predict`."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from distilkit.cli import options


def predict(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An .onnx file that distilkit export wrote.")],
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES...", help="Image files; folders, searched to the bottom; - for a list on stdin, one a line."
        ),
    ],
    top: Annotated[int, typer.Option("--top", min=1, metavar="K", help="How many classes of each image.")] = 5,
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, metavar="N", help="Images at a time; 32 where the file takes any.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, max=1024, metavar="N", help="Without it: one for every core.")
    ] = None,
    device: options.FileDevice = "cpu",
    json_output: options.Json = False,
) -> None:
    """Class names and probabilities of pictures, from an exported file, with ONNX Runtime alone.

    Pictures are prepared as the file's own metadata say: turned, framed and resized as its test images were. Exit
    status 2 when a picture cannot be read; it is named, and the others are answered.

    Examples:

      distilkit predict runs/quickstart/exports/single.onnx photos/

      find . -name '*.jpg' | distilkit predict single.onnx - --top 1 --json
    """
    from distilkit.cli import console
    from distilkit.errors import UserError
    from distilkit.workflows.deploy.predict import predict as workflow

    named = [path for image in images for path in (_listed() if image == "-" else [image])]
    if not named:
        raise UserError("no images were named: the list on stdin is empty", "write one path on each line")
    document = workflow(
        file, named, top=top, batch=batch, threads=threads, observer=console.TerminalObserver(), device=device
    )
    console.print_json(document) if json_output else _show(document)
    if unanswered := document["unanswered"]:
        console.tell(f"error: {len(unanswered)} of {document['images']} have no answer:", "red")
        for each in unanswered:
            console.tell(f"  {_printable(each['image'])}: {_printable(each['reason'])}")
        raise typer.Exit(2)


def _listed() -> list[str]:
    """The lines of stdin that are not empty. A file's name is bytes, in whatever encoding."""
    return [os.fsdecode(line) for line in sys.stdin.buffer.read().splitlines() if line]


def _show(document: dict[str, Any]) -> None:
    from distilkit.cli import console

    for prediction in document["predictions"]:
        classes = ", ".join(f"{each['class']} {each['probability']:.4f}" for each in prediction["top"])
        console.print_line(f"{_printable(prediction['image'])}: {classes}")


def _printable(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "replace")
