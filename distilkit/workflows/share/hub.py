"""What `push` and `pull` share: which files a published model has, what is checked of them, and the Hub itself.

    README.md          the model card
    config.json        what `prune-branches` writes: one member in the stock architecture
    model.safetensors  its weights
    model.onnx         the same as an exported file; alone where only that was published

No other name is read, asked for or written. Files that are pulled come from a stranger: their sizes are bounded, links
are refused, and they are opened by the same code that opens a pruned model or an exported file, before they get their
place.
"""

import logging
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from distilkit.errors import UserError, is_plain_file
from distilkit.models import own
from distilkit.reading import LARGEST_CARD, LARGEST_JSON
from distilkit.runs.run import CONFIG, MODEL, PrunedModel
from distilkit.workflows.deploy.predict import open_file

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CARD = "README.md"
ONNX = "model.onnx"
LIMITS = {CARD: LARGEST_CARD, CONFIG: LARGEST_JSON, MODEL: 2**31, ONNX: 2**31}
"""The files of a published model, with the bytes that each may have."""

NOT_WHOLE = "it is damaged or was not made by distilkit push; nothing of it was kept"


def named_repository(name: str) -> str:
    """Check the form of `user/name`. Raises `UserError`."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
        understood = name.count("/") == 1
    except HFValidationError:
        understood = False
    if not understood:
        raise UserError(
            f"{name!r} is no name of a repository: that is user/name, of letters, digits, - _ and .",
            "name it as its page's address does: user/name",
        )
    return name


@contextmanager
def connected(repository: str) -> Iterator["HfApi"]:
    """The Hub that HF_ENDPOINT names, with the user's own token where there is one, and without progress bars.

    Everything that goes wrong inside the block is a `UserError` that says what to do.
    """
    import huggingface_hub as hub
    from huggingface_hub import errors, utils

    endpoint = (os.environ.get("HF_ENDPOINT") or hub.constants.ENDPOINT).rstrip("/")
    if urlsplit(endpoint).scheme not in ("http", "https") or not urlsplit(endpoint).netloc:
        raise UserError(f"HF_ENDPOINT is {endpoint!r}, which is no address", "unset it, or make it https://...")
    shown = not utils.are_progress_bars_disabled()
    verbosity = hub.logging.get_verbosity()
    if shown:
        utils.disable_progress_bars()
    hub.logging.set_verbosity(logging.ERROR)
    try:
        yield hub.HfApi(endpoint=endpoint, library_name="distilkit")
    except errors.GatedRepoError as error:
        raise UserError(f"{repository} is open only to those whom its owner lets in", "ask on its page") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{repository} has no such revision", "look at the spelling of --revision") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"there is no repository {repository} at {endpoint}, or your token does not open it",
            "look at its spelling; for a private one log in first: hf auth login",
        ) from error
    except errors.HfHubHTTPError as error:
        raise _refused(error.response.status_code, repository, endpoint) from error
    except errors.OfflineModeIsEnabled as error:
        raise UserError("HF_HUB_OFFLINE forbids to reach the Hub", "unset HF_HUB_OFFLINE") from error
    # Whichever library it speaks HTTP with; RuntimeError is what its faster protocol, Xet, raises.
    except (errors.HTTPError, errors.EntryNotFoundError, ConnectionError, TimeoutError, RuntimeError) as error:
        raise UserError(
            f"the Hub at {endpoint} cannot be reached: {_first_line(error)}",
            "look at the connection; HF_ENDPOINT names another Hub",
        ) from error
    except (errors.FileMetadataError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{endpoint} does not answer as a Hub does: {_first_line(error)}", "look at HF_ENDPOINT, or try later"
        ) from error
    finally:
        hub.logging.set_verbosity(verbosity)
        if shown:
            utils.enable_progress_bars()


def _refused(status: int, repository: str, endpoint: str) -> UserError:
    if status == 401:
        return UserError(f"{endpoint} does not accept your token", "log in again: hf auth login, or set HF_TOKEN")
    if status == 403:
        return UserError(
            f"your token may not do this to {repository}",
            "take a token with the right to write, and a name of your own or of your organisation",
        )
    if status == 409:
        return UserError(f"{repository} exists", "add a commit to it with --update, or choose another name")
    return UserError(f"{endpoint} answers with status {status} about {repository}", "try again later")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


@contextmanager
def new_folder(folder: Path, option: str) -> Iterator[Path]:
    """Fill a folder that appears complete or not at all: the one to fill, beside its place.

    Raises `UserError` where `folder` is there and not empty, or cannot be written; `option` names another.
    """
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise UserError(f"{folder} exists, and is not overwritten", f"name a new folder with {option}")
    partial = folder.with_name(f".partial-{folder.name}-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        try:
            yield partial
        except UserError as error:
            # Whoever fills it knows it by the name that it has meanwhile.
            error.problem = error.problem.replace(str(partial), str(folder))
            raise
        partial.replace(folder)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written: {error.strerror or error}", f"name another folder with {option}"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def copy_bounded(source: Path, target: Path) -> None:
    """Copy one of a published model's files. Raises `UserError` for a link, no plain file, or too many bytes."""
    _require_plain(source, LIMITS[target.name])
    # Opened without following, for what was a file a moment ago may be a link by now.
    with (
        os.fdopen(os.open(source, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)), "rb") as reader,
        target.open("xb") as writer,
    ):
        shutil.copyfileobj(reader, writer)


def present(folder: Path) -> list[str]:
    """Which of a published model's files are in `folder`."""
    return [name for name in LIMITS if os.path.lexists(folder / name)]


def inspect(folder: Path, named: str) -> dict[str, Any]:
    """Open everything that a published model consists of, and say what it is; `named`: what messages call it.

    Raises `UserError` for what is missing, damaged, too large, a link, or does not belong together, and
    `UntrustedCodeError` where the network is built by code that may not be executed here.
    """
    found = present(folder)
    for name in found:
        _require_plain(folder / name, LIMITS[name], f"{named}: {name}")
    if (CONFIG in found) != (MODEL in found) or not {MODEL, ONNX} & set(found):
        raise UserError(
            f"{named} holds no model: neither {CONFIG} with {MODEL}, nor {ONNX}",
            "name a folder or a repository that distilkit push made",
        )
    try:
        facts: dict[str, Any] = {"architecture": None, "member": None, "classes": None, "top1_error": None}
        facts |= {"code": None, "channels": None, "size": None}
        if CONFIG in found:
            facts |= _pruned_facts(folder)
        if ONNX in found:
            facts |= _onnx_facts(folder / ONNX, facts)
        _require_quiet(facts)
    except own.UntrustedCodeError as error:
        error.problem = error.problem.replace(str(folder), named)
        raise
    except UserError as error:
        problem = error.problem.replace(f"{folder}{os.sep}", "")
        raise UserError(f"{named}: {problem}", NOT_WHOLE) from error
    files = [{"name": name, "bytes": (folder / name).stat().st_size} for name in found]
    return {**facts, "files": files}


def _require_plain(file: Path, limit: int, named: str | None = None) -> None:
    named = named or str(file)
    mode = file.lstat()
    if not is_plain_file(file):
        raise UserError(f"{named} is not a plain file", NOT_WHOLE)
    if stat.S_ISLNK(mode.st_mode):
        raise UserError(f"{named} is a link, which may lead anywhere", "put the file itself in its place")
    if mode.st_size > limit:
        raise UserError(f"{named} has {mode.st_size:,} bytes; {limit:,} are allowed", NOT_WHOLE)


def _require_quiet(facts: dict[str, Any]) -> None:
    """Raise `UserError` for words that a terminal would obey, and for an error that is no percentage."""
    words = [facts["architecture"] or "", facts["member"] or "", *facts["classes"]]
    if any(ord(letter) < 32 or 127 <= ord(letter) < 160 for word in words for letter in word):
        raise UserError("its names hold control characters")
    error = facts["top1_error"]
    if error is not None and not (type(error) in (int, float) and 0 <= error <= 100):
        raise UserError("its test error is no percentage")


def _pruned_facts(folder: Path) -> dict[str, Any]:
    model = PrunedModel.open(folder).model()
    if relative_root(model.data.root) != model.data.root:
        # Images would be looked for in it.
        raise UserError(f"{folder / CONFIG} names a folder outside of the working folder as its data's root")
    code = own.code(model.architecture)
    return {
        "architecture": model.architecture,
        "member": model.member,
        "classes": list(model.data.classes),
        "top1_error": model.error,
        "code": code._asdict() if code else None,
        "channels": model.data.channels,
        "size": model.data.size,
    }


def _onnx_facts(file: Path, facts: dict[str, Any]) -> dict[str, Any]:
    _require_self_contained(file)
    deployed = open_file(file, threads=1)
    size, _, channels = deployed.preparation.framing
    about = deployed.session.get_modelmeta().custom_metadata_map
    own_facts = {"classes": list(deployed.classes), "channels": channels, "size": size}
    if facts["architecture"] is None:
        error = about.get("top1_error_percent", "")
        own_facts |= {"architecture": about.get("architecture"), "member": about.get("member")}
        return {**own_facts, "top1_error": float(error) if error.replace(".", "", 1).isdecimal() else None}
    if any(facts[key] != value for key, value in own_facts.items()):
        raise UserError(f"{file} is of another model than {file.with_name(CONFIG)}")
    return {}


def _require_self_contained(file: Path) -> None:
    """Raise `UserError` if an ONNX file keeps its weights in other files, which it names by their paths."""
    import onnx
    from google.protobuf.message import DecodeError
    from onnx.external_data_helper import uses_external_data

    try:
        model = onnx.load(file, load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise UserError(f"{file} is not an ONNX file, or is not whole") from error
    # Wherever it may stand: in graphs, in those that nodes hold, in functions, sparse, for a training.
    messages: list[Any] = [model]
    while messages:
        message = messages.pop()
        if isinstance(message, onnx.TensorProto) and uses_external_data(message):
            raise UserError(f"{file} keeps its weights in other files")
        for field, value in message.ListFields():
            if field.message_type is not None:
                messages += [value] if hasattr(value, "ListFields") else value
    keys = [entry.key for entry in model.metadata_props]
    if len(set(keys)) < len(keys):
        raise UserError(f"{file} is damaged: its metadata have a key twice")


def relative_root(root: str) -> str:
    """Where images are looked for, as it is published: "data" for what lies outside of the working folder.

    Such a path would say something of the publisher, and lead elsewhere on another machine.
    """
    outside = root.startswith(("/", "\\", "~")) or ":" in root or ".." in root.replace("\\", "/").split("/")
    return "data" if outside or not root else root
