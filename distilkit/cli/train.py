"""`distilkit train`."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from distilkit.cli import completion, options
from distilkit.errors import UserError
from distilkit.observer import Observer

COSTS = ("parameters", "flops", "activations", "bytes")


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE]",
            help="A TOML file, or a built-in recipe's name.",
            autocompletion=completion.recipe_names,
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key: --set method.temperature=4. Repeatable."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the recipe, build the network, print its costs; train nothing.")
    ] = False,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            metavar="RUN",
            help="Continue an unfinished run where it stopped.",
            autocompletion=completion.run_folders,
        ),
    ] = None,
    accept_changes: Annotated[
        bool,
        typer.Option("--accept-changes", help="With --resume: go on although the recipe differs from the run's."),
    ] = False,
    seeds: Annotated[
        str | None, typer.Option("--seeds", metavar="0,1,2", help="Train once for each seed, in sibling runs.")
    ] = None,
    together: Annotated[
        bool, typer.Option("--together", help="With --seeds: all at once on the device, a process each.")
    ] = False,
    trust_code: options.TrustCode = False,
    runs: options.Runs = options.RUNS,
    device: options.Device = "auto",
    json_output: options.Json = False,
) -> None:
    """Train a recipe; the run's folder keeps everything.

    Examples:

      distilkit train quickstart

      distilkit train recipes/one_resnet32.toml --set train.epochs=100

      distilkit train quickstart --seeds 0,1,2 --together

      distilkit train --resume runs/one_resnet32-20260101T120000Z

      torchrun --nproc_per_node 2 -m distilkit train one_resnet32
    """
    if resume is None and recipe is None:
        raise UserError("which recipe?", "distilkit train quickstart, or a TOML file; --resume RUN continues a run")
    if accept_changes and resume is None:
        raise UserError("--accept-changes belongs to --resume RUN", "leave it out")
    if resume is not None and (dry_run or seeds is not None):
        raise UserError("--dry-run and --seeds do not go with --resume", f"distilkit train --resume {resume}")
    only_tracking = all(override.startswith("tracking.") for override in overrides or [])
    if resume is not None and recipe is None and not only_tracking:
        raise UserError(
            "--set changes a RECIPE, which is not named; without one, only keys of tracking may be set",
            f"distilkit train RECIPE --resume {resume} --set ...",
        )
    if together and seeds is None:
        raise UserError("--together belongs to --seeds", "--seeds 0,1,2 --together")
    if dry_run and seeds is not None:
        raise UserError("--dry-run looks at one training, whatever its seed", "leave --seeds out")
    chosen_seeds = None if seeds is None else _seeds(seeds)

    from distilkit.cli import console
    from distilkit.models.own import code_trusted
    from distilkit.recipe import load
    from distilkit.runs import upgrade
    from distilkit.runs.run import find_run
    from distilkit.training.processes import is_main
    from distilkit.workflows.train import train as workflow
    from distilkit.workflows.train.parallel_seeds import train_together
    from distilkit.workflows.train.seeds import train_seeds

    observer = console.TerminalObserver() if is_main() else Observer()
    trusted = code_trusted(trust_code, console.tell if is_main() else lambda _: None)
    loaded = None
    if recipe is not None:
        # A run's own recipe may be of an earlier version.
        own = upgrade.is_of_a_run(Path(recipe))
        loaded = upgrade.load(Path(recipe), overrides or [])[0] if own else load(recipe, overrides or [])
    if dry_run and loaded is not None:
        with trusted:
            document = workflow.dry_run(loaded, runs)
        console.print_json(document) if json_output else _show_plan(document)
        return
    command = shlex.join(["distilkit", *sys.argv[1:]])
    with trusted:
        if resume is not None:
            path = find_run(resume, runs).path
            if overrides and loaded is None:
                loaded, _ = upgrade.load(path / "recipe.toml", overrides)
            document = workflow.resume(
                path, device=device, observer=observer, recipe=loaded, accept_changes=accept_changes
            )
        elif loaded is not None and chosen_seeds is not None:
            several = train_together if together else train_seeds
            document = several(loaded, chosen_seeds, runs, device=device, command=command, observer=observer)
        else:
            assert loaded is not None
            document = workflow.train(loaded, runs, device=device, command=command, observer=observer)
    if not is_main():
        return
    if json_output:
        console.print_json(document)
    elif chosen_seeds is not None:
        _show_seeds(document)
    else:
        _show_result(document)


def _seeds(text: str) -> list[int]:
    """ "0,1,2" -> [0, 1, 2]."""
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 0 or max(seeds) >= 2**31 or len(set(seeds)) != len(seeds):
        raise UserError(f"--seeds takes distinct numbers from 0, separated by commas, not {text!r}", "--seeds 0,1,2")
    return seeds


def _show_seeds(document: dict[str, Any]) -> None:
    from distilkit.cli import console

    rows = [
        [
            name,
            console.percent(figures["mean_top1"]),
            console.percent(figures["std_top1"]),
            " ".join(console.percent(run["errors"][name]["top1"]) for run in document["runs"]),
        ]
        for name, figures in document["errors"].items()
    ]
    count = len(document["seeds"])
    console.print_table(
        f"top-1 errors on the test images over {count} seeds, %",
        ["classifier", "mean", "deviation", "each"],
        rows,
        "one training of each says nothing of the spread over seeds" if count == 1 else "deviation: the sample's",
    )
    for run in document["runs"]:
        console.print_line(run["run"])
    folder = str(Path(document["runs"][0]["run"]).parent)
    console.print_line("next: distilkit compare" + ("" if folder == "runs" else f" --runs {shlex.quote(folder)}"))


def _show_plan(document: dict[str, Any]) -> None:
    from distilkit.analysis.cost import named_uses
    from distilkit.cli import console

    wholes = {"train": "whole, in training (TrCost)", "deploy": f"deployed: {document['leader']} (TeCost)"}
    if document["ensemble"] is not None:
        wholes = {"ensemble": f"ensemble, {document['ensemble']} (TeCost)", **wholes}
    architectures = document["architectures"]
    differ = len(set(architectures.values())) > 1
    costs = [
        (f"{name} ({architectures[name]})" if differ and name in architectures else name, part)
        for name, part in document["parts"].items()
    ]
    costs += [(name, {what: document[what][whole] for what in COSTS}) for whole, name in wholes.items()]
    console.print_table(
        f"{document['recipe']}: {' + '.join(dict.fromkeys(architectures.values()))}, {document['method']}",
        ["part", "parameters", "FLOPs", "activations", "bytes"],
        [
            [
                name,
                f"{cost['parameters']:,}",
                console.scientific(cost["flops"]),
                f"{cost['activations']:,}",
                f"{cost['bytes']:,}",
            ]
            for name, cost in costs
        ],
        [
            "FLOPs of one image: 2 per multiply-add, convolutions and linear layers only (the papers' convention)",
            "activations: numbers that convolutions and linear layers put out for one image",
            "bytes: weights and buffers as safetensors; with the optimizer's state, a checkpoint has "
            f"{document['bytes']['checkpoint']:,}",
        ],
    )
    if document["uncounted"]:
        console.print_line(f"not counted, so the costs are too low: {named_uses(document['uncounted'])}")
    for teacher in document.get("teachers", ()):
        console.print_line(
            f"teacher {teacher['name']}: error {teacher['error']:.1f} % on {teacher['images']:,} images of the "
            f"{teacher['split']} split"
        )
    if document["teacher_missing"]:
        console.print_line(f"without the teacher: {document['teacher_missing']}")
    if document["split_at"]:
        console.print_line(f"branches begin at: {document['split_at']}")
    if document["pretrained"]:
        start = document["pretrained"]
        console.print_line(f"every student starts from: {start['file']}; classifiers: {start['classifier']}")
    data = document["data"]
    there = "there" if data["present"] else "not there"
    console.print_line(f"data: {data['dataset']}, {data['classes']} classes, {there}: {data['where']}")
    if data["images"]:
        counts = ", ".join(f"{count:,} {split}" for split, count in data["images"].items())
        console.print_line(f"images: {counts}")
    console.print_line(f"storage: {data['storage']} ({data['storage_reason']})")
    for remark in data["remarks"]:
        console.print_line(remark)
    for tracked in document["tracking"]:
        project = f", project {tracked['project']!r}" if tracked["project"] else ""
        console.print_line(f"figures go to {tracked['tracker']}{project}: {tracked['where']}")
    if not document["tracking"]:
        console.print_line("figures go to no tracker")
    console.print_line("nothing was trained")


def _show_result(document: dict[str, Any]) -> None:
    from distilkit.cli import console

    speed = f"{document['images_per_second']:,.0f} images/s"
    title = f"{document['run']}: errors on the test images, %"
    console.print_errors(title, document["errors"], document["interval95"], document["selected"], speed)
    console.print_line(f"next: distilkit export {shlex.quote(document['run'])}")
