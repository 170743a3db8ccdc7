"""What a recipe may say: its sections, each a frozen pydantic model, and `Recipe`, which holds them."""

import functools
import hashlib
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SerializeAsAny,
    ValidationInfo,
    create_model,
    field_validator,
)
from pydantic_core import PydanticCustomError

from distilkit import methods
from distilkit.data import datasets
from distilkit.data.decoding import MOST_WORKERS
from distilkit.errors import UserError
from distilkit.groups.outputs import GroupKind
from distilkit.methods.base import Epochs, MethodOptions
from distilkit.models import external, registry
from distilkit.models.registry import Norm
from distilkit.recipe.toml_lines import dotted
from distilkit.recipe.tracker_options import withheld
from distilkit.recipe.wording import Choice, Refused, Wording

Milestone = Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)]
Name = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$", max_length=100),
    Wording("up to 100 letters, digits, '.', '_' and '-', not starting with '.'"),
]
Architecture = Annotated[str, Choice(registry.names, "architecture", external.FORMS, registry.check)]


def _few(value: object) -> object:
    """Refuse a long list before any of its names is looked up."""
    if isinstance(value, tuple) and not 0 < len(value) <= 100:
        raise PydanticCustomError("length", "1 to 100")
    return value


_Few = BeforeValidator(_few)


# How many, or the architecture of each.
Students = (
    Annotated[int, Field(ge=1, le=100)]
    | Annotated[tuple[Annotated[Architecture, Wording("an architecture's name")], ...], _Few]
)
# Below 0.01 torch's Beta distribution goes wrong: of Beta(0.001, 0.001) it puts a quarter in the middle, not 1 %.
Alpha = Annotated[
    Annotated[float, Field(ge=0, le=0)] | Annotated[float, Field(ge=0.01, le=100)],
    Wording("0, or a number from 0.01 to 100"),
]
Text = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$"), Wording("text that is not empty")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class DataSection(_Section):
    """`[data]`: which images, and what is done to them in training."""

    dataset: Annotated[str, Choice(datasets.names, "data set")] = Field(description="The data set's name.")
    root: Text = Field("data", description="Folder that holds the data sets' files, relative to the working folder.")
    download: bool = Field(True, description="Fetch the data set's files if they are missing.")
    image_size: Annotated[int, Field(ge=8, le=1024)] | None = Field(
        None,
        description="Height and width in pixels to which images are brought; only for `image-folder`, `imagenet` and "
        "`npz`.",
        json_schema_extra={"default": "32 for image-folder, 224 for imagenet, the arrays' own for npz"},
    )
    channels: Literal[1, 3] | None = Field(
        None,
        description="1 reads images as grey, 3 in colour; only for `image-folder`.",
        json_schema_extra={"default": "3 for image-folder"},
    )
    validation: Annotated[
        Epochs | Literal["folder"],
        Wording('an integer of 0 or more, or a number of 0 or more and below 1, or "folder"'),
    ] = Field(
        0,
        description="Held out of the training images: how many, or which fraction of them. `folder`: the data's own, "
        "in `val` beside `test`, which is taken where there is one.",
    )
    augment: Literal["none", "crop", "crop-flip", "random-resized-crop"] = Field(
        description="Random changes to training images.", json_schema_extra={"default": "the data set's own"}
    )
    rand_augment: int = Field(
        0, ge=0, le=10, description="RandAugment: how many operations each image draws after that; 0: none."
    )
    rand_augment_magnitude: Annotated[int, Field(ge=0, le=30)] | None = Field(
        None,
        description="How strong these are; only with `rand_augment`.",
        json_schema_extra={"default": "9 with `rand_augment`"},
    )
    random_erasing: float = Field(
        0.0,
        ge=0,
        le=1,
        description="An image's chance to lose a rectangle, which is filled with the data set's mean colour; 0: none.",
    )
    mixup: Alpha = Field(
        0.0,
        description="Blend each image and its label with another's; the shares follow Beta(mixup, mixup); 0: not.",
    )
    cutmix: Alpha = Field(
        0.0,
        description="Put a rectangle of another image into each, and into its label what that covers; the area follows "
        "Beta(cutmix, cutmix); 0: not. With `mixup` too, each batch draws one of the two.",
    )
    storage: Literal["auto", "resident", "stream"] = Field(
        "auto",
        description="Pixels in memory, or streamed: decoded again every epoch from the image files of `image-folder` "
        "and `imagenet`, kept in the host's memory for all others. `auto` decides once: resident where they take up "
        "to half of the free memory.",
    )
    workers: Annotated[int, Field(ge=0, le=1024)] | None = Field(
        None,
        description="Processes that decode streamed images ahead; 0: the training process itself, when it needs them.",
        json_schema_extra={"default": f"one per core, at most {MOST_WORKERS}"},
    )


class ModelSection(_Section):
    """`[model]`: the backbone, as its paper or its library builds it."""

    architecture: Architecture = Field(
        description="The architecture's name, or `package.module:builder`, a [network of your own](own_network.md). "
        "Where `group.students` lists architectures it is the leader's, and may be left out.",
    )
    pretrained: Text | None = Field(
        None,
        description="Weights that every student starts from, in a `.safetensors` file or a state dict's `.pth`; "
        "classifiers start fresh.",
        json_schema_extra={"default": "none: all weights start fresh"},
    )
    norm: Norm = Field("batch", description="`none` builds the network without batch norm, with biases instead.")


class GroupSection(_Section):
    """`[group]`: how many students are trained together, and what they share."""

    kind: GroupKind = Field(
        description="`branches` on a shared trunk, or whole `networks`.",
        json_schema_extra={"default": "the method's own"},
    )
    students: Students = Field(
        description="How many students are trained together; or the architecture of each, for `networks` that differ.",
        json_schema_extra={"default": "the method's own"},
    )
    split_at: Text | None = Field(
        None,
        description="The first module that is each student's own; only for `branches`.",
        json_schema_extra={"default": "the architecture's own"},
    )

    @property
    def count(self) -> int:
        """How many students there are."""
        return len(self.students) if isinstance(self.students, tuple) else self.students


class TeacherSection(_Section):
    """`[teacher]`: a frozen classifier that every student learns from, beside what its method does; may be left out."""

    run: Text | tuple[Text, ...] | None = Field(
        None,
        description="A run's or a pruned model's folder, or the name of a recipe: its newest finished run. Several: "
        "their logits are averaged.",
        json_schema_extra={"default": "none: `architecture` and `weights` instead"},
    )
    architecture: Architecture | None = Field(
        None,
        description="Instead of a run: an architecture, whose weights are in a file.",
        json_schema_extra={"default": "none"},
    )
    weights: Text | None = Field(
        None,
        description="That file: `.safetensors`, or a state dict in a `.pth` file.",
        json_schema_extra={"default": "none"},
    )
    mean: Annotated[tuple[float, ...], Field(min_length=1)] | None = Field(
        None,
        description="Of `weights`: the mean per channel, of images in [0, 1], that they were trained with.",
        json_schema_extra={"default": "torchvision's and timm's own for their networks, else the data's"},
    )
    std: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] | None = Field(
        None, description="The same for the deviation.", json_schema_extra={"default": "as `mean`"}
    )
    classes: Text | tuple[Text, ...] | None = Field(
        None,
        description="Of `weights`: the classes in the order of its logits, or a text file with one to a line. It may "
        "know more classes than the data have.",
        json_schema_extra={"default": "the data's, in their order"},
    )
    image_size: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="Of `weights`: images are resized to so many pixels to a side for it.",
        json_schema_extra={"default": "the data's"},
    )
    allow_weak: bool = Field(
        False, description="Train even where the teacher seems useless, or its weights read wrongly."
    )
    temperature: float = Field(3.0, gt=0, description="Divides the logits of teacher and student.")
    weight: float = Field(1.0, ge=0, description="Weight of the teacher's term; the method's ramp does not touch it.")
    rampup_epochs: Epochs = Field(0, description="Its own ramp: epochs, or a fraction of the run; 0: none.")


class TrainSection(_Section):
    """`[train]`: how long, in which batches, in which numbers."""

    epochs: int = Field(ge=1, le=100_000, description="How often every training image is seen.")
    batch_size: int = Field(128, ge=2, le=1_000_000, description="Images per step, of all processes together.")
    seed: int = Field(0, ge=0, lt=2**31, description="Every random draw of the run follows from it.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="Number format of the forward pass. `auto` is bf16 where the hardware computes in it by itself "
        "(CUDA: compute capability 8.0 or more), else fp32.",
    )
    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=10_000)] = Field(
        "auto",
        description="Threads that compute on a CPU, in each process. `auto` is what `OMP_NUM_THREADS` says, else as "
        "many as there are cores, and fewer for small networks.",
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of the label spread evenly over all classes.")
    clip_norm: float = Field(0.0, ge=0, description="Largest norm of the gradient; 0 does not clip.")
    accumulation: int = Field(
        1, ge=1, le=1_000_000, description="Parts in which a batch is computed one after another, to save memory."
    )
    ema: float = Field(
        0.0, ge=0, lt=1, description="Decay per step of a moving average of the weights, which is deployed; 0: none."
    )
    ema_warmup: bool = Field(
        True, description="In step n the average's decay is at most (1 + n) / (10 + n), so that it can follow."
    )
    recalibrate: int = Field(
        0,
        ge=0,
        le=10_000_000,
        description="Recompute batch norm's statistics on so many training images whenever weights are evaluated or "
        "saved; 0: not.",
    )
    compile: bool = Field(
        False,
        description="Compile the losses with `torch.compile`, for minutes before the first step; needs a C++ compiler.",
    )
    cuda_graph: bool = Field(
        False, description="Record a step once and replay it as one launch; only on CUDA, in one process."
    )
    deterministic: bool = Field(
        False,
        description="On CUDA too, the same seed gives the same bits; slower. On a CPU it does so with the same number "
        "of `threads`.",
    )
    sync_batch_norm: bool = Field(
        False, description="Batch norm over the batches of all processes together; only on CUDA."
    )
    evaluate_epochs: int = Field(
        1, ge=1, le=100_000, description="Evaluate after every so many epochs, and always after the last."
    )
    checkpoint_epochs: int = Field(1, ge=1, le=100_000, description="Save a checkpoint every so many epochs.")
    checkpoint_steps: int = Field(0, ge=0, description="Save one every so many steps as well; 0: not.")
    checkpoint_minutes: float = Field(0.0, ge=0, description="Save one every so many minutes as well; 0: not.")


def tracker_names() -> tuple[str, ...]:
    """List the trackers that the installed Accelerate can drive, in the order of the alphabet."""
    from accelerate.utils import LoggerType

    return tuple(sorted(str(kind.value) for kind in LoggerType if kind.value != "all"))


Tracker = Annotated[str, Choice(lambda: (*tracker_names(), "none"), "tracker")]


class TrackingSection(_Section):
    """`[tracking]`: which programs draw a training's curves while it runs; see [tracking](tracking.md)."""

    name: Annotated[
        Tracker | Annotated[tuple[Tracker, ...], _Few],
        Wording("the name of a tracker, a list of several, or none"),
    ] = Field(
        "tensorboard",
        description="`tensorboard`, `wandb`, `mlflow`, `trackio` or whatever else the installed Accelerate drives; "
        "several in a list; `none` tracks nothing.",
    )
    project: Text = Field("distilkit", description="The project, or experiment, in which a tracker keeps the run.")
    options: Annotated[
        dict[str, dict[str, Any]],
        Wording('a table for each tracker: [tracking.options.wandb], then mode = "offline"'),
    ] = Field(
        {},
        description="By tracker's name, what its own `init` is to be given. A file may set labels, and that a tracker "
        "stays offline; the rest is typed: `--set tracking.options...`, see [tracking](tracking.md).",
        json_schema_extra={"default": "none"},
    )
    timeout: float = Field(
        60.0,
        gt=0,
        le=86_400,
        description="Seconds within which a tracker must answer; after that the training goes on without it.",
    )

    @property
    def names(self) -> tuple[str, ...]:
        """The trackers; empty where nothing is tracked."""
        names = (self.name,) if isinstance(self.name, str) else self.name
        return tuple(name for name in names if name != "none")


DecaysAll = Annotated[
    bool,
    Field(description="`false` spares the parameters of normalisation, biases and other vectors from `weight_decay`."),
]


class SgdSection(_Section):
    """`[optimizer] name = "sgd"`: stochastic gradient descent with momentum."""

    name: Literal["sgd"] = Field("sgd", description="The optimizer.")
    lr: float = Field(0.1, gt=0, description="Learning rate that the schedule starts from.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Share of the last step that is taken again.")
    nesterov: bool = Field(True, description="Nesterov's form of momentum.")
    weight_decay: float = Field(5e-4, ge=0, description="L2 penalty, added to the gradient.")
    decay_norms_and_biases: DecaysAll = True


class AdamWSection(_Section):
    """`[optimizer] name = "adamw"`: Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    name: Literal["adamw"] = Field("adamw", description="The optimizer.")
    lr: float = Field(1e-3, gt=0, description="Learning rate that the schedule starts from.")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.999), description="Decay of the running means of the gradient and of its square."
    )
    eps: float = Field(1e-8, gt=0, description="Added to the denominator.")
    weight_decay: float = Field(0.01, ge=0, description="Decoupled from the gradient, times the learning rate.")
    decay_norms_and_biases: DecaysAll = True


class StepSection(_Section):
    """`[schedule] name = "step"`: the learning rate falls at milestones."""

    name: Literal["step"] = Field("step", description="The schedule.")
    milestones: tuple[Milestone, ...] = Field(
        (0.5, 0.75), description="Completed epochs (integers), or fractions of the run, at which the rate falls."
    )
    gamma: float = Field(0.1, gt=0, le=1, description="Factor by which the rate falls at each milestone.")
    warmup_epochs: Epochs = Field(0, description="Linear rise at the start: epochs, or a fraction of the run.")


class CosineSection(_Section):
    """`[schedule] name = "cosine"`: the learning rate falls along half a cosine."""

    name: Literal["cosine"] = Field("cosine", description="The schedule.")
    final_lr: float = Field(0.0, ge=0, description="Learning rate at the end of the run.")
    warmup_epochs: Epochs = Field(0, description="Linear rise at the start: epochs, or a fraction of the run.")


class ConstantSection(_Section):
    """`[schedule] name = "constant"`: the learning rate stays."""

    name: Literal["constant"] = Field("constant", description="The schedule.")
    warmup_epochs: Epochs = Field(0, description="Linear rise at the start: epochs, or a fraction of the run.")


class SnapshotSection(_Section):
    """`[schedule] name = "snapshot"`: cosine cycles, each ending in weights that are kept (Huang et al. 2017)."""

    name: Literal["snapshot"] = Field("snapshot", description="The schedule.")
    cycles: int = Field(5, ge=2, le=100, description="Cycles of the run, each restarted at the full learning rate.")
    warmup_epochs: Literal[0] = Field(0, description="The cycles begin at once.")


OptimizerSection = SgdSection | AdamWSection
ScheduleSection = StepSection | CosineSection | ConstantSection | SnapshotSection


class Recipe(BaseModel):
    """Everything that decides a training, complete and checked. Made by `load`; two are equal if they say the same."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: Name = Field(
        description="The recipe's name, which its runs bear.", json_schema_extra={"default": "the file's name"}
    )
    data: DataSection
    model: ModelSection
    group: GroupSection
    method: SerializeAsAny[MethodOptions]
    teacher: TeacherSection | None = None
    train: TrainSection
    optimizer: OptimizerSection
    schedule: ScheduleSection
    tracking: TrackingSection = TrackingSection()

    @field_validator(
        "data", "model", "group", "method", "teacher", "train", "optimizer", "schedule", "tracking", mode="before"
    )
    @classmethod
    def _section(cls, table: object, info: ValidationInfo) -> object:
        """A section from its table, whose `name` may decide which keys it has."""
        if isinstance(table, BaseModel) or (table is None and info.field_name == "teacher"):
            return table
        if not isinstance(table, dict):
            raise PydanticCustomError("not_a_table", "not a table")
        try:
            return model_of(str(info.field_name), table).model_validate(table)
        except UserError as error:  # of a method's own validator
            raise Refused(error.problem, error.hint) from error

    _places: dict[str, str] = PrivateAttr(default_factory=dict)
    _source: str = PrivateAttr(default="the recipe")
    # Keys of `[tracking]` that no file has set.
    _typed: frozenset[tuple[str, ...]] = PrivateAttr(default=frozenset())

    @property
    def architectures(self) -> tuple[str, ...]:
        """Each student's architecture, in the order of the group's members."""
        students = self.group.students
        return students if isinstance(students, tuple) else (self.model.architecture,) * students

    @property
    def networks(self) -> str:
        """The architectures in words: "resnet32", or "resnet32 + resnet20" where students differ."""
        return " + ".join(dict.fromkeys(self.architectures))

    def to_toml(self) -> str:
        """Write the whole recipe with every default; `load` of it gives an equal recipe."""
        # None is what cannot apply here (split_at of networks), and TOML has no word for it.
        return tomli_w.dumps(self.model_dump(exclude_none=True))

    def untyped_tracking(self) -> list[str]:
        """What `[tracking]` says and only counts where the user has typed it, who has not: dotted keys."""
        return [dotted(key) for key, _ in withheld(self.tracking.model_dump(), self._typed)]

    def with_tracking_of(self, other: "Recipe") -> "Recipe":
        """The recipe with another's `[tracking]`, and with what the user has typed of it."""
        recipe = self.model_copy(update={"tracking": other.tracking})
        recipe._typed = other._typed
        return recipe

    def digest(self) -> str:
        """SHA-256 of `to_toml`, in hexadecimal."""
        return hashlib.sha256(self.to_toml().encode()).hexdigest()

    def settings(self) -> dict[str, Any]:
        """Every key, dotted, with its value, None where it is not set: {"train.epochs": 300, ...}."""
        return _flat(self.model_dump())

    def differences(self, other: "Recipe") -> list[str]:
        """Every key in which another recipe says something else: "train.epochs: 300 here, 100 there".

        The name does not count, nor does what is undecided there: precision, threads, storage, a split yet to find.
        """
        ours, theirs = self.settings(), other.settings()
        for key in ("train.precision", "train.threads", "data.storage"):
            if theirs[key] == "auto":
                theirs[key] = ours[key]
        if ours["data.validation"] == "folder" and not theirs["data.validation"]:
            theirs["data.validation"] = "folder"  # as it was found
        same_network = ("model.architecture", "group.kind")
        if theirs["group.split_at"] is None and all(ours[key] == theirs[key] for key in same_network):
            theirs["group.split_at"] = ours["group.split_at"]
        keys = [key for key in {**ours, **theirs} if key != "name"]
        return [
            f"{key} was {_said(ours.get(key))}, now {_said(theirs.get(key))}"
            for key in keys
            if ours.get(key) != theirs.get(key)
        ]

    def __eq__(self, other: object) -> bool:
        """Equal if both say the same, wherever they were read: as text, because 1 and 1.0 epochs differ."""
        return self.to_toml() == other.to_toml() if isinstance(other, Recipe) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.to_toml())


def _said(value: object) -> object:
    """A setting in a sentence; None is what TOML has no word for."""
    return "not set" if value is None else value


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def resolve_epochs(value: int | float, epochs: int) -> int:
    """Epochs that `value` means in a run of `epochs`: an int counts them, a float is a fraction of the run, rounded."""
    return round(value * epochs) if isinstance(value, float) else value


# -------------------------------------------------------------------------------------------------- sections by name

SECTIONS = tuple(section for section in Recipe.model_fields if section != "name")
# What `name` means where such a section does not say; None: it has to.
DEFAULT_NAMES = {"method": None, "optimizer": "sgd", "schedule": "step"}

PLAIN_SECTIONS: dict[str, type[BaseModel]] = {
    "data": DataSection,
    "model": ModelSection,
    "group": GroupSection,
    "teacher": TeacherSection,
    "train": TrainSection,
    "tracking": TrackingSection,
}
_OPTIMIZERS: dict[str, type[BaseModel]] = {"sgd": SgdSection, "adamw": AdamWSection}
_SCHEDULES: dict[str, type[BaseModel]] = {
    "step": StepSection,
    "cosine": CosineSection,
    "constant": ConstantSection,
    "snapshot": SnapshotSection,
}


def variants(section: str) -> dict[str, type[BaseModel]]:
    """Collect the models of a section whose keys depend on its `name`."""
    if section == "method":
        return {name: methods.options_model(name) for name in methods.names()}
    return _OPTIMIZERS if section == "optimizer" else _SCHEDULES


# The name alone, where it is missing or unknown.
_NAMES = {
    section: create_model(
        section,
        __config__=ConfigDict(strict=True),
        name=(Annotated[str, Choice(functools.partial(lambda of: tuple(variants(of)), section), section)], ...),
    )
    for section in DEFAULT_NAMES
}


def model_of(section: str, table: object) -> type[BaseModel]:
    """The model of a section that says `table`."""
    if section in PLAIN_SECTIONS:
        return PLAIN_SECTIONS[section]
    name = table.get("name") if isinstance(table, dict) else None
    return (isinstance(name, str) and variants(section).get(name)) or _NAMES[section]


def known_keys(section: str) -> set[str]:
    """All keys that a section may have, whatever its `name`."""
    models = variants(section).values() if section in DEFAULT_NAMES else [PLAIN_SECTIONS[section]]
    return {key for model in models for key in model.model_fields}
