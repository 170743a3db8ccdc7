"""`distilkit recipes`: the list of shipped recipes, and its commands `list`, `show` and `copy`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from distilkit.cli import completion, options
from distilkit.errors import UserError

Source = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="A shipped recipe's name, or a TOML file.", autocompletion=completion.recipe_names
    ),
]
Method = Annotated[
    str | None,
    typer.Option(
        "--method",
        metavar="NAME",
        help="Only recipes of this method: one, okddip, dml ...",
        autocompletion=completion.method_names,
    ),
]
Dataset = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        metavar="NAME",
        help="Only recipes of this data set: cifar10, cifar100 ...",
        autocompletion=completion.shipped_datasets,
    ),
]
Name = Annotated[
    str | None, typer.Option("--name", metavar="PATTERN", help="Only recipes whose name matches, such as 'one_*'.")
]
Resolved = Annotated[
    bool, typer.Option("--resolved", help="The whole recipe: what it extends, and every default, written out.")
]

WIDE = 150
"""Columns of a terminal from which on everything stands in one line."""

app = typer.Typer(
    invoke_without_command=True,
    no_args_is_help=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def recipes(
    context: typer.Context,
    method: Method = None,
    dataset: Dataset = None,
    name: Name = None,
    json_output: options.Json = False,
) -> None:
    """List, show and copy the recipes that come with distilkit. Without a command: the list.

    Examples:

      distilkit recipes

      distilkit recipes --method okddip --dataset cifar100

      distilkit recipes show one_resnet32 --resolved

      distilkit recipes copy one_resnet32 mine.toml
    """
    if context.invoked_subcommand is not None:
        typed = [key for key in context.params if str(context.get_parameter_source(key)).endswith("COMMANDLINE")]
        if typed:
            option = "--json" if typed[0] == "json_output" else f"--{typed[0]}"
            command = f"distilkit recipes {context.invoked_subcommand}"
            raise UserError(f"{option} stands before {context.invoked_subcommand}", f"{command} ... {option}")
        return
    _list(method, dataset, name, json_output)


@app.command("list")
def list_(method: Method = None, dataset: Dataset = None, name: Name = None, json_output: options.Json = False) -> None:
    """List the shipped recipes: what each trains, with which method, and which cell of which paper it stands for.

    Examples:

      distilkit recipes list --dataset digits

      distilkit recipes list --name 'one_*' --json
    """
    _list(method, dataset, name, json_output)


@app.command("show")
def show(source: Source, resolved: Resolved = False, json_output: options.Json = False) -> None:
    """Print one recipe, as it is written or with every default.

    Examples:

      distilkit recipes show quickstart

      distilkit recipes show one_resnet32 --resolved
    """
    from distilkit.cli import console
    from distilkit.workflows.project.recipes import recipe_text, show_recipe

    if json_output:
        console.print_json(show_recipe(source, resolved=resolved))
        return
    console.print_code(recipe_text(source, resolved=resolved)[1], "toml")


@app.command("copy")
def copy(
    source: Source,
    to: Annotated[
        Path | None,
        typer.Argument(metavar="[TO]", help="A new TOML file, or a folder. Without it: the working folder."),
    ] = None,
    resolved: Resolved = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
    json_output: options.Json = False,
) -> None:
    """Copy a recipe into a file of your own, to be edited. A copy under another name gives its runs that name.

    Examples:

      distilkit recipes copy one_resnet32

      distilkit recipes copy one_resnet32 whole.toml --resolved
    """
    from distilkit.cli import console
    from distilkit.workflows.project.recipes import copy_recipe

    document = copy_recipe(source, to, resolved=resolved, force=force)
    if json_output:
        console.print_json(document)
        return
    console.print_line(f"written: {document['written']}")
    console.tell(f"train it with: distilkit train {document['written']}")


def _list(method: str | None, dataset: str | None, name: str | None, json_output: bool) -> None:
    from distilkit.cli import console
    from distilkit.workflows.project.recipes import list_recipes

    document = list_recipes(method=method, dataset=dataset, pattern=name)
    console.print_json(document) if json_output else _show_list(document)


def _show_list(document: dict[str, Any]) -> None:
    from distilkit.cli import console

    wide = not console.stdout.is_terminal or console.stdout.width >= WIDE
    rows = []
    for row in document["recipes"]:
        what = [row["method"], row["architecture"], row["dataset"], "; ".join(row["cells"]) or "-"]
        rows.append([row["name"], *what] if wide else [[row["name"], f"  {', '.join(what[:3])}"], what[3]])
    shown, total = len(document["recipes"]), document["total"]
    title = f"{total} recipes come with distilkit" + (f", {shown} shown" if shown < total else "")
    columns = ["recipe", *(["method", "architecture", "data"] if wide else []), "stands for"]
    console.print_table(
        title,
        columns,
        rows,
        [
            "stands for: the first cells in which its result is printed, ONE: Lan et al. 2018, OKDDip: Chen et al. "
            "2020",
            "distilkit recipes show NAME prints one, distilkit recipes copy NAME FILE.toml makes it yours",
        ],
        to=None if console.stdout.is_terminal else console.of_file(sys.stdout),
    )
