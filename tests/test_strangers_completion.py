"""The Tab key runs nothing that a file's name or a run says: in real shells, on a terminal, and in what is printed.

The names and runs here leave a file called MARK where a shell takes any of them for code. A test whose shell is not
installed is skipped; with DISTILKIT_REQUIRE_SHELLS=1, as in CI, it fails.
"""

import contextlib
import inspect
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer

import distilkit as package
from distilkit import cli
from distilkit.cli import completion
from distilkit.reading import LARGEST_JSON

Ask = Callable[..., str]

# What zsh evaluates once, or once more after the completion library's escape; what bash does with a bare word.
HOSTILE = (
    "x$(touch MARK)",
    "x\\$(touch MARK)",
    "x`touch MARK`",
    "x\\`touch MARK\\`",
    "x;touch MARK;",
    "x&touch MARK&",
    "x|touch MARK|",
    "x>MARK",
    "x\ntouch MARK\n",
    'x"$(touch MARK)"',
    'x\\"$(touch MARK)\\"',
    "x'$(touch MARK)'",
    "x')) $(touch MARK)",
    'x":"$(touch MARK)',
    "x<(touch MARK)",
    "x[bold]\\$(touch MARK)",
)
ALONE = "u;touch MARK;"
"""The only name that begins so: bash puts it into the line."""
UNUSUAL = ("x y", "x*", "x?", "~", "~root", "!!", "#x", "x\x1b]0;title\x07", "x\u202ey", "xü", "--trust-code")
WORD = re.compile(r"-{0,2}[A-Za-z0-9_./][A-Za-z0-9_./:+-]*")


@pytest.fixture
def strangers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a harmless run and recipe, and with hostile names in every place that is offered."""
    folder = tmp_path / "work"
    good = folder / "runs" / "one-a"
    (good / "checkpoints" / "step_10").mkdir(parents=True)
    for name in (ALONE, *HOSTILE, *UNUSUAL):
        run = folder / "runs" / name
        run.mkdir()
        (run / "run.json").write_text(json.dumps({"method": name, "architecture": name, "state": name}))
        (good / "checkpoints" / name).mkdir()
        for ending in (".toml", ".onnx"):
            (folder / f"{name}{ending}").touch()
    (folder / "good.toml").touch()
    said = {"method": "one", "architecture": "x\\$(touch MARK)\\`touch MARK\\`", "state": "done"}
    members = ["student_0", "student_1", ALONE, *HOSTILE, *UNUSUAL]
    (good / "run.json").write_text(json.dumps({"created": "2026-01-01", **said, "members": members}))
    monkeypatch.chdir(folder)
    return folder


# ------------------------------------------------------------------------------------------------------- real shells


class Terminal:
    """A shell on a terminal of its own, whose `distilkit` completes as the real one and otherwise only says its words.

    `typed` gives back what the terminal shows until the shell answers the next command.
    """

    def __init__(self, command: list[str], folder: Path, setup: str) -> None:
        import pty

        binary = folder.parent / "bin"
        binary.mkdir()
        (binary / "distilkit").write_text(
            f'#!/bin/sh\nif [ -n "$_DISTILKIT_COMPLETE" ]; then exec {sys.executable} -P -m distilkit "$@"; fi\n'
            'case "$1" in --show-completion) exec '
            f'{sys.executable} -P -m distilkit "$@";; esac\nprintf \'word <%s>\\n\' "$@"\n'
        )
        (binary / "distilkit").chmod(0o755)
        added = {
            "PATH": f"{binary}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(Path(package.__file__).parents[1]),
            "HOME": str(folder.parent),
            "TERM": "dumb",
            "COLUMNS": "200",
            "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
        }
        self.outside, inside = pty.openpty()
        self.shell = subprocess.Popen(
            command,
            **{"stdin": inside, "stdout": inside, "stderr": inside},
            cwd=folder,
            env={**os.environ, **added},
            start_new_session=True,
        )
        os.close(inside)
        self.count = 0
        self.typed(setup)

    def typed(self, text: str) -> str:
        self.count += 1
        # What is echoed of this has quotes in it; what is printed has none.
        os.write(self.outside, f"{text}\necho sy''nc{self.count}\n".encode())
        seen, ends = "", time.monotonic() + 120
        while f"sync{self.count}" not in seen:
            ready, _, _ = select.select([self.outside], [], [], ends - time.monotonic())
            assert ready, f"nothing more comes after {text!r}, but {seen!r}"
            seen += os.read(self.outside, 65536).decode(errors="replace")
        return seen

    def close(self) -> None:
        os.close(self.outside)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.shell.pid, signal.SIGKILL)
        self.shell.wait()


@pytest.fixture(params=["bash", "zsh"])
def terminal(request: pytest.FixtureRequest, strangers: Path) -> Iterator[Terminal]:
    if shutil.which(request.param) is None:
        message = f"no {request.param} on this machine"
        if os.environ.get("DISTILKIT_REQUIRE_SHELLS") == "1":
            pytest.fail(f"{message}, and DISTILKIT_REQUIRE_SHELLS is 1")
        pytest.skip(message)
    if os.name != "posix":
        pytest.skip("there is no terminal to be had")
    shown = f'eval "$(distilkit --show-completion {request.param})"'
    if request.param == "bash":
        # All that there is, at once: nothing asks whether to go on.
        quiet = "set bell-style none;set completion-query-items 0;set page-completions off;set show-all-if-ambiguous on"
        command = ["bash", "--norc", "--noprofile", "-i"]
        setup = "; ".join(f"bind '{each}'" for each in quiet.split(";"))
    else:
        command = ["zsh", "-f", "-i"]
        setup = "LISTMAX=10000; setopt no_beep; autoload -Uz compinit; compinit -u -D"
    opened = Terminal(command, strangers, f"{setup}; {shown}")
    yield opened
    opened.close()


def test_pressing_tab_and_then_enter_runs_nothing_that_a_name_or_a_run_says(
    terminal: Terminal, strangers: Path
) -> None:
    lines = ["evaluate runs/", "train x", "evaluate runs/one-a --member "]
    lines += ["evaluate runs/u", "train u", "evaluate runs/one-a --member u"]
    seen = {words: terminal.typed(f"distilkit {words}\t") for words in lines}
    assert not list(strangers.rglob("MARK*")), seen
    # What is harmless was offered all the same.
    assert "student_" in seen["evaluate runs/one-a --member "]


def test_a_harmless_name_becomes_the_word_that_the_command_gets(terminal: Terminal) -> None:
    assert "word <runs/one-a>" in terminal.typed("distilkit evaluate runs/o\t")
    assert "word <good.toml>" in terminal.typed("distilkit train goo\t")
    assert "word <torchvision:>" in terminal.typed("distilkit models torchv\t")
    assert "--resolved" in terminal.typed("distilkit recipes copy --\t")


# -------------------------------------------------------------------------------------------------- what is printed


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ask:
    """ask("fish", "evaluate", ""): what the shell's script is given."""

    def answer(shell: str, *words: str) -> str:
        typed = ("distilkit", *words)
        monkeypatch.setenv("_DISTILKIT_COMPLETE", f"complete_{shell}")
        monkeypatch.setenv("COLUMNS", "80")  # completing sets it; here it is to be as it was
        monkeypatch.setenv("COMP_WORDS", "\n".join(typed))
        monkeypatch.setenv("COMP_CWORD", str(len(typed) - 1))
        monkeypatch.setenv("_TYPER_COMPLETE_ARGS", " ".join(typed))
        monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
        monkeypatch.setenv("_TYPER_COMPLETE_WORD_TO_COMPLETE", words[-1])
        capsys.readouterr()
        with pytest.raises(SystemExit):
            cli.main([])
        return capsys.readouterr().out

    return answer


LINES = (
    ("evaluate", ""),
    ("train", ""),
    ("benchmark", "x"),
    ("evaluate", "runs/one-a", "--checkpoint", ""),
    ("export", "runs/one-a", "--mode", ""),
)


@pytest.mark.parametrize("words", LINES, ids=" ".join)
def test_only_harmless_characters_are_printed_and_one_line_for_each_word(
    words: tuple[str, ...], strangers: Path, ask: Ask
) -> None:
    description = r"[A-Za-z0-9_./:+(), -]*"
    for shell, parts in (("fish", r"\t"), ("bash", "never"), ("powershell", ":::")):
        wrong = [
            line
            for line in ask(shell, *words).splitlines()
            if line and not re.fullmatch(rf"{WORD.pattern}({parts}{description})?", line)
        ]
        assert wrong == [], shell
    zsh = ask("zsh", *words)
    assert "MARK" not in re.sub(r'":"[^"]*"', "", zsh)
    assert not set("$`;&|><*?~") & set(zsh.removeprefix("_arguments '*: :((")), zsh


def test_names_that_are_not_harmless_are_left_out_and_the_others_stay(
    strangers: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(ask("bash", "evaluate", "runs/").split()) == {"runs/one-a", "runs/--trust-code"}
    assert ask("bash", "train", "x") == "\n"
    assert ask("bash", "evaluate", "runs/one-a", "--member", "").split() == ["student_0", "student_1"]
    assert ask("bash", "evaluate", "runs/one-a", "--checkpoint", "").split() == ["step_10"]
    monkeypatch.chdir(strangers / "runs")
    assert ask("bash", "evaluate", "--runs", ".", "").split() == ["one-a"], "no name becomes an option"


def test_the_members_are_those_of_the_run_that_was_typed(strangers: Path, ask: Ask) -> None:
    (strangers / "runs" / "two-b").mkdir()
    (strangers / "runs" / "two-b" / "run.json").write_text('{"state": "running", "members": ["of_two_b"]}')
    assert ask("bash", "evaluate", "runs/two-b", "--member", "").split() == ["of_two_b"]
    assert ask("bash", "export", "runs/two-b", "--mode", "m").split()[-1] == "member:of_two_b"


@pytest.mark.parametrize("made", ["large", "pipe", "device", "folder", "empty", "deep"])
def test_a_record_that_is_no_plain_file_of_plausible_size_is_not_read(made: str, tmp_path: Path, ask: Ask) -> None:
    file = tmp_path / "run.json"
    if made == "large":
        file.write_text(json.dumps({"members": ["student_0"]}).ljust(LARGEST_JSON + 1))
    elif made == "pipe":
        os.mkfifo(file)
    elif made == "device":
        file.symlink_to("/dev/zero")
    elif made == "folder":
        file.mkdir()
    else:
        file.write_text("" if made == "empty" else '{"members":' * 90_000)
    assert ask("bash", "evaluate", str(tmp_path), "--member", "") == "\n"


def _completers(app: typer.Typer) -> Iterator[Callable[..., Any]]:
    """Every function that completes a word of a command."""
    callbacks = [command.callback for command in app.registered_commands]
    for group in app.registered_groups:
        assert group.typer_instance is not None
        yield from _completers(group.typer_instance)
    if app.registered_callback is not None:
        callbacks.append(app.registered_callback.callback)
    for callback in filter(None, callbacks):
        for annotation in inspect.get_annotations(callback, eval_str=True).values():
            for said in get_args(annotation)[1:]:
                if function := getattr(said, "autocompletion", None):
                    yield function


def test_every_completer_of_every_command_lets_only_harmless_characters_through() -> None:
    found = set(_completers(cli.app))
    assert len(found) == 9
    wrapper = completion.completer(lambda: []).__code__
    assert [each.__name__ for each in found if each.__code__ is not wrapper] == []

    @completion.completer
    def evil(incomplete: str) -> completion.Offered:
        return [*HOSTILE, *UNUSUAL, *((f"w{place}", each) for place, each in enumerate(HOSTILE)), "good"]

    offered = dict(evil(""))  # type: ignore[arg-type]
    assert list(offered) == [*(f"w{place}" for place in range(len(HOSTILE))), "good"]
    assert not set("".join(offered.values())) & set("$`;&|><'\"\\[]\n")
