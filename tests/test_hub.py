"""`distilkit push` and `pull`, against a stand-in for the Hub that speaks HTTP on this machine; never a network."""

import base64
import hashlib
import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import onnx
import pytest
import torch
from conftest import TINY, Result
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import distilkit as package
from distilkit.workflows.share import hub

Command = Callable[..., Result]
OURS = {"README.md", "config.json", "model.onnx", "model.safetensors"}
TOKEN = "hf_of_nobody"


class Hub(http.server.ThreadingHTTPServer):
    """As much of the Hub as huggingface_hub needs: repositories with branches, small files in commits, large by LFS.

    `repositories`: name -> branch -> path -> content. `answer`: makes it refuse what it is asked for next.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.stored: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.answer: dict[str, tuple[int, str]] = {}
        self.sizes: dict[str, int] = {}
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def commit(self, name: str, branch: str) -> str:
        files = self.repositories[name][branch]
        digests = sorted((path, hashlib.sha256(content).hexdigest()) for path, content in files.items())
        return hashlib.sha1(f"{name} {digests}".encode()).hexdigest()

    def files(self, name: str, revision: str) -> dict[str, bytes] | None:
        branches = self.repositories[name]
        for branch, files in branches.items():
            if revision in (branch, self.commit(name, branch)):
                return files
        return None


class _Answers(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def reply(self, status: int, document: Any = None, error: str = "", **headers: str) -> None:
        content = document if isinstance(document, bytes) else json.dumps(document or {}).encode()
        self.send_response(status)
        if error:
            self.send_header("X-Error-Code", error)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def handle_one(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append(f"{self.command} {path}")
        for pattern, (status, error) in self.server.answer.items():
            if re.search(pattern, f"{self.command} {path}"):
                self.reply(status, {"error": "as you asked"}, error)
                return
        writes = self.command != "HEAD" and self.command != "GET" and not path.startswith("/stored/")
        if writes and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.reply(401, {"error": "Invalid username or password."})
            return
        if path == "/api/validate-yaml":
            self.reply(200, {"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self.create(json.loads(body))
        elif path.startswith("/stored/"):
            self.server.stored[path.removeprefix("/stored/")] = body
            self.reply(200)
        elif found := re.fullmatch(r"/(?:api/models/)?([\w.-]+/[\w.-]+?)(?:\.git)?(/.*)?", path):
            self.repository(found[1], found[2] or "", body)
        else:
            self.reply(404, {"error": "not found"})

    do_GET = do_HEAD = do_POST = do_PUT = handle_one

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] != "user":
            self.reply(403, {"error": "You don't have the rights to create a model under this namespace"})
        elif name in self.server.repositories:
            self.reply(409, {"error": "You already created this model repo", "url": f"{self.server.url}/{name}"})
        else:
            self.server.repositories[name] = {"main": {".gitattributes": b"*.onnx filter=lfs\n"}}
            if asked.get("private") or asked.get("visibility") == "private":
                self.server.private.add(name)
            self.reply(200, {"url": f"{self.server.url}/{name}", "name": name})

    def repository(self, name: str, rest: str, body: bytes) -> None:
        seen = name not in self.server.private or self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if name not in self.server.repositories or not seen:
            self.reply(401 if not seen else 404, {"error": "Repository not found"}, "RepoNotFound")
            return
        branches = self.server.repositories[name]
        if rest == "" or rest.startswith("/revision/"):
            self.info(name, rest.removeprefix("/revision/") or "main")
        elif rest.startswith("/branch/"):
            made = rest.removeprefix("/branch/") not in branches
            branches.setdefault(rest.removeprefix("/branch/"), dict(branches["main"]))
            self.reply(200 if made else 409)
        elif rest.startswith("/preupload/"):
            files = json.loads(body)["files"]
            modes = {True: "lfs", False: "regular"}
            large = [each["path"].endswith((".safetensors", ".onnx")) for each in files]
            answer = [
                {"path": each["path"], "uploadMode": modes[lfs], "shouldIgnore": False, "oid": None}
                for each, lfs in zip(files, large, strict=True)
            ]
            self.reply(200, {"files": answer})
        elif rest == "/info/lfs/objects/batch":
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.server.url}/stored/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            self.reply(200, {"transfer": "basic", "objects": objects})
        elif rest.startswith("/commit/"):
            self.take(name, rest.removeprefix("/commit/"), body)
        elif rest.startswith("/resolve/"):
            revision, path = rest.removeprefix("/resolve/").split("/", 1)
            files = self.server.files(name, revision)
            if files is None:
                self.reply(404, error="RevisionNotFound")
            elif path not in files:
                self.reply(404, error="EntryNotFound")
            else:
                etag = f'"{hashlib.sha256(files[path]).hexdigest()}"'
                self.reply(200, files[path], ETag=etag, X_Repo_Commit=revision)
        else:
            self.reply(404, {"error": "not found"})

    def info(self, name: str, revision: str) -> None:
        files = self.server.files(name, revision)
        if files is None:
            self.reply(404, {"error": "Invalid rev id"}, "RevisionNotFound")
            return
        branch = next(
            b
            for b, held in self.server.repositories[name].items()
            if held is files or self.server.commit(name, b) == revision
        )
        siblings = [
            {"rfilename": path, "size": self.server.sizes.get(path, len(content)), "blobId": "0" * 40}
            for path, content in files.items()
        ]
        self.reply(200, {"id": name, "modelId": name, "sha": self.server.commit(name, branch), "siblings": siblings})

    def take(self, name: str, branch: str, body: bytes) -> None:
        files = self.server.repositories[name][branch]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.stored[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        commit = self.server.commit(name, branch)
        self.reply(
            200, {"success": True, "commitOid": commit, "commitUrl": f"{self.server.url}/{name}/commit/{commit}"}
        )


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The stand-in, and an environment in which huggingface_hub knows no other and no token but `TOKEN`."""
    from huggingface_hub import constants

    with Hub() as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        environment = {"HF_ENDPOINT": served.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
        environment |= {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        # It read its environment when it was imported, perhaps long ago.
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
        monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "hf" / "stored_tokens"))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
        yield served
        served.shutdown()


@pytest.fixture(scope="module")
def published(one_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `push --to` writes of a run; to be read, not changed."""
    from distilkit import cli

    folder = tmp_path_factory.mktemp("published") / "model"
    with pytest.raises(SystemExit) as exit_:
        cli.main(["push", str(one_run), "--to", str(folder), "--json"])
    assert not exit_.value.code
    return folder


@pytest.fixture
def copied(published: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    return Path(shutil.copytree(published, tmp_path / "copied"))


@pytest.fixture
def refused(distilkit: Command) -> Callable[..., str]:
    """refused(words, *arguments): exit status 2, and a message with a hint in which the words are. Returns both."""

    def check(words: tuple[object, ...], *arguments: object) -> str:
        result = distilkit(*arguments, "--json")
        assert result.status == 2, result
        error = result.json["error"]
        assert error["hint"], error
        text = f"{error['message']}\n{error['hint']}"
        for word in words:
            assert str(word) in text, text
        assert ".partial-" not in text
        return text

    return check


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


# ------------------------------------------------------------------------------------------------------- in a folder


def test_a_folder_holds_the_pruned_model_its_export_and_its_card(
    published: Path, one_run: Path, distilkit: Command, tmp_path: Path
) -> None:
    assert {file.name for file in published.iterdir()} == OURS
    card = (published / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: distilkit\n")
    assert card.endswith((one_run / "README.md").read_text())
    expected = distilkit("evaluate", one_run, "--json").json
    found = distilkit("evaluate", published, "--json").json
    assert found["top1_error"] == pytest.approx(expected["top1_error"])
    assert found["cross_entropy"] == pytest.approx(expected["cross_entropy"], rel=1e-5)
    Image.fromarray(np.full((9, 9), 200, np.uint8)).save(tmp_path / "grey.png")
    answer = distilkit("predict", published / "model.onnx", tmp_path / "grey.png", "--json").json
    model = package.load(published)
    with torch.inference_mode():
        probabilities = model(model.read(tmp_path / "grey.png")).softmax(-1)
    assert answer["predictions"][0]["class"] == model.classes[int(probabilities.argmax())]
    assert answer["predictions"][0]["probability"] == pytest.approx(float(probabilities.max()), abs=1e-5)
    assert distilkit("export", published, "--output", tmp_path / "again.onnx").status == 0


def test_nothing_of_the_publishers_folders_is_published(copied: Path, tmp_path: Path, distilkit: Command) -> None:
    kept = {"images/digits", "data", "a..b"}
    for place, root in enumerate(["/home/alice", "../alice", "~alice", "C:\\alice", "x/../../alice", *kept]):
        data = json.loads((copied / "config.json").read_text())["data"]
        config(copied, data=data | {"root": root})
        to = tmp_path / f"to{place}"
        assert distilkit("push", copied, "--to", to).status == 0
        assert json.loads((to / "config.json").read_text())["data"]["root"] == (root if root in kept else "data")
        assert "alice" not in "".join(file.read_text(errors="replace") for file in to.iterdir())
        assert distilkit("pull", to).status == 0


def test_a_pruned_models_folder_and_an_exported_file_can_be_pushed(
    one_run: Path, published: Path, tmp_path: Path, distilkit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert distilkit("prune-branches", one_run, "--output", tmp_path / "pruned").status == 0
    first = distilkit("push", tmp_path / "pruned", "--to", tmp_path / "one", "--json")
    assert first.status == 0, first.err
    assert {each["name"] for each in first.json["files"]} == OURS
    assert digests(tmp_path / "one")["model.safetensors"] == digests(published)["model.safetensors"]

    second = distilkit("push", published / "model.onnx", "--to", tmp_path / "two", "--json").json
    assert {each["name"] for each in second["files"]} == {"README.md", "model.onnx"}
    assert second["architecture"] == "resnet8"
    assert "`resnet8`" in (tmp_path / "two" / "README.md").read_text()
    pulled = distilkit("pull", tmp_path / "two")
    assert pulled.status == 0
    assert "distilkit predict" in pulled.out
    assert "distilkit evaluate" not in pulled.out


def test_push_names_the_newest_run_and_what_it_wrote(one_run: Path, tmp_path: Path, distilkit: Command) -> None:
    result = distilkit("push", "--runs", one_run.parent, "--to", tmp_path / "to")
    assert result.status == 0, result.err
    assert str(one_run) in result.out
    assert str(tmp_path / "to") in result.out


def test_a_folder_that_is_there_is_not_overwritten(
    published: Path, tmp_path: Path, distilkit: Command, refused: Callable[..., str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("irreplaceable")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("full", "file", "link"):
        for command in ("push", "pull"):
            refused((tmp_path / name, "--to"), command, published, "--to", tmp_path / name)
    assert (tmp_path / "full" / "thesis.tex").read_text() == "irreplaceable"
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "empty").mkdir()
    assert distilkit("pull", published, "--to", tmp_path / "empty").status == 0
    assert digests(tmp_path / "empty") == digests(published)


def test_options_that_contradict_each_other_are_named(published: Path, refused: Callable[..., str]) -> None:
    refused(("--to", "--repo"), "push", published)
    for option in (("--private",), ("--update",), ("--revision", "x")):
        refused((option[0], "--repo"), "push", published, "--to", "x", *option)
    refused(("--private", "--update"), "push", published, "--repo", "user/model", "--private", "--update")
    refused(("no members",), "push", published, "--to", "x", "--member", "student_1")
    refused(("--revision",), "pull", published, "--revision", "main")
    for name in ("one", "a/b/c", "user/", "user/na me", "user/..", "-user/x", "user/name.git"):
        refused(("user/name",), "push", published, "--repo", name)
    for name in ("no/such/folder", "./x", "/nowhere", "one"):
        refused((name,), "pull", name)
    refused(("distilkit predict",), "pull", published / "model.onnx")


# -------------------------------------------------------------------------------------------------------- on the Hub


def test_what_is_pushed_comes_back_as_it_was(
    server: Hub, one_run: Path, tmp_path: Path, distilkit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed = distilkit("push", one_run, "--repo", "user/model", "--to", tmp_path / "local", "--json")
    assert pushed.status == 0, pushed.err
    assert pushed.json["url"] == f"{server.url}/user/model"
    assert set(server.repositories["user/model"]["main"]) == OURS | {".gitattributes"}
    assert "user/model" not in server.private
    monkeypatch.chdir(tmp_path)
    pulled = distilkit("pull", "user/model", "--json")
    assert pulled.status == 0, pulled.err
    assert pulled.json["folder"] == "models/model"
    assert pulled.json["commit"] == pushed.json["commit"] == server.commit("user/model", "main")
    assert digests(Path("models/model")) == digests(tmp_path / "local"), "the four files and nothing else"
    evaluated = distilkit("evaluate", "models/model", "--json").json
    assert evaluated["top1_error"] == pytest.approx(pulled.json["top1_error"])
    assert isinstance(package.load("models/model"), torch.nn.Module)


def test_the_whole_way_as_two_programs(server: Hub, published: Path, tmp_path: Path) -> None:
    """With nothing but the environment that a user sets; silent where nobody asked, on stdout above all."""
    environment = {**os.environ, "PYTHONPATH": str(Path(package.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    outputs = []
    for arguments in (["push", published, "--repo", "user/model", "--json"], ["pull", "user/model", "--json"]):
        done = subprocess.run(
            [sys.executable, "-m", "distilkit", *map(str, arguments)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "Warning" not in done.stderr
        outputs.append(json.loads(done.stdout))
    assert outputs[0]["commit"] == outputs[1]["commit"]
    assert digests(tmp_path / "models" / "model") == digests(published)
    assert not list((tmp_path / "models").glob(".*")), "no left-overs"


def test_a_private_repository_and_a_branch(server: Hub, published: Path, tmp_path: Path, distilkit: Command) -> None:
    arguments = ("push", published, "--repo", "user/model", "--private", "--revision", "v1", "--json")
    pushed = distilkit(*arguments)
    assert pushed.status == 0, pushed.err
    assert "user/model" in server.private
    assert set(server.repositories["user/model"]["main"]) == {".gitattributes"}
    assert set(server.repositories["user/model"]["v1"]) == OURS | {".gitattributes"}
    for revision in ("v1", pushed.json["commit"]):
        to = tmp_path / revision
        assert distilkit("pull", "user/model", "--revision", revision, "--to", to).status == 0
        assert digests(to) == digests(published)


def test_an_update_replaces_all_of_the_model_before_it(
    server: Hub, published: Path, tmp_path: Path, distilkit: Command, refused: Callable[..., str]
) -> None:
    assert distilkit("push", published, "--repo", "user/model").status == 0
    server.repositories["user/model"]["main"]["notes.txt"] = b"the owner's own"
    refused(("user/model exists", "--update"), "push", published / "model.onnx", "--repo", "user/model")
    updated = distilkit("push", published / "model.onnx", "--repo", "user/model", "--update")
    assert updated.status == 0, updated.err
    assert set(server.repositories["user/model"]["main"]) == {".gitattributes", "README.md", "model.onnx", "notes.txt"}
    refused(("no repository user/other",), "push", published, "--repo", "user/other", "--update")
    assert "user/other" not in server.repositories


def test_the_hubs_refusals_are_told_with_what_to_do(
    server: Hub, published: Path, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    push = ("push", published, "--repo")
    refused(("may not", "organisation/model", "right to write"), *push, "organisation/model")
    server.answer = {"POST /api/repos/create": (503, "")}
    refused(("503", "later"), *push, "user/model")
    server.answer = {"POST .*/commit/": (403, "")}
    refused(("may not", "made and is empty", "--update"), *push, "user/model")
    server.answer = {}
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    refused(("token", "hf auth login"), *push, "user/other")
    monkeypatch.delenv("HF_TOKEN")
    asked = len(server.asked)
    refused(("needs a token", "hf auth login", "HF_TOKEN"), *push, "user/other")
    assert len(server.asked) == asked, "nobody was asked"

    pull = ("pull", "user/model", "--to", tmp_path / "to")
    refused(("no repository user/none", "hf auth login"), "pull", "user/none")
    refused(("no such revision", "--revision"), *pull, "--revision", "v9")
    server.private.add("user/model")
    refused(("no repository user/model", "hf auth login"), *pull)
    server.private.clear()
    server.answer = {"GET /api/models": (403, "GatedRepo")}
    refused(("lets in",), *pull)
    server.answer = {"GET /api/models": (500, "")}
    refused(("500",), *pull)
    server.answer = {"GET /api/models": (200, "")}
    refused((server.url, "does not answer as a Hub", "HF_ENDPOINT"), *pull)
    server.repositories["user/model"]["main"] |= {file.name: file.read_bytes() for file in published.iterdir()}
    server.answer = {"HEAD .*/resolve/": (200, "")}
    refused((server.url, "HF_ENDPOINT"), *pull)
    server.answer = {"HEAD .*/model.onnx": (404, "EntryNotFound")}
    refused(("404", "later"), *pull)
    assert not (tmp_path / "to").exists()


def test_no_network_is_told(
    server: Hub, published: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", closed)
        refused((closed, "cannot be reached", "HF_ENDPOINT"), "pull", "user/model")
        refused((closed, "cannot be reached", "HF_ENDPOINT"), "push", published, "--repo", "user/model")
    monkeypatch.setenv("HF_ENDPOINT", "nonsense")
    refused(("nonsense", "HF_ENDPOINT"), "pull", "user/model")


# ------------------------------------------------------------------------------------- what comes from a stranger


def test_nothing_but_the_four_files_is_asked_for(
    server: Hub, published: Path, tmp_path: Path, distilkit: Command
) -> None:
    theirs = {"pytorch_model.bin": b"\x80", "modeling.py": b"import os", "../../evil": b"x", "sub/config.json": b"{}"}
    files = {file.name: file.read_bytes() for file in published.iterdir()}
    server.repositories["user/model"] = {"main": files | theirs}
    assert distilkit("pull", "user/model", "--to", tmp_path / "to").status == 0
    assert {file.name for file in (tmp_path / "to").iterdir()} == OURS
    fetched = {line.rsplit("/", 1)[1] for line in server.asked if "/resolve/" in line}
    assert fetched == OURS


def test_sizes_are_bounded_before_anything_is_fetched(
    server: Hub, published: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    server.repositories["user/model"] = {"main": {file.name: file.read_bytes() for file in published.iterdir()}}
    for name, limit in hub.LIMITS.items():
        server.sizes = {name: limit + 1}
        refused((name, f"{limit + 1:,}"), "pull", "user/model", "--to", tmp_path / "to")
    assert not [line for line in server.asked if "/resolve/" in line]
    assert not (tmp_path / "to").exists()


def test_a_file_that_is_larger_than_was_said_is_not_kept(
    server: Hub, copied: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    files = {file.name: file.read_bytes() for file in copied.iterdir()}
    server.repositories["user/model"] = {"main": files | {"README.md": b"x" * (hub.LIMITS["README.md"] + 1)}}
    server.sizes = {"README.md": 5}
    refused(("README.md", "allowed"), "pull", "user/model", "--to", tmp_path / "to")
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("name", sorted(OURS))
def test_links_are_refused(name: str, copied: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    (copied / name).rename(tmp_path / name)
    (copied / name).symlink_to(tmp_path / name)
    refused((name, "link"), "pull", copied)
    refused((name, "link"), "pull", copied, "--to", tmp_path / "to")
    (copied / name).unlink()
    (copied / name).mkdir()
    refused((name, "not a plain file"), "pull", copied)
    assert not (tmp_path / "to").exists()


def config(folder: Path, **changed: Any) -> None:
    document = json.loads((folder / "config.json").read_text()) | changed
    (folder / "config.json").write_text(json.dumps(document))


def test_a_model_that_does_not_open_is_not_kept(copied: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    whole = {file: file.read_bytes() for file in copied.iterdir()}

    def broken(*words: object) -> None:
        refused((copied, *words), "pull", copied, "--to", tmp_path / "to")
        assert not (tmp_path / "to").exists()
        assert not list(tmp_path.glob(".partial*"))
        for file, content in whole.items():
            file.write_bytes(content)

    config(copied, format=2)
    broken("config.json", "format")
    config(copied, architecture="resnet9")
    broken("resnet9")
    (copied / "config.json").write_text("{")
    broken("config.json")
    (copied / "config.json").write_text("[" * 100_000)
    broken("config.json")
    (copied / "model.safetensors").write_bytes(whole[copied / "model.safetensors"][:-1] + b"\xff")
    broken("model.safetensors")
    (copied / "model.onnx").write_bytes(whole[copied / "model.onnx"][:1000])
    broken("model.onnx")
    (copied / "config.json").unlink()
    broken("holds no model")
    for name in ("model.safetensors", "model.onnx", "config.json"):
        (copied / name).unlink()
    broken("holds no model")
    data = json.loads(whole[copied / "config.json"])["data"]
    for root in ("/etc", "../../x", "~/x", "C:\\x"):
        config(copied, data=data | {"root": root})
        broken("config.json", "outside")
    for error in ("none", -1, True, [5]):
        config(copied, top1_error=error)
        broken("percentage")
    config(copied, member="student\033]0;owned\007")
    broken("control characters")
    config(copied, data=data | {"classes": [*data["classes"][1:], "ten"]})
    broken("model.onnx", "another model")


def test_an_onnx_file_that_names_other_files_is_refused(
    copied: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    """Top to bottom: what an initializer of the graph names, and one hidden in a branch of a node."""
    whole = (copied / "model.onnx").read_bytes()
    for hidden in (False, True):
        model = onnx.load_from_string(whole)
        tensor = numpy_helper.from_array(np.zeros(4, np.float32), "stolen")
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", "../../../etc/passwd"
        if hidden:
            node = helper.make_node("Constant", [], ["c"], value=tensor)
            out = helper.make_tensor_value_info("c", TensorProto.FLOAT, [4])
            branch = helper.make_graph([node], "branch", [], [out])
            model.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch))
        else:
            model.graph.initializer.append(tensor)
        (copied / "model.onnx").write_bytes(model.SerializeToString())
        refused(("model.onnx", "other files"), "pull", copied)


def test_code_of_the_publishers_own_needs_trust(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distilkit: Command, refused: Callable[..., str]
) -> None:
    module = "net_of_a_publisher"
    (tmp_path / f"{module}.py").write_text(
        "from pathlib import Path\nfrom torch import nn\n"
        "Path('executed').touch()\n"
        "def net(num_classes, channels):\n"
        "    pool = nn.AdaptiveAvgPool2d(1)\n"
        "    end = (nn.Flatten(), nn.Linear(8, num_classes))\n"
        "    return nn.Sequential(nn.Conv2d(channels, 8, 3), nn.ReLU(), pool, *end)\n"
    )
    (tmp_path / "own.toml").write_text(
        TINY.replace('"resnet8"', f'"{module}:net"').replace('"one"', '"baseline"').replace("epochs = 2", "epochs = 1")
    )
    monkeypatch.chdir(tmp_path)
    trained = distilkit("train", "own.toml", "--trust-code", "--device", "cpu", "--json")
    assert trained.status == 0, trained.err
    run = trained.json["run"]
    refused((module, "--trust-code"), "push", run, "--to", "published")
    assert distilkit("push", run, "--to", "published", "--trust-code").status == 0
    sys.modules.pop(module)
    Path("executed").unlink()
    refused((module, "--trust-code"), "pull", "published", "--to", "pulled")
    assert not Path("executed").exists()
    assert not Path("pulled").exists()
    pulled = distilkit("pull", "published", "--to", "pulled", "--trust-code")
    assert pulled.status == 0, pulled.err
    assert Path("executed").exists()
    assert "--trust-code" in pulled.out
    assert distilkit("evaluate", "pulled", "--trust-code").status == 0
