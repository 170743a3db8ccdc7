"""Branches on CUDA streams of their own: begun behind the caller's stream, joined before it goes on."""

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from comparing import largest_difference
from conftest import train_tiny
from torch import Tensor

from distilkit.errors import SettingError
from distilkit.group import BranchGroup, build_group
from distilkit.recipe import load
from distilkit.streams import Streams
from distilkit.training.trainer import check_settings

STREAMS = "train.branches=streams"


class Pretended:
    """Streams that write down who waits for whom, what runs where, and which tensors they are told of."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[tuple[str, ...]] = []
        self.told: list[tuple[str, int]] = []
        self.here, made = "caller", 0

        class Stream:
            def __init__(stream, device: Any = None, name: str | None = None) -> None:  # noqa: N805
                nonlocal made
                stream.name = name or f"stream {made}"
                made += name is None

            def wait_stream(stream, other: "Stream") -> None:  # noqa: N805
                self.events.append((stream.name, "waits for", other.name))

        @contextlib.contextmanager
        def entered(stream: Stream) -> Iterator[None]:
            before, self.here = self.here, stream.name
            yield
            self.here = before

        def record(tensor: Tensor, stream: Stream) -> None:
            self.told.append((stream.name, id(tensor)))

        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: Stream(name=self.here))
        monkeypatch.setattr(torch.cuda, "stream", entered)
        monkeypatch.setattr(Tensor, "record_stream", record, raising=False)


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    return Pretended(monkeypatch)


def small_group(students: int = 3) -> BranchGroup:
    built = build_group(
        kind="branches",
        architecture="resnet8",
        members=[f"s{index}" for index in range(students)],
        split_at=None,
        num_classes=4,
        channels=1,
        size=8,
        mean=(0.5,),
        std=(0.5,),
        seed=0,
    )
    assert isinstance(built, BranchGroup)
    return built


def test_every_branch_is_forked_computed_and_joined_on_its_own_stream(pretended: Pretended) -> None:
    group, images = small_group(), torch.rand(4, 1, 8, 8)
    plain = copy.deepcopy(group)(images)
    for name, branch in group.branches.items():
        branch.register_forward_hook(lambda *_, name=name: pretended.events.append((pretended.here, "computes", name)))
    group.trunk.register_forward_hook(lambda *_: pretended.events.append((pretended.here, "computes", "trunk")))
    group.together = Streams(3, torch.device("cpu"))
    found = group(images)
    forked = [
        line
        for i in range(3)
        for line in ((f"stream {i}", "waits for", "caller"), (f"stream {i}", "computes", f"s{i}"))
    ]
    joined = [("caller", "waits for", f"stream {i}") for i in range(3)]
    assert pretended.events == [("caller", "computes", "trunk"), *forked, *joined]
    assert torch.equal(found.logits_SBC, plain.logits_SBC)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found.features, plain.features, strict=True))


def test_memory_that_another_stream_reads_is_not_given_out_meanwhile(pretended: Pretended) -> None:
    group = small_group(2)
    group.together = Streams(2, torch.device("cpu"))
    results: list[Tensor] = []
    for branch in group.branches.values():
        branch.register_forward_hook(lambda module, args, result: results.extend(result))
    found = group(torch.rand(4, 1, 8, 8))
    told = set(pretended.told)
    assert {("stream 0", id(found.trunk)), ("stream 1", id(found.trunk))} <= told
    assert {("caller", id(each)) for each in results} <= told
    assert len(results) == 4


def test_streams_are_used_again_and_not_in_evaluation(pretended: Pretended) -> None:
    group, images = small_group(), torch.rand(4, 1, 8, 8)
    group.together = Streams(3, torch.device("cpu"))
    for _ in range(2):
        copy.deepcopy(group)(images)
    assert {name for name, *_ in pretended.events} == {"caller", "stream 0", "stream 1", "stream 2"}
    pretended.events.clear()
    group.eval()(images)
    assert pretended.events == []


@pytest.mark.parametrize(
    ("settings", "device", "processes", "said"),
    [
        ((STREAMS,), "cpu", 1, "streams need a CUDA device, and this one is cpu"),
        ((STREAMS,), "cuda", 2, "streams are for one process, and here are 2"),
        ((STREAMS, "train.compile=true"), "cuda", 1, "train.compile is set"),
        ((STREAMS, "train.sync_batch_norm=true"), "cuda", 1, "train.sync_batch_norm is set"),
        (("train.branches=grouped", "train.sync_batch_norm=true"), "cuda", 2, "train.sync_batch_norm is set"),
    ],
)
def test_where_branches_cannot_be_computed_so_the_setting_is_named(
    settings: tuple[str, ...], device: str, processes: int, said: str
) -> None:
    with pytest.raises(SettingError, match=said) as caught:
        check_settings(load("quickstart", list(settings)), 1297, torch.device(device), processes)
    assert caught.value.key == "train.branches"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize("form", ["grouped", "streams"])
@pytest.mark.parametrize("more", [(), ("train.cuda_graph=true",)], ids=["eager", "graph"])
@pytest.mark.parametrize(
    "settings",
    [
        ("method.name=one",),
        ("method.name=okddip", "method.peer_targets=random"),
        ("method.name=one", "train.precision=bf16"),
        ("method.name=one", "optimizer.name=adamw", "optimizer.lr=0.0009765625", "train.ema=0.9"),
    ],
    ids=lambda settings: " ".join(settings),
)
def test_a_devices_branches_train_as_one_by_one(
    settings: tuple[str, ...], more: tuple[str, ...], form: str, tmp_path: Path
) -> None:
    for name in ("plain", form):
        (tmp_path / name).mkdir()
    common = ("train.epochs=1", "optimizer.lr=0.0078125", "method.rampup_epochs=0", "train.deterministic=true")
    plain = train_tiny(tmp_path / "plain", *common, *settings, device="cuda")
    found = train_tiny(tmp_path / form, *common, *settings, *more, f"train.branches={form}", device="cuda")
    rounding = 2e-2 if "train.precision=bf16" in settings else 1e-3 if form == "grouped" else 1e-5
    assert largest_difference(plain, found) < rounding
