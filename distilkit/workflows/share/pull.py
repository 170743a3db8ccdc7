"""`distilkit pull`: a model that somebody published, checked before it gets its place."""

import os
import tempfile
from pathlib import Path
from typing import Any

from distilkit.data.datasets import expanded
from distilkit.errors import UserError
from distilkit.observer import Observer
from distilkit.workflows.share import hub

MODELS = Path("models")


def pull(source: str, *, to: Path | None, revision: str | None, observer: Observer) -> dict[str, Any]:
    """Fetch "user/name" from the Hub, or copy a folder, into the new folder `to`; without it a folder is only checked.

    Without `to` a repository comes to models/NAME. Nothing but the four files of a published model is asked for, and
    nothing appears in `to` before all of them were opened. Raises `UserError` for what is not there, not allowed,
    damaged, too large, or would execute code that nobody has trusted.
    """
    folder = expanded(Path(source))
    if os.path.lexists(folder):
        if revision is not None:
            raise UserError(f"{source} is a folder and has no revisions", "leave --revision out")
        if not folder.is_dir():
            raise UserError(
                f"{source} is a file; what is pulled is a folder or a repository",
                f"a file can be used as it is: distilkit predict {source} IMAGES",
            )
        if to is None:
            return _document(source, folder, None, hub.inspect(folder, source))
        with hub.new_folder(to, "--to") as whole:
            for name in hub.present(folder):
                hub.copy_bounded(folder / name, whole / name)
            facts = hub.inspect(whole, source)
        return _document(source, to, None, facts)
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise UserError(
            f"there is no folder {source}, and it is no name of a repository", "name a folder, or user/name on the Hub"
        )
    repository = hub.named_repository(source)
    to = to or MODELS / repository.split("/")[1]
    with hub.new_folder(to, "--to") as whole:
        commit = _download(repository, revision, whole, observer)
        facts = hub.inspect(whole, repository)
    return _document(repository, to, commit, facts)


def _download(repository: str, revision: str | None, whole: Path, observer: Observer) -> str | None:
    """Fetch the files of one commit; returns which one."""
    with hub.connected(repository) as api:
        info = api.model_info(repository, revision=revision, files_metadata=True)
        # What else there is, under whatever name, is not looked at.
        sizes = {each.rfilename: each.size for each in info.siblings or () if each.rfilename in hub.LIMITS}
    for name, size in sizes.items():
        if size is None or size > hub.LIMITS[name]:
            told = "does not say how large it is" if size is None else f"has {size:,} bytes"
            raise UserError(
                f"{repository}: {name} {told}; {hub.LIMITS[name]:,} bytes are allowed", "nothing was fetched"
            )
    with tempfile.TemporaryDirectory(prefix=".pull-", dir=whole.parent) as place:
        for name, size in sizes.items():
            observer.note(f"fetching {name} ({size:,} bytes) from {repository}")
            with hub.connected(repository) as api:
                file = api.hf_hub_download(repository, name, revision=info.sha or revision, local_dir=place)
            # The library keeps notes beside the files; they stay behind.
            hub.copy_bounded(Path(file), whole / name)
    return info.sha


def _document(source: str, folder: Path, commit: str | None, facts: dict[str, Any]) -> dict[str, Any]:
    return {"source": source, "folder": str(folder), "commit": commit, **facts}
