"""The Tab key: what the shells' own scripts ask, and what distilkit answers, without torch."""

import json
import os
import select
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result

import distilkit as package
from distilkit import cli, shipped
from distilkit.models import registry
from distilkit.recipe import builtin

Ask = Callable[..., list[str]]
SHELLS = ("bash", "zsh", "fish")


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with two runs, the younger one unfinished, and a recipe."""
    for name, created, state in (("one-a", "2026-01-01", "done"), ("dml-b", "2026-02-01", "running")):
        folder = tmp_path / "runs" / name
        (folder / "checkpoints" / "step_10").mkdir(parents=True)
        (folder / "checkpoints" / "last").write_text("step_10")
        record = {"created": created, "state": state, "method": "one", "members": ["student_0", "student_1"]}
        (folder / "run.json").write_text(json.dumps(record))
    (tmp_path / "runs" / "damaged").mkdir()
    (tmp_path / "runs" / "damaged" / "run.json").write_text("{")
    (tmp_path / "own.toml").write_text('name = "own"\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ask:
    """ask("bash", "distilkit", "train", "one_"): the answers, with the variables that this shell's script sets."""

    def answers(shell: str, *words: str) -> list[str]:
        for name in ("COMP_WORDS", "COMP_CWORD", "_TYPER_COMPLETE_ARGS", "_TYPER_COMPLETE_FISH_ACTION"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("_DISTILKIT_COMPLETE", f"complete_{shell}")
        monkeypatch.setenv("COLUMNS", "80")  # completing sets it; here it is to be as it was
        if shell == "bash":
            monkeypatch.setenv("COMP_WORDS", "\n".join(words))
            monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
        else:
            monkeypatch.setenv("_TYPER_COMPLETE_ARGS", " ".join(words))
        if shell == "fish":
            monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
        capsys.readouterr()
        with pytest.raises(SystemExit):
            cli.main([])
        captured = capsys.readouterr()
        assert captured.err == ""
        lines = [line for line in captured.out.splitlines() if line]
        if shell == "fish":
            return [line.partition("\t")[0] for line in lines]
        if shell == "zsh":
            assert captured.out.startswith(("_arguments '*: :((", "_files"))
            listed = captured.out.strip().removeprefix("_arguments '*: :((").removesuffix("))'").splitlines()
            return [line.split('"')[1].replace(r"\\:", ":") for line in listed if '"' in line]
        return lines

    return answers


@pytest.mark.parametrize("shell", SHELLS)
def test_recipes_runs_architectures_methods_and_members_are_offered(shell: str, ask: Ask, runs: Path) -> None:
    assert ask(shell, "distilkit", "train", "one_resnet32") == [
        "one_resnet32",
        "one_resnet32_cifar10",
        "one_resnet32_svhn",
    ]
    assert ask(shell, "distilkit", "recipes", "show", "quickstart_k") == ["quickstart_kd"]
    assert ask(shell, "distilkit", "models", "wrn") == [name for name in registry.names() if name.startswith("wrn")]
    assert ask(shell, "distilkit", "recipes", "list", "--method", "o") == ["okddip", "one"]
    assert ask(shell, "distilkit", "evaluate", "runs/o") == ["runs/one-a"]
    assert ask(shell, "distilkit", "train", "--resume", "runs/d") == ["runs/dml-b", "runs/damaged"]
    assert ask(shell, "distilkit", "evaluate", "runs/dml-b", "--member", "stu") == ["student_0", "student_1"]
    assert ask(shell, "distilkit", "evaluate", "--checkpoint", "s") == ["step_10"]
    assert ask(shell, "distilkit", "export", "--mode", "e") == ["ensemble"]
    assert ask(shell, "distilkit", "rec") == ["recipes"]


def test_the_newest_run_comes_first_and_other_folders_are_looked_at_where_they_are_named(ask: Ask, runs: Path) -> None:
    assert ask("fish", "distilkit", "evaluate", "runs/") == ["runs/dml-b", "runs/one-a", "runs/damaged"]
    runs.rename(runs.parent / "elsewhere")
    assert ask("bash", "distilkit", "evaluate", "") == []
    assert ask("bash", "distilkit", "evaluate", "--runs", "elsewhere", "elsewhere/o") == ["elsewhere/one-a"]


def test_files_stand_beside_the_names_of_recipes(ask: Ask, runs: Path) -> None:
    assert ask("bash", "distilkit", "train", "o")[0] == "own.toml"
    assert set(ask("bash", "distilkit", "train", "")) == {"own.toml", *builtin()}


def test_bash_gets_only_what_comes_after_the_colon_at_which_it_parts_words(ask: Ask, runs: Path) -> None:
    assert ask("bash", "distilkit", "export", "runs/one-a", "--mode", "member", ":", "student_1") == ["student_1"]
    assert ask("bash", "distilkit", "export", "--mode", "member", ":") == ["student_0", "student_1"]
    assert ask("bash", "distilkit", "export", "--mode", "member", ":", "") == ["student_0", "student_1"]
    assert ask("bash", "distilkit", "models", "torchv") == ["torchvision:"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_the_script_that_is_shown_completes_in_a_real_bash(runs: Path) -> None:
    """The script as --show-completion prints it, with the words as bash itself parts them."""
    root = str(Path(package.__file__).parents[1])
    environment = {
        **os.environ,
        "PYTHONPATH": root,
        "OMP_NUM_THREADS": "1",
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
    }
    shown = subprocess.run(
        [sys.executable, "-m", "distilkit", "--show-completion", "bash"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout
    assert "complete -o default -F _distilkit_completion distilkit" in shown
    script = f"""
distilkit() {{ {sys.executable} -m distilkit "$@"; }}
cat > distilkit <<'END'
#!/bin/sh
exec {sys.executable} -m distilkit "$@"
END
chmod +x distilkit
PATH="$PWD:$PATH"
unset -f distilkit
{shown}
COMP_WORDS=(distilkit export --mode member : stu)
COMP_CWORD=5
_distilkit_completion distilkit
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(
        ["bash", "--norc", "-c", script], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout.split() == ["student_0", "student_1"], done


@pytest.mark.skipif(shutil.which("bash") is None or os.name != "posix", reason="there is no bash, or no terminal")
def test_a_person_who_presses_tab_in_bash_gets_the_word(runs: Path) -> None:
    """What readline makes of the answers, which a call of the script's function alone does not show."""
    import pty

    (runs.parent / "distilkit").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m distilkit "$@"\n')
    (runs.parent / "distilkit").chmod(0o755)
    root = str(Path(package.__file__).parents[1])
    added = {"PYTHONPATH": root, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1", "TERM": "dumb"}
    environment = {**os.environ, **added, "PATH": f"{runs.parent}{os.pathsep}{os.environ['PATH']}"}
    outside, inside = pty.openpty()
    shell = subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-i"],
        **{"stdin": inside, "stdout": inside, "stderr": inside},
        env=environment,
        start_new_session=True,
    )
    os.close(inside)

    def typed(text: str, until: str) -> None:
        os.write(outside, text.encode())
        seen = ""
        while until not in seen:
            ready, _, _ = select.select([outside], [], [], 60)
            assert ready, f"{until!r} does not come after {text!r}, but {seen!r}"
            seen += os.read(outside, 65536).decode(errors="replace")

    try:
        typed("eval \"$(distilkit --show-completion bash)\"; bind 'set bell-style none'; echo rea''dy\n", "ready")
        typed("distilkit recipes show quickstart_okddip_n\t", "quickstart_okddip_networks ")
        typed("\x15distilkit evaluate runs/o\t", "runs/one-a ")
        typed("\x15distilkit models resnet164\t", "resnet164_bottleneck ")
        typed("\x15distilkit export --mode member:\t", "--mode member:student_")
        typed("1\t", "1 ")
    finally:
        os.close(outside)
        shell.kill()
        shell.wait()


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_has_a_script(
    shell: str, distilkit: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    shown = distilkit("--show-completion", shell)
    assert shown.status == 0
    assert "_DISTILKIT_COMPLETE" in shown.out
    assert f"complete_{shell}" in shown.out


def test_the_script_is_installed_where_the_shell_looks(
    tmp_path: Path, distilkit: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    assert distilkit("--install-completion", "bash").status == 0
    script = tmp_path / ".bash_completions" / "distilkit.sh"
    assert "_DISTILKIT_COMPLETE=complete_bash" in script.read_text()
    assert str(script) in (tmp_path / ".bashrc").read_text()


def test_completion_imports_neither_torch_nor_numpy(runs: Path) -> None:
    for words in ("train one", "models res", "export --mode member:", "recipes list --method o", "evaluate runs/"):
        code = (
            "import sys, distilkit.cli\n"
            "try: distilkit.cli.main([])\n"
            "except SystemExit: pass\n"
            "heavy = {'torch', 'numpy', 'torchvision', 'onnxruntime'} & set(sys.modules)\n"
            "assert not heavy, heavy"
        )
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(package.__file__).parents[1]),
            "_DISTILKIT_COMPLETE": "complete_zsh",
            "_TYPER_COMPLETE_ARGS": f"distilkit {words}",
        }
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert '"' in done.stdout, words


def test_a_fault_while_completing_is_silent(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> shipped.Names:
        raise RuntimeError("no names")

    monkeypatch.setattr("distilkit.shipped.listed", broken)
    assert ask("bash", "distilkit", "train", "one") == []
