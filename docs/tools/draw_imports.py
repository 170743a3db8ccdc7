"""Draw which room of the house imports which, from the imports themselves, into docs/pictures/imports.svg.

    python docs/tools/draw_imports.py

The order of the rooms is the one that tests/test_imports.py enforces: nothing may stand left of the diagonal.
"""

import ast
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docs" / "pictures" / "imports.svg"
CELL, LEFT, TOP = 24, 130, 112
INK, SOFT, DOT, GROUND = "#1f2933", "#52606d", "#2f6db5", "#fafbfc"


def _rooms() -> tuple[list[str], dict[str, set[str]]]:
    """The rooms from top to bottom, and of each what it imports. Only what is read off the files; nothing is run."""
    checks = runpy.run_path(str(ROOT / "tests" / "test_imports.py"))
    order: list[str] = checks["ROOMS"]
    imports: dict[str, set[str]] = {}
    for file in sorted((ROOT / "distilkit").rglob("*.py")):
        room = file.relative_to(ROOT / "distilkit").parts[0].removesuffix(".py")
        if room in order:
            imports.setdefault(room, set()).update(_imported(file) & set(order) - {room})
    return order, imports


def _imported(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("distilkit.")}


def drawn() -> dict[Path, str]:
    """The picture's file and what is to be in it."""
    order, imports = _rooms()
    side = CELL * len(order)
    width, height = LEFT + side + 24, TOP + side + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        'font-family="system-ui, sans-serif" font-size="12">',
        "<title>Which room imports which: every mark lies right of the diagonal</title>",
        f'<rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="10" fill="{GROUND}" stroke="#d9dee4"/>',
    ]
    for place, room in enumerate(order):
        at = CELL * place
        parts += [
            f'<rect x="{LEFT}" y="{TOP + at}" width="{side}" height="{CELL}" '
            f'fill="{"#eef2f6" if place % 2 == 0 else GROUND}"/>',
            f'<text x="{LEFT - 8}" y="{TOP + at + CELL / 2:g}" fill="{INK}" text-anchor="end" '
            f'dominant-baseline="central">{room}</text>',
            f'<text transform="translate({LEFT + at + CELL / 2:g} {TOP - 8}) rotate(-55)" fill="{INK}">{room}</text>',
        ]
    for row, room in enumerate(order):
        parts.append(
            f'<rect x="{LEFT + CELL * row + 4}" y="{TOP + CELL * row + 4}" width="{CELL - 8}" height="{CELL - 8}" '
            'rx="3" fill="#cbd2d9"/>'
        )
        parts += [
            f'<circle cx="{LEFT + CELL * order.index(other) + CELL / 2:g}" cy="{TOP + CELL * row + CELL / 2:g}" r="6" '
            f'fill="{DOT}"><title>{room} imports {other}</title></circle>'
            for other in sorted(imports.get(room, ()), key=order.index)
        ]
    parts += [f'<text x="14" y="24" fill="{SOFT}">row imports column</text>', "</svg>", ""]
    return {FILE: "\n".join(parts)}


if __name__ == "__main__":
    for file, text in drawn().items():
        file.write_text(text, encoding="utf-8")
