"""Checks as machines read them: JUnit XML for test reports, workflow commands for GitHub's annotations."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from distilkit.spelling import github, github_property, xml

Check = Mapping[str, Any]
"""`run`, `name` (what is checked), `message` (what was found), `passed`."""


def junit(checks: Sequence[Check], seconds: float, suite_name: str = "distilkit robustness") -> bytes:
    """One test suite, one test case for each check; a failed one holds its message. UTF-8 XML."""
    failures = sum(not check["passed"] for check in checks)
    numbers = {"tests": str(len(checks)), "failures": str(failures), "errors": "0", "skipped": "0"}
    suites = ElementTree.Element("testsuites", numbers | {"time": f"{seconds:.3f}"})
    suite = ElementTree.SubElement(suites, "testsuite", {"name": suite_name, **numbers, "time": f"{seconds:.3f}"})
    for check in checks:
        # The time belongs to the curves, which all checks share.
        case = ElementTree.SubElement(
            suite, "testcase", {"classname": xml(Path(check["run"]).name), "name": xml(check["name"]), "time": "0"}
        )
        message = xml(check["message"])
        if check["passed"]:
            ElementTree.SubElement(case, "system-out").text = message
        else:
            failure = ElementTree.SubElement(case, "failure", {"message": message, "type": "threshold"})
            failure.text = message
    ElementTree.indent(suites)
    document: bytes = ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def annotations(checks: Sequence[Check]) -> list[str]:
    """A line for each check: `::error title=...::...` where it failed, `::notice ...` where it passed."""
    return [
        f"::{'notice' if check['passed'] else 'error'} title={github_property(check['name'])}::"
        f"{github(Path(check['run']).name + ': ' + check['message'])}"
        for check in checks
    ]
