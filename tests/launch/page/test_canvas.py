"""What the canvas sends: JSON to places, and what no canvas sends."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from launch.page.canvas import after_upload, box_corners, read_canvas, write_canvas
from launch.page.faults import PageFault


def canvas(*places: dict[str, float], **more: Any) -> str:
    return json.dumps({"places": list(places), **more})


def box(x: float = 50, y: float = 40, w: float = 60, h: float = 20, angle: float = 0) -> dict[str, float]:
    return {"x": x, "y": y, "w": w, "h": h, "angle": angle}


def test_a_box_becomes_its_corners_in_pixels() -> None:
    (place,) = read_canvas(canvas(box()), (128, 128)).places
    assert place.dtype == np.float32
    assert place.tolist() == [[20, 30], [80, 30], [80, 50], [20, 50]]


def test_a_turned_box_keeps_its_centre_and_its_reading_direction() -> None:
    corners = box_corners(box(angle=90))
    assert np.allclose(corners, [[60, 10], [60, 70], [40, 70], [40, 10]])
    assert np.allclose(box_corners(box(angle=33)).mean(axis=0), [50, 40])


@pytest.mark.parametrize("value", ["", "{}", None, canvas(), canvas(mask="m.png")])
def test_an_empty_canvas_has_no_places(value: Any) -> None:
    assert read_canvas(value, (128, 128)).places == ()


def test_places_are_not_used_beside_a_mask() -> None:
    read = read_canvas(canvas(box(), mask="m.png", picture="p.png"), (128, 128))
    assert (read.places, read.mask, read.picture) == ((), "m.png", "p.png")


def test_rounding_over_the_edge_is_cut() -> None:
    (place,) = read_canvas(canvas(box(x=29.5, y=118.6)), (128, 128)).places
    assert place.min() == 0 and place.max() == 128


@pytest.mark.parametrize("outside", [box(x=20), box(x=110), box(y=125), box(x=50, y=50, w=120, h=20, angle=80)])
def test_a_place_outside_is_named(outside: dict[str, float]) -> None:
    with pytest.raises(PageFault) as fault:
        read_canvas(canvas(box(), outside), (128, 96))
    assert (fault.value.message.key, fault.value.message.arguments) == ("place_outside", (2,))
    assert fault.value.message.field == "places"


def test_a_place_without_an_area_is_named() -> None:
    with pytest.raises(PageFault, match="place_small 1"):
        read_canvas(canvas(box(h=0.5)), (128, 128))


@pytest.mark.parametrize(
    "value",
    [
        "[1]",
        "no json",
        '{"places": [{"x": 1}]}',
        '{"places": [3]}',
        '{"places": 3}',
        '{"picture": {"a": 1}}',
        '{"upload": "x"}',
        '{"places": [{"x": "a", "y": 1, "w": 1, "h": 1, "angle": 0}]}',
        '{"places": [{"x": NaN, "y": 1, "w": 1, "h": 1, "angle": 0}]}',
        '{"places": [{"x": 1e999, "y": 1, "w": 1, "h": 1, "angle": 0}]}',
    ],
)
def test_what_no_canvas_sends_is_refused(value: str) -> None:
    with pytest.raises(PageFault, match="canvas_broken"):
        read_canvas(value, (128, 128))


def test_what_is_written_is_read_again() -> None:
    read = read_canvas(write_canvas([(10, 20, 50, 60)], "p.png", fault=["upload_large", 10]), (128, 128))
    assert read.places[0].tolist() == [[10, 20], [50, 20], [50, 60], [10, 60]]
    assert read.picture == "p.png" and list(read.fault) == ["upload_large", 10]


def test_a_new_picture_empties_the_canvas_and_a_mask_keeps_the_picture() -> None:
    before = canvas(box(), picture="old.png", mask="m.png", upload={"kind": "picture", "path": "/x"})
    new = json.loads(after_upload(before, {"picture": "new.png"}))
    assert new == {"places": [], "picture": "new.png", "mask": "", "fault": []}
    masked = json.loads(after_upload(before, {"mask": "other.png"}))
    assert (masked["picture"], masked["mask"], "upload" in masked) == ("old.png", "other.png", False)
    failed = json.loads(after_upload(before, {}, ["upload_unreadable"]))
    assert failed["picture"] == "old.png" and failed["fault"] == ["upload_unreadable"]
