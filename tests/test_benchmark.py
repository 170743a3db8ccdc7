"""`distilkit benchmark`: what it times, under which names, and what it says of a machine that is busy."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import Result

from distilkit.export.latency import interleave
from distilkit.runs.run import Run
from distilkit.workflows.deploy import benchmark as workflow

Command = Callable[..., Result]


@pytest.fixture(scope="module")
def run(one_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the leader and the ensemble exported, and a file that a check held back."""
    from test_commands import command

    run = shutil.copytree(one_run, tmp_path_factory.mktemp("benchmark") / "run")
    for arguments in ((), ("--mode", "ensemble"), ("--mode", "member:student_1", "--batch", 4, "--input", "uint8")):
        assert command("export", run, *arguments).status == 0
    shutil.copy(run / "exports" / "single.onnx", run / "exports" / "single-int8.failed.onnx")
    return run


@pytest.fixture(scope="module")
def document(run: Path) -> dict[str, Any]:
    from test_commands import command

    before = torch.get_num_threads()
    result = command("benchmark", run, "--batch", "1,4", "--threads", "1,2", "--repetitions", 3, "--json")
    assert torch.get_num_threads() == before
    return {"status": result.status, **result.json}


def test_calls_take_turns_and_the_warm_up_is_left_out(monkeypatch: pytest.MonkeyPatch):
    turns: list[str] = []
    clock = {"now": 0.0}

    def call(name: str, milliseconds: list[float]) -> Callable[[], None]:
        remaining = iter(milliseconds)

        def run() -> None:
            turns.append(name)
            clock["now"] += next(remaining) / 1000

        return run

    monkeypatch.setattr("time.perf_counter", lambda: clock["now"])
    warm = [1000.0] * 3
    latency = interleave({"a": call("a", [*warm, 1, 2, 3]), "b": call("b", [*warm, 10, 10, 40])}, 3)
    assert turns == ["a", "b"] * 6
    assert latency["a"] == pytest.approx({"median_ms": 2, "p95_ms": np.percentile([1, 2, 3], 95)})
    assert latency["b"] == pytest.approx({"median_ms": 10, "p95_ms": 37})


def test_a_run_stands_for_its_leader_in_pytorch_and_for_the_files_that_passed(run: Path, document: dict[str, Any]):
    assert document["status"] == 0
    assert (document["batches"], document["threads"], document["repetitions"]) == ([1, 4], [1, 2], 3)
    exports = run / "exports"
    everywhere = {(str(run), "eager"), *((str(exports / f"{name}.onnx"), "onnxruntime") for name in BOTH)}
    fixed = (str(exports / "student_1-uint8-batch4.onnx"), "onnxruntime")
    for threads in (1, 2):
        for batch in (1, 4):
            found = [r for r in document["results"] if (r["threads"], r["batch"]) == (threads, batch)]
            assert len(found) == len({(r["name"], r["kind"]) for r in found})
            assert {(r["name"], r["kind"]) for r in found} == everywhere | ({fixed} if batch == 4 else set())
    for result in document["results"]:
        assert 0 < result["median_ms"] <= result["p95_ms"]
        assert result["images_per_second"] == pytest.approx(1000 * result["batch"] / result["median_ms"])
        (eager,) = (
            r["median_ms"]
            for r in document["results"]
            if r["kind"] == "eager" and all(r[key] == result[key] for key in ("threads", "batch"))
        )
        assert result["speedup_over_eager"] == pytest.approx(eager / result["median_ms"])
    assert document["machine"]["cores"] >= 1


BOTH = ("single", "ensemble")


def test_the_ensembles_ratio_stands_beside_its_ratio_of_flops(run: Path, document: dict[str, Any]):
    from distilkit.analysis.learner_cost import learner_cost

    opened = Run.open(run)
    costs = learner_cost(opened.learner(), opened.data.channels, opened.data.size)
    assert [(ratio["threads"], ratio["batch"]) for ratio in document["ratios"]] == [(1, 1), (1, 4), (2, 1), (2, 4)]
    medians = {(r["name"], r["threads"], r["batch"]): r["median_ms"] for r in document["results"]}
    for ratio in document["ratios"]:
        single, ensemble = (
            medians[str(run / "exports" / f"{name}.onnx"), ratio["threads"], ratio["batch"]] for name in BOTH
        )
        assert ratio["run"] == str(run)
        assert ratio["latency_ratio"] == pytest.approx(ensemble / single)
        assert ratio["flops_ratio"] == pytest.approx(costs.ensemble.flops / costs.deploy.flops)
        assert 1 < ratio["flops_ratio"] < 3  # Three branches on one trunk.


def test_files_alone_have_no_eager_to_be_compared_with(run: Path, distilkit: Command):
    files = [run / "exports" / f"{name}.onnx" for name in BOTH]
    found = distilkit("benchmark", *files, "--batch", 2, "--repetitions", 2, "--json").json
    assert [result["name"] for result in found["results"]] == list(map(str, files))
    assert {result["speedup_over_eager"] for result in found["results"]} == {None}
    assert found["ratios"] == []


def test_people_see_a_table_for_every_batch_size(run: Path, distilkit: Command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(workflow, "machine", lambda: {"cores": 2, "load": 7.5})
    result = distilkit("benchmark", run, "--batch", "1,2", "--repetitions", 2)
    assert result.status == 0
    for words in ("batch size 1, 1 thread", "batch size 2, 1 thread", "single.onnx", "eager", "FLOPs ratio"):
        assert words in result.out
    assert "failed" not in result.out
    assert "busy" in result.err
    assert "student_1-uint8-batch4.onnx takes none of the batch sizes 1, 2" in result.err


def test_without_an_export_one_is_made_for_the_occasion(one_run: Path, tmp_path: Path, distilkit: Command):
    run = shutil.copytree(one_run, tmp_path / "runs" / "run")
    shutil.rmtree(run / "exports", ignore_errors=True)
    result = distilkit("benchmark", "--runs", tmp_path / "runs", "--batch", 1, "--repetitions", 2, "--json")
    assert [(r["kind"], Path(r["name"]).name) for r in result.json["results"]] == [
        ("eager", "run"),
        ("onnxruntime", "single.onnx (not kept)"),
    ]
    assert "no exports/single.onnx" in result.err
    assert not (run / "exports").exists()


def test_a_compiled_network_is_one_more_contender(run: Path, distilkit: Command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "compile", lambda network, **_: network)
    found = distilkit("benchmark", run, "--compile", "--batch", 1, "--repetitions", 2, "--json").json
    assert [result["kind"] for result in found["results"]] == ["eager", "compiled", "onnxruntime", "onnxruntime"]


def test_a_network_that_cannot_be_compiled_here_is_named(
    run: Path, distilkit: Command, monkeypatch: pytest.MonkeyPatch
):
    def broken(network: object, **_: object) -> Callable[..., object]:
        def call(images: object) -> object:
            raise RuntimeError("no C++ compiler\nin sight")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    result = distilkit("benchmark", run, "--compile", "--batch", 1, "--json")
    assert result.status == 2
    assert result.json["error"]["message"].endswith("cannot be compiled here: no C++ compiler")
    assert "--compile" in result.json["error"]["hint"]


def save_with_free_size(source: Path, target: Path) -> Path:
    model = onnx.load(source)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "H"
    model.ClearField("metadata_props")
    onnx.save(model, target)
    return target


def test_what_cannot_be_timed_is_refused(run: Path, tmp_path: Path, distilkit: Command):
    single = run / "exports" / "single.onnx"
    text = tmp_path / "notes.onnx"
    text.write_text("not a network")
    free = save_with_free_size(single, tmp_path / "free.onnx")
    for arguments, words in (
        ((single, "--batch", "one"), ("--batch", "'one'")),
        ((single, "--batch", "1,,2"), ("--batch",)),
        ((single, "--threads", "0"), ("--threads",)),
        ((single, "--compile"), ("--compile", "run")),
        ((text,), (text, "ONNX")),
        ((free,), (free, "any")),
        ((tmp_path / "gone.onnx",), (tmp_path / "gone.onnx", "does not exist")),
        ((run / "exports" / "student_1-uint8-batch4.onnx", "--batch", "1"), ("--batch",)),
    ):
        result = distilkit("benchmark", *arguments, "--json")
        assert result.status == 2, arguments
        error = result.json["error"]
        for word in words:
            assert str(word) in f"{error['message']} {error['hint']}"
