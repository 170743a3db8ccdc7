"""The tests of the losses are worth something only if they fail when a loss is wrong: each breakage here is caught.

Every breakage is one change of the source text, made in a copy of the package; tests that are named beside it, and that
pass on the package as it is, must fail on the copy by an assertion. All copies are judged by one process, which imports
distilkit afresh for each, because importing torch takes longer than everything else here.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import distilkit

PACKAGE = Path(distilkit.__file__).parent
TESTS = Path(__file__).with_name("test_methods_one.py")

LOSSES = "methods/losses.py"
ONE = "methods/one.py"


class Breakage(NamedTuple):
    """`old` stands exactly once in `file` and becomes `new`; every one of `tests` must then fail.

    No test of hypothesis is named: one that fails is first shrunk, which takes seconds, and what it draws is chance.
    """

    file: str
    old: str
    new: str
    tests: tuple[str, ...]


ON_PAPER = "test_gradients_equal_those_derived_on_paper[2-True-branches-True-True]"
BY_HAND = "test_two_students_two_images_two_classes_by_hand"
PULL = "test_a_detached_target_pulls_each_student_by_its_distance_from_the_ensemble[True]"
DETACHED_MAP = "test_each_term_reaches_exactly_the_tensors_in_the_map[branches-True-True-True]"
ATTACHED_MAP = "test_each_term_reaches_exactly_the_tensors_in_the_map[branches-True-False-True]"
MIXTURE = "test_the_ensemble_is_the_gated_mixture_of_logits[2-True-branches]"

DETACH = "ensemble_BC.detach() if self.detach_target else ensemble_BC"
GATE = "F.softmax(F.relu(self.bn(self.fc(pooled_BD))), dim=-1)"
MIX = "(gate_BS.t().unsqueeze(-1) * outputs.logits_SBC).sum(0)"

BREAKAGES = {
    "drops T squared": Breakage(LOSSES, "temperature**2 * kl_SBC", "kl_SBC", (PULL, BY_HAND)),
    "multiplies by T instead of T squared": Breakage(LOSSES, "temperature**2 *", "temperature *", (PULL, BY_HAND)),
    "swaps the KL's arguments": Breakage(
        LOSSES,
        "F.kl_div(log_q_SBC, target.expand_as(log_q_SBC),",
        "F.kl_div(target.expand_as(log_q_SBC), log_q_SBC,",
        (PULL, BY_HAND),
    ),
    "leaves the target's temperature out": Breakage(LOSSES, "(target) / temperature", "(target)", (PULL, BY_HAND)),
    "leaves the students' temperature out": Breakage(
        LOSSES, "(logits_SBC) / temperature", "(logits_SBC)", (PULL, BY_HAND)
    ),
    "toggles detach": Breakage(
        ONE, DETACH, "ensemble_BC if self.detach_target else ensemble_BC.detach()", (DETACHED_MAP, ATTACHED_MAP)
    ),
    "never detaches": Breakage(ONE, DETACH, "ensemble_BC", (DETACHED_MAP,)),
    "always detaches": Breakage(ONE, DETACH, "ensemble_BC.detach()", (ATTACHED_MAP,)),
    "cross-entropy is a mean over students": Breakage(LOSSES, "return students * mean", "return mean", (BY_HAND,)),
    "cross-entropy is a sum over images": Breakage(
        LOSSES, "return students * mean", "return students * mean * labels_B.shape[0]", (BY_HAND, ON_PAPER)
    ),
    "KL is a mean over students": Breakage(
        LOSSES, "kl_SBC.sum() / logits_SBC.shape[1]", "kl_SBC.sum() / logits_SBC[..., 0].numel()", (PULL, BY_HAND)
    ),
    "KL is a sum over images": Breakage(LOSSES, "kl_SBC.sum() / logits_SBC.shape[1]", "kl_SBC.sum()", (PULL, BY_HAND)),
    "KL is a mean over classes": Breakage(
        LOSSES, "kl_SBC.sum() / logits_SBC.shape[1]", "kl_SBC.mean(-1).sum() / logits_SBC.shape[1]", (PULL, BY_HAND)
    ),
    "ignores the ramp": Breakage(ONE, 'ramp * terms["distillation"]', 'terms["distillation"]', (BY_HAND, ON_PAPER)),
    "drops the ensemble's cross-entropy from the total": Breakage(
        ONE, 'total = total + terms["ensemble_cross_entropy"]', "pass", (BY_HAND, ON_PAPER)
    ),
    "gate without ReLU": Breakage(ONE, GATE, "F.softmax(self.bn(self.fc(pooled_BD)), dim=-1)", (BY_HAND, MIXTURE)),
    "gate without softmax": Breakage(ONE, GATE, "F.relu(self.bn(self.fc(pooled_BD)))", (BY_HAND, MIXTURE)),
    "gate's softmax over images": Breakage(ONE, GATE, GATE.replace("dim=-1", "dim=0"), (BY_HAND, ON_PAPER)),
    "mixes probabilities instead of logits": Breakage(
        ONE, MIX, "(gate_BS.t().unsqueeze(-1) * outputs.logits_SBC.softmax(-1)).sum(0).log()", (BY_HAND, MIXTURE)
    ),
    "ignores label smoothing for the ensemble": Breakage(
        ONE,
        "cross_entropy(ensemble_BC[None], labels_B, self.label_smoothing)",
        "cross_entropy(ensemble_BC[None], labels_B)",
        (ON_PAPER,),
    ),
    "ignores label smoothing for the students": Breakage(
        ONE,
        "cross_entropy(outputs.logits_SBC, labels_B, self.label_smoothing)",
        "cross_entropy(outputs.logits_SBC, labels_B)",
        (ON_PAPER,),
    ),
}

JUDGE = """
import json, sys
from pathlib import Path

import hypothesis, pytest, torch

sys.dont_write_bytecode = True


class Heard:
    def __init__(self):
        self.passed, self.failed = [], {}

    def pytest_runtest_logreport(self, report):
        name = report.nodeid.partition("::")[2]
        if report.failed:
            self.failed[name] = report.longrepr.reprcrash.message
        elif report.when == "call":
            self.passed.append(name)


work = json.load(sys.stdin)
verdicts = {}
for name, (folder, selection) in work.items():
    for module in [m for m in sys.modules if m.partition(".")[0] in ("distilkit", "test_methods_one", "oracles")]:
        del sys.modules[module]
    sys.path.insert(0, folder)
    heard = Heard()
    options = ["-q", "--tb=short", "--noconftest", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestWarning"]
    status = pytest.main([*options, *selection], plugins=[heard])
    sys.path.remove(folder)
    package = sys.modules["distilkit"].__file__
    verdicts[name] = {"status": int(status), "package": package, "passed": heard.passed, "failed": heard.failed}
Path(sys.argv[1]).write_text(json.dumps(verdicts))
"""


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the named tests say of each broken copy, and, under "", of an unbroken one."""
    folder = tmp_path_factory.mktemp("breakages")
    every_test = sorted({test for breakage in BREAKAGES.values() for test in breakage.tests})
    work = {"": (_copy(folder / "unbroken"), [f"{TESTS}::{test}" for test in every_test])}
    for number, (name, breakage) in enumerate(BREAKAGES.items()):
        copy = _copy(folder / str(number))
        file = Path(copy) / "distilkit" / breakage.file
        file.write_text(_source(breakage).replace(breakage.old, breakage.new), encoding="utf-8")
        work[name] = (copy, [f"{TESTS}::{test}" for test in breakage.tests])
    done = subprocess.run(
        [sys.executable, "-c", JUDGE, str(folder / "verdicts.json")],
        input=json.dumps(work),
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, dict[str, Any]] = json.loads((folder / "verdicts.json").read_text())
    for name, (copy, _) in work.items():
        assert Path(found[name]["package"]) == Path(copy) / "distilkit" / "__init__.py"
    return found


def _source(breakage: Breakage) -> str:
    return (PACKAGE / breakage.file).read_text(encoding="utf-8")


def _copy(folder: Path) -> str:
    shutil.copytree(PACKAGE, folder / "distilkit", ignore=shutil.ignore_patterns("__pycache__"))
    return str(folder)


def test_unbroken_losses_pass_every_test_that_is_named_here(verdicts: dict[str, dict[str, Any]]) -> None:
    assert verdicts[""]["failed"] == {}
    assert verdicts[""]["status"] == 0
    assert set(verdicts[""]["passed"]) == {test for breakage in BREAKAGES.values() for test in breakage.tests}


@pytest.mark.parametrize("name", BREAKAGES)
def test_a_named_test_fails_on_a_loss_that(name: str, verdicts: dict[str, dict[str, Any]]) -> None:
    breakage, verdict = BREAKAGES[name], verdicts[name]
    assert _source(breakage).count(breakage.old) == 1, f"{breakage.old!r} must stand exactly once in {breakage.file}"
    assert verdict["status"] == 1
    assert set(verdict["failed"]) == set(breakage.tests)
    for test, message in verdict["failed"].items():
        assert message.startswith(("AssertionError", "assert ")), f"{test} failed for another reason: {message}"
