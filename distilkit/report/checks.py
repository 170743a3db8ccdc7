"""Checks as machines read them: JUnit XML for test reports, workflow commands for GitHub's annotations."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

Check = Mapping[str, Any]
"""`run`, `name` (what is checked), `message` (what was found), `passed`."""


def junit(checks: Sequence[Check], seconds: float) -> bytes:
    """One test suite, one test case for each check; a failed one holds its message. UTF-8 XML."""
    failures = sum(not check["passed"] for check in checks)
    numbers = {"tests": str(len(checks)), "failures": str(failures), "errors": "0", "skipped": "0"}
    suites = ElementTree.Element("testsuites", numbers | {"time": f"{seconds:.3f}"})
    suite = ElementTree.SubElement(
        suites, "testsuite", {"name": "distilkit robustness", **numbers, "time": f"{seconds:.3f}"}
    )
    for check in checks:
        # The time belongs to the curves, which all checks share.
        case = ElementTree.SubElement(
            suite, "testcase", {"classname": Path(check["run"]).name, "name": check["name"], "time": "0"}
        )
        if check["passed"]:
            ElementTree.SubElement(case, "system-out").text = check["message"]
        else:
            failure = ElementTree.SubElement(case, "failure", {"message": check["message"], "type": "threshold"})
            failure.text = check["message"]
    ElementTree.indent(suites)
    document: bytes = ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def annotations(checks: Sequence[Check]) -> list[str]:
    """A line for each check: `::error title=...::...` where it failed, `::notice ...` where it passed."""
    return [
        f"::{'notice' if check['passed'] else 'error'} title={_property(check['name'])}::"
        f"{_escaped(Path(check['run']).name + ': ' + check['message'])}"
        for check in checks
    ]


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _escaped(text).replace(":", "%3A").replace(",", "%2C")
