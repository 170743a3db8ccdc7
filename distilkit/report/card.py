"""Model cards: README.md in a run's folder, and one beside each exported file, from real figures only.

A card begins with the metadata that the Hugging Face Hub reads. Two things in it are the user's, and stay when the card
is written again: the section "Intended use", and every key of the metadata that is not written here (a licence, say).
No card names a folder of the machine that wrote it.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import yaml

from distilkit._version import __version__
from distilkit.analysis.cost import named_uses
from distilkit.analysis.metrics import interval95
from distilkit.analysis.statistics import Spread
from distilkit.errors import UserError
from distilkit.models import own
from distilkit.reading import LARGEST_MEASURED, UnreadableError, read_json, read_text
from distilkit.runs.atomic import write_text
from distilkit.runs.data_record import DataRecord
from distilkit.runs.deployed_check import describe
from distilkit.runs.run import PrunedModel, Run
from distilkit.spelling import markdown, markdown_code, markdown_target, yaml_values

CARD = "README.md"
TO_FILL_IN = "To be filled in by whoever deploys this model."
HUB_DATASETS = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "svhn": "ufldl-stanford/svhn",
    "imagenet": "ILSVRC/imagenet-1k",
}
"""Data sets that the Hub has, by their names there; of a user's own it knows nothing."""

_OURS = "<!-- Written by distilkit, and written again by its later commands. What is yours stays: the section"
_NOTE = f'{_OURS} "Intended use", and keys that you add to the metadata above. -->'
_END = "<!-- end of what is yours -->"
_HEADING = "## Intended use"
_WRITTEN_KEYS = ("library_name", "pipeline_tag", "tags", "datasets", "metrics", "model-index")
_LARGEST_HEADER = 2**16  # characters, of which YAML's parser makes objects a thousand times as large
_LONGEST_COMMAND = 2**14  # characters; shlex needs time by their square
# What PyYAML raises of a header: of a date that there is not, of a number of thousands of digits, of lists in lists it
# raises what Python does.
_NO_YAML = (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError)
_FENCE = re.compile(r"^ {0,3}(```|~~~)")
_OLD_CARD = re.compile(r"^# .+\n\n`[^`\n]+` trained with `[^`\n]+` by distilkit ", re.MULTILINE)
# Options whose values are folders of the machine, and settings that are paths.
_PATH_OPTIONS = ("--runs", "--resume", "--data", "--output")
_PATH_SETTINGS = ("data.root", "teacher.run", "teacher.weights", "model.pretrained")


class CardKeptError(UserError):
    """A file that is there is left as it is: it is no card of ours, or nobody can tell what in it is the user's."""


@dataclass(frozen=True)
class SeedSpread:
    """What the trainings of one recipe that count say together.

    `errors`: classifier -> "top1" or "top5" -> `Spread`. `counted`: whether the card's own run is one of them; a newer
    training with its seed counts otherwise. `remarks`: in what these trainings differ that is not the question,
    sentences without full stops.
    """

    seeds: tuple[int, ...]
    errors: Mapping[str, Mapping[str, Spread]]
    counted: bool
    remarks: tuple[str, ...] = ()


def write_card(run: Run, seeds: SeedSpread | None = None) -> Path:
    """Write `README.md` of a run that has its final figures; returns its path.

    With two or more `seeds` the card has mean and deviation over them. Raises `UserError` when it cannot be written,
    and `CardKeptError` when writing it would lose what somebody else wrote.
    """
    file = run.path / CARD
    return _write(file, _run_metadata(run), _run_text(run, seeds), _code_command(run))


def write_export_card(
    found: Run | PrunedModel, export: Mapping[str, Any], seeds: SeedSpread | None = None, *, final: bool = True
) -> Path:
    """Write the card of an exported file beside it, `<file's stem>.card.md`; returns its path.

    `export`: what `distilkit export` says of the file. `found`, `seeds`: what was exported, as `write_card` takes it.
    `final`: whether these are the weights that the training's figures are of. Raises like `write_card`.
    """
    exported = Path(export["file"])
    file = exported.with_name(f"{exported.stem}.card.md")
    if isinstance(found, PrunedModel):
        about = _pruned_about(found)
    else:
        about = {
            "name": found.recipe.name,
            "method": found.record["method"],
            "architecture": found.recipe.networks,
            "data": found.data,
            "errors": found.record.get("final", {}).get("errors", {}) if final else {},
        }
    name = _exported_name(export)
    metadata = _metadata(
        str(about["name"]),
        about["data"],
        about["errors"].get(name),
        library=str(export["format"]),
        tags=(str(about["method"]), str(about["architecture"])),
    )
    text = _export_text(about, export, exported)
    if isinstance(found, Run) and name in about["errors"]:
        text += _seeds_text(found, seeds, [name]) + _robustness_text(found, name)
    return _write(file, metadata, text, "")


def intended_use(text: str) -> str | None:
    """What a card says under "Intended use"; None where it has no such section."""
    start = _heading(text)
    if start is None:
        return None
    rest = text[start:]
    for end in (f"\n{_END}", "\nMade by `distilkit"):
        if end in rest:
            return rest[: rest.rindex(end)].strip()
    return rest.strip()


# -------------------------------------------------------------------------------------------------------- what is kept


def _write(file: Path, metadata: dict[str, Any], text: str, footer: str) -> Path:
    use, kept = TO_FILL_IN, {}
    try:
        before = read_text(file)
    except UnreadableError as error:
        if not error.absent:
            reason = f"{file} cannot be read, and is left as it is: {error.reason}"
            raise CardKeptError(reason, "move it away") from error
        before = ""
    if before.strip():
        if _OURS not in before and not _OLD_CARD.search(before):
            raise CardKeptError(f"{file} is no model card of distilkit, and is left as it is", "move it away")
        found = intended_use(before)
        if found is None:
            raise CardKeptError(f'{file} has lost its heading "{_HEADING}", and is left as it is', "put it back")
        use, kept = found or TO_FILL_IN, _users_metadata(before, file)
    header = yaml.safe_dump({**yaml_values(metadata), **kept}, sort_keys=False, allow_unicode=True, width=1000)
    card = f"---\n{header}---\n\n{_NOTE}\n\n{text}{_HEADING}\n\n{use}\n\n{_END}\n{footer}"
    write_text(file, card)
    return file


def _heading(text: str) -> int | None:
    """Where the text under the heading begins; what looks like a heading inside a code block is none."""
    position, fence = 0, ""
    for line in text.splitlines(keepends=True):
        position += len(line)
        mark = _FENCE.match(line)
        if mark and not fence:
            fence = mark[1]
        elif mark and mark[1] == fence:
            fence = ""
        elif not fence and line.strip() == _HEADING:
            return position
    return None


def _users_metadata(text: str, file: Path) -> dict[str, Any]:
    """The keys of a card's header that distilkit does not write. Raises `UserError` where it cannot be read."""
    found = re.match(r"---\r?\n(.*?)^---\s*$", text, flags=re.DOTALL | re.MULTILINE)
    if found is None:
        return {}
    if len(found[1]) > _LARGEST_HEADER:
        raise CardKeptError(
            f"the metadata at the beginning of {file} have more than {_LARGEST_HEADER:,} characters; the card is left "
            "as it is",
            "shorten them",
        )
    try:
        header = yaml.safe_load(found[1])
        kept = (
            {key: value for key, value in header.items() if key not in _WRITTEN_KEYS}
            if isinstance(header, dict)
            else {}
        )
        yaml.safe_dump(kept)
    except _NO_YAML as error:
        where = getattr(error, "problem_mark", None)
        line = f" (line {where.line + 2})" if where else ""
        raise CardKeptError(
            f"the metadata at the beginning of {file} is no YAML{line}; the card is left as it is", "mend it"
        ) from error
    return kept


# ------------------------------------------------------------------------------------------------------------ metadata


def _run_metadata(run: Run) -> dict[str, Any]:
    leader = run.record["leader"]
    return _metadata(
        run.recipe.name,
        run.data,
        run.record["final"]["errors"].get(leader),
        library="distilkit",
        tags=(run.record["method"], run.recipe.networks),
    )


def _metadata(
    name: str, data: DataRecord, error: Mapping[str, Any] | None, *, library: str, tags: Sequence[str]
) -> dict[str, Any]:
    """The header of a card. Accuracies are fractions of all test images."""
    dataset: dict[str, Any] = {"name": data.dataset, "type": HUB_DATASETS.get(data.dataset, data.dataset)}
    metadata: dict[str, Any] = {
        "library_name": library,
        "pipeline_tag": "image-classification",
        # The Hub reads a meaning into colons.
        "tags": list(
            dict.fromkeys(
                ["image-classification", "knowledge-distillation", *(re.sub(r"[^\w.+-]+", "-", tag) for tag in tags)]
            )
        ),
    }
    if data.dataset in HUB_DATASETS:
        metadata["datasets"] = [HUB_DATASETS[data.dataset]]
    metadata["metrics"] = ["accuracy"]
    images = data.images.get("test")
    if error is not None and images:
        metrics = [
            {"type": "accuracy", "name": words, "value": _accuracy(error[kind], images)}
            for kind, words in (("top1", "top-1 accuracy"), ("top5", "top-5 accuracy"))
            if error.get(kind) is not None
        ]
        result = {
            "task": {"type": "image-classification", "name": "image classification"},
            "dataset": {**dataset, "split": "test"},
            "metrics": metrics,
        }
        metadata["model-index"] = [{"name": name, "results": [result]}]
    return metadata


def _accuracy(error: float, images: int) -> float:
    return (images - _wrong(error, images)) / images


def _wrong(error: float, images: int) -> int:
    """How many of the images an error in percent is."""
    return round(error * images / 100)


# ------------------------------------------------------------------------------------------------------- a run's card


def _run_text(run: Run, seeds: SeedSpread | None) -> str:
    record, final, data = run.record, run.record["final"], run.data
    rows = []
    for name, error in final["errors"].items():
        shown = markdown(name) + (" (leader, deployed)" if name == record["leader"] else "")
        rows.append(f"| {shown} | {error['top1']:.2f} | {_interval(error['top1'], data)} | {error['top5']:.2f} |")
    said = "see the spread over seeds below" if seeds and len(seeds.seeds) > 1 else _ALONE
    networks, method = markdown_code(run.recipe.networks), markdown_code(record["method"])
    return f"""# {markdown(run.recipe.name)}

{networks} trained with {method} by distilkit {markdown(record["distilkit"])}.

| | |
|---|---|
| data | {markdown(data.dataset)}, {len(data.classes)} classes, {data.size} x {data.size}, {_counts(data.images)} |
| validation | {_validation(data)} |
| members | {", ".join(_member(name, record) for name in record["members"])} |
| leader | {markdown(record["leader"])} |
| parameters | {_both(record["parameters"], ",")} |
| FLOPs of one image (2 per multiply-add, convolutions and linear layers) | {_both(record["flops"], ".4g")} |
{_code(run)}{_teacher(run)}| epochs | {markdown(final["epochs"])} |
| reported weights | {markdown(final["selected"]["rule"])} (epoch {markdown(final["selected"]["epoch"])}) |
| seed | {markdown(record["seed"])}: {said} |
| device, precision | {markdown(record["device"])}, {markdown(record["precision"]["used"])} |

## Errors on the test images, percent

| classifier | top-1 | 95 % interval | top-5 |
|---|---|---|---|
{chr(10).join(rows)}

Interval: Wilson's, of the top-1 error, over the sampling of {data.images["test"]:,} test images; it says nothing of
the spread between trainings.

{_lag(run)}{_seeds_text(run, seeds, list(final["errors"]))}\
{_costs(record)}{_robustness_text(run)}{_exports_text(run)}"""


def _lag(run: Run) -> str:
    said = describe(run.record.get("deployed_check", {}))
    return f"**Beware**: {said}.\n\n" if said else ""


_ALONE = "one training, so nothing is known of the spread over seeds"


def _seeds_text(run: Run, seeds: SeedSpread | None, names: Sequence[str]) -> str:
    """Mean and deviation over the seeds of one recipe; nothing where there is one."""
    if seeds is None or len(seeds.seeds) < 2:
        return ""
    rows = []
    for name in names:
        if name not in seeds.errors:
            continue
        top1, top5 = seeds.errors[name]["top1"], seeds.errors[name]["top5"]
        rows.append(
            f"| {markdown(name)} | {top1.mean:.2f} | {top1.deviation:.2f} | {top5.mean:.2f} | {top5.deviation:.2f} |"
        )
    if not rows:
        return ""
    which = ", ".join(map(markdown, seeds.seeds))
    repeated = "" if seeds.counted else ", of which a newer training counts"
    remarks = "".join(f"{markdown(remark)}.\n\n" for remark in seeds.remarks)
    return f"""## Spread over seeds, percent

{len(seeds.seeds)} trainings of this recipe, seeds {which}; this one is seed {markdown(run.record["seed"])}{repeated}. \
Deviation: the sample's.

| classifier | top-1, mean | deviation | top-5, mean | deviation |
|---|---|---|---|---|
{chr(10).join(rows)}

{remarks}"""


def _robustness_text(run: Run, member: str | None = None) -> str:
    """What `distilkit robustness` left in the run's folder of this very run, or of one member alone.

    Nothing where it was not measured.
    """
    try:
        document = read_json(run.path / "robustness" / "robustness.json", LARGEST_MEASURED)
        settings = document["settings"]
        measured = [each for each in document["runs"] if PurePath(each["run"]).name == run.path.name]
        paragraphs = [
            text for each in measured if member in (None, each["member"]) for text in _measured(each, settings)
        ]
    except (UnreadableError, ValueError, KeyError, TypeError, IndexError, OverflowError):
        return ""
    return f"## Robustness\n\n{chr(10).join(f'- {text}' for text in paragraphs)}\n\n" if paragraphs else ""


def _measured(each: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    other = "" if each["same_data"] else " (of other images than the training's test set)"
    images = f"{each['images']['test']:,} test images{other}"
    # An earlier version did not write down which checkpoint was asked for.
    who = markdown(each["member"]) + (f", checkpoint {markdown(each['checkpoint'])}" if each.get("checkpoint") else "")
    said = []
    if "curves" in each:
        curves, magnitudes = each["curves"]["test"], each["magnitudes"]
        ends = [sum(curve[place] for curve in curves) / len(curves) for place in (0, -1)]
        said.append(
            f"parameters of {who} moved by d = {magnitudes[-1]:g} along {len(curves)} random "
            f"{markdown(settings['directions_kind'])} directions: top-1 error {ends[0]:.2f} % at d = 0, {ends[1]:.2f} "
            f"% on average there, {images}, batch norm statistics {markdown(settings['statistics'])}"
        )
    if "inputs" in each:
        inputs = each["inputs"]
        kinds = ", ".join(
            f"{markdown(kind)} {sum(errors) / len(errors):.2f}" for kind, errors in inputs["errors"].items()
        )
        said.append(
            f"perturbed images, {who}, {images}: top-1 error {inputs['clean']:.2f} % clean, "
            f"{inputs['mean']:.2f} % over all kinds and severities (by kind: {kinds})"
        )
    return said


def _exports_text(run: Run) -> str:
    """The exported files in the run's folder; one that failed its check is none."""
    folder = run.path / "exports"
    files = [
        file
        for file in (sorted(folder.iterdir()) if folder.is_dir() else [])
        if file.is_file()
        and not file.name.startswith(".")
        and not file.name.endswith(".md")
        and not {".failed-parity", ".unchecked"} & set(file.suffixes)
    ]
    if not files:
        return ""
    rows = []
    for file in files:
        card = file.with_name(f"{file.stem}.card.md")
        about = f"[card]({markdown_target(f'exports/{card.name}')})" if card.is_file() else "-"
        rows.append(f"| {markdown_code(f'exports/{file.name}')} | {file.stat().st_size:,} | {about} |")
    return f"## Exports\n\n| file | bytes | |\n|---|---|---|\n{chr(10).join(rows)}\n\n"


def _member(name: str, record: dict[str, Any]) -> str:
    architectures = record.get("architectures", {})
    built = f" ({markdown_code(architectures[name])})" if len(set(architectures.values())) > 1 else ""
    return markdown(name) + built


def _validation(data: DataRecord) -> str:
    if not data.validation:
        return "none held out: nothing was chosen on images, and the last epoch is reported"
    held = data.images.get("validation")
    if data.validation == "folder":
        return f"{held:,} images of their own" if held is not None else "images of their own"
    return f"{f'{held:,}' if held is not None else data.validation} of the training images held out, drawn by the seed"


def _interval(error: float, data: DataRecord) -> str:
    low, high = interval95(error, data.images["test"])
    return f"{low:.2f} to {high:.2f}"


def _code(run: Run) -> str:
    """A row on the modules that opening this run executes, where there are any."""
    modules = dict.fromkeys(code.module for name in run.recipe.architectures if (code := own.code(name)))
    listed = ", ".join(map(markdown_code, modules))
    return f"| code of your own | opening this run executes {listed}, and needs `--trust-code` |\n" if modules else ""


def _teacher(run: Run) -> str:
    """A row on the teacher, where there is one."""
    section = run.recipe.teacher
    if section is None:
        return ""
    names = (section.run,) if isinstance(section.run, str) else section.run or (section.weights or "",)
    listed = ", ".join(markdown_code(PurePath(name).name) for name in names)
    return f"| teacher | {listed}, temperature {section.temperature:g}, weight {section.weight:g} |\n"


def _costs(record: dict[str, Any]) -> str:
    """The costs of every part; nothing for a run that an earlier version began."""
    if "parts" not in record:
        return ""
    rows = [
        f"| {markdown_code(name)} | {part['parameters']:,} | {part['flops']:.4g} | {part['activations']:,} "
        f"| {part['bytes']:,} |"
        for name, part in record["parts"].items()
    ]
    uncounted = record["uncounted"]
    missing = f"Not counted, so the costs are too low: {markdown(named_uses(uncounted))}.\n\n" if uncounted else ""
    return f"""## Costs

| part | parameters | FLOPs | activations | bytes |
|---|---|---|---|---|
{chr(10).join(rows)}

FLOPs of one image: 2 per multiply-add, convolutions and linear layers only. Activations: the numbers that these put
out for it. Bytes: weights and buffers as safetensors; the deployed file has {record["bytes"]["deploy"]:,}, and a
checkpoint, with the optimizer's state, {record["bytes"]["checkpoint"]:,}.

{missing}"""


def _both(costs: dict[str, int | None], form: str) -> str:
    shown = f"{costs['train']:{form}} in training, {costs['deploy']:{form}} deployed"
    return shown if costs.get("ensemble") is None else f"{shown}, {costs['ensemble']:{form}} as an ensemble"


def _counts(images: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {markdown(split)}" for split, count in images.items()) + " images"


def _code_command(run: Run) -> str:
    command = without_paths(str(run.record.get("command") or ""))
    return f"\nMade by {markdown_code(command)}.\n" if command else ""


def without_paths(command: str) -> str:
    """A command line without the folders of the machine that it was typed on: their last names stay, or nothing."""
    if len(command) > _LONGEST_COMMAND:
        return "distilkit"
    try:
        words = shlex.split(command)
    except ValueError:
        return "distilkit"
    kept: list[str] = []
    place = 0
    while place < len(words):
        word = words[place]
        option, equals, value = word.partition("=")
        if word == "--set" and place + 1 < len(words) and words[place + 1].startswith("data.root="):
            place += 2
            continue
        if option == "--set" and value.startswith("data.root="):
            place += 1
            continue
        if word in _PATH_OPTIONS:
            place += 2
            continue
        if equals and option in _PATH_OPTIONS:
            place += 1
            continue
        if equals and option == "--set":
            key, _, setting = value.partition("=")
            kept.append(f"--set={key}={_last_name(setting, key)}")
        elif equals and not option.startswith("-"):
            kept.append(f"{option}={_last_name(value, option)}")
        else:
            kept.append(_last_name(word))
        place += 1
    return shlex.join(kept)


def _last_name(text: str, key: str = "") -> str:
    """The last part of what is a path outside the working folder, or of any path where the setting is one."""
    parts = re.split(r"[/\\]", text.rstrip("/\\"))
    leaves = text.startswith(("/", "~", "\\")) or ".." in parts or re.match(r"[A-Za-z]:[\\/]", text)
    # A list of paths, as TOML writes it.
    if "/" in text and text.startswith("["):
        return re.sub(r"[^\s\"',\[\]]*/([^\s\"',\[\]/]+)", r"\1", text)
    return parts[-1] if leaves or key in _PATH_SETTINGS else text


# ---------------------------------------------------------------------------------------------------- an export's card


def _pruned_about(found: PrunedModel) -> dict[str, Any]:
    config = found.config
    error = config.get("top1_error")
    return {
        "name": _recipe_name(str(config.get("run", "model"))),
        "method": config["method"],
        "architecture": config["architecture"],
        "data": DataRecord.model_validate(config["data"]),
        "errors": {} if error is None else {config["member"]: {"top1": error}},
    }


def _recipe_name(folder: str) -> str:
    return re.sub(r"-\d{8}T\d{6}Z(-\d+)?$", "", folder)


def _exported_name(export: Mapping[str, Any]) -> str:
    """What was exported, as the run's figures name it: a member, or the method's own ensemble."""
    ensemble = re.match(r"ensemble \((\w+)\) of ", str(export["member"]))
    return ensemble[1] if ensemble else str(export["member"])


def _export_text(about: Mapping[str, Any], export: Mapping[str, Any], exported: Path) -> str:
    data: DataRecord = about["data"]
    error = about["errors"].get(_exported_name(export))
    if error is None:
        errors = "The training's error of these weights is not known.\n"
    else:
        top5 = f", top-5 {error['top5']:.2f}" if error.get("top5") is not None else ""
        errors = (
            f"Error of the training's own evaluation on {data.images['test']:,} test images, percent: top-1 "
            f"{error['top1']:.2f} (Wilson's 95 % interval {_interval(error['top1'], data)}){top5}.\n"
        )
    batch = export.get("batch")
    oldest = export.get("onnxruntime")
    needs = f"| needs | ONNX Runtime {oldest} or newer |\n" if oldest else ""
    quantized = export.get("quantized")
    networks, method = markdown_code(about["architecture"]), markdown_code(about["method"])
    return f"""# {markdown(about["name"])}: {markdown(exported.name)}

{networks} trained with {method}, exported to {export["format"]} by distilkit {__version__}.

| | |
|---|---|
| file | {markdown_code(exported.name)}, {export["bytes"]:,} bytes |
| classifier | {markdown(export["member"])} |
| data | {markdown(data.dataset)}, {len(data.classes)} classes, {_counts(data.images)} |
| input | {export.get("input", "float")}, {str(export.get("layout", "nchw")).upper()}, {data.size} x {data.size}, \
{data.channels} channel{"s" if data.channels > 1 else ""}, batch {"of any size" if batch is None else batch} |
| outputs | {", ".join(map(markdown, export["outputs"]))} |
{needs}| compared with PyTorch | {export["images_compared"]:,} test images: largest difference of a logit \
{export["max_abs_difference"]:.2e}, same class {export["top1_agreement"]:.2f} % |

## Errors

{errors}
{_quantized_text(quantized) if quantized else ""}"""


def _quantized_text(quantized: Mapping[str, Any]) -> str:
    rows = []
    for side, words in (("before", "floating point"), ("after", "8 bits")):
        figures = quantized[side]
        low, high = figures["interval95"]
        rows.append(f"| {words} | {figures['bytes']:,} | {figures['top1_error']:.2f} | {low:.2f} to {high:.2f} |")
    return f"""## The 8-bit file

{markdown_code(Path(quantized["file"]).name)} ({quantized["scheme"]}), both files on the same \
{quantized["images"]:,} test images:

| | bytes | top-1 error, % | 95 % interval |
|---|---|---|---|
{chr(10).join(rows)}

"""
