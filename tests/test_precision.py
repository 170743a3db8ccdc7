"""`precision = "auto"`: by the hardware, whatever else the machine is doing."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import train_tiny

from distilkit import hardware
from distilkit.recipe import load
from distilkit.runs.run import Run
from distilkit.shipped import builtin
from distilkit.training import precision
from distilkit.workflows.comparison.recipe_groups import grouped

CPU = torch.device("cpu")
X86 = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu vme {} avx2\n\nprocessor\t: 1\nflags\t\t: fpu {}\n"
ARM = "processor\t: 0\nBogoMIPS\t: 243.75\nFeatures\t: fp asimd {} i8mm\nCPU implementer\t: 0x41\n"
CPUINFO = [
    (X86.format("avx512_bf16", "avx512_bf16"), True),
    (X86.format("amx_bf16 avx512_bf16", "avx512_bf16 amx_bf16"), True),
    (X86.format("avx512f avx512bw", "avx512f"), False),
    (X86.format("not_avx512_bf16 avx512_bf16x", "avx512f"), False),
    (X86.format("avx512_bf16", "avx512f"), False),  # cores of two kinds
    (ARM.format("bf16"), True),
    (ARM.format("sve"), False),
    ("processor : 0\nisa : rv64imafdc\n", None),
    ("model name : a CPU with bf16 in its name\n", None),
    ("", None),
    (None, None),
]


@pytest.mark.parametrize(("cpuinfo", "expected"), CPUINFO)
def test_linux_says_whether_a_cpu_computes_in_bfloat16(cpuinfo: str | None, expected: bool | None) -> None:
    assert hardware.bf16_in_cpu(cpuinfo, None)[0] is expected


@pytest.mark.parametrize(
    ("isa", "expected"),
    [
        *((isa, False) for isa in ("SSE41", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI", "of tomorrow")),
        *((isa, True) for isa in ("ALL", "DEFAULT", "AVX512_CORE_BF16", "avx512_core_amx", "AVX10_1_512", "")),
    ],
)
def test_an_instruction_set_that_is_capped_is_what_counts(isa: str, expected: bool) -> None:
    native, why = hardware.bf16_in_cpu(X86.format("amx_bf16 avx512_bf16", "amx_bf16 avx512_bf16"), isa)
    assert native is expected
    assert expected or f"ONEDNN_MAX_CPU_ISA={isa}" in why


def test_a_cap_gives_no_cpu_what_it_has_not() -> None:
    assert hardware.bf16_in_cpu(X86.format("avx2", "avx2"), "AVX512_CORE_BF16")[0] is False


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "fp32"), (None, "fp32")])
def test_a_cpu_trains_in_bf16_only_where_it_is_known_to_compute_in_it(
    native: bool | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "native_bf16", lambda: (native, "because"))
    assert precision.choose(CPU) == (expected, "because")


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((8, 6), "bf16"), ((9, 0), "bf16")]
)
def test_a_cuda_device_trains_in_bf16_from_compute_capability_8_on(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    chosen, why = precision.choose(torch.device("cuda", 0))
    assert chosen == expected
    assert f"{capability[0]}.{capability[1]}" in why


@pytest.mark.parametrize("native", [True, False])
def test_a_training_says_what_it_computes_in_and_why(
    native: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "native_bf16", lambda: (native, "because"))
    run = Run.open(train_tiny(tmp_path, "train.precision=auto", "train.epochs=1"))
    used = "bf16" if native else "fp32"
    assert run.recipe.train.precision == used
    assert run.record["precision"] == {"used": used, "reason": "because"}


def test_onednn_told_to_see_less_of_the_cpu_trains_in_fp32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert Run.open(train_tiny(tmp_path, "train.precision=auto", "train.epochs=1")).recipe.train.precision == "fp32"


@pytest.fixture
def busy() -> Iterator[list[subprocess.Popen[bytes]]]:
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def test_what_else_a_machine_does_changes_neither_precision_nor_threads(
    tmp_path: Path, busy: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    runs = []
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        settings = ("train.precision=auto", "train.epochs=1", f"train.seed={number}", "method.name=baseline")
        runs.append(Run.open(train_tiny(folder, *settings)))
        while len(busy) < hardware.usable_cores() + 1:
            busy.append(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
    assert len({run.recipe.train.precision for run in runs}) == 1
    assert len({run.recipe.train.threads for run in runs}) == 1
    assert len(grouped(runs)) == 1, "one recipe, three seeds"


def test_the_papers_recipes_state_their_precision() -> None:
    for name in builtin():
        stated = load(name).train.precision
        assert stated == ("auto" if name == "modern_resnet20" else "fp32"), name


@pytest.mark.parametrize(
    ("quotas", "own", "expected"),
    [
        ({"": "max 100000"}, "0::/\n", None),
        ({"": "150000 100000"}, "0::/\n", 1.5),
        ({"": "max 100000", "a/b": "200000 100000"}, "0::/a/b\n", 2.0),
        ({"a": "100000 100000", "a/b": "200000 100000"}, "1:cpu:/x\n0::/a/b\n", 1.0),
        ({"": "400000 100000"}, "0::/of/the/host\n", 4.0),
        ({"": "nonsense"}, "0::/\n", None),
        ({}, None, None),
    ],
)
def test_a_control_groups_quota_is_found(
    quotas: dict[str, str], own: str | None, expected: float | None, tmp_path: Path
) -> None:
    for folder, text in quotas.items():
        (tmp_path / "cgroup" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / folder / "cpu.max").write_text(text)
    if own is not None:
        (tmp_path / "own").write_text(own)
    assert hardware.cpu_quota(tmp_path / "cgroup", tmp_path / "own") == expected
