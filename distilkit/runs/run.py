"""The run folder and the pruned model's folder: create, find, open, rebuild everything that they describe.

    runs/<name>-<time>/   recipe.toml  run.json  metrics.jsonl  checkpoints/  tensorboard/  pruned/  exports/
    pruned/               model.safetensors (the stock architecture's own names)  config.json

Nothing that is loaded from either can execute code: weights are safetensors, all else is JSON and TOML. Where the
network is the user's own, the folder names the module that builds it; it is imported inside `own.code_trusted` alone.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from filelock import Timeout
from pydantic import BaseModel, Field, ValidationError, model_validator
from safetensors import SafetensorError
from torch import Tensor, nn

from distilkit import methods
from distilkit.errors import UserError, is_plain_file
from distilkit.groups.normalize import Classifier, Normalize
from distilkit.learners.build import build_learner
from distilkit.learners.learner import Learner
from distilkit.models import own, registry
from distilkit.models.outline import outline, require_room
from distilkit.models.weights import read_tensors
from distilkit.observer import Observer
from distilkit.reading import UnreadableError, read_json
from distilkit.recipe import ModelSection, Recipe
from distilkit.runs import checkpoint as checkpoints
from distilkit.runs import layout as files
from distilkit.runs import metrics as log
from distilkit.runs import upgrade
from distilkit.runs.atomic import lock, refuse_links, write_json, write_text
from distilkit.runs.checkpoint import Checkpoint
from distilkit.runs.data_record import DataRecord

FORMAT = files.FORMAT
CONFIG_FORMAT = 1
"""Of a pruned model's config.json."""
RECORD = files.RECORD
RECIPE = files.RECIPE
CONFIG = "config.json"
MODEL = "model.safetensors"
REQUIRED = files.REQUIRED

# Those in which trackers write files of known names. W&B makes a new folder each time, and links to its own log.
_FOLDERS_OF_TRACKERS = ("tensorboard", "dvclive", "swanlab")

RETRAIN = "put the file back as it was, or train anew"
PRUNE_AGAIN = "prune its run again: distilkit prune-branches RUN"


# No text that reads as a number, no infinity, no number that has no end.
Figure = Annotated[float, Field(strict=True, ge=0, le=1e18, allow_inf_nan=False)]
Count = Annotated[int, Field(strict=True, ge=0, le=10**18)]


class _Costs(BaseModel):
    """One kind of cost: of the training, of what is deployed, and of the ensemble where there is one."""

    train: Figure
    deploy: Figure
    ensemble: Figure | None = None


class _Bytes(_Costs):
    checkpoint: Figure


class _Part(BaseModel):
    parameters: Figure
    flops: Figure
    activations: Figure
    bytes: Figure


class _Selected(BaseModel):
    epoch: Count
    rule: str


class _Best(BaseModel):
    epoch: Count
    errors: dict[str, dict[str, Figure | None]]
    note: str


class _Final(BaseModel):
    """What a finished run.json says of its end."""

    epochs: Count
    images_per_second: Figure | None
    selected: _Selected
    errors: dict[str, dict[str, Figure | None]]
    best_on_test: _Best


class _Precision(BaseModel):
    used: str | None = None


class _Threads(BaseModel):
    used: Annotated[int, Field(strict=True, ge=1, le=10_000)] | None = None


class _Pretrained(BaseModel):
    file: str
    sha256: str


class _Record(BaseModel):
    """The kinds of what run.json holds. What it holds beside that is left as it is."""

    state: str
    method: str
    architecture: str
    members: Annotated[tuple[str, ...], Field(min_length=1)]
    leader: str
    ensemble: str | None
    parameters: _Costs
    flops: _Costs
    # Earlier versions had neither.
    activations: _Costs = _Costs(train=0, deploy=0)
    bytes: _Bytes = _Bytes(train=0, deploy=0, checkpoint=0)
    parts: dict[str, _Part] = {}
    architectures: dict[str, str] = {}
    seed: Count
    distilkit: str = ""
    device: str = ""
    command: str = ""
    created: str = ""
    precision: _Precision = _Precision()
    threads: _Threads = _Threads()
    pretrained: _Pretrained | None = None
    uncounted: dict[str, Count] = {}
    recipe_changes: list[dict[str, Any]] = []
    data_changes: list[dict[str, Any]] = []
    final: _Final | None = None

    @model_validator(mode="after")
    def _nothing_is_named_that_is_not_there(self) -> Self:
        if self.leader not in self.members:
            raise ValueError(f"the leader {self.leader!r} is none of the members")
        if self.parts and "bytes" not in self.model_fields_set:
            raise ValueError("the costs of its parts are there, and not the bytes of the whole")
        final = self.final
        if final is None:
            return self
        named = {*self.members, *([] if self.ensemble is None else [self.ensemble])}
        for name, figures in final.errors.items():
            named.discard(name)
            for kind in ("top1", "top5"):
                error = figures.get(kind)
                if error is None or error > 100:
                    raise ValueError(f"the final {kind} error of {name!r} is no percentage: {error}")
        if named:
            raise ValueError(f"{min(named)!r} has no final error")
        if any(figures.get("top1") is None for figures in final.best_on_test.errors.values()):
            raise ValueError("the errors that were best on the test images are no percentages")
        if self.leader not in final.best_on_test.errors:
            raise ValueError(f"the leader {self.leader!r} has no error that was best on the test images")
        return self


@contextmanager
def written_by_us_alone(run: "Run") -> Iterator[None]:
    """Hold the run's lock: two trainings must not write to one folder. The system frees it when a process dies.

    Raises `UserError` when another training holds it.
    """
    for folder in (run.path, run.checkpoints, *(run.checkpoints / name for name in checkpoints.names(run.checkpoints))):
        refuse_links(folder, run.path)
    for name in _FOLDERS_OF_TRACKERS:
        for inside, _, _ in os.walk(run.path / name):
            refuse_links(Path(inside), run.path)
    try:
        held = lock(run.path)
        held.acquire()
    except Timeout:
        raise UserError(
            f"another training is writing to {run.path}", "wait for it, or interrupt it with Ctrl-C first"
        ) from None
    except OSError as error:
        raise UserError(f"{run.path} cannot be written: {error.strerror or error}") from error
    try:
        yield
    finally:
        held.release()


@dataclass
class Model:
    """A deployed classifier and what is known of it. `path`: the run's or the pruned model's folder."""

    path: Path
    classifier: Classifier
    member: str
    architecture: str
    method: str
    data: DataRecord
    recipe_digest: str
    error: float | None
    """Top-1 test error in percent that the training ended with, where it is known."""


class Run:
    """A training's folder. `record` is run.json; `notes`: what its recipe says that this version no longer does."""

    def __init__(self, path: Path, recipe: Recipe, record: dict[str, Any], notes: tuple[str, ...] = ()) -> None:
        self.path, self.recipe, self.record, self.notes = path, recipe, record, notes

    @classmethod
    def create(cls, recipe: Recipe, runs: Path, record: dict[str, Any]) -> Self:
        """A new folder `runs/<name>-<time>`. Raises `UserError` when it cannot be written."""
        now = datetime.now(UTC)
        stamp = now.strftime("%Y%m%dT%H%M%SZ")
        for attempt in range(100):
            path = runs / f"{recipe.name}-{stamp}{f'-{attempt}' if attempt else ''}"
            try:
                path.mkdir(parents=True)
                (path / RECIPE).write_text(recipe.to_toml(), encoding="utf-8")
            except FileExistsError:
                if runs.exists() and not runs.is_dir():
                    raise UserError(f"{runs} is a file, not a folder for runs", "choose another with --runs") from None
                continue
            except (OSError, RecursionError) as error:  # a thousand folders in each other
                raise UserError(
                    f"the run folder {str(path)[:200]} cannot be written: {getattr(error, 'strerror', None) or error}",
                    "choose another folder with --runs",
                ) from error
            run = cls(path, recipe, {"format": FORMAT, **record})
            created = now.isoformat()
            # A clock may have been set back since the last one began: this one is the newest all the same.
            latest = max((files.begun(_known_record(other)) for other in _run_folders(runs)), default="")
            after = files.after(latest) if latest >= created else ""
            run.update(created=created, **({"after": after} if after else {}))
            return run
        raise UserError(f"a hundred runs named {recipe.name} began within one second under {runs}")

    @classmethod
    def open(cls, path: Path) -> Self:
        """Raises `UserError` when there is no run at `path`, or it is damaged or of a newer format."""
        record = _read_json(path / RECORD, "a run")
        if record.get("format") not in files.READABLE:
            raise UserError(
                f"{path / RECORD} {files.other_format(record)}; this distilkit reads up to {FORMAT}",
                "update distilkit to read it",
            )
        missing = [key for key in REQUIRED if key not in record]
        if record.get("final", {}) is None or (record.get("state") == "done" and "final" not in record):
            missing.append("final")
        if missing:
            raise UserError(f"{path / RECORD} is damaged: it lacks {', '.join(missing)}", RETRAIN)
        try:
            _Record.model_validate(record)
        except ValidationError as error:
            raise UserError(f"{path / RECORD} is damaged: {_brief(error)}", RETRAIN) from error
        recipe, notes = upgrade.load(path / RECIPE)
        members = methods.members(recipe.method, recipe.group.count)
        leader = members[methods.leader(recipe.method, recipe.group.count)]
        if tuple(record["members"]) != members or record["leader"] != leader:
            raise UserError(
                f"{path / RECORD} is damaged: its members are not those of its recipe, {', '.join(members)} with the "
                f"leader {leader}",
                RETRAIN,
            )
        return cls(path, recipe, record, tuple(notes))

    @classmethod
    def newest(cls, runs: Path) -> Self:
        """The newest finished run below `runs`. Raises `UserError` when there is none."""
        return cls.open(_finished(runs)[-1])

    @property
    def data(self) -> DataRecord:
        """What the run remembers of its data."""
        try:
            data = DataRecord.model_validate(self.record.get("data"))
            if missing := {"train", "test"} - data.images.keys():
                raise KeyError(f"images.{min(missing)}")
        except (KeyError, ValidationError) as error:
            raise UserError(f"{self.path / RECORD} is damaged: its data section: {_brief(error)}", RETRAIN) from error
        return data

    @property
    def architectures(self) -> tuple[str, ...]:
        """What builds the networks of its members."""
        return self.recipe.architectures

    @property
    def checkpoints(self) -> Path:
        """Folder of the run's checkpoints."""
        return self.path / files.CHECKPOINTS

    @property
    def snapshots(self) -> list[str]:
        """The checkpoints that a snapshot schedule kept: `cycle_1` and so on; none with another schedule."""
        return [name for name in checkpoints.pointers(self.checkpoints) if name.startswith("cycle_")]

    def metrics(self) -> list[dict[str, Any]]:
        """metrics.jsonl, a dictionary per finished epoch."""
        return log.read(self.path / files.METRICS)

    def update(self, **fields: Any) -> None:
        """Change run.json, atomically."""
        self.record |= fields
        write_json(self.path / RECORD, self.record)

    def checkpoint(self, name: str | None = None) -> Path:
        """The folder of a checkpoint: `last`, `best`, a snapshot's `cycle_N`, or `step_N`.

        Without a name `best` where there is one, else `last`. Raises `UserError` naming those that there are.
        """
        have = checkpoints.names(self.checkpoints)
        if name is None:
            name = "best" if checkpoints.pointed(self.checkpoints, "best") else "last"
        known = checkpoints.pointers(self.checkpoints)
        pointed = checkpoints.pointed(self.checkpoints, name) if name in ("last", "best", *known) else name
        if pointed not in have:
            why = "has no checkpoint yet" if not have else f"has no checkpoint {name!r}"
            hint = f"it has: {', '.join([*known, *have])}" if have else "train it further with distilkit train --resume"
            if name == "best" and have:
                hint += "; `best` is chosen on a validation split, and the recipe holds none out"
            raise UserError(f"{self.path} {why}", hint)
        return self.checkpoints / pointed

    def newest_whole_checkpoint(self, observer: Observer) -> Checkpoint | None:
        """What to continue from: the newest checkpoint that is whole, or None where none was ever written.

        Tells the observer of every damaged one that it passes over. Raises `UserError` if all are damaged.
        """
        names = checkpoints.names(self.checkpoints)
        for name in reversed(names):
            try:
                return checkpoints.load(self.checkpoints / name)
            except UserError as error:
                observer.note(f"warning: {error.problem}; taking the one before it")
                failure = error
        if names:
            raise UserError(f"no checkpoint of {self.path} is whole: {failure.problem}", "train anew")
        return None

    def change_recipe(self, recipe: Recipe, changes: Sequence[str], described: Mapping[str, Any]) -> None:
        """Go on with another recipe; `described`: what run.json says of it.

        Writes down that it was changed, and when in the run. Raises `UserError` when that cannot be written.
        """
        write_text(self.path / RECIPE, recipe.to_toml())
        step = checkpoints.pointed(self.checkpoints, "last")
        changed = [*self.record.get("recipe_changes", []), {"after": step, "changes": list(changes)}]
        self.update(**described, recipe_changes=changed)

    def learner(self, checkpoint: str | None = None) -> Learner:
        """Group and method with a checkpoint's weights, in eval mode, on the CPU.

        Raises `UntrustedCodeError` where a network is the user's own and its code may not be executed here.
        """
        self.require_trust()
        folder = self.checkpoint(checkpoint)
        while True:
            try:
                parts = {part: checkpoints.load_part(folder, part) for part in ("group", "method")}
                break
            except UserError:
                before, folder = folder, self.checkpoint(checkpoint)
                # A training beside us may have gone on, and removed what its pointer named a moment ago.
                if folder == before:
                    raise
        self._require_fit(parts["group"], folder / "group.safetensors")
        learner = build_learner(self.recipe, self.data.spec())
        if learner.method.ensemble_name != self.record["ensemble"]:
            raise UserError(
                f"{self.path / RECORD} is damaged: its ensemble is {self.record['ensemble']!r}, and that of its recipe "
                f"{learner.method.ensemble_name!r}",
                RETRAIN,
            )
        for part, module in (("group", learner.group), ("method", learner.method)):
            _load_strict(module, parts[part], folder / f"{part}.safetensors")
        return learner.eval()

    def _require_fit(self, state: Mapping[str, Tensor], file: Path) -> None:
        """Raise `UserError` unless a group's weights are those of its architectures, of which none takes memory yet."""
        section, data = self.recipe.group, self.data
        expected: dict[str, Tensor] = {}
        members = methods.members(self.recipe.method, section.count)
        outlines = {
            each: outline(each, len(data.classes), data.channels, self.recipe.model.norm)
            for each in dict.fromkeys(self.recipe.architectures)
        }
        if None in outlines.values():  # a user's own network is built to know it
            return
        for member, architecture in zip(members, self.recipe.architectures, strict=True):
            found = outlines[architecture]
            assert found is not None
            rooms = ("networks." + member,) if section.kind == "networks" else ("trunk", "branches." + member)
            for key, tensor in found.state.items():
                # Which part of a group a weight belongs to, the file alone says here.
                name = next((name for room in rooms if (name := f"{room}.{key}") in state), f"{key} of {member}")
                expected[name] = tensor
        _require_alike(expected, state, file)

    def require_trust(self) -> None:
        """Raise `UntrustedCodeError` if the run's networks are built by code that may not be executed here."""
        for architecture in self.recipe.architectures:
            own.require_trust(architecture, f"opening {self.path}")
        own.name_modules(self.recipe.architectures)

    def network(self, place: int) -> ModelSection:
        """What builds the network of the member at this place of the group."""
        return self.recipe.model.model_copy(update={"architecture": self.recipe.architectures[place]})

    def model(self, member: str | None = None, checkpoint: str | None = None) -> Model:
        """One member as it is deployed: the stock architecture behind its normalisation; the leader by default."""
        learner = self.learner(checkpoint)
        name = learner.leader if member is None else member
        state = learner.group.member_state_dict(name)
        network = self.network(learner.group.members.index(name))
        errors = self.record.get("final", {}).get("errors", {})
        return Model(
            path=self.path,
            classifier=stock_classifier(network, self.data, state),
            member=name,
            architecture=network.architecture,
            method=self.recipe.method.name,
            data=self.data,
            recipe_digest=self.recipe.digest(),
            error=errors.get(name, {}).get("top1") if checkpoint is None else None,
        )


class PrunedModel:
    """What `prune-branches` leaves: one member in the stock architecture."""

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path, self.config = path, config

    @classmethod
    def open(cls, path: Path) -> Self:
        """Raises `UserError` when the folder is damaged or of a newer format."""
        config = _read_json(path / CONFIG, "a pruned model")
        if config.get("format") != CONFIG_FORMAT:
            raise UserError(
                f"{path / CONFIG} {files.other_format(config)}; this distilkit reads {CONFIG_FORMAT}",
                "update distilkit to read it",
            )
        return cls(path, config)

    @property
    def architectures(self) -> tuple[str, ...]:
        """What builds its network."""
        return (str(self.config.get("architecture")),)

    def model(self) -> Model:
        """The classifier with its weights.

        Raises `UserError` naming every tensor that is missing or does not fit, and `UntrustedCodeError` where the
        network is the user's own and its code may not be executed here.
        """
        config = self.config
        try:
            data = DataRecord.model_validate(config["data"])
            facts = {key: str(config[key]) for key in ("architecture", "method", "member", "recipe_digest")}
            network = ModelSection.model_validate({"architecture": facts["architecture"], "norm": config["norm"]})
        except (KeyError, ValidationError) as error:
            raise UserError(f"{self.path / CONFIG} is damaged: {_brief(error)}", PRUNE_AGAIN) from error
        own.require_trust(network.architecture, f"opening {self.path}")
        file = self.path / MODEL
        state, digest = load_weights_and_digest(file)
        classifier = stock_classifier(network, data, state, file)
        if digest != config.get("sha256"):
            raise UserError(f"the weights {file} are damaged: they do not match the digest in {CONFIG}", PRUNE_AGAIN)
        return Model(self.path, classifier, data=data, error=config.get("top1_error"), **facts)


def stock_classifier(
    network: ModelSection, data: DataRecord, state: dict[str, Tensor], file: Path | None = None
) -> Classifier:
    """The architecture as its library builds it, with `state` loaded strictly, behind its normalisation; eval mode."""
    found = outline(network.architecture, len(data.classes), data.channels, network.norm)
    if found is not None:
        # Before the network takes memory: a stranger's file may name any architecture.
        _require_alike(found.state, state, file)
        require_room(network.architecture, found, len(data.classes))
    with torch.random.fork_rng(devices=[]):
        backbone = registry.create(network.architecture, len(data.classes), data.channels, network.norm)
    _load_strict(backbone, state, file)
    classifier = Classifier(Normalize(data.mean, data.std), backbone).eval()
    return classifier.to(memory_format=torch.channels_last)


def load_weights(file: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file. Raises `UserError` when it is missing or damaged."""
    try:
        return read_tensors(file)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"the weights {file} cannot be read: {reason}", PRUNE_AGAIN) from error


def load_weights_and_digest(file: Path) -> tuple[dict[str, Tensor], str]:
    """Like `load_weights`, and the file's SHA-256 in hexadecimal."""
    try:
        tensors = read_tensors(file)
        with file.open("rb") as content:
            return tensors, hashlib.file_digest(content, "sha256").hexdigest()
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"the weights {file} cannot be read: {reason}", PRUNE_AGAIN) from error


EXPORTED = (".onnx", ".pt2", ".xml")
"""What the names of files end in that `distilkit export` writes."""


def find(path: Path | None, runs: Path) -> Run | PrunedModel:
    """The run or pruned model at `path`; without one, the newest finished run below `runs`."""
    if path is None:
        return Run.newest(runs)
    if (path / CONFIG).is_file() and not (path / RECORD).is_file():
        return PrunedModel.open(path)
    if not (path / RECORD).is_file():
        problem = "does not exist"
        if path.exists():
            problem = "is a file; a run is a folder" if path.is_file() else "is not a run: it has no run.json"
            if not path.is_dir() and not is_plain_file(path):
                problem = "is not a plain file"
        near = [str(folder) for folder in _run_folders(path.parent)] or [str(folder) for folder in _run_folders(runs)]
        hint = f"there are: {', '.join(near[-5:])}" if near else "train one first: distilkit train quickstart"
        if path.is_file() and path.suffix in EXPORTED:
            hint = f"an exported file is for predict (.onnx), evaluate and benchmark; {hint}"
        raise UserError(f"{path} {problem}", hint)
    return Run.open(path)


def finished_runs(runs: Path) -> list[Run]:
    """All finished runs below `runs` that can be opened, oldest first. Raises `UserError` when there is none."""
    found = []
    for path in _finished(runs):
        # A damaged run that nobody named must not stand in the way of the others.
        with suppress(UserError):
            found.append(Run.open(path))
    return found


def find_run(path: Path | None, runs: Path) -> Run:
    """Like `find`, where only a run will do."""
    found = find(path, runs)
    if isinstance(found, PrunedModel):
        raise UserError(
            f"{path} is a pruned model; this command needs the run that it comes from", "name the run's folder"
        )
    return found


def open_model(
    path: Path | None, runs: Path, *, member: str | None = None, checkpoint: str | None = None
) -> tuple[Run | PrunedModel, Model]:
    """A classifier from a run (any member, any checkpoint) or from a pruned model's folder."""
    return open_models([path], runs, member=member, checkpoint=checkpoint)[0]


def open_models(
    paths: Sequence[Path | None], runs: Path, *, member: str | None = None, checkpoint: str | None = None
) -> list[tuple[Run | PrunedModel, Model]]:
    """`open_model` of several; the code that they execute, where it is trusted, is named before any of it is."""
    found = [find(path, runs) for path in paths]
    own.name_modules([name for each in found for name in each.architectures])
    return [(each, _opened(each, member, checkpoint)) for each in found]


def _opened(found: Run | PrunedModel, member: str | None, checkpoint: str | None) -> Model:
    if isinstance(found, Run):
        return found.model(member, checkpoint)
    model = found.model()
    if member not in (None, model.member):
        raise UserError(
            f"{found.path} is pruned to {model.member!r}; it has no member {member!r}", "leave --member out"
        )
    if checkpoint is not None:
        raise UserError(f"{found.path} is a pruned model and has no checkpoints", "leave --checkpoint out")
    return model


def _finished(runs: Path) -> list[Path]:
    folders = _run_folders(runs)
    finished = [path for path in folders if _known_record(path).get("state") == "done"]
    if not finished:
        unfinished = ", ".join(str(path) for path in folders[-3:])
        hint = f"name an unfinished one ({unfinished})" if folders else "train one first: distilkit train quickstart"
        raise UserError(f"there is no finished run in {runs}/", hint)
    return finished


def _run_folders(runs: Path) -> list[Path]:
    return sorted((file.parent for file in runs.glob(f"*/{RECORD}")), key=_age) if runs.is_dir() else []


def _age(path: Path) -> tuple[str, str]:
    return files.begun(_known_record(path)), path.name


def _known_record(path: Path) -> dict[str, Any]:
    """run.json of a folder that was not asked for by name: a damaged one must not stand in the others' way."""
    try:
        return _read_json(path / RECORD, "a run")
    except UserError:
        return {}


def _read_json(file: Path, what: str) -> dict[str, Any]:
    try:
        document = read_json(file)
    except UnreadableError as error:
        if error.absent:
            problem = f"{file.parent} is not {what}: it has no {file.name}"
            raise UserError(problem, f"name the folder of {what}") from None
        raise UserError(error.problem, f"it is damaged; name another folder of {what}") from error
    if not isinstance(document, dict):
        raise UserError(f"{file} is damaged: it holds no JSON object", f"name another folder of {what}")
    return document


def _require_alike(own: Mapping[str, Tensor], state: Mapping[str, Tensor], file: Path | None) -> None:
    """Raise `UserError` naming every weight that is missing, too many, or of another shape or kind of numbers."""
    faults = [
        *(f"missing {name}" for name in own.keys() - state.keys()),
        *(f"unexpected {name}" for name in state.keys() - own.keys()),
        *(
            f"{name} is {list(state[name].shape)} instead of {list(own[name].shape)}"
            for name in own.keys() & state.keys()
            if own[name].shape != state[name].shape
        ),
        *(
            f"{name} is {str(state[name].dtype).removeprefix('torch.')} instead of "
            f"{str(own[name].dtype).removeprefix('torch.')}"
            for name in own.keys() & state.keys()
            if own[name].dtype != state[name].dtype
        ),
    ]
    if faults:
        more = f" and {len(faults) - 10} more" if len(faults) > 10 else ""
        raise UserError(
            f"the weights {file or ''} do not fit the model: {'; '.join(sorted(faults)[:10])}{more}",
            "they belong to another network, or were changed after they were written",
        )


def _load_strict(module: nn.Module, state: dict[str, Tensor], file: Path | None) -> None:
    _require_alike(module.state_dict(), state, file)
    bad = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if bad:
        more = f" and {len(bad) - 10} more" if len(bad) > 10 else ""
        raise UserError(
            f"the weights {file or ''} are not all finite numbers: {', '.join(sorted(bad)[:10])}{more}",
            "its training went wrong, or they were changed after they were written",
        )
    registry.load_strict(module, state)


def _brief(error: KeyError | ValidationError) -> str:
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    if error.error_count() > 1000:  # pydantic describes all of them or none, in a kilobyte each
        return f"{error.error_count():,} of its values are of the wrong kind"
    return "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()[:5])
