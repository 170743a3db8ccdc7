"""Programs read the documents that commands print: they stay as recorded, or the recording's diff says how not."""

import json
from pathlib import Path

import pytest
import recorded


def test_every_command_prints_what_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    expected = json.loads(recorded.FILE.read_text(encoding="utf-8"))
    found = json.loads(json.dumps(recorded.record(tmp_path)))
    different = recorded.differences(found, expected)
    assert not different, "meant? then `python tests/recorded.py`, and read its diff:\n" + "\n".join(different)
