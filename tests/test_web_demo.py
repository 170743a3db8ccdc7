"""docs/web-demo in a real browser: the same answers as `distilkit predict`, and words where there is no answer.

It needs Chromium, Playwright for Python, and npm with a registry; without them these tests are skipped, or fail where
DISTILKIT_REQUIRE_BROWSER=1 says that they must run.
"""

import base64
import functools
import http.server
import importlib.util
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx
import PIL
import pytest
from conftest import train_tiny
from filelock import FileLock
from onnx import TensorProto, helper
from PIL import Image

from distilkit.data import datasets
from distilkit.data.pixels import Framing, framed, to_mode
from distilkit.data.preparation import Preparation
from distilkit.export.form import Form
from distilkit.observer import Observer
from distilkit.workflows.deploy.export import export
from distilkit.workflows.deploy.predict import predict

DEMO = Path(__file__).parents[1] / "docs" / "web-demo"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PHONE = {"width": 360, "height": 740}
TOLERANCE = 1e-4
TURNED = 6  # EXIF: to be turned by a quarter


def _missing(reason: str) -> NoReturn:
    if os.environ.get("DISTILKIT_REQUIRE_BROWSER") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """node_modules with onnxruntime-web, as the page's package.json asks for it; installed once for all processes."""
    npm = shutil.which("npm")
    if npm is None:
        _missing("npm is not installed")
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    folder = folder / "web-demo"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / ".lock"):
        if not (folder / "done").exists():
            shutil.copy(DEMO / "package.json", folder)
            command = [npm, "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
            if done.returncode:
                _missing(f"npm install fails: {done.stderr.strip()[-300:]}")
            (folder / "done").touch()
    return folder / "node_modules"


class _Handler(http.server.SimpleHTTPRequestHandler):
    """The demo's folder, with node_modules from elsewhere, as if `npm install` had been typed in it."""

    def __init__(self, *arguments: Any, modules: Path | None, **keywords: Any) -> None:
        self.modules = modules
        super().__init__(*arguments, directory=str(DEMO), **keywords)

    def translate_path(self, path: str) -> str:
        if path.startswith("/node_modules/"):
            return str(self.modules / path.removeprefix("/node_modules/")) if self.modules else "/nowhere"
        return super().translate_path(path)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def served(runtime: Path) -> Iterator[Callable[..., str]]:
    """Addresses of the page: served(), and served(installed=False) where `npm install` was forgotten."""
    servers = {
        installed: http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(_Handler, modules=runtime if installed else None)
        )
        for installed in (True, False)
    }
    for server in servers.values():
        threading.Thread(target=server.serve_forever, daemon=True).start()
    yield lambda installed=True: f"http://127.0.0.1:{servers[installed].server_address[1]}/"
    for server in servers.values():
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    if importlib.util.find_spec("playwright") is None:
        _missing("Playwright for Python is not installed")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        _missing("there is no Chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


class Demo:
    """The page in a tab, and what a person can do with it."""

    def __init__(self, page: Any, address: str) -> None:
        self.page, self.address = page, address
        self.requests: list[Any] = []
        self.faults: list[str] = []
        page.on("request", lambda request: self.requests.append(request))
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", lambda message: message.type == "error" and self.faults.append(message.text))
        page.goto(address)
        self.settle()

    def choose(self, kind: str, file: Path) -> None:
        self.page.set_input_files(f"#{kind}-file", file)
        self.settle()

    def hand_over(self, event: str, *files: Path) -> None:
        """Drop or paste."""
        given = [[file.name, base64.b64encode(file.read_bytes()).decode()] for file in files]
        self.page.evaluate(
            """([event, files]) => {
                const transfer = new DataTransfer();
                for (const [name, content] of files) {
                    const bytes = Uint8Array.from(atob(content), (each) => each.charCodeAt(0));
                    transfer.items.add(new File([bytes], name, {type: name.endsWith(".png") ? "image/png" : ""}));
                }
                const made = event === "drop"
                    ? new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true})
                    : new ClipboardEvent("paste", {clipboardData: transfer, bubbles: true});
                document.body.dispatchEvent(made);
            }""",
            [event, given],
        )
        self.settle()

    def settle(self) -> None:
        """Until nothing is being read or computed."""
        self.page.wait_for_selector("main[aria-busy=false]", timeout=60_000)

    def answer(self) -> dict[str, float]:
        """The classes that are shown, the best first, with their probabilities."""
        assert self.page.locator("#error").is_hidden(), self.error()
        assert self.page.locator("#result").is_visible()
        rows = self.page.locator("#classes li").all()
        return {row.locator(".class").inner_text(): float(row.locator("data").evaluate("d => d.value")) for row in rows}

    def status(self) -> str:
        return str(self.page.locator("#status").inner_text())

    def error(self) -> str:
        assert self.page.locator("#error").is_visible()
        assert self.page.locator("#result").is_hidden(), "no answer stands beside an error"
        return str(self.page.locator("#error").inner_text())


@pytest.fixture
def demo(chromium: Any, served: Callable[..., str]) -> Iterator[Demo]:
    page = chromium.new_page()
    opened = Demo(page, served())
    yield opened
    assert opened.faults == []
    for request in opened.requests:
        assert request.url.startswith((opened.address, f"blob:{opened.address}", "data:")), request.url
        assert request.method == "GET"
        assert request.post_data is None
    page.close()


@pytest.fixture(scope="module")
def digits(baseline_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained network's file: grey, 8 x 8, the central square."""
    return _export(baseline_run, tmp_path_factory.mktemp("digits") / "digits.onnx", Form())


def _export(run: Path, file: Path, form: Form) -> Path:
    document = export(
        run,
        run.parent,
        mode="single",
        format="onnx",
        member=None,
        members=False,
        checkpoint=None,
        output=file,
        data_root=None,
        opset=None,
        observer=Observer(),
        form=form,
    )
    assert document["passed"]
    return Path(document["file"])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures as they come: of many sizes, formats and modes, one turned, some longer than they are wide."""
    root, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)

    def picture(height: int, width: int, channels: int) -> Image.Image:
        coarse = draw.integers(0, 256, (5, 4, channels), dtype=np.uint8).squeeze()
        return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)

    exif = Image.Exif()
    exif[0x0112] = TURNED
    picture(640, 427, 3).save(root / "photograph.png")
    picture(480, 641, 3).save(root / "turned.jpg", exif=exif, quality=90)
    picture(300, 200, 3).save(root / "plain.jpg", quality=75)
    picture(101, 57, 4).save(root / "transparent.png")
    Image.merge("LA", [picture(60, 50, 1), picture(60, 50, 1)]).save(root / "grey_transparent.png")
    picture(77, 91, 1).save(root / "grey.png")
    picture(50, 60, 3).convert("P").save(root / "palette.png")
    picture(120, 80, 3).save(root / "lossless.webp", lossless=True)
    picture(11, 303, 3).save(root / "long.png")
    picture(90, 90, 3).save(root / "square.bmp")
    picture(5, 4, 3).save(root / "tiny.png")
    return root


def in_python(file: Path, picture: Path) -> dict[str, float]:
    document = predict(file, [str(picture)], top=5, batch=None, threads=1, observer=Observer())
    assert document["unanswered"] == []
    return {each["class"]: each["probability"] for each in document["predictions"][0]["top"]}


def same(shown: dict[str, float], expected: dict[str, float], what: object) -> None:
    assert shown == pytest.approx(expected, abs=TOLERANCE), what
    best = max(expected, key=expected.__getitem__)
    assert next(iter(shown)) == best, what


# -------------------------------------------------------------------------------------------------- the same answers


def test_test_images_get_the_probabilities_that_python_gives_them(demo: Demo, digits: Path, tmp_path: Path) -> None:
    split = datasets.load("digits", Path(), download=False, splits=("test",)).splits["test"]
    demo.choose("model", digits)
    assert "ready" in demo.status()
    seen = set()
    for place in range(0, 60, 5):
        picture = tmp_path / f"{place}.png"
        Image.fromarray(split.images[place : place + 1][0, 0].numpy()).save(picture)
        demo.choose("picture", picture)
        expected = in_python(digits, picture)
        same(demo.answer(), expected, place)
        seen.add(next(iter(expected)))
    assert len(seen) > 4, "the network tells digits apart"
    assert re.fullmatch(r"One run took \d+\.\d ms in this browser, on one thread\.", demo.page.inner_text("#time"))


def test_pictures_of_every_kind_get_the_probabilities_that_python_gives_them(
    demo: Demo, digits: Path, pictures: Path
) -> None:
    demo.choose("model", digits)
    for picture in sorted(pictures.iterdir()):
        demo.choose("picture", picture)
        same(demo.answer(), in_python(digits, picture), picture.name)


@pytest.fixture(scope="module")
def colour_run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on ImageNet's folders: RGB, the shorter side resized to more than is cut out."""
    root = tmp_path_factory.mktemp("imagenet")
    for part in ("train", "val"):
        for place, name in enumerate(("one", "two")):
            (root / part / name).mkdir(parents=True)
            for picture in sorted(pictures.glob("*.png"))[place::2]:
                shutil.copy(picture, root / part / name)
    settings = ["data.dataset=imagenet", f"data.root={root}", "data.image_size=16"]
    settings += ["method.name=baseline", "train.epochs=1", "train.batch_size=8"]
    return train_tiny(tmp_path_factory.mktemp("colour"), *settings)


@pytest.mark.parametrize(
    "form", [Form(), Form(pixels="uint8", layout="nhwc", batch=3), Form(half=True)], ids=lambda form: form.suffix
)
def test_colour_pictures_in_every_form_of_the_input(
    form: Form, demo: Demo, colour_run: Path, pictures: Path, tmp_path: Path
) -> None:
    file = _export(colour_run, tmp_path / "colour.onnx", form)
    demo.choose("model", file)
    differ = set()
    for picture in sorted(pictures.iterdir()) if form == Form() else sorted(pictures.glob("*.png")):
        demo.choose("picture", picture)
        expected = in_python(file, picture)
        same(demo.answer(), expected, picture.name)
        differ.add(round(next(iter(expected.values())), 3))
    assert len(differ) > 2, "the network tells pictures apart"


@pytest.mark.parametrize(("size", "short_side"), [(8, 8), (33, 33), (20, 23)])
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_pillows_bit_for_bit(demo: Demo, size: int, short_side: int, channels: int) -> None:
    """Where a picture is resized, by whatever factor, and where it is laid on white: every pixel, not nearly.

    Before its version 13 Pillow took tall pictures' two passes in the other order, which rounds otherwise.
    """
    nearly = int(PIL.__version__.split(".")[0]) < 13
    framing = Framing(size, short_side, channels)
    how = json.loads(Preparation(framing).to_json())
    draw = np.random.default_rng(size)
    sizes = [(size, size), (7, 9), (64, 64), (101, 57), (57, 100), (9, 300), (301, 8), (1, 1), (2, 401), (640, 427)]
    for height, width in sizes:
        rgba = draw.integers(0, 256, (height, width, 4), dtype=np.uint8)
        expected = framed(to_mode(Image.fromarray(rgba), channels), framing)
        found = demo.page.evaluate(
            """async ([content, width, height, how]) => {
                const { prepare } = await import("./picture.js");
                const rgba = Uint8Array.from(atob(content), (each) => each.charCodeAt(0));
                return Array.from(prepare(rgba, width, height, how).pixels);
            }""",
            [base64.b64encode(rgba.tobytes()).decode(), width, height, how],
        )
        difference = np.abs(np.array(found).reshape(expected.shape) - expected.astype(int)).max()
        assert difference <= (nearly and height > width), (height, width)


# ------------------------------------------------------------------------------------------------- what a person does


def test_what_is_dropped_together_is_answered_together(demo: Demo, digits: Path, pictures: Path) -> None:
    demo.hand_over("drop", pictures / "grey.png", digits)
    same(demo.answer(), in_python(digits, pictures / "grey.png"), "dropped")
    demo.hand_over("paste", pictures / "transparent.png")
    same(demo.answer(), in_python(digits, pictures / "transparent.png"), "pasted")


def test_a_picture_waits_for_its_model(demo: Demo, digits: Path, pictures: Path) -> None:
    demo.choose("picture", pictures / "grey.png")
    assert "no model yet" in demo.status()
    assert demo.page.locator("#picture").is_visible()
    demo.choose("model", digits)
    same(demo.answer(), in_python(digits, pictures / "grey.png"), "the model came second")


def test_a_picture_that_is_chosen_while_the_model_loads_gets_its_answer(
    demo: Demo, digits: Path, pictures: Path
) -> None:
    demo.page.set_input_files("#model-file", digits)
    demo.page.set_input_files("#picture-file", pictures / "grey.png")
    demo.settle()
    same(demo.answer(), in_python(digits, pictures / "grey.png"), "at the same time")


def test_everything_can_be_reached_by_keyboard_and_has_a_name(demo: Demo, digits: Path, pictures: Path) -> None:
    names = []
    for _ in range(2):
        demo.page.keyboard.press("Tab")
        names.append(demo.page.evaluate("document.activeElement.labels[0].textContent.trim()"))
    assert names == ["Choose a model", "Choose a picture"]
    demo.choose("model", digits)
    demo.choose("picture", pictures / "grey.png")
    assert demo.page.get_by_role("status").inner_text().endswith("%"), "a screen reader hears the answer"
    assert demo.page.get_by_role("region", name="Most probable classes").is_visible()
    assert demo.page.get_by_role("img", name="The picture as the network sees it").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_its_words_stand_out(
    scheme: str, chromium: Any, served: Callable[..., str], digits: Path, pictures: Path
) -> None:
    page = chromium.new_page(viewport=PHONE, color_scheme=scheme)
    opened = Demo(page, served())
    opened.choose("model", digits)
    opened.choose("picture", pictures / "photograph.png")
    assert len(opened.answer()) == 5
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    for selector in (
        "header p",
        ".name",
        ".button",
        "dt",
        "dd",
        "figcaption",
        "#status",
        ".class",
        ".percent",
        "#time",
    ):
        assert _contrast(page, selector) >= 4.5, selector
    page.close()


def _contrast(page: Any, selector: str) -> float:
    """WCAG's contrast ratio of the first such element's text and what is behind it."""
    text, behind = page.locator(selector).first.evaluate(
        """element => {
            const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
            let below = element;
            while (below && numbers(getComputedStyle(below).backgroundColor)[3] === 0) below = below.parentElement;
            return [getComputedStyle(element).color, getComputedStyle(below).backgroundColor].map(numbers);
        }"""
    )

    def luminance(colour: list[float]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour[:3])]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(text), luminance(behind)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


# ---------------------------------------------------------------------------------------------- what has no answer


def _identity(file: Path, **metadata: str) -> Path:
    """A model that is whole, and whatever it says of itself."""
    one = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 1, 8, 8])
    two = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 1, 8, 8])
    graph = helper.make_graph([helper.make_node("Identity", ["images"], ["probabilities"])], "g", [one], [two])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, metadata)
    onnx.save(model, file)
    return file


def test_files_that_are_no_model_are_named_with_what_to_do(demo: Demo, digits: Path, tmp_path: Path) -> None:
    whole, broken = digits.read_bytes(), tmp_path / "broken.onnx"
    for content in (b"", b"no model at all", whole[: len(whole) // 2], whole[:-1]):
        broken.write_bytes(content)
        demo.choose("model", broken)
        assert "broken.onnx" in demo.error()
        assert "not whole" in demo.error() or "was not exported by distilkit" in demo.error()
    demo.choose("model", _identity(tmp_path / "foreign.onnx"))
    assert "was not exported by distilkit" in demo.error()
    assert "distilkit export" in demo.error()
    demo.choose("model", _identity(tmp_path / "old.onnx", distilkit_version="0.0.1"))
    assert "Export the run again" in demo.error()
    how = json.loads(Preparation(Framing(8, 8, 1)).to_json())
    said = {"distilkit_version": "9", "classes": '["a", "b"]'}
    for change in ({"format": 2}, {"layout": "nwhc"}, {"colour": "rgb"}, {"resize": {}}, {"crop": "left"}):
        demo.choose("model", _identity(tmp_path / "new.onnx", **said, preprocessing=json.dumps(how | change)))
        assert "does not know" in demo.error(), change
    demo.choose("model", _identity(tmp_path / "wrong.onnx", **said, preprocessing="{"))
    assert "damaged" in demo.error()
    demo.choose("model", _identity(tmp_path / "wrong.onnx", **said, preprocessing=json.dumps(how)))
    assert "contradicts itself" in demo.error()
    demo.choose("model", digits)
    assert "ready" in demo.status(), "after all that a whole one works"


def test_a_graph_that_the_runtime_cannot_open_is_named(demo: Demo, digits: Path, tmp_path: Path) -> None:
    model = onnx.load(digits)
    model.graph.node[0].op_type = "Convolve"
    file = tmp_path / "odd.onnx"
    file.write_bytes(model.SerializeToString())
    demo.choose("model", file)
    assert "odd.onnx cannot be opened by onnxruntime-web" in demo.error()
    demo.faults.clear()  # the runtime writes its own lines to the console


def test_a_failed_model_leaves_no_answer_of_the_one_before_it(
    demo: Demo, digits: Path, pictures: Path, tmp_path: Path
) -> None:
    demo.choose("model", digits)
    demo.choose("picture", pictures / "grey.png")
    demo.answer()
    demo.choose("model", _identity(tmp_path / "foreign.onnx"))
    demo.error()
    assert demo.page.inner_text("#model-name") == "none yet"
    demo.choose("picture", pictures / "grey.png")
    assert "no model yet" in demo.status()


def test_what_is_no_picture_is_named_and_the_next_one_works(
    demo: Demo, digits: Path, pictures: Path, tmp_path: Path
) -> None:
    demo.choose("model", digits)
    torn = tmp_path / "torn.png"
    for content in (b"", b"plain words", (pictures / "photograph.png").read_bytes()[:100]):
        torn.write_bytes(content)
        demo.choose("picture", torn)
        assert "torn.png is not a picture that this browser can read" in demo.error()
    demo.choose("picture", pictures / "grey.png")
    same(demo.answer(), in_python(digits, pictures / "grey.png"), "after the errors")


def test_a_huge_picture_is_refused_before_it_is_decoded(demo: Demo, digits: Path, tmp_path: Path) -> None:
    Image.new("1", (9000, 9000)).save(tmp_path / "huge.png")
    demo.choose("model", digits)
    demo.choose("picture", tmp_path / "huge.png")
    assert "9000 \N{MULTIPLICATION SIGN} 9000 pixels" in demo.error()
    assert "64 million" in demo.error()


def test_without_npm_install_it_says_what_to_type(chromium: Any, served: Callable[..., str], digits: Path) -> None:
    page = chromium.new_page()
    opened = Demo(page, served(installed=False))
    opened.choose("model", digits)
    assert "npm install" in opened.error()
    page.close()


def test_it_is_written_by_hand_and_takes_nothing_from_elsewhere() -> None:
    for file in DEMO.iterdir():
        if file.suffix in (".html", ".js", ".css", ".json"):
            assert not re.search(r"https?://|//cdn|@import", file.read_text(encoding="utf-8")), file.name
    assert not (DEMO / "package-lock.json").exists()
