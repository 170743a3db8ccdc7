"""What the README and docs/ print in code blocks: blocks, the commands in them, and which of them no test executes.

A plugin of pytest too: after a session that looked at the documentation it prints the count.
"""

import re
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = {"sh", "python", "toml", "yaml", "json", "text"}
"""`text` is what a terminal prints, or a drawing; everything else can be executed or read by a program."""

GPU = "needs several devices: the form on CPUs is run by tests/test_distributed.py"
HUB = "needs an account and the network: the form for folders is run, the rest by tests/test_hub.py"
HOURS = "takes hours: run in slices by hand, its results are committed"
INSTALLS = "installs packages from a registry"
SERVES = "does not end by itself"
RESUMES = "needs a training that was interrupted: tests/test_run.py and tests/test_exactness.py interrupt some"
ITSELF = "would run this test"

SKIPPED: dict[tuple[str, str], str] = {
    # (page, or "*"; the command, or its beginning before "...") -> why no test executes it.
    ("*", "torchrun ..."): GPU,
    ("*", "accelerate launch ..."): GPU,
    ("docs/distributed.md", "srun ..."): "needs SLURM",
    ("docs/distributed.md", "head=..."): "needs SLURM",
    ("README.md", "make quickstart"): INSTALLS,
    ("README.md", "make test"): ITSELF,
    ("docs/tutorial.md", "make quickstart"): INSTALLS,
    ("docs/shell.md", "distilkit --install-completion"): "writes into the shell's own files: tests/test_completion.py",
    ("*", "make reproduce ..."): HOURS,
    ("*", "python benchmarks/bench.py ..."): "measures for minutes on a quiet machine: tests/test_benchmarks.py",
    ("*", "python benchmarks/small_data.py images"): "needs CIFAR-100",
    ("docs/web-demo/README.md", "npm install"): INSTALLS,
    ("docs/web-demo/README.md", "python -m http.server ..."): SERVES,
    ("docs/tracking.md", "tensorboard ..."): SERVES,
    ("*", "distilkit train --resume ..."): RESUMES,
    ("docs/hub.md", "distilkit push runs/one --repo ..."): HUB,
    ("docs/commands.md", "distilkit push runs/one_resnet32-20260101T120000Z --repo ..."): HUB,
    ("*", "distilkit pull user/name ..."): HUB,
}


@dataclass(frozen=True)
class Block:
    """A code block. `page`: relative to the repository; `line`: of its fence."""

    page: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        """What an editor opens."""
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str | None:
        """The file's name where the block's first line is a comment that consists of one: `# mine.toml`."""
        named = re.match(r"# ([\w./-]+\.(?:toml|py|yml))\n", self.text)
        return named[1] if named else None


@dataclass(frozen=True)
class Command:
    """A line that is typed, without its comment."""

    page: str
    line: int
    text: str

    @property
    def place(self) -> str:
        """What an editor opens."""
        return f"{self.page}:{self.line}"

    @property
    def words(self) -> list[str]:
        """As the shell splits it; operators such as `|` and `>` are words of their own."""
        lexer = shlex.shlex(self.text, posix=True, punctuation_chars=True)
        lexer.wordchars += "{}[]=,:@%^+$!"
        return list(lexer)

    @property
    def skipped(self) -> tuple[str, str] | None:
        """The key of the entry of `SKIPPED` that this command falls under."""
        return next((key for key in SKIPPED if covers(key, self)), None)


def covers(key: tuple[str, str], command: Command) -> bool:
    """Whether an entry of `SKIPPED` speaks of a command."""
    page, typed = key
    same = command.text.startswith(typed[:-3].rstrip()) if typed.endswith("...") else command.text == typed
    return page in ("*", command.page) and same


def blocks(page: Path) -> Iterator[Block]:
    """All code blocks of a page, indented ones as well. Raises ValueError for one that does not end."""
    name, start, language, kept = page.relative_to(ROOT).as_posix(), 0, "", []
    fence = ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        mark = re.match(r"\s*(`{3,})(.*)$", line)
        if not fence and mark:
            fence, language, start, kept = mark[1], mark[2].strip(), number, []
        elif fence and mark and mark[1] == fence and not mark[2].strip():
            yield Block(name, start, language, "".join(f"{each}\n" for each in kept))
            fence = ""
        elif fence:
            kept.append(line)
    if fence:
        raise ValueError(f"{name}:{start}: a code block that does not end")


def commands(block: Block) -> Iterator[Command]:
    """The commands of a block of shell, a line that ends in a backslash joined with the next."""
    assert block.language == "sh"
    text, first = "", block.line + 1
    for number, line in enumerate(block.text.splitlines(), block.line + 1):
        text, first = (text + line.strip(), first) if text else (line.strip(), number)
        if text.endswith("\\"):
            text = text[:-1]
            continue
        bare = re.sub(r"\s+#.*$", "", text)
        if bare and not bare.startswith("#"):
            yield Command(block.page, first, bare)
        text = ""


BLOCKS = [block for page in PAGES for block in blocks(page)]
COMMANDS = [command for block in BLOCKS if block.language == "sh" for command in commands(block)]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what is executed and what is not, if the documentation was looked at."""
    reports = [each for group in terminalreporter.stats.values() for each in group if hasattr(each, "nodeid")]
    if not any("test_documentation" in each.nodeid for each in reports):
        return
    languages = Counter(block.language for block in BLOCKS)
    left_out = Counter(SKIPPED[key] for command in COMMANDS if (key := command.skipped))
    counted = ", ".join(f"{count} {language}" for language, count in sorted(languages.items()))
    terminalreporter.section("documentation")
    terminalreporter.line(f"{len(BLOCKS)} code blocks on {len({block.page for block in BLOCKS})} pages: {counted}")
    terminalreporter.line(
        f"{len(COMMANDS)} commands: {len(COMMANDS) - left_out.total()} executed (the long tests), "
        f"{left_out.total()} only parsed:"
    )
    for reason, count in left_out.most_common():
        terminalreporter.line(f"  {count:3d}  {reason}")
