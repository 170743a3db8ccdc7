"""The benchmarks measure what they say: the plain loop computes what ours computes, and turns are taken."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import bench
import contestants
import numpy as np
import plain
import pytest
import torch
from racing import Contestant, Work, race, ratio, write

from distilkit.analysis.diversity import diversity
from distilkit.groups.inference import Inference
from distilkit.learners.learner import Learner
from distilkit.training.evaluate import evaluate_members
from distilkit.training.processes import make_accelerator

METHODS = ("baseline", "one", "okddip", "okddip_networks")


def learner(method: str) -> Learner:
    recipe = contestants.recipe_of(method, "model.architecture=resnet8")
    return contestants.learner_of(recipe, contestants.data(10))


def batch(count: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = plain.pictures(count)
    return torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels)


@pytest.mark.parametrize("method", METHODS)
def test_the_plain_loop_trains_the_same_networks_with_the_same_losses(method: str) -> None:
    ours, twin = learner(method), learner(method)
    images, labels = batch()
    loss = ours(images, labels, 1.0).loss
    loss.backward()
    name = "okddip" if method == "okddip_networks" else method
    theirs, logits = plain.plain_loss(name, plain.PlainGroup(twin), ours.group.normalize(images), labels)
    theirs.backward()
    assert theirs.item() == pytest.approx(loss.item(), rel=1e-5)
    assert len(logits) == len(ours.group.members)
    for (key, mine), other in zip(ours.named_parameters(), twin.parameters(), strict=True):
        assert mine.grad is not None, key
        assert other.grad is not None, key
        assert torch.allclose(mine.grad, other.grad, rtol=1e-3, atol=1e-5 * float(mine.grad.abs().max() + 1)), key


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_plain_evaluation_gives_our_figures(precision: str) -> None:
    network = learner("one").eval()
    count = 300
    images = contestants.data(count)
    found = evaluate_members(network, images.splits["test"], make_accelerator("fp32", "cpu"), precision)  # type: ignore[arg-type]
    wanted = plain.evaluate(plain.PlainGroup(network), plain.loader(count, 0, train=False))
    # In bfloat16 a few of the images change their class.
    slack = 1e-4 if precision == "fp32" else 2.0
    for index, name in enumerate([*network.group.members, "gated"]):
        for measure in ("top1", "top5"):
            assert found["errors"][name][measure] == pytest.approx(100 - wanted[f"{measure}_{index}"], abs=slack)
        assert found["cross_entropy"][name] == pytest.approx(wanted[f"loss_{index}"], rel=1e-4 if slack < 1 else 0.02)


def test_the_plain_diversity_gives_our_figure() -> None:
    logits = torch.randn(3, 40, 10, generator=torch.Generator().manual_seed(0))
    assert plain.diversity(logits) == pytest.approx(diversity(logits), rel=1e-5)


def test_the_plain_pictures_are_normalised_as_ours() -> None:
    images, labels = next(iter(plain.loader(8, 0, train=False)))
    ours = contestants.data(8)
    network = learner("baseline")
    assert torch.allclose(images, network.group.normalize(ours.splits["test"].images[:]), atol=1e-5)
    assert labels.tolist() == ours.splits["test"].labels.tolist()


@torch.inference_mode()
def test_the_deployed_network_is_folded_whole() -> None:
    assert Inference(contestants._deployed()).folded == 33  # a stem, two in each of 15 blocks, two shortcuts


def sleeper(seconds: float, log: str) -> Work:
    """Sleeps, and notes that it did."""

    def work(count: int) -> int:
        with Path(log).open("a", encoding="utf-8") as file:
            file.write(f"{seconds} {os.getpid()}\n")
        time.sleep(seconds * count)
        return 10 * count

    return work


RESTLESS = """
import os, sys, time
while os.getppid() == int(sys.argv[2]):
    with open(sys.argv[1], "a") as log:
        log.write(f"{time.monotonic()}\\n")
    time.sleep(0.01)
"""


def busy_child(log: str) -> Work:
    """Has a child that notes the time, again and again, whether it is this contestant's turn or not."""
    subprocess.Popen([sys.executable, "-c", RESTLESS, log, str(os.getpid())])

    def work(count: int) -> tuple[int, float]:
        start = time.monotonic()
        time.sleep(0.4)
        with Path(log + ".turns").open("a", encoding="utf-8") as file:
            file.write(f"{start} {time.monotonic()}\n")
        return 1, 0.4

    return work


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="this system stops no processes")
def test_what_a_contestants_children_do_they_do_in_its_turn(tmp_path: Path) -> None:
    log = tmp_path / "log"
    field = [
        Contestant("with a child", "test_benchmarks:busy_child", {"log": str(log)}),
        Contestant("another", "test_benchmarks:sleeper", {"seconds": 0.4, "log": str(tmp_path / "other")}),
    ]
    race(field, 3, lambda _: None)
    first, *turns = [tuple(map(float, line.split())) for line in Path(f"{log}.turns").read_text().splitlines()]
    noted = [float(line) for line in log.read_text().splitlines()]
    within = [sum(start <= each <= end for each in noted) for start, end in turns]
    meanwhile = [each for each in noted if first[1] < each < turns[-1][1]]
    assert min(within) >= 5
    assert len(meanwhile) <= sum(within) + 2 * len(turns), "it went on while the other had its turn"


def failing() -> Work:
    """Cannot be made."""
    raise RuntimeError("no such luck")


def test_contestants_take_turns_in_processes_of_their_own(tmp_path) -> None:  # type: ignore[no-untyped-def]
    log, lines = tmp_path / "log", []
    field = [
        Contestant("slow", "test_benchmarks:sleeper", {"seconds": 0.3, "log": str(log)}),
        Contestant("fast", "test_benchmarks:sleeper", {"seconds": 0.03, "log": str(log)}),
    ]
    times = race(field, 2, lines.append)
    turns = [line.split() for line in log.read_text().splitlines()]
    assert [seconds for seconds, _ in turns] == ["0.03", "0.3", "0.3", "0.03", "0.03", "0.3"]
    assert len({pid for _, pid in turns} | {str(os.getpid())}) == 3
    assert len(times["slow"].seconds) == 2
    assert times["slow"].things == 10
    assert times["slow"].megabytes > 1
    assert len(lines) == 4
    found = ratio(times, "fast", "slow")
    assert found["low"] <= found["median"] <= found["high"]
    assert found["low"] > 2
    file = write("nothing", "a command", {"ratios": {"fast / slow": found}}, {"cpu": "some"}, tmp_path)
    assert json.loads(file.read_text())["ratios"]["fast / slow"] == found


def test_a_contestant_that_fails_is_named() -> None:
    with pytest.raises(RuntimeError, match="unlucky: RuntimeError: no such luck"):
        race([Contestant("unlucky", "test_benchmarks:failing")], 1, print)


def test_an_unknown_benchmark_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        bench.main(["trainstep"])
    assert caught.value.code == 2
    assert "train_step, input_pipeline" in capsys.readouterr().err


def test_the_exported_contestants_answer() -> None:
    for arguments in ({"runtime": "eager"}, {"runtime": "onnxruntime"}, {"runtime": "onnxruntime", "quantized": True}):
        assert contestants.exported(3, **arguments)(2) == 6


def test_the_perturbation_contestants_count_every_point() -> None:
    assert contestants.our_perturbation(20, "fp32")(2) == 40
    assert contestants.plain_perturbation(20, 0)(2) == 40


@pytest.mark.long
@pytest.mark.parametrize("name", bench.BENCHMARKS)
def test_every_benchmark_runs(name: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    assert bench.main([name, "--quick", "--results", str(tmp_path)]) == 0
    document = json.loads((tmp_path / f"{name}.json").read_text())
    assert document["machine"]["versions"]["torch"] == torch.__version__.split("+")[0]
    assert document["contestants"]
    assert all(np.isfinite(each["per_second"]["median"]) for each in document["contestants"].values())


def test_the_forms_of_a_step_on_cuda_are_settings_of_a_recipe() -> None:
    size = bench.on_cuda(bench.FULL)
    assert (size.device, size.steps) == ("cuda", 20 * bench.FULL.steps)
    for precision, *settings in size.forms.values():
        recipe = contestants.recipe_of("one", f"train.precision={precision}", *settings)
        assert (recipe.train.precision, recipe.train.cuda_graph) == (precision, bench.GRAPH in settings)
    assert next(reversed(bench.FORMS)) == "bf16 compiled graph", "what growth is measured in"


def test_some_forms_can_be_measured_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raced: list[str] = []
    monkeypatch.setattr(bench, "fastest", lambda of, size: of(0))
    monkeypatch.setattr(bench, "race", lambda contestants, *_: raced.extend(each.name for each in contestants))
    monkeypatch.setattr(bench, "figures", lambda times, pairs: {"ratios": pairs})
    words = ["--quick", "--compiled", "--methods", "baseline,one", "--results", str(tmp_path), "train_step"]
    assert bench.main([*words, "--forms", "bf16 compiled,bf16"]) == 0
    assert raced == [
        *("plain baseline, 0 workers", "baseline bf16", "baseline bf16 compiled"),
        *("plain one, 0 workers", "one bf16", "one bf16 compiled"),
    ]
    ratios = json.loads((tmp_path / "train_step_compiled.json").read_text())["ratios"]
    assert ratios["cost of one bf16 compiled / network"] == ["baseline bf16 compiled", "one bf16 compiled"]
    with pytest.raises(SystemExit):
        bench.main([*words, "--forms", "bf16 streams"])
    assert "no form 'bf16 streams' here; there are fp32, bf16, fp32 compiled, bf16 compiled" in capsys.readouterr().err


def test_cuda_is_for_the_benchmarks_that_have_a_form_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(["--device", "cuda", "startup"])
    assert "train_step, evaluate, growth, not for startup" in capsys.readouterr().err


def test_work_may_measure_its_own_seconds() -> None:
    times = race([Contestant("clock", f"{__name__}:self_timed")], 2, lambda _: None)
    assert times["clock"].seconds == [0.5, 0.5]
    assert times["clock"].document()["per_second"]["median"] == 20


def self_timed() -> Work:
    return lambda count: (10 * count, 0.5)
