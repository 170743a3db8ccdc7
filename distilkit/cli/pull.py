"""`distilkit pull`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from distilkit.cli import options


def pull(
    source: Annotated[
        str, typer.Argument(metavar="USER/NAME|FOLDER", help="A repository of the Hub, or a folder that push wrote.")
    ],
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="FOLDER", help="A new folder. Without it: models/NAME; a FOLDER is only checked."),
    ] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="NAME", help="A branch, tag or commit; without it main.")
    ] = None,
    trust_code: options.TrustCode = False,
    json_output: options.Json = False,
) -> None:
    """A model that somebody published, opened and checked before it gets its place.

    What comes cannot execute code: weights are safetensors, all else JSON and ONNX, and no other file is fetched.

    Examples:

      distilkit pull user/name

      distilkit pull published/ --to models/mine
    """
    from distilkit.cli import console
    from distilkit.models.own import code_trusted
    from distilkit.workflows.share.pull import pull as workflow

    with code_trusted(trust_code, console.tell):
        document = workflow(source, to=to, revision=revision, observer=console.TerminalObserver())
    console.print_json(document) if json_output else _show(document)


def _show(document: dict[str, Any]) -> None:
    from distilkit.cli import console

    error = document["top1_error"]
    rows = [
        ["architecture", document["architecture"]],
        ["member", document["member"]],
        ["classes", str(len(document["classes"]))],
        ["images", f"{document['size']} x {document['size']}, {document['channels']} channels"],
        ["top-1 test error, %, as published", console.percent(error)],
        *([each["name"], f"{each['bytes']:,} bytes"] for each in document["files"]),
    ]
    console.print_table(document["source"], ["", "value"], rows)
    folder = document["folder"]
    console.print_line(f"it is in {folder}" + (f", commit {document['commit']}" if document["commit"] else ""))
    names = [each["name"] for each in document["files"]]
    if "model.onnx" in names:
        console.print_line(f"try: distilkit predict {Path(folder) / 'model.onnx'} IMAGES")
    if "model.safetensors" in names:
        console.print_line(f"try: distilkit evaluate {folder}{' --trust-code' if document['code'] else ''}")
