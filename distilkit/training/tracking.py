"""Trackers: TensorBoard by default, Weights & Biases, MLflow and others, each driven by Accelerate's own class for it.

What counts of a run stands in its folder; a tracker only shows it. So none can stop a training: one that raises, or
that does not answer in time, is reported once and left out from there on. Each is called in a thread of its own, which
can be left behind; MLflow moreover keeps its active run by thread.
"""

import contextlib
import importlib
import json
import os
import queue
import re
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

from distilkit._version import __version__
from distilkit.errors import SettingError, UserError, require_plain_file
from distilkit.observer import Observer
from distilkit.reading import UnreadableError, read_json
from distilkit.recipe import Recipe, TrackingSection
from distilkit.runs.layout import RECIPE
from distilkit.working_folder import elsewhere

_IDENTITY = re.compile(r"[\w-][\w.-]{0,255}")

IDENTITIES = "trackers.json"
"""The file of a run's folder that keeps, by tracker, by which name that knows the run."""

_MOST_SETTINGS = 1 << 16  # bytes of a tracker's settings; they are some lines

# What to install where it is not called as the tracker is, or where that is not enough.
_PACKAGES = {
    "comet_ml": "pip install comet-ml",
    "mlflow": 'pip install "distilkit[tracking]"',
    "wandb": 'pip install "distilkit[tracking]"',
}

# Trackers send figures where the recipe tells them to. What they would tell their makers besides is for users to allow.
_NO_TELEMETRY = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DVC_NO_ANALYTICS": "true",
}

# W&B would call git for what has changed in the working folder, and git runs what that folder's .git/config names.
_NO_GIT = {"WANDB_DISABLE_GIT": "true"}

# Trackers that read settings of the working folder, a server's address perhaps, and how they are made to read theirs.
_READ_SETTINGS: dict[str, Callable[[], object]] = {
    "comet_ml": lambda: importlib.import_module("comet_ml"),
    "wandb": lambda: importlib.import_module("wandb").setup(),
}

# By tracker: how its open run names itself, and what `init` must be given to go on with the run of that name.
_CONTINUED: dict[str, tuple[Callable[[Any], object], Callable[[str], dict[str, Any]]]] = {
    "comet_ml": (lambda run: run.get_key(), lambda name: {"experiment_key": name}),
    "mlflow": (lambda run: run.info.run_id, lambda name: {"run_id": name}),
    "trackio": (lambda run: run.name, lambda name: {"name": name, "resume": "allow"}),
    "wandb": (lambda run: run.id, lambda name: {"id": name, "resume": "allow"}),
}

# What some trackers read in the folder that a training is started in, which may be a stranger's repository: the files,
# the word in them that names a server, and the variable of the environment that goes before it.
_READ_IN_THE_WORKING_FOLDER = {
    "wandb": (("wandb/settings", ".wandb/settings"), "base_url", "WANDB_BASE_URL"),
    "comet_ml": ((".comet.config",), "url_override", "COMET_URL_OVERRIDE"),
}

# By tracker: what `--dry-run` says of where it writes. The option and the variable that name a server or a folder, and
# what holds without them.
_WRITES_TO: dict[str, tuple[tuple[str, ...], str, str]] = {
    "aim": (("repo",), "", ".aim/ beside the runs"),
    "clearml": ((), "CLEARML_API_HOST", "the server that clearml.conf names, otherwise ClearML's"),
    "comet_ml": ((), "COMET_URL_OVERRIDE", "Comet's server"),
    "dvclive": (("dir",), "", "dvclive/ in the run's folder"),
    "mlflow": (("tracking_uri",), "MLFLOW_TRACKING_URI", "mlflow.db in the working folder"),
    "swanlab": ((), "SWANLAB_API_HOST", "SwanLab's server, and swanlab/ in the run's folder"),
    "tensorboard": (("log_dir",), "", "tensorboard/ in the run's folder"),
    "trackio": (("space_id",), "TRACKIO_SPACE_ID", "trackio's folder in the user's cache"),
    "wandb": (("settings", "base_url"), "WANDB_BASE_URL", "the server that W&B is logged in to, otherwise W&B's"),
}
_MODES = {"wandb": "WANDB_MODE", "swanlab": "SWANLAB_MODE"}

_left_behind: list[str] = []


def left_behind() -> bool:
    """Whether a tracker was left in the middle of a call, which may keep the process from ending in the usual way."""
    return bool(_left_behind)


def check(recipe: Recipe, run: Path | None = None) -> None:
    """Raise `UserError` where a tracker cannot be had, or would be told by a file where the figures go.

    `run`: the run that goes on, whose own recipe may be a stranger's and holds what somebody typed when it began.
    """
    if keys := recipe.untyped_tracking():
        named = ", ".join(keys)
        again = f"distilkit train --resume {run or 'RUN'}"
        typed = " ".join(f"--set {key}=..." for key in keys)
        raise UserError(
            f"{run or 'the recipe'} was begun with {named}, which may decide where figures and credentials go, and "
            f"counts only where you type it{f'; {run / RECIPE} says what it was' if run else ''}",
            f"if you trust it: {again} {typed}; without a tracker: {again} --set tracking.name=none",
        )
    _check_installed(recipe.tracking)
    for name in recipe.tracking.names:
        _refuse_settings_of_the_working_folder(name, recipe)


def _check_installed(section: TrackingSection) -> None:
    """Raise `SettingError` where the package of a tracker is not there, and say what to install."""
    from accelerate.tracking import get_available_trackers

    there = {str(tracker) for tracker in get_available_trackers()}
    for name in section.names:
        if name not in there:
            install = _PACKAGES.get(name, f"pip install {name}")
            raise SettingError(
                "tracking.name",
                f"the tracker {name!r} needs a package that is not installed",
                f"install it: {install}; or train without it: --set tracking.name=none",
            )


def _refuse_settings_of_the_working_folder(name: str, recipe: Recipe) -> None:
    """What a stranger's repository says must not decide to which server a key is sent."""
    if name not in _READ_IN_THE_WORKING_FOLDER:
        return
    files, word, variable = _READ_IN_THE_WORKING_FOLDER[name]
    if variable in os.environ or _option(recipe, name, _WRITES_TO[name][0]) is not None:
        return
    for file in map(Path, files):
        try:
            require_plain_file(file)
            with file.open("rb") as stream:
                names_a_server = word.encode() in stream.read(_MOST_SETTINGS)
        except OSError:
            continue
        if names_a_server:
            raise UserError(
                f"{file} in the working folder names a server, to which {name} would send its key",
                f"set {variable} to the server that you mean, or start from another folder",
            )


def destinations(recipe: Recipe) -> list[dict[str, str | None]]:
    """Where a training's figures would go, as far as is known before: `tracker`, `project`, `where`."""
    return [
        {
            "tracker": name,
            "project": None if name in ("tensorboard", "dvclive") else recipe.tracking.project,
            "where": _where(name, recipe),
        }
        for name in recipe.tracking.names
    ]


def _where(name: str, recipe: Recipe) -> str:
    path, variable, otherwise = _WRITES_TO.get(name, ((), "", f"where {name} is set up to"))
    options = recipe.tracking.options.get(name, {})
    mode = options.get("mode", os.environ.get(_MODES.get(name, ""), ""))
    if mode == "disabled":
        return "nowhere: it is disabled"
    if mode in ("offline", "local") or options.get("online") is False:
        return f"{name}/ in the run's folder, offline" if name in _MODES else "a file of this machine, offline"
    named = _option(recipe, name, path)
    if named is None and variable in os.environ:
        named, otherwise = os.environ[variable], f" (from {variable})"
    else:
        otherwise = otherwise if named is None else f" (from tracking.options.{'.'.join((name, *path))})"
    # A name and a password in an address are for nobody who reads the screen.
    return otherwise if named is None else re.sub(r"//[^/@\s]*@", "//", str(named)) + otherwise


def _option(recipe: Recipe, name: str, path: tuple[str, ...]) -> object:
    """What stands in the options of a tracker at `path`; None where nothing does."""
    value: Any = recipe.tracking.options.get(name, {}) if path else None
    for part in path:
        value = value.get(part) if isinstance(value, dict) else None
    return value


class Tracking:
    """The trackers of one training, in the process that writes; with `names` empty, none.

    `folder`: the run's. `first_epoch`: epochs that are done already. `observer` is told of a tracker that fails.
    """

    def __init__(
        self, names: tuple[str, ...], recipe: Recipe, folder: Path, first_epoch: int, observer: Observer
    ) -> None:
        self.recipe, self.folder, self.first_epoch, self.observer = recipe, folder, first_epoch, observer
        self.names, self.open = names, dict[str, _Apart]()

    def start(self) -> None:
        """Open them, each on the tracker's run that this training began with where there is one."""
        if not self.names:
            return
        for variable, value in (_NO_TELEMETRY | _NO_GIT).items():
            os.environ.setdefault(variable, value)
        known = _identities(self.folder)
        for name in self.names:
            self.open[name] = _Apart(name)
            if read := _READ_SETTINGS.get(name):
                with elsewhere():
                    self._ask(name, "when it was started", read)
                if name not in self.open:
                    continue
            begin = partial(_begin, name, self.recipe, self.folder, self.first_epoch, known.get(name))
            answer = self._ask(name, "when it was started", begin)
            if answer is not None:
                self.open[name].tracker, identity = answer
                known |= {name: identity} if identity else {}
        if known:
            # The folder could be written a moment ago; where that has changed, the next checkpoint will say so.
            with contextlib.suppress(OSError):
                (self.folder / IDENTITIES).write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        """Show an epoch's figures, named like "test/errors/student_0/top1"."""
        for name, apart in list(self.open.items()):
            self._ask(name, f"after epoch {epoch}", partial(apart.tracker.log, dict(values), step=epoch))

    def finish(self) -> None:
        """Close them."""
        for name, apart in list(self.open.items()):
            if apart.tracker is not None:  # None: interrupted while it was being started
                self._ask(name, "at the end", apart.tracker.finish)
            apart.end()
        self.open.clear()

    def _ask(self, name: str, when: str, call: Callable[[], Any]) -> Any:
        """What the tracker answers, or None after it failed and was left out."""
        seconds = self.recipe.tracking.timeout
        try:
            # Stdout is the command's own: with --json a document, and nothing else.
            with contextlib.redirect_stdout(sys.stderr):
                return self.open[name].ask(call, seconds)
        except _NoAnswer:
            _left_behind.append(name)
            why = f"gave no answer within {seconds:g} seconds (tracking.timeout)"
        except Exception as error:  # noqa: BLE001 - whatever a tracker raises, the training goes on
            first = next(iter(str(error).strip().splitlines()), "")
            why = f"failed: {type(error).__name__}{f': {first[:300]}' if first else ''}"
        self.open.pop(name).end()
        self.observer.note(f"warning: the tracker {name} {why}, {when}; the training goes on without it")
        return None


class _NoAnswer(Exception):  # noqa: N818 - not what a tracker raises
    """The call has not come back."""


class _Apart:
    """One tracker, and the thread in which all of its calls are made, one after another."""

    def __init__(self, name: str) -> None:
        self.tracker: Any = None
        self.calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        # A daemon: nobody waits for it at the end of the process.
        threading.Thread(target=self._serve, name=f"tracker-{name}", daemon=True).start()

    def ask(self, call: Callable[[], Any], seconds: float) -> Any:
        """What `call` returns or raises; `_NoAnswer` if it has done neither after so many seconds."""
        answer: Future[Any] = Future()
        self.calls.put((call, answer))
        try:
            return answer.result(seconds)
        except TimeoutError:
            if answer.done():
                raise
            raise _NoAnswer from None

    def end(self) -> None:
        """Let the thread end after the call that it is in."""
        self.calls.put(None)

    def _serve(self) -> None:
        while work := self.calls.get():
            call, answer = work
            try:
                result = call()
            except BaseException as error:  # noqa: BLE001 - some leave with SystemExit
                answer.set_exception(error if isinstance(error, Exception) else RuntimeError(repr(error)))
            else:
                answer.set_result(result)


def _begin(name: str, recipe: Recipe, folder: Path, first_epoch: int, begun: str | None) -> tuple[Any, str | None]:
    """An open tracker, and by which name it knows the run, None where it cannot go on with one of an earlier process.

    `begun`: that name, where the run was begun before.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    if keys := recipe.untyped_tracking():  # `check` has refused it before, and said what to type
        raise UserError(f"nobody has typed {', '.join(keys)}")
    options = dict(recipe.tracking.options.get(name, {}))
    ask_name, go_on = _CONTINUED.get(name, (None, None))
    if name == "mlflow" and "tracking_uri" in options:
        # Not an argument of Accelerate's, which leaves it to MLFLOW_TRACKING_URI.
        import mlflow

        mlflow.set_tracking_uri(options.pop("tracking_uri"))
    defaults = _defaults(name, folder, first_epoch)
    for key, value in defaults.items():
        # A table is added to: whoever sets W&B's server does not ask for a copy of the terminal.
        options[key] = value | options.get(key, {}) if isinstance(value, dict) else options.get(key, value)
    if name == "wandb" and options.get("dir"):
        # Its service stands where the settings were read, which is not here (`_READ_SETTINGS`).
        options["dir"] = os.path.abspath(options["dir"])  # noqa: PTH100
    if begun is not None and go_on is not None:
        options |= go_on(begun)
    kind = LOGGER_TYPE_TO_CLASS[name]
    # TensorBoard's folder is named after the project, and stands in the run's; Aim keeps one for all runs.
    project = name if name == "tensorboard" else recipe.tracking.project
    place = [str(folder.parent if name == "aim" else folder)] if kind.requires_logging_directory else []
    tracker: Any = kind(project, *place, **options)
    tracker.start()
    if name == "tensorboard":
        if first_epoch == 0:
            _tensorboard_settings(tracker.tracker, settings(recipe))
    elif begun is None or name == "wandb":
        # Of an open run, the others let nobody change what it was begun with.
        tracker.store_init_configuration(settings(recipe))
    return tracker, str(ask_name(tracker.tracker)) if ask_name else None


def settings(recipe: Recipe) -> dict[str, str | int | float | bool]:
    """The recipe as a tracker takes it: "train/epochs": 300; lists as text."""
    flat: dict[str, str | int | float | bool] = {"distilkit": __version__}
    tree = recipe.model_dump(exclude={"tracking"}, exclude_none=True)
    for section, value in tree.items():
        keys = {f"{section}/{key}": entry for key, entry in value.items()} if isinstance(value, dict) else {}
        for key, entry in (keys or {section: value}).items():
            flat[key] = entry if isinstance(entry, str | int | float) else str(entry)
    return flat


def _defaults(name: str, folder: Path, first_epoch: int) -> dict[str, Any]:
    """What a tracker is given where the recipe does not say otherwise: the run's name, and its folder to write to."""
    known: dict[str, dict[str, Any]] = {
        # Figures of epochs that are trained again replace those that were logged after the checkpoint.
        "tensorboard": {"purge_step": first_epoch + 1},
        # Its copy of the terminal would hold one progress bar a thousand times.
        "wandb": {"name": folder.name, "dir": str(folder), "settings": {"console": "off"}},
        "mlflow": {"run_name": folder.name},
        "trackio": {"name": folder.name},
        "swanlab": {"experiment_name": folder.name, "logdir": str(folder / "swanlab")},
        # By itself it writes dvc.yaml into the working folder, and into the repository there.
        "dvclive": {
            "dir": str(folder / "dvclive"),
            "dvcyaml": str(folder / "dvclive" / "dvc.yaml"),
            "save_dvc_exp": False,
        },
    }
    return known.get(name, {})


def _tensorboard_settings(writer: Any, values: Mapping[str, Any]) -> None:
    """Put them beside the curves, as TensorBoard's hyperparameters; Accelerate would make two more folders of them."""
    from torch.utils.tensorboard.summary import hparams

    for summary in hparams(dict(values), {}):  # type: ignore[no-untyped-call]
        writer.file_writer.add_summary(summary)
    writer.flush()


def _identities(folder: Path) -> dict[str, str]:
    """By tracker, by which name that knows the run; what cannot be read is forgotten."""
    try:
        known = read_json(folder / IDENTITIES)
    except UnreadableError:
        return {}
    named = known.items() if isinstance(known, dict) else ()
    # Of a stranger's run too: some trackers make a file's name of it.
    return {name: value for name, value in named if isinstance(value, str) and _IDENTITY.fullmatch(value)}
