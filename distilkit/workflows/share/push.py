"""`distilkit push`: a model as a repository of the Hugging Face Hub, in a folder or on the Hub itself."""

import tempfile
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from distilkit._version import __version__
from distilkit.errors import UserError
from distilkit.observer import Observer
from distilkit.reading import read_json, read_text
from distilkit.runs.atomic import write_json, write_text
from distilkit.runs.run import CONFIG, MODEL, PrunedModel, Run, find
from distilkit.spelling import markdown, markdown_code
from distilkit.workflows.deploy.export import export
from distilkit.workflows.deploy.prune_branches import prune_branches
from distilkit.workflows.share import hub

BRANCH = "main"


def push(
    path: Path | None,
    runs: Path,
    *,
    to: Path | None,
    repository: str | None,
    private: bool,
    revision: str | None,
    update: bool,
    member: str | None,
    checkpoint: str | None,
    data_root: str | None,
    observer: Observer,
) -> dict[str, Any]:
    """Publish a run's leader (or `member`), a pruned model, or an exported file, after opening all that is published.

    `to`: a new folder. `repository`: "user/name" on the Hub; made there, `private` or not, unless `update` says that it
    exists. `revision`: the branch that gets the commit, made where it is missing. At least one of the two has to be
    given. A run is pruned and exported as the commands of these names do it, with their checks. Raises `UserError` for
    what cannot be published, and for all that the Hub refuses.
    """
    if to is None and repository is None:
        raise UserError("push needs a folder, a repository, or both", "--to FOLDER, or --repo user/name")
    if repository is None and (private or update or revision is not None):
        raise UserError("--private, --update and --revision belong to --repo", "--repo user/name")
    if private and update:
        raise UserError("--private is for a repository that is made, --update for one that exists", "leave one out")
    if repository is not None:
        _require_token(hub.named_repository(repository))
    with ExitStack() as stack:
        if to is not None:
            folder = stack.enter_context(hub.new_folder(to, "--to"))
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="distilkit-push-")))
        source = _gather(path, runs, folder, member, checkpoint, data_root, observer)
        _front_matter(folder / hub.CARD)
        facts = hub.inspect(folder, source)
        where: dict[str, Any] = {"repository": None, "revision": None, "commit": None, "url": None}
        if repository is not None:
            observer.note(f"uploading {', '.join(each['name'] for each in facts['files'])} to {repository}")
            where = _upload(folder, repository, private=private, revision=revision, update=update)
    return {"source": source, "folder": None if to is None else str(to), **where, **facts}


def _gather(
    path: Path | None,
    runs: Path,
    folder: Path,
    member: str | None,
    checkpoint: str | None,
    data_root: str | None,
    observer: Observer,
) -> str:
    """Fill `folder` with what is published; returns what it is of."""
    if path is not None and path.is_file():
        if member is not None or checkpoint is not None:
            raise UserError(f"{path} is a file and has no members or checkpoints", "name the run's folder instead")
        hub.copy_bounded(path, folder / hub.ONNX)
        return _with_card(folder, path, str(path))
    found = find(path, runs)
    if isinstance(found, PrunedModel):
        if member is not None or checkpoint is not None:
            raise UserError(f"{found.path} is a pruned model and has no members or checkpoints", "leave them out")
        for name in hub.present(found.path):
            hub.copy_bounded(found.path / name, folder / name)
        if not (folder / MODEL).exists():
            raise UserError(f"{found.path} has no {MODEL}", "prune its run again: distilkit prune-branches RUN")
    else:
        observer.note(f"pruning {found.path}")
        prune_branches(
            found.path,
            runs,
            member=member,
            checkpoint=checkpoint,
            output=folder,
            data_root=data_root,
            observer=observer,
        )
        if (found.path / hub.CARD).is_file():
            hub.copy_bounded(found.path / hub.CARD, folder / hub.CARD)
    if not (folder / hub.ONNX).exists():
        document = export(
            folder,
            runs,
            mode="single",
            format="onnx",
            member=None,
            members=False,
            checkpoint=None,
            output=folder / hub.ONNX,
            data_root=data_root,
            opset=None,
            observer=_Quieter(observer),
        )
        if not document["passed"]:
            raise UserError(
                f"the export of {found.path} is wrong: {document['reason']}; nothing was published",
                "look at it with distilkit export",
            )
        # The repository's own card is its README.
        (folder / f"{Path(hub.ONNX).stem}.card.md").unlink(missing_ok=True)
    _hide_folders(folder / CONFIG)
    return _with_card(folder, found, str(found.path))


class _Quieter(Observer):
    """Passes progress on, and no notes: they would name a folder that goes away."""

    def __init__(self, observer: Observer) -> None:
        self.observer = observer

    def progress(self, what: str, done: int, total: int) -> None:
        self.observer.progress(what, done, total)


def _hide_folders(config: Path) -> None:
    """The folder of the images may say who published this, and has no meaning elsewhere."""
    document = read_json(config)
    if isinstance(data := document.get("data"), dict) and isinstance(root := data.get("root"), str):
        data["root"] = hub.relative_root(root)
        write_json(config, document)


def _with_card(folder: Path, found: Run | PrunedModel | Path, source: str) -> str:
    """Write a short card where the run left none; returns `source`."""
    if not (folder / hub.CARD).exists():
        facts = hub.inspect(folder, source)
        name = found.name if isinstance(found, Path) else found.path.name
        error = "not known" if facts["top1_error"] is None else f"{facts['top1_error']:.2f} %"
        text = f"""# {markdown(name)}

{markdown_code(facts["architecture"])} ({markdown(facts["member"])}), published by distilkit {__version__}.

| | |
|---|---|
| images | {facts["size"]} x {facts["size"]}, {facts["channels"]} channels |
| classes | {len(facts["classes"])} |
| top-1 error on the test images | {error} |

## Intended use

To be filled in by whoever publishes this model.
"""
        write_text(folder / hub.CARD, text)
    return source


def _front_matter(card: Path) -> None:
    """What the Hub reads of a card, above its text; one that has it already stays as it is."""
    text = read_text(card)
    if not text.startswith("---\n"):
        fields = ["library_name: distilkit", "pipeline_tag: image-classification", "tags:", "- distilkit", "- onnx"]
        write_text(card, "\n".join(["---", *fields, "---", "", text]))


def _require_token(repository: str) -> None:
    from huggingface_hub import get_token

    if get_token() is None:
        raise UserError(
            f"pushing to {repository} needs a token, and there is none",
            "log in first: hf auth login, or set HF_TOKEN; --to FOLDER needs none",
        )


def _upload(folder: Path, repository: str, *, private: bool, revision: str | None, update: bool) -> dict[str, Any]:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    names = hub.present(folder)
    operations: list[Any] = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in names]
    branch = revision or BRANCH
    if not update:
        with hub.connected(repository) as api:
            api.create_repo(repository, private=private, exist_ok=False)
    try:
        with hub.connected(repository) as api:
            info = api.model_info(repository)
            if branch != BRANCH:
                api.create_branch(repository, branch=branch, exist_ok=True)
                info = api.model_info(repository, revision=branch)
            # Of what was published before, nothing may stay that belongs to another model.
            there = {sibling.rfilename for sibling in info.siblings or ()}
            operations += [
                CommitOperationDelete(path_in_repo=name) for name in hub.LIMITS if name in there - set(names)
            ]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # advice on the card
                commit = api.create_commit(
                    repository, operations, commit_message=f"distilkit {__version__} push", revision=branch
                )
    except UserError as error:
        if not update:
            error.hint = f"{error.hint}; {repository} was made and is empty, so then push with --update"
        raise
    return {
        "repository": repository,
        "revision": branch,
        "commit": commit.oid,
        "url": f"{api.endpoint}/{repository}",
    }
