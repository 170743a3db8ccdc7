"""Damaged files for every loader, for a bounded time: `make fuzz SECONDS=300`. tests/test_fuzz.py does a little of it.

What holds: a loader gives an answer or raises `UserError` (pictures: one of `UNREADABLE`), and never another error;
never takes minutes or gigabytes. Inputs are whole files that are damaged: bytes flipped, cut, doubled, numbers made
absurd; in JSON any value replaced by any other; in archives and pictures what their own checksums would give away is
put right, so that the damage arrives at what lies behind them. A process of its own for each loader, with a limit to
its memory; what it was at when it failed is kept in a folder and named.
"""

import argparse
import contextlib
import copy
import hashlib
import io
import json
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from PIL import Image
from safetensors.torch import save

from distilkit.data import datasets
from distilkit.data.augment import draw_numbers
from distilkit.data.decoding import decode_crop
from distilkit.data.pixels import UNREADABLE, Framing, decode
from distilkit.data.preparation import Preparation
from distilkit.errors import UserError
from distilkit.learners.pretrained import read_weights
from distilkit.models import registry
from distilkit.observer import Observer
from distilkit.recipe import builtin, load
from distilkit.report.history import history
from distilkit.report.measured import latencies, robustness_of
from distilkit.runs import checkpoint as checkpoints
from distilkit.runs import metrics as log
from distilkit.runs.run import PrunedModel, Run, load_weights
from distilkit.training.tracking import _identities
from distilkit.workflows.comparison.compare import compare
from distilkit.workflows.comparison.report import report
from distilkit.workflows.deploy import predict
from distilkit.workflows.deploy.prune_branches import prune_branches
from distilkit.workflows.evaluation.robustness_checks import read_thresholds
from distilkit.workflows.project.runs import list_runs
from distilkit.workflows.project.show_run import show_run
from distilkit.workflows.share.cards import refresh

SLOWEST = 20
"""Seconds that one input may take, on a machine that others use as well."""
MOST_BYTES = 3 * 2**30
"""What a loader may ask for beyond what the process has when it begins."""

ABSURD = (
    b"", b"0", b"-1", b"1e999", b"nan", b"NaN", b"null", b"true", b"[]", b"{}", b'""', b"9" * 30, b"9" * 5000,
    b"[" * 2000, b'{"a":' * 2000, b"\xff\xfe", b"\x00", b"\r\n", b"\xe2\x80\xae", b"../", b"\\u0000", b"\xed\xa0\x80",
    b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff", b"\x80", b"1979-05-27", b"0x10", b"'''", b"#",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 5, 2**31, 2**63, 2**200, 0.5, -0.0, 1e308, "", "x", "x" * 300, "../../etc/passwd", "\x00",
    "last", "step_1", "student_0", "resnet8", "digits", "no.module:thing", "timm:nothing", [], {}, [[]], [0], [None],
    {"a": {}}, ["a", "a"], [1e308] * 3, {"": ""},
)  # fmt: skip


class Target(NamedTuple):
    """`seeds`: whole inputs, of which the last is taken as it is. `damage`: makes another input of one.

    `read`: what is fuzzed. `allowed`: what it may raise.
    """

    seeds: tuple[bytes, ...]
    damage: Callable[[bytes, random.Random], bytes]
    read: Callable[[bytes], object]
    allowed: tuple[type[BaseException], ...] = (UserError,)


# ------------------------------------------------------------------------------------------------------------- damage


def damage_bytes(data: bytes, draws: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draws.choice((1, 1, 1, 2, 3, 8))):
        place = draws.randrange(len(changed) + 1)
        length = draws.choice((1, 1, 2, 4, 8, 40, 300))
        match draws.randrange(7):
            case 0 if changed:
                changed[min(place, len(changed) - 1)] ^= 1 << draws.randrange(8)
            case 1:
                changed[place : place + length] = b""
            case 2:
                changed[place:place] = changed[place : place + length] * draws.choice((1, 2, 50))
            case 3:
                changed[place : place + draws.choice((0, 1, 4))] = draws.choice(ABSURD)
            case 4:
                changed[place : place + length] = draws.randbytes(length)
            case 5:
                other = draws.randrange(len(changed) + 1)
                changed[place : place + length] = changed[other : other + length]
            case _:
                del changed[place:]
        if len(changed) > 4 * len(data) + 100_000:
            break
    return bytes(changed)


def damage_json(data: bytes, draws: random.Random) -> bytes:
    """Mostly values and keys; sometimes the text itself. Several lines: one of them."""
    lines = data.split(b"\n") if data.count(b"\n{") else [data]
    place = draws.randrange(len(lines))
    if draws.random() < 0.15:
        return damage_bytes(data, draws)
    try:
        tree = json.loads(lines[place])
        for _ in range(draws.choice((1, 1, 1, 2, 4))):
            tree = _with_one_change(tree, draws)
        lines[place] = json.dumps(tree).encode()
    except (ValueError, RecursionError):  # damaged already
        return damage_bytes(data, draws)
    return b"\n".join(lines)


def damage_header(data: bytes, draws: random.Random) -> bytes:
    """Of YAML often a value by something that only YAML knows."""
    places = [place for place, sign in enumerate(data) if sign in b": \n"]
    if draws.random() < 0.4 or not places:
        return damage_bytes(data, draws)
    place = draws.choice(places) + 1
    return data[:place] + draws.choice(_TAGS) + data[draws.choice((place, draws.choice(places) + 1)) :]


def _with_one_change(tree: Any, draws: random.Random) -> Any:
    root = [copy.deepcopy(tree)]
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(root)
    node, key = draws.choice(places)
    match draws.randrange(6):
        case 0 if node is not root:
            del node[key]
        case 1 if isinstance(node, dict):
            node[draws.choice(("", "x", "format", str(key) + "x"))] = node.pop(key)
        case 2:
            other, place = draws.choice(places)
            node[key] = copy.deepcopy(other[place])
        case _:
            node[key] = copy.deepcopy(draws.choice(VALUES))
    return root[0]


def damage_zip(data: bytes, draws: random.Random) -> bytes:
    """One member of the archive, whose checksum is renewed; sometimes the archive itself."""
    if draws.random() < 0.2:
        return damage_bytes(data, draws)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(entry, archive.read(entry)) for entry in archive.infolist()]
    except Exception:  # noqa: BLE001 - damaged already
        return damage_bytes(data, draws)
    if not members:
        return damage_bytes(data, draws)
    chosen = draws.randrange(len(members))
    renewed = io.BytesIO()
    with zipfile.ZipFile(renewed, "w", draws.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for place, (entry, content) in enumerate(members):
            if place == chosen and draws.random() < 0.1:
                continue
            head = content[: draws.choice((128, len(content)))]
            changed = damage_bytes(head, draws) + content[len(head) :] if place == chosen else content
            archive.writestr(entry.filename, changed)
    return renewed.getvalue()


def damage_picture(data: bytes, draws: random.Random) -> bytes:
    """Of a PNG also what is within its chunks, with their checksums renewed."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n") or draws.random() < 0.3:
        return damage_bytes(data, draws)
    chunks, at = [], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += length + 12
    if not chunks:
        return damage_bytes(data, draws)
    chosen = draws.randrange(len(chunks))
    chunks[chosen] = chunks[chosen][0], damage_bytes(chunks[chosen][1], draws)
    return data[:8] + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def damage_safetensors(data: bytes, draws: random.Random) -> bytes:
    """The head, a JSON object behind its length, which is renewed; sometimes the bytes."""
    if len(data) < 8 or draws.random() < 0.3:
        return damage_bytes(data, draws)
    (length,) = struct.unpack("<Q", data[:8])
    head = damage_json(data[8 : 8 + length], draws)
    return struct.pack("<Q", len(head)) + head + data[8 + length :]


def damage_onnx(data: bytes, draws: random.Random) -> bytes:
    """What the file says of itself, sizes and the attributes of its nodes; sometimes the bytes."""
    kind = draws.randrange(4)
    if kind == 0:
        return damage_bytes(data, draws)
    try:
        model = onnx.load_from_string(data)
    except Exception:  # noqa: BLE001 - damaged already
        return damage_bytes(data, draws)
    with contextlib.suppress(Exception):
        if kind == 1 and model.metadata_props:
            entry = draws.choice(model.metadata_props)
            entry.value = damage_json(entry.value.encode(), draws).decode("utf-8", "replace")
        elif kind == 2:
            infos = [*model.graph.input, *model.graph.output]
            dims = draws.choice(infos).type.tensor_type.shape.dim
            draws.choice(dims).dim_value = draws.choice((0, -1, 1, 2, 7, 10**4, 2**31, 2**62))
        else:
            node = draws.choice(model.graph.node)
            tensor = draws.choice(model.graph.initializer) if model.graph.initializer else None
            match draws.randrange(4):
                case 0:
                    node.op_type = draws.choice(("Conv", "Add", "Loop", "If", "Resize", "Tile", "Reshape", "Nothing"))
                case 1:
                    node.input[0] = draws.choice(("images", "", "nowhere"))
                case 2 if tensor is not None:
                    tensor.dims[:] = [draws.choice((0, -1, 1, 3, 2**31, 2**62)) for _ in tensor.dims]
                case _:
                    for attribute in node.attribute:
                        attribute.ints[:] = [draws.choice((0, -1, 1, 2**31, 2**62)) for _ in attribute.ints]
    return model.SerializeToString()


# -------------------------------------------------------------------------------------------------------------- ground


class Ground:
    """A small run, with what each loader is given beside the damaged file."""

    def __init__(self, folder: Path, run: Path) -> None:
        self.folder = folder
        self.run = folder / "runs" / "one"
        _copy(run, self.run)
        (self.run / "robustness").mkdir(exist_ok=True)
        self.pruned = folder / "pruned"
        _prune(Run.open(run), self.pruned)
        self.picture = folder / "picture.png"
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(self.picture)

    def put(self, name: str, data: bytes) -> Path:
        file = self.folder / name
        file.write_bytes(data)
        return file

    def targets(self) -> dict[str, Target]:
        """By name, every loader of a file that may come from somebody else."""
        run, pruned = self.run, self.pruned
        last = checkpoints.pointed(run / "checkpoints", "last")
        checkpoint = run / "checkpoints" / str(last)

        @contextlib.contextmanager
        def replaced(file: Path, data: bytes) -> Iterator[None]:
            whole = file.read_bytes()
            file.write_bytes(data)
            try:
                yield
            finally:
                file.write_bytes(whole)

        def recipe(data: bytes) -> None:
            load(self.put("any.toml", data))

        def override(data: bytes) -> None:
            load("quickstart", [data.decode("utf-8", "surrogateescape")])

        def record(data: bytes) -> None:
            with replaced(run / "run.json", data):
                list_runs(run.parent)
                opened = Run.open(run)
                opened.data.spec()
                compare([run], run.parent)

        def shown(data: bytes) -> None:
            with replaced(run / "run.json", data), replaced(run / "README.md", card_of_ours):
                show_run(run, run.parent)
                refresh(run, Observer())
                page = self.folder / "report.html"
                about: dict[str, Any] = {
                    "benchmark": None,
                    "evaluate": False,
                    "details": 1,
                    "draw": False,
                    "figures": None,
                }
                report([run], run.parent, output=page, **about, data_root=None, device="cpu", observer=Observer())

        def card(data: bytes) -> None:
            header, mark, rest = card_of_ours.partition(b"---\n\n")
            with replaced(run / "README.md", header + data + b"\n" + mark + rest):
                refresh(run, Observer())

        def metrics(data: bytes) -> None:
            with replaced(run / "metrics.jsonl", data):
                list_runs(run.parent)
                opened = Run.open(run)
                history(opened)
                log.keep_until(run / "metrics.jsonl", 1)

        def state(data: bytes) -> None:
            # A stranger renews the digest.
            with contextlib.suppress(ValueError, RecursionError):
                tree = json.loads(data)
                if isinstance(tree, dict):
                    tree.pop("digest", None)
                    digest = hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
                    data = json.dumps(tree | {"digest": digest}).encode()
            with replaced(checkpoint / "state.json", data):
                checkpoints.load(checkpoint)

        def config(data: bytes) -> None:
            with replaced(pruned / "config.json", data):
                PrunedModel.open(pruned).model()

        def safetensors(data: bytes) -> None:
            file = self.put("any.safetensors", data)
            for reader in (load_weights, read_weights):
                with contextlib.suppress(UserError):
                    reader(file)
            told = json.loads((pruned / "config.json").read_text()) | {"sha256": hashlib.sha256(data).hexdigest()}
            with (
                replaced(pruned / "model.safetensors", data),
                replaced(pruned / "config.json", json.dumps(told).encode()),
            ):
                PrunedModel.open(pruned).model()

        def state_dict(data: bytes) -> None:
            read_weights(self.put("any.pth", data))

        def onnx_file(data: bytes) -> None:
            file = self.put("any.onnx", data)
            predict.predict(file, [str(self.picture)], top=3, batch=None, threads=1, observer=Observer())

        def picture(data: bytes) -> None:
            decode(self.put("any.png", data), Framing(16, 16, 3))

        def cut_out(data: bytes) -> None:
            decode_crop(self.put("any.jpg", data), Framing(8, 8, 1), draw_numbers(1, torch.Generator()))

        def npz(data: bytes) -> None:
            file = self.put("any.npz", data)
            datasets.presence("npz", file, download=False)
            datasets.spec("npz", file)
            open_ended: dict[str, Any] = {"image_size": None, "channels": None, "validation": 0, "seed": 0}
            datasets.load("npz", file, download=False, splits=("train", "test"), **open_ended)

        def robustness(data: bytes) -> None:
            (run / "robustness" / "robustness.json").write_bytes(data)
            robustness_of([Run.open(run)])

        def benchmark(data: bytes) -> None:
            latencies(self.put("latency.json", data))

        def thresholds(data: bytes) -> None:
            read_thresholds(self.put("thresholds.toml", data))

        def trackers(data: bytes) -> None:
            self.put("trackers.json", data)
            _identities(self.folder)

        card_of_ours = (run / "README.md").read_bytes()
        recipes = tuple(builtin()[name].read_bytes() for name in ("quickstart", "okddip_resnet32", "quickstart_kd"))
        settings = (b"optimizer.name='adamw'", b"schedule.milestones=[0.5, 3]", b'data.root="x"', b"train.epochs=3")
        weights = (pruned / "model.safetensors").read_bytes()
        small = save({"a": torch.zeros(2, 3), "b.c": torch.zeros(1, dtype=torch.int64)}, {"note": "x"})
        return {
            "recipe": Target(recipes, damage_bytes, recipe),
            "override": Target(settings, damage_bytes, override),
            "run.json": Target(((run / "run.json").read_bytes(),), damage_json, record),
            "run.json, shown": Target(((run / "run.json").read_bytes(),), damage_json, shown),
            "README.md": Target(_HEADERS, damage_header, card),
            "metrics.jsonl": Target(((run / "metrics.jsonl").read_bytes(),), damage_json, metrics),
            "state.json": Target(((checkpoint / "state.json").read_bytes(),), damage_json, state),
            "config.json": Target(((pruned / "config.json").read_bytes(),), damage_json, config),
            "safetensors": Target((small, weights), damage_safetensors, safetensors),
            "pth": Target(_state_dicts(), damage_zip, state_dict),
            "onnx": Target(onnx_files(), damage_onnx, onnx_file),
            "picture": Target(_pictures(), damage_picture, picture, UNREADABLE),
            "picture, cut": Target(_pictures(), damage_picture, cut_out, UNREADABLE),
            "npz": Target(_arrays(), damage_zip, npz),
            "robustness.json": Target((_ROBUSTNESS,), damage_json, robustness),
            "latency.json": Target((_LATENCY,), damage_json, benchmark),
            "thresholds.toml": Target((_THRESHOLDS,), damage_bytes, thresholds),
            "trackers.json": Target((b'{"wandb": "abc"}',), damage_json, trackers),
        }


_HEADERS = (
    b"date: 2026-11-30\ntime: 2026-11-30T10:20:30.5+01:00\nlist: [1, 0x10, 1:30, .5, .nan, ~, yes]\n",
    b"a: &a {b: [c, d]}\nb: *a\nc:\n  <<: *a\n  'd': \"\\u00e9\"\ne: !!set {f, g}\nh: !!binary aGk=\ni: |\n  text\n",
    b"license: mit\nlanguage:\n- en\n- de\n",
)
_TAGS = (
    b"!!python/object/apply:os.getcwd []", b"!!python/name:os.system", b"!!int x", b"!!float x", b"!!bool x",
    b"!!timestamp x", b"!!binary x", b"!!omap [a]", b"!!set {}", b"!x y", b"2026-13-99", b"2026-01-01T99:99:99+99:99",
    b"[" * 3000, b"{a: " * 3000, b"- " * 3000, b"? ", b"<<: 1", b"*a", b"&a ", b"9" * 5000, b"1" + b":59" * 3000,
    b'"\\U00110000"', b'"\\ud800"', b"---\n", b"...\n", b"%YAML 9.9\n", b"\t",
)  # fmt: skip


_ROBUSTNESS = json.dumps(
    {
        "settings": {"directions": 1, "statistics": "fixed", "directions_kind": "unit", "seed": 0},
        "runs": [
            {
                "run": "runs/one",
                "member": "student_0",
                "magnitudes": [0.0, 1.0],
                "curves": {"train": [[1.0, 2.0]], "test": [[1.0, 2.0]]},
                "cross_entropy": {"train": [[0.1, 0.2]], "test": [[0.1, 0.2]]},
            }
        ],
    }
).encode()
_LATENCY = json.dumps(
    {
        "machine": {"cores": 2},
        "results": [{"kind": "onnxruntime", "batch": 1, "threads": 1, "name": "r/exports/a.onnx", "median_ms": 0.5}],
    }
).encode()
_THRESHOLDS = b"""[[parameters]]
at = 2.0
max_increase = 5.0

[[inputs]]
perturbation = "noise"
severity = 3
max_increase = 10
"""


def _copy(run: Path, target: Path) -> None:
    for file in run.rglob("*"):
        part = file.relative_to(run)
        if file.is_file() and part.parts[0] != "tensorboard":
            (target / part).parent.mkdir(parents=True, exist_ok=True)
            (target / part).write_bytes(file.read_bytes())


def _prune(run: Run, folder: Path) -> None:
    prune_branches(
        run.path, run.path.parent, member=None, checkpoint=None, output=folder, data_root=None, observer=Observer()
    )


def _state_dicts() -> tuple[bytes, ...]:
    network = registry.create("resnet8", 10, 1).state_dict()
    some = {name: network[name] for name in list(network)[:4]}
    found = []
    for saved, zipped in ((some, True), ({"state_dict": some, "epoch": 3}, True), (some, False)):
        stream = io.BytesIO()
        torch.save(saved, stream, _use_new_zipfile_serialization=zipped)
        found.append(stream.getvalue())
    return tuple(found)


def onnx_files() -> tuple[bytes, ...]:
    weights = helper.make_tensor("w", TensorProto.FLOAT, [4, 1, 3, 3], [0.1] * 36)
    nodes = [
        helper.make_node("Conv", ["images", "w"], ["c"], pads=[1, 1, 1, 1], strides=[1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    found = []
    for side in (8, "side"):
        images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 1, side, side])
        output = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 4])
        graph = helper.make_graph(nodes, "g", [images], [output], [weights])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        about = {"distilkit_version": "1", "classes": json.dumps(list("abcd"))}
        helper.set_model_props(model, about | {"preprocessing": Preparation(Framing(8, 8, 1)).to_json()})
        found.append(model.SerializeToString())
    return tuple(found)


def _pictures() -> tuple[bytes, ...]:
    draws = np.random.default_rng(0)
    colour = Image.fromarray(draws.integers(0, 256, (12, 9, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    found = []
    for image, name, options in (
        (colour, "PNG", {}),
        (colour.convert("P"), "PNG", {"transparency": 3}),
        (Image.fromarray(draws.integers(0, 65536, (9, 9), dtype=np.uint16)), "PNG", {}),
        (colour, "JPEG", {"exif": exif}),
        (colour.convert("CMYK"), "JPEG", {"progressive": True}),
        (colour, "BMP", {}),
        (colour, "PPM", {}),
        (colour.convert("P"), "GIF", {}),
        (colour, "TIFF", {"compression": "tiff_lzw"}),
        (colour, "WEBP", {}),
        (colour.convert("RGBA"), "TGA", {}),
        (colour, "ICO", {}),
        (colour, "JPEG2000", {}),
    ):
        stream = io.BytesIO()
        with contextlib.suppress(KeyError, OSError):  # a Pillow that was built without it
            image.save(stream, name, **options)
            found.append(stream.getvalue())
    return tuple(found)


def _arrays() -> tuple[bytes, ...]:
    arrays = {
        "x_train": np.zeros((6, 8, 8), np.uint8),
        "y_train": np.arange(6) % 3,
        "x_test": np.zeros((3, 8, 8), np.uint8),
        "y_test": np.arange(3),
    }
    found = []
    for more in ({}, {"classes": np.array(["a", "b", "c"])}):
        stream = io.BytesIO()
        np.savez(stream, **(arrays | more))
        found.append(stream.getvalue())
    return tuple(found)


# ------------------------------------------------------------------------------------------------------------- fuzzing


class SlowError(Exception):
    """An input took longer than `SLOWEST`."""


def attempt(target: Target, data: bytes) -> None:
    """Raises what the loader may not raise."""

    def late(signum: int, frame: object) -> None:
        raise SlowError(f"not done after {SLOWEST} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SLOWEST)
    try:
        target.read(data)
    except target.allowed:
        pass
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def inputs(target: Target, seed: int) -> Iterator[bytes]:
    """Damaged inputs without end, the same ones for the same seed; some are damaged again and again."""
    draws = random.Random(seed)
    data = b""
    while True:
        data = target.damage(data if data and draws.random() < 0.5 else draws.choice(target.seeds), draws)
        yield data


def _fuzz(name: str, ground: Ground, seconds: float, seed: int, kept: Path) -> NoReturn:
    """One loader, in this process, which then ends; one input of each kind of failure is kept, and told of."""
    target = ground.targets()[name]
    current = kept / "current"
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + MOST_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    count, end = 0, time.monotonic() + seconds
    seen: set[tuple[type[Exception], str]] = set()

    def one(data: bytes) -> None:
        nonlocal count
        current.write_bytes(data)
        count += 1
        try:
            attempt(target, data)
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            where = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
            inside = [place for place in where if "distilkit" in place] or where
            if (type(error), inside[-1]) not in seen:
                seen.add((type(error), inside[-1]))
                sys.stderr.write(f"{name}: failed on {len(data)} bytes\n{traceback.format_exc()}")
                _keep(kept, name)
        if time.monotonic() > end:
            sys.stdout.write(f"{count}\n")
            sys.stdout.flush()
            os._exit(1 if seen else 0)

    for data in inputs(target, seed):
        one(data)
    raise AssertionError("inputs have an end")


def _keep(kept: Path, name: str) -> Path:
    content = (kept / "current").read_bytes()
    file = kept / f"{name.replace(', ', '-')}-{hashlib.sha256(content).hexdigest()[:12]}"
    file.write_bytes(content)
    sys.stderr.write(f"kept as {file}\n")
    return file


def _a_run(folder: Path) -> Path:
    from conftest import train_tiny

    return train_tiny(folder, "train.epochs=2", "tracking.name=none", "method.name=baseline")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300, help="of all loaders together")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="the same seed gives the same inputs")
    parser.add_argument("--only", help="one loader")
    parser.add_argument("--kept", type=Path, default=Path("fuzz-failures"), help="where failing inputs go")
    parser.add_argument("--replay", type=Path, help="with --only: read this one input, and let what fails be seen")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        if options.run:
            _fuzz(options.only, Ground(Path(place), options.run), options.seconds, options.seed, options.kept)
        run = _a_run(Path(place))
        if options.replay:
            attempt(Ground(Path(place) / "ground", run).targets()[options.only], options.replay.read_bytes())
            return 0
        names = [options.only] if options.only else list(Ground(Path(place) / "ground", run).targets())
        share, failed = options.seconds / len(names), []
        for name in names:
            words = ["--run", str(run), "--only", name, "--seconds", str(share), "--seed", str(options.seed)]
            words += ["--kept", str(options.kept)]
            command = [sys.executable, __file__, *words]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60 * share + 600, check=False)
            if done.returncode < 0:
                sys.stderr.write(f"{name}: the process was ended by {signal.Signals(-done.returncode).name}\n")
                _keep(options.kept, name)
            failed += [name] if done.returncode else []
            sys.stdout.write(f"{name}: {'FAILED' if done.returncode else done.stdout.strip() + ' inputs'}\n")
            sys.stdout.flush()
    (options.kept / "current").unlink(missing_ok=True)
    sys.stdout.write(f"seed {options.seed}; {len(names) - len(failed)} of {len(names)} loaders held\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
