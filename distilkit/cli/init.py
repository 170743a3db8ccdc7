"""`distilkit init`."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from distilkit.cli import completion, options
from distilkit.errors import UserError


def init(
    folder: Annotated[
        Path,
        typer.Argument(metavar="[FOLDER]", help="Your images: a folder, or an .npz file. Without it: this folder."),
    ] = Path(),
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="The recipe to write. Without it: the folder's name, .toml."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="What its runs are called. Without it: as the file.")
    ] = None,
    architecture: Annotated[
        str | None,
        typer.Option(
            "--architecture",
            metavar="NAME",
            help="The network. Without it: one that suits the images' size and number.",
            autocompletion=completion.architecture_names,
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            metavar="NAME",
            help="How the students learn from one another. Without it: one.",
            autocompletion=completion.method_names,
        ),
    ] = None,
    students: Annotated[
        int | None, typer.Option("--students", min=1, max=100, help="How many. Without it: the method's own number.")
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            "--size", min=8, max=1024, help="Pixels to a side. Without it: what most images have, at most 224."
        ),
    ] = None,
    channels: Annotated[
        int | None, typer.Option("--channels", min=1, max=3, help="1 grey, 3 colour. Without it: as the images are.")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=2, max=1_000_000, help="Images in a step. Without it: by their number."),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", min=1, max=100_000, help="How often each is seen. Without it: by their number."),
    ] = None,
    lr: Annotated[
        float | None, typer.Option("--lr", metavar="RATE", help="Learning rate. Without it: by the batch size.")
    ] = None,
    augment: Annotated[
        Literal["none", "crop", "crop-flip", "random-resized-crop"] | None,
        typer.Option("--augment", help="Random changes to training images. Without it: by their size."),
    ] = None,
    validation: Annotated[
        float | None,
        typer.Option(
            "--validation",
            metavar="SHARE",
            help="Of the training images, to choose the epoch by. Without it: 0.1 of 2,000 or more, else none.",
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            "--teacher",
            metavar="RUN",
            help="A trained run that every student also learns from.",
            autocompletion=completion.run_folders,
        ),
    ] = None,
    split: Annotated[
        float | None,
        typer.Option("--split", metavar="SHARE", help="Put so much of undivided class folders aside for testing."),
    ] = None,
    split_into: Annotated[
        Path | None,
        typer.Option(
            "--split-into",
            metavar="FOLDER",
            help="Where train/ and test/ then lie, as links to the images. Without it: FOLDER-split.",
        ),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Ask nothing; take what suits for what is not said.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a recipe that is there.")] = False,
    json_output: options.Json = False,
) -> None:
    """Write a commented recipe for your own images: looks at the folder, chooses, asks in a terminal.

    Knows image folders (train/ with test/ or val/, or class folders yet to be divided), .npz files, and the published
    files of CIFAR, SVHN and ImageNet.

    Examples:

      distilkit init photos

      distilkit init photos --method dml --architecture resnet32 --epochs 100 --yes --output dml.toml

      distilkit init flowers --split 0.2 --split-into flowers-split --output flowers.toml
    """
    from distilkit.cli import console
    from distilkit.workflows.project import init as workflow
    from distilkit.workflows.project.recipe_text import slug

    if split_into is not None and split is None and yes is False and not _somebody_is_there(json_output):
        raise UserError("--split-into says where, and not how much", f"--split {workflow.SHARE}")
    asks = not yes and _somebody_is_there(json_output)
    output = output or Path(f"{slug(folder.expanduser().resolve().name.removesuffix('.npz'))}.toml")
    workflow.check_output(output, force)
    found = workflow.look(folder)
    if not json_output:
        _tell_found(found)
    if found.undivided:
        if split is None and not yes and not asks:
            raise UserError(
                f"the images in {found.root} are not divided into those to train and those to test on",
                f"--split {workflow.SHARE} puts a share of every class aside for testing",
            )
        target = split_into or workflow.split_folder(found.root)
        share = split
        if share is None:
            share = _asked_share(workflow.SHARE, target) if asks else workflow.SHARE
    elif split is not None or split_into is not None:
        raise UserError(f"{found.root} is divided already; --split and --split-into have no place", "leave them out")
    wishes = workflow.Wishes(
        name, architecture, method, students, size, channels, batch_size, epochs, lr, augment, validation, teacher
    )
    if asks:
        wishes = _asked(found, wishes)
    workflow.decide(found, wishes)  # before anything is written
    if found.undivided:
        assert share is not None
        found = workflow.divide(found, share, target)
    document = workflow.write(found, workflow.decide(found, wishes), output, name=name, force=force)
    if json_output:
        console.print_json(document)
        return
    for remark in document["remarks"]:
        console.tell(remark, "yellow" if remark.startswith("warning") else "")
    _show(document)


def _somebody_is_there(json_output: bool) -> bool:
    return not json_output and sys.stdin.isatty() and sys.stderr.isatty()


def _tell_found(found: Any) -> None:
    from distilkit.cli import console

    what = {"image-folder": "a folder of images", "npz": "arrays", "imagenet": "ImageNet's layout"}
    counts = f"{found.train:,} images" if found.undivided else f"{found.train:,} training, {found.test:,} test images"
    console.tell(
        f"{found.root}: {what.get(found.dataset, found.dataset)}, {len(found.classes)} classes, {counts}"
        + (", not divided into training and test images" if found.undivided else "")
    )
    if found.sizes is not None and found.dataset != "npz":
        console.tell(
            f"of {found.sizes.opened:,} images that were opened the sides are {found.sizes.short} and "
            f"{found.sizes.long} pixels in the middle, {found.sizes.smallest} at least"
            + (", all grey" if found.sizes.grey else "")
        )


def _asked_share(usual: float, target: Path) -> float:
    from rich.prompt import FloatPrompt

    from distilkit.cli import console

    console.tell(f"links to the images will be put into {target}/train and {target}/test")
    return FloatPrompt.ask("share of every class for testing", default=usual, console=console.stderr)


def _asked(found: Any, wishes: Any) -> Any:
    """The wishes with what a person answers to what they leave open; Enter takes what suits."""
    from dataclasses import replace

    from rich.prompt import IntPrompt, Prompt

    from distilkit import methods
    from distilkit.cli import console
    from distilkit.models import registry
    from distilkit.workflows.project import init as workflow

    if wishes.method is None:
        needs = [name for name in methods.names() if methods.options_model(name).needs_teacher]
        names = [name for name in methods.names() if wishes.teacher or name not in needs]
        wishes = replace(wishes, method=Prompt.ask("method", choices=names, default="one", console=console.stderr))
    usual = workflow.decide(found, wishes)
    if wishes.image_size is None and "data.image_size" in usual:
        side = IntPrompt.ask("pixels to a side", default=usual["data.image_size"], console=console.stderr)
        wishes = replace(wishes, image_size=side)
        usual = workflow.decide(found, wishes)
    while wishes.architecture is None:
        name = Prompt.ask("architecture", default=usual["model.architecture"], console=console.stderr)
        try:
            registry.check(name)
        except UserError as error:
            console.tell(error.hint or error.problem, "yellow")
            continue
        wishes = replace(wishes, architecture=name)
    for key, setting, question in (
        ("epochs", "train.epochs", "epochs"),
        ("batch_size", "train.batch_size", "images in a step"),
    ):
        if getattr(wishes, key) is None:
            number = IntPrompt.ask(question, default=usual[setting], console=console.stderr)
            wishes = replace(wishes, **{key: number})
    return wishes


def _show(document: dict[str, Any]) -> None:
    from distilkit.cli import console

    settings = document["settings"]
    rows = [
        ["method", settings["method.name"]],
        ["students", f"{settings['group.students']} x {settings['model.architecture']}"],
        ["images", f"{settings['data.root']}, {settings['data.storage']}"],
        ["epochs", f"{settings['train.epochs']}, {settings['train.batch_size']} images a step"],
    ]
    if "data.image_size" in settings:
        rows.insert(2, ["pixels", f"{settings['data.image_size']} x {settings['data.image_size']}"])
    console.print_table(f"written: {document['recipe']}", ["", "chosen"], rows)
    if document["found"]["dataset"] in ("cifar10", "cifar100", "svhn", "imagenet"):
        dataset = document["found"]["dataset"]
        console.tell(f"the papers' own trainings of this data set: distilkit recipes --dataset {dataset}")
    if not document["built"]:
        console.tell("your network was not built: that would execute its module (--trust-code at distilkit train)")
    console.print_line(f"look at its costs: distilkit train {document['recipe']} --dry-run")
    console.print_line(f"train it: distilkit train {document['recipe']}")
