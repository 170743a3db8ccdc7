"""`distilkit report`: what several runs say, as one page and as figures for papers."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distilkit.errors import UserError
from distilkit.models import own
from distilkit.observer import Observer
from distilkit.report import facts, words
from distilkit.report.charts import Picture
from distilkit.report.comparison import comparison
from distilkit.report.details import run_pictures
from distilkit.report.figures import write_figures
from distilkit.report.history import History, Line, history
from distilkit.report.measured import Latencies, Robustness, TestedRun, latencies, robustness_of
from distilkit.report.page import Board, Page, html
from distilkit.report.views import GroupView, RunView
from distilkit.runs.atomic import writable, write_text
from distilkit.runs.run import Run, finished_runs
from distilkit.workflows.comparison.group_statistics import Role, classifier, difference, error_spreads
from distilkit.workflows.comparison.recipe_groups import (
    RecipeGroup,
    grouped,
    named_runs,
    on_same_images,
)
from distilkit.workflows.comparison.remarks import Remark, overall, within
from distilkit.workflows.evaluation.predictions_cache import on_test_images

FILE = "report.html"
FIGURES_OF_RUNS = 4
"""Figures for papers are drawn of the comparison, and of the first run of up to so many recipes."""

EVERY_PAIR = 16
"""Up to so many recipes on the same images each is compared with each; of more, each with the first."""

ROLES: tuple[Role, ...] = ("leader", "ensemble")

NOTHING = History(0, {split: {} for split in ("train", "validation", "test")}, {}, Line((), ()), Line((), ()), {}, {})


def report(
    paths: Sequence[Path],
    runs: Path,
    *,
    output: Path | None,
    figures: Path | None,
    draw: bool,
    evaluate: bool,
    details: int,
    benchmark: Path | None,
    data_root: str | None,
    device: str,
    observer: Observer,
) -> dict[str, Any]:
    """Write the report of some runs, all finished ones below `runs` unless some are named; returns its tables' figures.

    `output`: the page, by default `report.html` in the folder that holds the first run. `figures`: folder of the
    pictures for papers, by default beside the page; none with `draw` False. `evaluate`: whether the test images are
    looked at for errors by class, confusion and calibration. `details`: up to so many runs are shown in full; of more,
    the first ones of every recipe. `benchmark`: what `distilkit benchmark --json` printed.

    Raises `UserError` for what is no run, and where nothing can be written. What a run lacks is said in the report.
    """
    found = named_runs(paths, runs) or _every(runs, observer)
    timed = latencies(benchmark) if benchmark else None
    target = output or found[0].path.parent / FILE
    if target.is_dir():
        raise UserError(f"{target} is a folder; the report is one file", f"name it: --output {target / FILE}")
    recipes = grouped(found)
    groups = _views(recipes, timed, evaluate, details, data_root, device, observer)
    pairs = [pair for same in on_same_images(recipes) for pair in _pairs(same)]
    remarks = overall(recipes, pairs)
    page = _page(recipes, groups, remarks, "" if timed is None else timed.machine)
    with writable(target.parent):
        write_text(target, html(page))
    written: list[Path] = []
    if draw:
        observer.note("drawing the figures")
        with writable(figures or target.with_name(f"{target.stem}_figures")) as folder:
            written = write_figures(list(_for_papers(page)), folder)
    return {
        "output": str(target),
        "figures": [str(file) for file in written],
        "summary": list(page.summary),
        "notes": list(page.notes),
        "remarks": [asdict(remark) for remark in remarks],
        "groups": [group.facts for group in groups],
        "differences": [
            {**difference, "ours": difference["ours_label"], "theirs": difference["theirs_label"]}
            for board in page.boards
            for difference in board.differences
        ],
        "runs": [{**view.facts, "missing": {**view.facts["missing"], **view.missing}} for view in page.runs],
    }


def _every(runs: Path, observer: Observer) -> list[Run]:
    """All finished runs; a damaged one that nobody named must not stand in the way of the others."""
    whole = []
    for run in finished_runs(runs):
        try:
            _ = run.data
            whole.append(run)
        except UserError as error:
            observer.note(f"warning: {error.problem}; it is left out")
    if not whole:
        raise UserError(f"no finished run in {runs}/ can be read", "name one to see what is wrong with it")
    return whole


def _views(
    groups: Sequence[RecipeGroup],
    timed: Latencies | None,
    evaluate: bool,
    details: int,
    data_root: str | None,
    device: str,
    observer: Observer,
) -> list[GroupView]:
    everything = [run for group in groups for run in group.runs]
    detailed = {run.path for run in _shown_in_full(groups, details)}
    if evaluate:
        own.name_modules([name for run in everything if run.path in detailed for name in run.architectures])
    curves, damaged = robustness_of(everything)
    views, number = [], 0
    for style, group in enumerate(groups):
        members = []
        counted = {run.path for run in group.trainings}
        for run in group.runs:
            missing = {"perturbation curves": damaged[run.path]} if run.path in damaged else {}
            full = run.path in detailed
            observer.progress("runs", number + 1, len(everything))
            past = _history(run, missing)
            tested = _tested(run, data_root, device, observer, missing) if full and evaluate else None
            known = curves.get(run.path)
            if full:
                _explain(run, past, known, evaluate, missing)
            members.append(
                RunView(
                    f"r{number}",
                    f"g{style}",
                    style,
                    run,
                    facts.run_facts(run, timed),
                    past,
                    known,
                    tested,
                    full,
                    run.path in counted,
                    missing,
                )
            )
            number += 1
        first = next(view.facts for view in members if view.run.path == group.first.path)
        paths = [str(run.path) for run in group.runs]
        about = facts.group_facts(group.label, paths, first, group.seeds, error_spreads(group))
        about["remarks"] = [asdict(remark) for remark in within(group)]
        views.append(GroupView(f"g{style}", style, group.label, about, tuple(members)))
    return views


def _shown_in_full(groups: Sequence[RecipeGroup], details: int) -> list[Run]:
    """The first run of every recipe, then the second ones, and so on, until there are enough."""
    longest = max(len(group.runs) for group in groups)
    turns = [group.runs[turn] for turn in range(longest) for group in groups if turn < len(group.runs)]
    return turns[:details]


def _history(run: Run, missing: dict[str, str]) -> History:
    try:
        found = history(run)
    except UserError as error:
        missing["curves"] = error.problem
        return NOTHING
    if not found.epochs:
        missing["curves"] = "metrics.jsonl has no finished epoch"
    return found


def _tested(
    run: Run, data_root: str | None, device: str, observer: Observer, missing: dict[str, str]
) -> TestedRun | None:
    try:
        return on_test_images(run, data_root, device, observer)
    except UserError as error:
        hint = f" ({error.hint})" if error.hint else ""
        missing[words.ON_TEST_IMAGES] = f"{error.problem}{hint}"
        return None


def _explain(run: Run, past: History, known: Robustness | None, evaluate: bool, missing: dict[str, str]) -> None:
    """Why a section is not there."""
    if known is None:
        missing.setdefault("perturbation curves", f"not measured: distilkit robustness {run.path}")
    if not evaluate:
        missing[words.ON_TEST_IMAGES] = words.LEFT_OUT
    if past.epochs and len(run.record["members"]) > 1 and not past.diversity:
        missing["diversity"] = "metrics.jsonl does not have it"


def _page(recipes: Sequence[RecipeGroup], groups: Sequence[GroupView], remarks: Sequence[Remark], machine: str) -> Page:
    view_of = {recipe.label: group for recipe, group in zip(recipes, groups, strict=True)}
    boards = []
    for number, compared in enumerate(on_same_images(recipes)):
        members = [view_of[recipe.label] for recipe in compared]
        boards.append(
            Board(
                id=f"data{number}",
                dataset=members[0].facts["dataset"],
                images=members[0].runs[0].facts["test_images"],
                groups=tuple(members),
                pictures=tuple(comparison(members)),
                differences=tuple(_differences(compared, view_of)),
                recipe_keys=_recipe_keys(members),
            )
        )
    views = tuple(view for group in groups for view in group.runs)
    return Page(
        title=f"distilkit report: {words.counted(len(views), 'run')} of {words.counted(len(groups), 'recipe')}",
        summary=tuple(words.summary(boards)),
        notes=tuple(words.notes(groups, [remark.text for remark in remarks])),
        boards=tuple(boards),
        runs=views,
        details={view.id: run_pictures(view) for view in views if view.detailed},
        latency_machine=machine,
    )


RECIPES_BESIDE = 12


def _recipe_keys(groups: Sequence[GroupView]) -> tuple[tuple[str, Sequence[str]], ...]:
    if not 1 < len(groups) <= RECIPES_BESIDE:
        return ()
    return tuple(facts.recipe_differences([group.runs[0].run for group in groups]))


def _differences(recipes: Sequence[RecipeGroup], view_of: Mapping[str, GroupView]) -> Iterator[dict[str, Any]]:
    """Of recipes on the same images, in pairs: the leaders, and the ensembles where both have one.

    The later one minus the earlier: what a method changed against the baseline before it.
    """
    for ours, theirs in _pairs(recipes):
        for role in ROLES:
            if classifier(ours, role) is None or classifier(theirs, role) is None:
                continue
            compared = difference(ours, theirs, role)
            assert compared.found is not None  # They are on the same images.
            yield {
                "ours_label": ours.label,
                "theirs_label": theirs.label,
                "ours_id": view_of[ours.label].id,
                "theirs_id": view_of[theirs.label].id,
                "role": role,
                "classifiers": list(compared.classifiers),
                **facts.difference_facts(compared.found),
                "remarks": [asdict(remark) for remark in compared.remarks],
            }


def _pairs(recipes: Sequence[RecipeGroup]) -> list[tuple[RecipeGroup, RecipeGroup]]:
    """The recipes on the same images that are compared, the later one first."""
    finished = [recipe for recipe in recipes if recipe.trainings]
    if len(finished) > EVERY_PAIR:
        return [(other, finished[0]) for other in finished[1:]]
    return [(ours, theirs) for theirs, ours in itertools.combinations(finished, 2)]


def _for_papers(page: Page) -> Iterator[tuple[str, Picture]]:
    for board in page.boards:
        prefix = f"{board.dataset}-{board.id}" if len(page.boards) > 1 else ""
        yield from ((prefix, picture) for picture in board.pictures)
    firsts = {view.group: view for view in reversed(page.runs) if view.detailed}
    for view in sorted(firsts.values(), key=lambda view: view.style)[:FIGURES_OF_RUNS]:
        yield from ((f"{view.id}-{view.name}", picture) for picture in page.details[view.id])
