"""Print constraints for pip: every direct dependency at the oldest version that pyproject.toml allows.

    python tools/oldest.py > oldest.txt && pip install --constraint oldest.txt --editable '.[dev]'

What the dependencies themselves need is left to pip. Exit status 1, naming it, where a dependency declares no minimum.
"""

import re
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
_REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(\[[^]]*\])?(?P<limits>[^;]*)")


def constraints(requirements: list[str]) -> dict[str, str]:
    """Map each package to its oldest allowed version; raises `ValueError` for one that has no `>=`, or two."""
    oldest: dict[str, str] = {}
    for requirement in requirements:
        parts = _REQUIREMENT.match(requirement)
        least = re.findall(r">=\s*([^,\s]+)", parts["limits"]) if parts else []
        if parts is None or len(least) != 1:
            raise ValueError(f"{requirement!r} does not say from which version on")
        if oldest.setdefault(parts["name"], least[0]) != least[0]:
            raise ValueError(f"{parts['name']} has two minimums, {oldest[parts['name']]} and {least[0]}")
    return oldest


def main() -> None:
    """Print them for this project: what it needs, and every extra."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    extras = [each for needed in project.get("optional-dependencies", {}).values() for each in needed]
    try:
        oldest = constraints([*project["dependencies"], *extras])
    except ValueError as error:
        sys.exit(f"{PYPROJECT.name}: {error}")
    sys.stdout.write("".join(f"{name}=={version}\n" for name, version in sorted(oldest.items())))


if __name__ == "__main__":
    main()
