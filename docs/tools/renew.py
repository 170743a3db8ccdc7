"""Make anew all that is taken from the program: the documentation's tables, commands and pictures, the list of names.

python docs/tools/renew.py             # writes
python docs/tools/renew.py --check     # says what is stale, exit status 1
"""

import sys
from pathlib import Path

import choosing
import commands
import draw_imports
import draw_methods
import options

from distilkit.recipe import listing, reference
from distilkit.shipped import LIST


def drawn() -> dict[Path, str]:
    """Every file that is made, and what is to be in it."""
    own = {LIST: listing.text(), reference.PAGE: reference.renewed(reference.PAGE.read_text(encoding="utf-8"))}
    return own | commands.drawn() | options.drawn() | choosing.drawn() | draw_methods.drawn() | draw_imports.drawn()


def stale() -> dict[Path, str]:
    """Those of them that are missing or say something else."""
    return {
        file: text for file, text in drawn().items() if not file.is_file() or file.read_text(encoding="utf-8") != text
    }


if __name__ == "__main__":
    changed = stale()
    for file, text in changed.items():
        if "--check" not in sys.argv:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        sys.stdout.write(f"{file}\n")
    sys.exit(bool(changed) and "--check" in sys.argv)
