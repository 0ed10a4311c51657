"""Reliability diagrams: marks where the bins are, and text that stays text."""

import xml.etree.ElementTree as ET

import pytest

from rlvr.reward_models.calibration import Bin
from rlvr.reward_models.reliability import reliability_svg

BINS = (Bin(0.0, 0.1, 30, 0.05, 0.1), Bin(0.5, 0.6, 10, 0.55, 0.25))


def test_every_bin_is_a_mark_at_its_place_and_larger_ones_are_larger():
    text = reliability_svg({"before": BINS, "after": BINS[:1]}, "held out")
    root = ET.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    marks = [c for c in root.iter(f"{space}circle") if c.find(f"{space}title") is not None]
    assert len(marks) == 3
    frame = root.findall(f"{space}rect")[1]
    left, top, size = (float(frame.get(name)) for name in ("x", "y", "width"))
    for mark, found in zip(marks, (*BINS, BINS[0]), strict=True):
        assert float(mark.get("cx")) == pytest.approx(left + size * found.probability, abs=0.1)
        assert float(mark.get("cy")) == pytest.approx(top + size * (1 - found.right), abs=0.1)
    assert float(marks[0].get("r")) > float(marks[1].get("r"))
    assert {"before", "after", "held out"} <= {t.text for t in root.iter(f"{space}text")}


def test_names_are_shown_as_text():
    text = reliability_svg({"<script>alert(1)</script>": BINS}, "a & b")
    assert "<script" not in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    ET.fromstring(text)


def test_too_many_series_are_refused():
    for count in (0, 7):
        with pytest.raises(ValueError, match="give 1 to 6"):
            reliability_svg({str(n): BINS for n in range(count)})
