"""A device is measured in a few seconds, and what was measured is found again for it alone."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from planner.cli.doctor import command
from planner.errors import InvalidFile
from planner.measure import calibration
from planner.run.devices.base import backend


@pytest.fixture(autouse=True)
def _brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_SECONDS", 0.01)
    monkeypatch.setattr(calibration, "_SIDES", {"cpu": 128, "cuda": 512})


def test_a_calibration_is_measured_kept_and_found_again(tmp_path: Path) -> None:
    found = calibration.calibrate(backend("cpu"))
    speeds = found.speeds
    assert speeds.products["float32"] > 1e8 and speeds.bandwidth > 1e8
    assert 0 < speeds.ramp < 1e-3 and speeds.launch == 0.0
    assert all(value > 0 for value in (speeds.convolution, speeds.attention[""], speeds.link))
    assert calibration.stored(found.device, tmp_path) is None
    file = calibration.store(found, tmp_path)
    assert calibration.stored(found.device, tmp_path) == found
    other = found.device.model_copy(update={"threads": found.device.threads + 1})
    assert calibration.stored(other, tmp_path) is None
    file.write_text("{")
    with pytest.raises(InvalidFile, match="is damaged"):
        calibration.stored(found.device, tmp_path)


def test_doctor_describes_the_device_and_says_what_was_not_measured(tmp_path: Path) -> None:
    before = CliRunner().invoke(command, ["--device", "cpu", "--out", str(tmp_path)])
    assert before.exit_code == 0 and "not measured here" in before.stdout
    measured = CliRunner().invoke(command, ["--device", "cpu", "--calibrate", "--json",
                                            "--out", str(tmp_path)])  # fmt: skip
    facts = json.loads(measured.stdout)
    assert facts["device"]["kind"] == "cpu" and facts["speeds"]["products"]["float32"] > 0
    after = CliRunner().invoke(command, ["--device", "cpu", "--out", str(tmp_path)])
    assert "float32 products" in after.stdout
