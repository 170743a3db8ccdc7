"""The report's page in a browser: it asks for nothing, sorts, hides, fits a phone, runs no stranger's text."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from browser import WatchedPage
from conftest import Result
from reporting import change, light_copy, record

Command = Callable[..., Result]
RUNS_TABLE = "#runs-table"


@pytest.fixture
def report(six_runs: list[Path], distilkit: Command, tmp_path: Path) -> Path:
    """The page of the six runs."""
    file = tmp_path / "report.html"
    assert distilkit("report", *six_runs, "--output", file, "--no-figures").status == 0
    return file


@pytest.fixture
def opened(report: Path, page: WatchedPage) -> WatchedPage:
    page.goto(report.as_uri())
    return page


def cells(page: WatchedPage, table: str, column: int) -> list[str]:
    """What the rows of a table say in one column, from top to bottom, as written for sorting."""
    return page.locator(f"{table} tbody tr").evaluate_all(f"rows => rows.map(row => row.cells[{column}].dataset.value)")


def visible(page: WatchedPage, selector: str) -> int:
    """How many of these elements are drawn, within their part of the page if that were open."""
    return page.locator(selector).evaluate_all(
        "found => found.filter(one => !one.closest('.off') && getComputedStyle(one).display !== 'none').length"
    )


def test_it_loads_without_a_complaint_and_asks_for_nothing(opened: WatchedPage, report: Path) -> None:
    opened.wait_for_timeout(200)
    assert not opened.faults, opened.faults
    assert [url for url in opened.faults.requests if not url.startswith("data:")] == [report.as_uri()]
    assert opened.locator("h1").inner_text() == "distilkit report: 6 runs of 2 recipes"
    assert opened.locator("svg.chart").count() > 20
    policy = opened.locator("meta[http-equiv=Content-Security-Policy]").get_attribute("content")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_every_figure_of_its_tables_is_the_one_in_run_json(opened: WatchedPage, six_runs: list[Path]) -> None:
    rows = opened.locator(f"{RUNS_TABLE} tbody tr").evaluate_all(
        "rows => rows.map(row => ({...row.dataset, values: [...row.cells].map(cell => cell.dataset.value), "
        "texts: [...row.cells].map(cell => cell.textContent.trim())}))"
    )
    assert {row["path"] for row in rows} == {str(run) for run in six_runs}
    assert len(rows) == 9  # Three leaders, and three times a leader and an ensemble.
    for row in rows:
        known = record(Path(row["path"]))
        errors = known["final"]["errors"][row["classifier"]]
        of = "deploy" if row["classifier"] == known["leader"] else "ensemble"
        figures = [known["seed"], errors["top1"], errors["top5"], known["parameters"][of], known["flops"][of]]
        assert [float(row["values"][column]) for column in (2, 3, 5, 6, 7)] == figures
        assert float(row["values"][8]) == known["flops"]["train"]
        assert row["texts"][3] == f"{errors['top1']:.2f}"
        assert row["texts"][6] == f"{known['parameters'][of]:,}"
    for number, run in enumerate(six_runs):
        members = opened.locator(f"#r{number} table.members tbody tr").evaluate_all(
            "rows => rows.map(row => [row.dataset.classifier, row.cells[1].dataset.value, row.cells[3].dataset.value])"
        )
        known = {name: (error["top1"], error["top5"]) for name, error in record(run)["final"]["errors"].items()}
        assert {name: (float(top1), float(top5)) for name, top1, top5 in members} == known


@pytest.mark.parametrize(("column", "numeric"), [(0, False), (3, True), (6, True)])
def test_tables_sort_in_both_directions(opened: WatchedPage, column: int, numeric: bool) -> None:
    def ordered(found: Sequence[str]) -> bool:
        values: list[Any] = [float(value) for value in found] if numeric else list(found)
        return values == sorted(values)

    button = opened.locator(f"{RUNS_TABLE} thead button").nth(column)
    head = opened.locator(f"{RUNS_TABLE} thead th").nth(column)
    button.focus()
    opened.keyboard.press("Enter")
    assert ordered(cells(opened, RUNS_TABLE, column))
    assert head.get_attribute("aria-sort") == "ascending"
    button.click()
    assert ordered(cells(opened, RUNS_TABLE, column)[::-1])
    assert head.get_attribute("aria-sort") == "descending"


def test_what_is_missing_sorts_last_whichever_way(opened: WatchedPage, report: Path) -> None:
    opened.evaluate(f"document.querySelector('{RUNS_TABLE} tbody tr').cells[3].dataset.value = ''")
    button = opened.locator(f"{RUNS_TABLE} thead button").nth(3)
    for _ in range(2):
        button.click()
        assert cells(opened, RUNS_TABLE, 3)[-1] == ""


def test_a_run_can_be_hidden_and_shown_again(opened: WatchedPage) -> None:
    marked = '[data-run="r1"]'
    before = visible(opened, marked)
    assert visible(opened, f"{RUNS_TABLE} {marked}") == 1
    assert visible(opened, f"svg {marked}") > 2
    opened.locator(".choice details summary").first.click()
    opened.get_by_label("seed 1, baseline").uncheck()
    assert visible(opened, marked) == 0
    assert visible(opened, '[data-run="r0"]') > 0
    assert visible(opened, "#data0-differences tr[data-groups]") == 1
    assert opened.locator("#hidden-note").is_visible()
    opened.get_by_label("seed 1, baseline").check()
    assert visible(opened, marked) == before


def test_a_recipe_can_be_hidden_with_all_that_speaks_of_it(opened: WatchedPage) -> None:
    box = opened.locator("[data-toggle-group=g1]")
    box.uncheck()
    for selector in ('[data-group="g1"]', "[data-groups]", '[data-run="r4"]'):
        assert opened.locator(selector).count() > 0
        assert visible(opened, selector) == 0
    assert visible(opened, f"{RUNS_TABLE} tbody tr") == 3
    opened.get_by_role("button", name="none").click()
    assert visible(opened, f"{RUNS_TABLE} tbody tr") == 0
    opened.get_by_role("button", name="all", exact=True).click()
    assert visible(opened, f"{RUNS_TABLE} tbody tr") == 9
    assert box.is_checked()


def test_the_pointer_reads_the_figures_off_a_line(opened: WatchedPage, six_runs: list[Path]) -> None:
    chart = opened.locator("#data0-test-error svg.chart")
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    assert box
    opened.mouse.move(box["x"] + box["width"] - 20, box["y"] + box["height"] / 2)
    text = opened.locator("#readout").inner_text()
    errors = [record(run)["final"]["errors"]["student_0"]["top1"] for run in six_runs[:3]]
    label, value = text.split("\n\n")[1].split(": ")
    assert label == "baseline"
    assert float(value) == pytest.approx(sum(errors) / 3, rel=1e-4)
    opened.mouse.move(0, 0)
    assert not opened.locator("#readout").is_visible()


def luminance(colour: Sequence[float]) -> float:
    channels = [value / 255 for value in colour]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: Sequence[float], other: Sequence[float]) -> float:
    """WCAG 2's contrast of two colours, 1 to 21."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_stand_out_in_light_and_dark(scheme: str, opened: WatchedPage) -> None:
    opened.emulate_media(color_scheme=scheme)

    def colour(variable: str) -> list[int]:
        text: str = opened.evaluate(
            "name => { const one = document.createElement('i'); document.body.append(one); one.style.color = "
            "`var(${name})`; const found = getComputedStyle(one).color; one.remove(); return found; }",
            variable,
        )
        return [int(part) for part in text.removeprefix("rgb(").removesuffix(")").split(",")]

    behind = colour("--page")
    assert (luminance(behind) > 0.5) is (scheme == "light")
    assert contrast(colour("--ink"), behind) >= 7
    assert contrast(colour("--soft"), behind) >= 4.5
    assert contrast(colour("--soft"), colour("--sheet")) >= 4.5
    assert contrast(colour("--accent"), colour("--on-accent")) >= 4.5
    assert contrast(colour("--ink"), colour("--warm")) >= 7
    lines = [colour(f"--c{number}") for number in range(8)]
    assert all(contrast(line, behind) >= 3 for line in lines)
    assert len({tuple(line) for line in lines}) == 8


@pytest.mark.parametrize("width", [320, 375, 800, 1280])
def test_no_page_scrolls_sideways(width: int, opened: WatchedPage) -> None:
    opened.set_viewport_size({"width": width, "height": 800})
    opened.reload()
    opened.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    assert opened.evaluate("document.documentElement.scrollWidth") <= width


def test_on_paper_it_is_light_and_has_no_buttons(opened: WatchedPage) -> None:
    opened.emulate_media(media="print", color_scheme="dark")
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not opened.locator("aside").is_visible()
    assert opened.locator("#data0-recipes").is_visible()
    assert len(opened.pdf()) > 10_000


def test_charts_speak_and_tables_have_heads(opened: WatchedPage) -> None:
    charts = opened.locator("svg[role=img]").evaluate_all(
        "found => found.map(one => ['aria-labelledby', 'aria-describedby'].map(name => "
        "document.getElementById(one.getAttribute(name))?.textContent ?? ''))"
    )
    assert len(charts) > 20
    assert all(title.strip() and len(text) > 20 for title, text in charts)
    assert opened.locator("th:not([scope])").count() == 0
    assert opened.locator("table").count() == opened.locator("table:has(thead th[scope=col])").count()
    names = opened.evaluate("[...document.querySelectorAll('[id]')].map(one => one.id)")
    assert len(names) == len(set(names))


HOSTILE = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"


def test_hostile_names_do_nothing(six_runs: list[Path], distilkit: Command, tmp_path: Path, page: WatchedPage) -> None:
    folder = tmp_path / "runs"
    evil = folder / HOSTILE.replace("/", "\u2215")
    plain = folder / "plain"
    for source, target in ((six_runs[3], evil), (six_runs[0], plain)):
        shutil.copytree(source, target)
        assert distilkit("report", target, "--no-figures").status == 0
    for run in (evil, plain):
        data = record(run)["data"]
        change(run, data=data | {"classes": [f"{HOSTILE}{number}" for number in range(10)]}, device=HOSTILE)
    text = (evil / "metrics.jsonl").read_text()
    (evil / "metrics.jsonl").write_text(text.replace('"distillation"', json.dumps(HOSTILE)))
    file = tmp_path / "page.html"
    result = distilkit("report", evil, plain, "--output", file, "--figures", tmp_path / "figures", "--json")
    assert result.status == 0, result.err
    page.goto(file.as_uri())
    page.wait_for_timeout(200)
    assert not page.faults, page.faults
    assert page.title() == "distilkit report: 2 runs of 2 recipes"
    assert page.locator("script").count() == 1
    assert page.locator("img").count() == 0
    assert page.get_by_text(HOSTILE + "3").count() > 0
    assert all(Path(name).name.isascii() for name in result.json["figures"])


def test_two_hundred_runs_open_sort_and_hide(
    six_runs: list[Path], distilkit: Command, tmp_path: Path, page: WatchedPage
) -> None:
    for number in range(200):
        light_copy(six_runs[3 * (number % 2)], tmp_path / "runs" / f"run-{number}", name="many", seed=number)
    document = distilkit("report", "--runs", tmp_path / "runs", "--no-figures", "--no-evaluate", "--json").json
    page.goto(Path(document["output"]).as_uri())
    assert page.locator(f"{RUNS_TABLE} tbody tr").count() == 300
    page.locator(f"{RUNS_TABLE} thead button").nth(2).click()
    assert cells(page, RUNS_TABLE, 2)[0] == "0"
    page.locator("[data-toggle-group=g0]").uncheck()
    assert visible(page, f"{RUNS_TABLE} tbody tr") < 300
    page.set_viewport_size({"width": 375, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    assert not page.faults, page.faults
