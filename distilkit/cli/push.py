"""`distilkit push`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from distilkit.cli import completion, options


def push(
    path: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN|FILE]",
            help="A run, a pruned model's folder, or an exported file. Without it: the newest finished run.",
            autocompletion=completion.files_and_runs,
        ),
    ] = None,
    to: Annotated[Path | None, typer.Option("--to", metavar="FOLDER", help="A new folder to write.")] = None,
    repo: Annotated[
        str | None, typer.Option("--repo", metavar="USER/NAME", help="A repository to make on the Hub.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a repository that only you see.")] = False,
    update: Annotated[bool, typer.Option("--update", help="Add a commit to a repository that exists.")] = False,
    revision: Annotated[
        str | None,
        typer.Option("--revision", metavar="BRANCH", help="The branch that gets the commit; without it main."),
    ] = None,
    member: options.Member = None,
    checkpoint: options.Checkpoint = None,
    data: options.DataRoot = None,
    trust_code: options.TrustCode = False,
    runs: options.Runs = options.RUNS,
    json_output: options.Json = False,
) -> None:
    """A model as a repository of the Hugging Face Hub: weights, config, ONNX file and card.

    Into a folder (--to), onto the Hub (--repo, with the token of `hf auth login` or HF_TOKEN), or both. HF_ENDPOINT
    names another Hub. Read the card, README.md, before others do.

    Examples:

      distilkit push --to published/

      distilkit push runs/one_resnet32-20260101T120000Z --repo user/name --private
    """
    from distilkit.cli import console
    from distilkit.models.own import code_trusted
    from distilkit.workflows.share.push import push as workflow

    with code_trusted(trust_code, console.tell):
        document = workflow(
            path,
            runs,
            to=to,
            repository=repo,
            private=private,
            revision=revision,
            update=update,
            member=member,
            checkpoint=checkpoint,
            data_root=data,
            observer=console.TerminalObserver(),
        )
    console.print_json(document) if json_output else _show(document)


def _show(document: dict[str, Any]) -> None:
    from distilkit.cli import console

    console.print_table(
        f"{document['source']}: {document['member']} ({document['architecture']})",
        ["file", "bytes"],
        [[each["name"], f"{each['bytes']:,}"] for each in document["files"]],
    )
    if document["folder"]:
        console.print_line(f"written to {document['folder']}")
    if document["url"]:
        console.print_line(f"pushed to {document['url']}, {document['revision']}, commit {document['commit']}")
    if document["code"]:
        console.print_line(
            f"it needs the module {document['code']['module']}, and whatever opens it needs --trust-code"
        )
