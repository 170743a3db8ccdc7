"""`distilkit predict` and `distilkit.load`: what was trained answers as it did when it was evaluated."""

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import Result, train_tiny
from onnx import TensorProto, helper
from PIL import Image

import distilkit as package
from distilkit.data import datasets
from distilkit.data.pixels import Framing
from distilkit.data.preparation import Preparation
from distilkit.errors import UserError
from distilkit.models.own import UntrustedCodeError
from distilkit.observer import Observer
from distilkit.runs.run import Run, open_model
from distilkit.workflows.deploy.export import export
from distilkit.workflows.deploy.predict import BATCH, predict
from distilkit.workflows.deploy.prune_branches import prune_branches
from distilkit.workflows.evaluation import logits

Command = Callable[..., Result]
PAGE = Path(__file__).parents[1] / "docs" / "deployment.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
TURNED = 6  # EXIF: to be turned by a quarter


class Exported(NamedTuple):
    """A run, its exported file, and test images in the order of the data set."""

    run: Path
    file: Path
    images: list[str]


def export_to(run: Path, file: Path, mode: Any = "single") -> Path:
    document = export(
        run,
        run.parent,
        mode=mode,
        format="onnx",
        member=None,
        members=False,
        checkpoint=None,
        output=file,
        data_root=None,
        opset=None,
        observer=Observer(),
    )
    assert document["passed"]
    return Path(document["file"])


def answer(file: Path, *images: object, top: int = 1, **options: Any) -> dict[str, Any]:
    options = {"batch": None, "threads": 1, **options}
    return predict(file, [str(image) for image in images], top=top, observer=Observer(), **options)


def in_torch(run: Path) -> tuple[tuple[str, ...], torch.Tensor]:
    """The classes, and the probabilities of all test images as `distilkit evaluate` sees them."""
    _, model = open_model(run, run.parent)
    split = model.data.load(("test",)).splits["test"]
    return model.data.classes, logits.predict(model.classifier, split, "cpu", Observer()).softmax(-1)


def agree(document: dict[str, Any], classes: tuple[str, ...], probabilities_NC: torch.Tensor) -> None:
    assert len(document["predictions"]) == len(probabilities_NC)
    for prediction, expected_C in zip(document["predictions"], probabilities_NC, strict=True):
        assert prediction["class"] == classes[expected_C.argmax()]
        assert prediction["probability"] == pytest.approx(float(expected_C.max()), abs=1e-5)
        for each in prediction["top"]:
            assert each["probability"] == pytest.approx(float(expected_C[classes.index(each["class"])]), abs=1e-5)


# --------------------------------------------------------------------------------------------------- the same answers


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of pictures as they come: of many sizes, formats and modes, some turned."""
    root, draw = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)

    def picture(height: int, width: int, channels: int, colour: int) -> np.ndarray:
        coarse = draw.integers(0, 200, (4, 5, channels)) + 55 * (np.arange(channels) == colour)
        return np.asarray(
            Image.fromarray(coarse.astype(np.uint8).squeeze()).resize((width, height), Image.Resampling.BICUBIC)
        )

    exif = Image.Exif()
    exif[0x0112] = TURNED
    for part in ("train", "val"):
        for colour, name in enumerate(("blue", "red")):
            folder = root / part / name
            folder.mkdir(parents=True)
            Image.fromarray(picture(40, 70, 3, colour)).save(folder / "a.JPEG", exif=exif)
            Image.fromarray(picture(61, 33, 3, colour)).save(folder / "b.png")
            Image.fromarray(picture(16, 16, 3, colour)).save(folder / "c.png")
            Image.fromarray(picture(50, 50, 4, colour)).save(folder / "d.png")
            Image.fromarray(picture(30, 20, 1, 0)).save(folder / "e.tiff")
            Image.fromarray(picture(30, 44, 1, 0).astype(np.uint16) * 200).save(folder / "f.png")
            Image.fromarray(picture(200, 20, 3, colour)).convert("P").save(folder / "g.png")
            Image.fromarray(picture(9, 300, 3, colour)).save(folder / "h.webp", lossless=True)
    return root


@pytest.fixture(scope="module", params=["image-folder", "imagenet"])
def trained(request: pytest.FixtureRequest, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    settings = [f"data.dataset={request.param}", f"data.root={photographs}", "data.image_size=16"]
    settings += ["method.name=baseline", "train.epochs=1", "train.batch_size=8"]
    run = train_tiny(tmp_path_factory.mktemp(request.param), *settings)
    images = [str(path) for path in sorted((photographs / "val").glob("*/*"))]
    return Exported(run, export_to(run, run / "single.onnx"), images)


@pytest.fixture(scope="module")
def digits(baseline_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The baseline's file, and the test digits as PNG files."""
    folder = tmp_path_factory.mktemp("digits")
    (folder / "images").mkdir()
    split = datasets.load("digits", Path(), download=False, splits=("test",)).splits["test"]
    images = []
    for place, image_CHW in enumerate(split.images[:]):
        images.append(str(folder / "images" / f"{place:03d}.png"))
        Image.fromarray(image_CHW[0].numpy()).save(images[-1])
    return Exported(baseline_run, export_to(baseline_run, folder / "single.onnx"), images)


def test_original_files_get_the_answers_that_the_evaluation_counted(trained: Exported) -> None:
    document = answer(trained.file, Path(trained.images[0]).parents[1], top=2)
    assert [each["image"] for each in document["predictions"]] == trained.images
    assert len(trained.images) == 16
    classes, probabilities_NC = in_torch(trained.run)
    assert probabilities_NC[:, 0].std() > 1e-3, "the answers tell the pictures apart"
    agree(document, classes, probabilities_NC)


def test_digits_written_as_files_get_the_answers_that_the_evaluation_counted(digits: Exported) -> None:
    document = answer(digits.file, *digits.images, top=10)
    classes, probabilities_NC = in_torch(digits.run)
    agree(document, classes, probabilities_NC)
    assert sum(each["probability"] for each in document["predictions"][0]["top"]) == pytest.approx(1, abs=1e-5)


def test_an_ensemble_answers_as_an_ensemble(
    one_run: Path, digits: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The timing takes as long as all the rest.
    monkeypatch.setattr("distilkit.workflows.deploy.export._beside_the_leader", lambda *_: {})
    file = export_to(one_run, tmp_path / "ensemble.onnx", "ensemble")
    document = answer(file, *digits.images[:40])
    run = Run.open(one_run)
    learner, split = run.learner(), run.data.load(("test",)).splits["test"]
    with torch.inference_mode():
        logits_NC = learner.predict(split.images[:40].float() / 255)[1]
    assert logits_NC is not None
    agree(document, run.data.classes, logits_NC.softmax(-1))


@pytest.mark.parametrize("batch", [1, 7, BATCH, 1000])
def test_the_number_of_images_at_a_time_changes_nothing(digits: Exported, batch: int) -> None:
    every = {each["image"]: each for each in answer(digits.file, *digits.images)["predictions"]}
    found = answer(digits.file, *digits.images[:40], batch=batch)
    assert [each["image"] for each in found["predictions"]] == digits.images[:40]
    for each in found["predictions"]:
        assert each["class"] == every[each["image"]]["class"]
        assert each["probability"] == pytest.approx(every[each["image"]]["probability"], abs=1e-5)


# ---------------------------------------------------------------------------------------------------- without torch


def test_predict_imports_no_torch_and_little_else(digits: Exported) -> None:
    """Modules are counted, not seconds: some 500 of them take 0.4 s, and torch alone brings 1,500."""
    code = (
        "import sys, distilkit.cli\n"
        "try: distilkit.cli.main(sys.argv[1:])\n"
        "except SystemExit as e: assert not e.code, e.code\n"
        "heavy = {'torch', 'torchvision', 'matplotlib', 'sklearn', 'scipy', 'onnx'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "print(len(sys.modules), file=sys.stderr)"
    )
    arguments = ["predict", str(digits.file), digits.images[0], "--json"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["predictions"][0]["image"] == digits.images[0]
    assert int(done.stderr) < 700


# ------------------------------------------------------------------------------------------------- which images, how


def test_folders_are_searched_to_the_bottom_and_hidden_files_passed_over(digits: Exported, tmp_path: Path) -> None:
    picture = Path(digits.images[0]).read_bytes()
    for name in ("b/2.png", "b/1.PNG", "b/c/3.png", "a.png", "._a.png", ".hidden/4.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(picture)
    (tmp_path / "b" / "up").symlink_to(tmp_path)
    (tmp_path / "list.txt").write_text("a.png")
    found = answer(digits.file, tmp_path)
    assert [str(Path(each["image"]).relative_to(tmp_path)) for each in found["predictions"]] == [
        "a.png",
        "notes.txt",
        "b/1.PNG",
        "b/2.png",
        "b/c/3.png",
    ], "the order of names at every level; by content, ending or not"
    assert found["unanswered"] == []


def test_a_list_on_stdin_beside_names(
    digits: Exported, distilkit: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    odd = os.fsencode(tmp_path) + b"/caf\xe9 1.png"
    Path(os.fsdecode(odd)).write_bytes(Path(digits.images[1]).read_bytes())
    listed = digits.images[0].encode() + b"\n\n" + odd + b"\r\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(listed)))
    result = distilkit("predict", digits.file, digits.images[2], "-", "--top", 2)
    assert result.status == 0, result.err
    lines = result.out.splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        digits.images[2],
        digits.images[0],
        f"{tmp_path}/caf\N{REPLACEMENT CHARACTER} 1.png",
    ]
    assert all(re.fullmatch(r"\d 0\.\d{4}, \d 0\.\d{4}", line.split(": ")[1]) for line in lines), lines


def test_an_empty_list_is_a_fault(digits: Exported, distilkit: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    result = distilkit("predict", digits.file, "-")
    assert (result.status, result.out) == (2, "")
    assert "the list on stdin is empty" in result.err


def test_unreadable_pictures_are_named_and_the_others_answered(
    digits: Exported, distilkit: Command, tmp_path: Path
) -> None:
    (tmp_path / "text.png").write_text("no picture", encoding="utf-8")
    (tmp_path / "empty.png").touch()
    (tmp_path / "torn.png").write_bytes(Path(digits.images[0]).read_bytes()[:60])
    (tmp_path / "folder").mkdir()
    names = [tmp_path / name for name in ("text.png", "empty.png", "torn.png", "missing.png", "folder")]
    images = [digits.images[0], *names, digits.images[1]]
    result = distilkit("predict", digits.file, *images, "--json", "--batch", 2)
    assert result.status == 2
    document = result.json
    assert [each["image"] for each in document["predictions"]] == digits.images[:2]
    assert document["images"] == 7
    reasons = {each["image"]: each["reason"] for each in document["unanswered"]}
    assert reasons.keys() == {str(name) for name in names}
    assert reasons[str(names[0])].startswith("not an image of a format that is read (JPEG, PNG, WebP, ")
    assert reasons[str(names[1])] == "empty"
    assert reasons[str(names[3])] == "No such file or directory"
    assert reasons[str(names[4])].startswith("a folder without images")
    assert "5 of 7 have no answer" in result.err
    assert all(f"{name}: {reasons[str(name)]}" in result.err for name in names)


def test_more_classes_than_there_are_is_all_of_them(digits: Exported, distilkit: Command) -> None:
    result = distilkit("predict", digits.file, digits.images[0], "--top", 1000, "--json")
    (prediction,) = result.json["predictions"]
    probabilities = [each["probability"] for each in prediction["top"]]
    assert len(probabilities) == 10 == result.json["classes"]
    assert probabilities == sorted(probabilities, reverse=True)
    assert (prediction["class"], prediction["probability"]) == tuple(prediction["top"][0].values())
    assert distilkit("predict", digits.file, digits.images[0], "--top", 0).status == 2


# ------------------------------------------------------------------------------------------- what the file must say


def small_file(
    path: Path,
    preparation: Preparation,
    *,
    batch: int | None = None,
    metadata: dict[str, str] | None = None,
    scale: float = 1.0,
) -> Path:
    """A file whose two probabilities are the mean of the input, in [0, 1], and what is left to 1."""
    types = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8}
    scale /= 255 if preparation.dtype == "uint8" else 1
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["flat"]),
        helper.make_node("ReduceMean", ["flat", "axis"], ["mean"], keepdims=1),
        helper.make_node("Mul", ["mean", "scale"], ["bright"]),
        helper.make_node("Sub", ["one", "bright"], ["dark"]),
        helper.make_node("Concat", ["bright", "dark"], ["probabilities"], axis=1),
    ]
    count = batch or "N"
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", types[preparation.dtype], [count, *preparation.shape()])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [count, 2])],
        [
            helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
            helper.make_tensor("scale", TensorProto.FLOAT, [1, 1], [scale]),
            helper.make_tensor("one", TensorProto.FLOAT, [1, 1], [1.0]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    if metadata is None:
        metadata = {"distilkit_version": "1", "classes": '["bright", "dark"]', "preprocessing": preparation.to_json()}
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


GREY = Preparation(Framing(4, 4, 1))


@pytest.fixture
def greys(tmp_path: Path) -> list[Path]:
    """Seven pictures of one grey each."""
    files = [tmp_path / f"{level:03d}.png" for level in range(140, 255, 17)]
    for file in files:
        Image.new("L", (5, 7), int(file.stem)).save(file)
    return files


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("batch", [None, 3])
def test_inputs_of_every_type_layout_and_batch(
    tmp_path: Path, greys: list[Path], dtype: Any, layout: Any, batch: int | None
) -> None:
    preparation = Preparation(Framing(4, 5, 3), layout, dtype)
    document = answer(small_file(tmp_path / "small.onnx", preparation, batch=batch), *greys)
    for each, file in zip(document["predictions"], greys, strict=True):
        assert each["class"] == "bright"
        assert each["probability"] == pytest.approx(int(file.stem) / 255, abs=1e-3 if dtype == "float16" else 1e-6)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_pixels_stand_where_the_layout_says(layout: Any) -> None:
    images_NHWC = np.arange(2 * 2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 2, 3)
    array = Preparation(Framing(2, 2, 3), layout).array(images_NHWC)
    place = (1, 2, 0, 1) if layout == "nchw" else (1, 0, 1, 2)
    assert array[place] == np.float32(images_NHWC[1, 0, 1, 2]) / np.float32(255)
    assert array.flags.c_contiguous


def test_a_file_that_takes_one_number_of_images_says_so(tmp_path: Path, greys: list[Path]) -> None:
    file = small_file(tmp_path / "small.onnx", GREY, batch=3)
    assert len(answer(file, *greys, batch=3)["predictions"]) == len(greys)
    with pytest.raises(UserError, match="takes 3 images at a time"):
        answer(file, *greys, batch=2)


def test_probabilities_that_are_no_numbers_are_no_answer(tmp_path: Path, greys: list[Path]) -> None:
    document = answer(small_file(tmp_path / "small.onnx", GREY, scale=float("nan")), greys[0])
    assert document["predictions"] == []
    assert "not finite" in document["unanswered"][0]["reason"]


NEWER = GREY.to_json().replace('"bilinear"', '"lanczos"')


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "was not exported by distilkit"),
        ({"distilkit_version": "0.0.1", "classes": '["a", "b"]'}, "exported by distilkit 0.0.1"),
        ({"distilkit_version": "9", "classes": '["a", "b"]', "preprocessing": NEWER}, "steps that this distilkit"),
        ({"distilkit_version": "9", "classes": '["a", "b"]', "preprocessing": "{}"}, "not a description"),
        ({"distilkit_version": "9", "classes": '["a", "b"]', "preprocessing": "["}, "not a description"),
        ({"distilkit_version": "9", "classes": "{}", "preprocessing": GREY.to_json()}, "not a list of names"),
        ({"distilkit_version": "9", "classes": '["a"]', "preprocessing": GREY.to_json()}, "probabilities of its 1 cl"),
        (
            {
                "distilkit_version": "9",
                "classes": '["a", "b"]',
                "preprocessing": GREY._replace(dtype="uint8").to_json(),
            },
            "contradicts itself",
        ),
        (
            {
                "distilkit_version": "9",
                "classes": '["a", "b"]',
                "preprocessing": GREY._replace(layout="nhwc").to_json(),
            },
            "contradicts itself",
        ),
    ],
)
def test_files_that_do_not_say_how_they_are_used(
    tmp_path: Path, greys: list[Path], distilkit: Command, metadata: dict[str, str], message: str
) -> None:
    file = small_file(tmp_path / "small.onnx", GREY, metadata=metadata)
    result = distilkit("predict", file, greys[0])
    assert (result.status, result.out) == (2, "")
    assert message in result.err
    assert "hint:" in result.err


def test_files_that_are_no_onnx_files(tmp_path: Path, greys: list[Path], distilkit: Command) -> None:
    for file, message in (
        (tmp_path / "missing.onnx", "there is no file"),
        (tmp_path, "is not a plain file"),
        (greys[0], "cannot be opened by ONNX Runtime"),
    ):
        result = distilkit("predict", file, greys[0])
        assert (result.status, result.out) == (2, "")
        assert message in result.err


@pytest.mark.parametrize("framing", [Framing(4, 4, 1), Framing(224, 256, 3), Framing(1, 1, 3)])
def test_a_preparation_is_what_it_says(framing: Framing) -> None:
    preparation = Preparation(framing, "nhwc", "uint8")
    assert Preparation.from_json(preparation.to_json()) == preparation


@pytest.mark.parametrize("framing", [Framing(4, 3, 1), Framing(4, 4, 2)])
def test_a_preparation_that_nobody_can_do_is_not_written(framing: Framing) -> None:
    with pytest.raises(ValueError, match="framed"):
        Preparation(framing).to_json()


@pytest.mark.parametrize("name", datasets.names())
def test_every_data_set_says_how_its_pictures_are_prepared(name: str) -> None:
    traits = datasets.traits(name)
    framing = Preparation.from_json(Preparation(traits.framing(224, 3)).to_json()).framing
    assert framing == Framing(224, 256 if name == "imagenet" else 224, 3)


# ---------------------------------------------------------------------------------------------------- distilkit.load


def test_a_loaded_run_takes_raw_images_and_gives_logits(baseline_run: Path, digits: Exported) -> None:
    model = package.load(str(baseline_run))
    assert isinstance(model, torch.nn.Module)
    assert not any(module.training for module in model.modules())
    assert (model.classes, model.channels, model.size) == (tuple("0123456789"), 1, 8)
    assert (model.architecture, model.method, model.dataset, model.member) == (
        "resnet8",
        "baseline",
        "digits",
        "student_0",
    )
    images = model.read(*digits.images)
    assert (images.dtype, images.shape) == (torch.uint8, (500, 1, 8, 8))
    with torch.inference_mode():
        logits_NC = model(images)
        assert torch.equal(model(images.float() / 255), logits_NC)
    assert torch.allclose(logits_NC.softmax(-1), in_torch(baseline_run)[1], atol=1e-5)
    found = json.loads((baseline_run / "run.json").read_text())["final"]["errors"]["student_0"]["top1"]
    assert model.top1_error == found
    assert model.read().shape == (0, 1, 8, 8)


def test_pictures_are_read_as_the_test_images_were(trained: Exported) -> None:
    model = package.load(trained.run)
    with torch.inference_mode():
        probabilities_NC = model(model.read(*trained.images)).softmax(-1)
    assert torch.allclose(probabilities_NC, in_torch(trained.run)[1], atol=1e-5)


def test_any_student_any_checkpoint_and_a_pruned_one(one_run: Path, tmp_path: Path) -> None:
    images = torch.randint(256, (5, 1, 8, 8), dtype=torch.uint8)
    prune_branches(
        one_run, one_run.parent, member=None, checkpoint=None, output=tmp_path, data_root=None, observer=Observer()
    )
    leader, other = package.load(one_run), package.load(one_run, member="student_1", checkpoint="last")
    with torch.inference_mode():
        assert torch.equal(package.load(tmp_path)(images), leader(images))
        assert not torch.equal(other(images), leader(images))
    assert (leader.member, other.member) == ("student_0", "student_1")
    with pytest.raises(UserError, match="no member"):
        package.load(tmp_path, member="student_1")
    with pytest.raises(UserError, match="step_99"):
        package.load(one_run, checkpoint="step_99")
    with pytest.raises(UserError, match="does not exist"):
        package.load(tmp_path / "nowhere")
    with pytest.raises(UserError) as raised:
        package.load(one_run.parent)
    assert str(one_run) in str(raised.value)


def test_code_of_the_users_own_is_executed_only_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_run: Path
) -> None:
    prune_branches(
        one_run, one_run.parent, member=None, checkpoint=None, output=tmp_path, data_root=None, observer=Observer()
    )
    (tmp_path / "nets_of_mine.py").write_text(
        "from distilkit.models.registry import create\n"
        "def small(num_classes, channels):\n"
        "    return create('resnet8', num_classes, channels)\n"
    )
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architecture": "nets_of_mine:small"}))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UntrustedCodeError, match="trust_code=True"):
        package.load(tmp_path)
    assert "nets_of_mine" not in sys.modules
    assert package.load(tmp_path, trust_code=True).architecture == "nets_of_mine:small"
    sys.modules.pop("nets_of_mine")


# ---------------------------------------------------------------------------------------------- the page's own lines


def test_the_page_shows_what_the_other_tests_run() -> None:
    assert len(SNIPPETS) == 6
    assert len(SNIPPETS[0].splitlines()) <= 15
    assert "torch" not in SNIPPETS[0]


def test_the_snippet_without_distilkit_answers_as_predict_does(
    trained: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "single.onnx").write_bytes(trained.file.read_bytes())
    monkeypatch.chdir(tmp_path)
    about = onnxruntime.InferenceSession("single.onnx").get_modelmeta().custom_metadata_map
    snippet = SNIPPETS[0]
    if json.loads(about["preprocessing"])["resize"]["rule"] == "shorter-side":
        (line,) = (line for line in snippet.splitlines(keepends=True) if line.startswith("square = "))
        snippet = snippet.replace(line, SNIPPETS[1])
    for image in trained.images:
        if image.endswith(("a.JPEG", "b.png", "c.png", "e.tiff")):
            (tmp_path / "cat.jpg").write_bytes(Path(image).read_bytes())
            capsys.readouterr()
            exec(compile(snippet, str(PAGE), "exec"), {})
            (prediction,) = answer(trained.file, image, top=5)["predictions"]
            expected = "".join(f"{each['class']} {each['probability']:.4f}\n" for each in prediction["top"])
            assert capsys.readouterr().out == expected


def test_the_three_lines_of_load_work_as_printed(
    one_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "one").symlink_to(one_run)
    Image.new("RGB", (40, 30), "white").save(tmp_path / "cat.jpg")
    monkeypatch.chdir(tmp_path)
    exec(compile(SNIPPETS[4], str(PAGE), "exec"), {})
    assert capsys.readouterr().out.strip() in tuple("0123456789")


def test_the_weights_of_torchvisions_architecture_are_torchvisions(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train_tiny(
        tmp_path,
        "data.dataset=image-folder",
        f"data.root={image_folder}",
        "data.image_size=32",
        "model.architecture=torchvision:shufflenet_v2_x0_5",
        "method.name=baseline",
        "train.epochs=1",
        "train.batch_size=24",
    )
    output = tmp_path / "pruned"
    prune_branches(run, run.parent, member=None, checkpoint=None, output=output, data_root=None, observer=Observer())
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(compile(SNIPPETS[5], str(PAGE), "exec"), scope)
    model = package.load(output)
    stock, ours = scope["network"].eval(), model.backbone.state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in stock.state_dict().items())
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.allclose(stock(model.normalize(images)), model(images), atol=1e-5)
