"""Recipes and runs of strangers do not decide where figures, files and credentials go: that is typed by the user."""

import configparser
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import accelerate.tracking
import pytest
import tomli_w
from accelerate.utils import LoggerType
from conftest import TINY, Result

from distilkit.errors import UserError
from distilkit.observer import Observer
from distilkit.recipe import Recipe, builtin, load
from distilkit.recipe.sections import tracker_names
from distilkit.recipe.tracker_options import ALLOWED
from distilkit.runs import upgrade
from distilkit.runs.run import Run
from distilkit.training import tracking
from distilkit.training.interrupt import Interrupted
from distilkit.workflows.train.train import dry_run, resume, train

Command = Callable[..., Result]

# Of every tracker what a stranger would write: servers, accounts, folders, files, other runs, code.
HOSTILE = {
    "aim": ('repo = "aim://elsewhere:53800"', 'run_hash = "a1"', "log_system_params = true", "force_resume = true"),
    "clearml": (
        'output_uri = "s3://elsewhere/x"',
        'project_name = "theirs"',
        'continue_last_task = "a1"',
        "auto_connect_arg_parser = true",
        "auto_connect_streams = true",
    ),
    "comet_ml": ('workspace = "theirs"', 'api_key = "k"', 'experiment_key = "a1"', "online = true", 'mode = "get"'),
    "dvclive": ('dir = "/elsewhere"', 'dvcyaml = "/elsewhere/dvc.yaml"', "save_dvc_exp = true", 'exp_name = "../x"'),
    "mlflow": (
        'tracking_uri = "http://elsewhere"',
        'logging_dir = "/elsewhere"',
        'run_id = "a1"',
        "nested_run = true",
        "tags = [1]",
    ),
    "swanlab": (
        'workspace = "theirs"',
        'logdir = "/elsewhere"',
        'load = "/etc/x.yaml"',
        'config = "/etc/x.yaml"',
        "public = true",
        'mode = "cloud"',
        'id = "a1"',
    ),
    "tensorboard": ('filename_suffix = "/../../x"', 'log_dir = "/elsewhere"', "flush_secs = 0", "purge_step = 0"),
    "trackio": ('space_id = "theirs/x"', 'dataset_id = "theirs/x"', "private = false", 'server_url = "http://e"'),
    "wandb": (
        'settings = { base_url = "http://elsewhere" }',
        'settings.base_url = "http://elsewhere"',
        'settings.code_dir = "/home"',
        'entity = "theirs"',
        'dir = "/elsewhere"',
        'config = "/etc/x.yaml"',
        "save_code = true",
        'id = "a1"',
        'mode = "online"',
        'mode = "shared"',
        "sync_tensorboard = true",
        "tags = [1]",
        "name = 3",
    ),
}
HARMLESS = {
    "aim": 'experiment = "e"\nsystem_tracking_interval = 5\ncapture_terminal_logs = false',
    "clearml": 'task_name = "t"\ntags = ["a"]\nauto_connect_frameworks = false\nauto_connect_streams = false\n'
    "auto_resource_monitoring = false",
    "comet_ml": "online = false",
    "dvclive": 'exp_message = "m"\nmonitor_system = true\nreport = "md"',
    "mlflow": 'description = "d"\nrun_name = "r"\ntags = { team = "birds", size = 3 }',
    "swanlab": 'description = "d"\nexperiment_name = "e"\ngroup = "g"\njob_type = "j"\ntags = ["a"]\nmode = "offline"',
    "tensorboard": "flush_secs = 3\nmax_queue = 5",
    "trackio": 'group = "g"',
    "wandb": 'name = "n"\nnotes = "o"\ngroup = "g"\njob_type = "j"\ntags = ["a", "b"]\nmode = "offline"',
}


class Recording(accelerate.tracking.GeneralTracker):
    """A tracker that remembers what it was opened with."""

    name = "mlflow"
    requires_logging_directory = False
    opened: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, project: str, **options: Any) -> None:
        super().__init__()
        Recording.opened.append({"project": project, **options})

    @property
    def tracker(self) -> Any:
        return self

    id = "fresh"


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> type[Recording]:
    """W&B, replaced."""
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "wandb", Recording)
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [LoggerType.TENSORBOARD, LoggerType.WANDB])
    monkeypatch.setattr(Recording, "opened", [])
    for variable in (*tracking._NO_TELEMETRY, "WANDB_BASE_URL", "WANDB_MODE"):
        monkeypatch.delenv(variable, raising=False)
    for variable in tracking._NO_TELEMETRY:
        monkeypatch.setenv(variable, "set")
    return Recording


def recipe_file(folder: Path, tracker: str, options: str, name: str = "theirs.toml") -> Path:
    file = folder / name
    file.write_text(TINY + f'[tracking]\nname = "{tracker}"\n[tracking.options.{tracker}]\n{options}\n', "utf-8")
    return file


# A recipe's file


def test_what_a_file_may_set_is_listed_for_every_tracker_of_accelerate() -> None:
    assert tuple(ALLOWED) == tracker_names() == tuple(HOSTILE) == tuple(HARMLESS)
    for tracker, options in ALLOWED.items():
        assert set(options) == set(tomllib.loads(HARMLESS[tracker]))


@pytest.mark.parametrize(("tracker", "option"), [(name, option) for name in HOSTILE for option in HOSTILE[name]])
def test_a_file_names_no_server_folder_account_or_code(tracker: str, option: str, tmp_path: Path) -> None:
    file = recipe_file(tmp_path, tracker, option)
    with pytest.raises(UserError) as error:
        load(file)
    [fault] = error.value.faults
    lines = file.read_text().splitlines()
    assert fault.place == f"{file}:{len(lines)}"
    assert fault.key.startswith(f"tracking.options.{tracker}.{option.partition(' ')[0]}")
    assert fault.hint == f"--set {fault.key}=..."


@pytest.mark.parametrize("tracker", HARMLESS)
def test_a_file_may_say_how_a_run_is_labelled_and_that_it_stays_offline(tracker: str, tmp_path: Path) -> None:
    file = recipe_file(tmp_path, tracker, HARMLESS[tracker])
    assert load(file).tracking.options == {tracker: tomllib.loads(HARMLESS[tracker])}


def test_a_recipe_that_is_extended_is_a_file_too(tmp_path: Path) -> None:
    base = recipe_file(tmp_path, "wandb", 'entity = "theirs"', "base.toml")
    file = tmp_path / "own.toml"
    file.write_text('extends = "base.toml"\n[tracking.options.wandb]\nnotes = "mine"\n')
    with pytest.raises(UserError, match=rf"{base.name}:\d+: tracking\.options\.wandb\.entity") as error:
        load(file)
    assert len(error.value.faults) == 1
    with pytest.raises(UserError, match="entity"):
        load({"extends": str(base)})


def test_the_user_types_what_a_file_may_not_say(tmp_path: Path) -> None:
    file = recipe_file(tmp_path, "wandb", 'group = "g"')
    typed = ["tracking.options.wandb.settings.base_url=http://own", "tracking.options.wandb.entity=us"]
    recipe = load(file, typed)
    assert recipe.tracking.options["wandb"] == {"group": "g", "settings": {"base_url": "http://own"}, "entity": "us"}
    assert recipe.untyped_tracking() == []
    # In Python, too, it is the user who writes it.
    tables = tomllib.loads(TINY) | {"tracking": {"name": "wandb", "options": {"wandb": {"entity": "us"}}}}
    assert load(tables).untyped_tracking() == []


@pytest.mark.parametrize(
    "option", ['settings = { base_url = "http://elsewhere" }', 'settings.base_url = "http://elsewhere"']
)
def test_what_is_typed_beside_it_does_not_let_a_files_server_pass(option: str, tmp_path: Path) -> None:
    file = recipe_file(tmp_path, "wandb", option)
    for typed in ("settings.console=off", "settings={}", "settings={console='off'}"):
        with pytest.raises(UserError, match="base_url"):
            load(file, [f"tracking.options.wandb.{typed}"])
    assert load(file, ["tracking.options.wandb.settings.base_url=http://own"]).untyped_tracking() == []
    assert load(file, ["tracking.name=none"]).tracking.options == {}


def test_a_file_that_is_named_like_what_is_typed_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = recipe_file(tmp_path, "wandb", 'entity = "theirs"', "--set tracking.toml")
    with pytest.raises(UserError, match="entity"):
        load(Path(file.name))


@pytest.mark.parametrize(
    "project", ["../../x", "/x", "a\\b", "http://e/x", ".hidden", "x' or name = 'y", "a\nb", "a%2f"]
)
def test_a_project_in_a_file_is_a_plain_name(project: str, tmp_path: Path) -> None:
    file = tmp_path / "theirs.toml"
    file.write_text(TINY + tomli_w.dumps({"tracking": {"name": "mlflow", "project": project}}), "utf-8")
    with pytest.raises(UserError, match=r"tracking\.project in a file must be a plain name") as error:
        load(file)
    assert error.value.faults[0].hint == "--set tracking.project=..."


def test_the_user_may_type_any_project(tiny: Callable[..., Recipe]) -> None:
    for project in ("/Users/me@x.org/birds", "birds (2026)"):
        assert tiny(f"tracking.project={project}").tracking.project == project


def test_shipped_recipes_name_no_server() -> None:
    for name in builtin():
        assert load(name).untyped_tracking() == []


# A run


def test_a_strangers_run_sends_nothing_to_a_server_that_it_names(
    recording: type[Recording], tiny: Callable[..., Recipe], tmp_path: Path, distilkit: Command
) -> None:
    run = interrupted(tiny("tracking.name=none"), tmp_path)
    recipe = tomllib.loads((run / "recipe.toml").read_text())
    recipe["tracking"] = {
        "name": "wandb",
        "project": "a/b",
        "options": {"wandb": {"settings": {"base_url": "http://elsewhere"}}},
    }
    (run / "recipe.toml").write_text(tomli_w.dumps(recipe))
    refused = distilkit("train", "--resume", run, "--device", "cpu")
    assert refused.status == 2
    said = " ".join(refused.err.split())
    assert "tracking.project, tracking.options.wandb.settings.base_url" in said
    assert "--set tracking.options.wandb.settings.base_url=..." in said
    assert recording.opened == []
    # It can be looked at all the same.
    assert Run.open(run).recipe.tracking.options["wandb"] == {"settings": {"base_url": "http://elsewhere"}}
    done = distilkit("train", "--resume", run, "--set", "tracking.name=none", "--device", "cpu", "--json")
    assert done.json["state"] == "done"
    assert recording.opened == []


def interrupted(recipe: Recipe, folder: Path) -> Path:
    class Stops(Observer):
        def epoch_finished(self, line: Any) -> None:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        train(recipe, folder / "runs", device="cpu", command="", observer=Stops())
    [run] = (folder / "runs").iterdir()
    return run


def test_a_users_own_training_goes_on_with_what_is_typed_again(
    recording: type[Recording], tiny: Callable[..., Recipe], tmp_path: Path, distilkit: Command
) -> None:
    typed = "tracking.options.wandb.settings.base_url=http://own"
    run = interrupted(tiny("tracking.name=wandb", typed), tmp_path)
    assert recording.opened[0]["settings"] == {"console": "off", "base_url": "http://own"}
    with pytest.raises(UserError, match=r"was begun with tracking\.options\.wandb\.settings\.base_url"):
        resume(run, device="cpu", observer=Observer())
    with pytest.raises(UserError, match="base_url"):
        resume(run, device="cpu", observer=Observer(), recipe=Run.open(run).recipe)
    refused = distilkit("train", "--resume", run, "--set", "optimizer.lr=1")
    assert refused.status == 2
    assert "only keys of tracking" in " ".join(refused.err.split())
    done = distilkit("train", "--resume", run, "--set", typed, "--device", "cpu", "--json")
    assert done.json["state"] == "done"
    assert recording.opened[1] == recording.opened[0] | {"id": "fresh", "resume": "allow"}
    # Nothing has changed, and nothing is written down as changed.
    assert "recipe_changes" not in Run.open(run).record


def test_a_training_that_stays_offline_goes_on_without_a_word(
    recording: type[Recording], tiny: Callable[..., Recipe], tmp_path: Path
) -> None:
    run = interrupted(tiny("tracking.name=wandb", "tracking.options.wandb.mode=offline"), tmp_path)
    assert resume(run, device="cpu", observer=Observer())["state"] == "done"
    assert [opened["mode"] for opened in recording.opened] == ["offline", "offline"]


def test_the_recipe_of_a_run_is_a_file_when_it_is_trained_anew(
    recording: type[Recording], tiny: Callable[..., Recipe], tmp_path: Path
) -> None:
    run = interrupted(tiny("tracking.name=wandb", "tracking.options.wandb.entity=us"), tmp_path)
    with pytest.raises(UserError, match="entity"):
        load(run / "recipe.toml")


def test_no_tracker_is_opened_with_what_nobody_typed(
    recording: type[Recording], tiny: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = tiny("tracking.name=wandb", "tracking.options.wandb.entity=theirs")
    (tmp_path / "recipe.toml").write_text(recipe.to_toml())
    heard: list[str] = []

    class Hears(Observer):
        def note(self, message: str) -> None:
            heard.append(message)

    read, _ = upgrade.load(tmp_path / "recipe.toml")
    tracking.Tracking(("wandb",), read, tmp_path, 0, Hears()).start()
    assert recording.opened == []
    assert "nobody has typed tracking.options.wandb.entity" in heard[0]


@pytest.mark.parametrize("identity", ["../../x", "a/b", "a\\b", "", ".x", "a b", "x" * 300, "a\nb"])
def test_a_runs_own_name_for_a_tracker_is_no_path(identity: str, tmp_path: Path) -> None:
    (tmp_path / tracking.IDENTITIES).write_text(json.dumps({"wandb": identity, "mlflow": "0a1b"}))
    assert tracking._identities(tmp_path) == {"mlflow": "0a1b"}


@pytest.mark.parametrize("folder", ["tensorboard", "dvclive", "dvclive/plots/metrics", "swanlab/a"])
def test_a_trackers_folder_with_a_link_out_of_the_run_is_not_written_to(
    folder: str, tiny: Callable[..., Recipe], tmp_path: Path
) -> None:
    run = interrupted(tiny("tracking.name=none"), tmp_path)
    theirs = tmp_path / "theirs.json"
    theirs.write_text("precious")
    (run / folder).mkdir(parents=True)
    (run / folder / "metrics.json").symlink_to(theirs)
    with pytest.raises(UserError, match="links that lead out"):
        resume(run, device="cpu", observer=Observer())


# The folder that a training is started in


def test_a_server_in_a_repositorys_settings_is_not_obeyed(
    recording: type[Recording], tiny: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = configparser.ConfigParser()
    settings["default"] = {"base_url": "http://elsewhere"}
    (tmp_path / "wandb").mkdir()
    with (tmp_path / "wandb" / "settings").open("w") as file:
        settings.write(file)
    with pytest.raises(UserError, match="working folder names a server") as error:
        tracking.check(tiny("tracking.name=wandb"))
    assert "WANDB_BASE_URL" in str(error.value.hint)
    tracking.check(tiny())
    tracking.check(tiny("tracking.name=wandb", "tracking.options.wandb.settings.base_url=http://own"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://own")
    tracking.check(tiny("tracking.name=wandb"))
    monkeypatch.delenv("WANDB_BASE_URL")
    (tmp_path / "wandb" / "settings").write_text("[default]\nmode = offline\n")
    tracking.check(tiny("tracking.name=wandb"))


# What a dry run says of it


def test_a_dry_run_says_where_figures_would_go(
    tiny: Callable[..., Recipe], distilkit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("MLFLOW_TRACKING_URI", "WANDB_BASE_URL", "WANDB_MODE"):
        monkeypatch.delenv(variable, raising=False)
    assert dry_run(tiny())["tracking"] == [
        {"tracker": "tensorboard", "project": None, "where": "tensorboard/ in the run's folder"}
    ]
    uri = "tracking.options.mlflow.tracking_uri=https://me:secret@own.example/x"
    words = ("--set", 'tracking.name=["mlflow", "wandb"]', "--set", uri, "--set", "tracking.project=birds", "--dry-run")
    document = distilkit("train", "quickstart", *words, "--json")
    assert document.json["tracking"] == [
        {
            "tracker": "mlflow",
            "project": "birds",
            "where": "https://own.example/x (from tracking.options.mlflow.tracking_uri)",
        },
        {"tracker": "wandb", "project": "birds", "where": "the server that W&B is logged in to, otherwise W&B's"},
    ]
    text = " ".join(distilkit("train", "quickstart", *words).out.split())
    assert "figures go to mlflow, project 'birds': https://own.example/x" in text
    assert "secret" not in document.out + text
    monkeypatch.setenv("WANDB_BASE_URL", "http://own")
    assert tracking.destinations(tiny("tracking.name=wandb"))[0]["where"] == "http://own (from WANDB_BASE_URL)"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert tracking.destinations(tiny("tracking.name=wandb"))[0]["where"] == "wandb/ in the run's folder, offline"
    assert tracking.destinations(tiny("tracking.name=none")) == []


@pytest.mark.parametrize("tracker", tracker_names())
def test_a_dry_run_knows_a_place_for_every_tracker(tracker: str, tiny: Callable[..., Recipe]) -> None:
    [found] = tracking.destinations(tiny(f"tracking.name={tracker}"))
    assert found["where"] == tracking._WRITES_TO[tracker][2]
