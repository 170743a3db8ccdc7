"""`distilkit models`."""

from typing import Annotated, Any, Literal

import typer

from distilkit.cli import completion, options
from distilkit.errors import UserError


def models(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="An architecture to draw. Without it: a list of all.",
            autocompletion=completion.architecture_names,
        ),
    ] = None,
    library: Annotated[
        Literal["torchvision", "timm"] | None, typer.Option("--library", help="List this library's instead of ours.")
    ] = None,
    pattern: Annotated[
        str | None, typer.Option("--filter", metavar="PATTERN", help="List names that match, such as 'resnet*'.")
    ] = None,
    classes: Annotated[int, typer.Option("--classes", min=1, max=1_000_000, help="Classes to tell apart.")] = 10,
    size: Annotated[
        int | None,
        typer.Option(
            "--size", min=1, max=4096, help="Height and width of the images. Without it: what each was made for."
        ),
    ] = None,
    channels: Annotated[int, typer.Option("--channels", min=1, max=64, help="Channels of the images.")] = 3,
    trust_code: options.TrustCode = False,
    json_output: options.Json = False,
) -> None:
    """Which architectures there are, what they cost, and where they can be cut.

    Examples:

      distilkit models

      distilkit models --library torchvision --filter 'resnet*'

      distilkit models torchvision:mobilenet_v3_small --size 32
    """
    from distilkit.cli import console
    from distilkit.models.own import code_trusted
    from distilkit.observer import Observer
    from distilkit.workflows.project.models import list_models, show_model

    if name is not None:
        if library is not None or pattern is not None:
            raise UserError(f"--library and --filter make a list, and {name!r} is one architecture", "leave them out")
        with code_trusted(trust_code, console.tell):
            document = show_model(name, classes=classes, size=size, channels=channels)
    else:
        observer = Observer() if json_output else console.TerminalObserver()
        document = list_models(
            library, pattern or "*", classes=classes, size=size, channels=channels, observer=observer
        )
    if json_output:
        console.print_json(document)
    elif name is not None:
        _show_one(document)
    elif document["figures"]:
        _show_list(document)
    else:
        for row in document["models"]:
            console.print_line(row["name"])
        console.tell(f"{len(document['models'])} names; parameters, FLOPs and splits of fewer: --filter 'resnet*'")


def _show_list(document: dict[str, Any]) -> None:
    from distilkit.cli import console

    rows = []
    for row in document["models"]:
        known = row["parameters"] is not None
        rows.append(
            [
                row["name"],
                str(row["size"]),
                f"{row['parameters']:,}" if known else "-",
                console.scientific(row["flops"]) if known else "-",
                row["split_at"] or "-",
            ]
        )
    console.print_table(
        f"{document['library'] or 'distilkit'}: {document['classes']} classes, {document['channels']} channels",
        ["architecture", "size", "parameters", "FLOPs", "default split"],
        rows,
        "FLOPs of one image: 2 per multiply-add, convolutions and linear layers only (the papers' convention)",
    )
    for row in document["models"]:
        if row["problem"]:
            console.print_line(f"{row['name']}: {row['problem']}")


def _show_one(document: dict[str, Any]) -> None:
    from distilkit.cli import console

    rows = []
    for stage in document["stages"]:
        cut = stage["branch_share"]
        rows.append(
            (
                [
                    stage["module"],
                    _weights(stage["parameters"]),
                    console.scientific(stage["flops"]) if stage["flops"] else "0",
                    f"{100 * stage['share']:.1f} %",
                    "" if cut is None else f"{'default ' if stage['default'] else ''}{100 * cut:.1f} %",
                ],
                stage["share"],
            )
        )
    images = f"{document['size']}x{document['size']} pixels, {document['channels']} channels"
    console.print_bars(
        f"{document['name']}: {document['parameters']:,} parameters, {console.scientific(document['flops'])} FLOPs "
        f"({images}, {document['classes']} classes)",
        ["module", "weights", "FLOPs", "share", "cut there"],
        rows,
        "cut there: the share of the FLOPs that every branch repeats if group.split_at names the module; empty "
        "where it cannot be cut. FLOPs of one image: 2 per multiply-add, convolutions and linear layers only",
    )
    if document["classifier"]:
        console.print_line(f"classifier: {document['classifier']}, whose input is what methods call the features")
    inside = len(document["cut_points"]) - sum(stage["branch_share"] is not None for stage in document["stages"])
    if inside:
        console.print_line(f"it can also be cut at {inside} modules that are not shown; --json lists them")
    if document["problem"]:
        console.print_line(f"it cannot be cut: {document['problem']}")


def _weights(count: int) -> str:
    return f"{count:,}" if count < 1_000_000 else f"{count / 1e6:.2f} M"
