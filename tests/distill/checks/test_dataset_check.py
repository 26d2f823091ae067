"""Every planted fault stands under its heading with its count; the exit code and the last line say what follows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from anytext2.data.annotations import escape_unprintable
from anytext2.data.dataset import AnyWordDataset
from anytext2.data.options import DatasetConfig
from distill.checks.dataset_check import DatasetCounts, check_source
from distill.checks.dataset_report import SourceCheck, format_report, reasons_unusable
from distill.data.placement import PARTLY_OUTSIDE, WHOLLY_OUTSIDE
from launch.check_dataset import main
from tests.helpers import faulty_data as data
from tests.helpers.paths import ROOT

OPTIONS = DatasetConfig(resolution=data.SIDE, max_lines=2, max_chars=20)
SMALL = ("resolution=96", "max_lines=2")


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data.write(tmp_path_factory.mktemp("faulty"), data.faulty_items())


@pytest.fixture(scope="module")
def found(faulty: Path) -> SourceCheck:
    return check_source(faulty, OPTIONS)


def counts(counted: dict[str, Any]) -> dict[str, int]:
    return {reason: one.count for reason, one in counted.items()}


# --- what is found ---


def test_pictures_that_cannot_be_decoded_are_counted_by_reason(found: SourceCheck) -> None:
    assert (found.items, found.usable, found.checked, found.readable) == (18, 18, 18, 15)
    assert counts(found.unreadable) == {"image corrupt": 2, "image missing": 1}
    assert "missing.png" in found.unreadable["image missing"].example
    assert "truncated.png" in found.unreadable["image corrupt"].example  # the first one of the two


def test_polygons_outside_their_picture_are_counted_but_not_those_on_its_border(found: SourceCheck) -> None:
    assert counts(found.polygons) == {PARTLY_OUTSIDE: 1, WHOLLY_OUTSIDE: 1}
    assert found.polygons[PARTLY_OUTSIDE].example.startswith("partly.png, 96 x 96: 'edge' at (60, 10)")
    assert found.polygons[WHOLLY_OUTSIDE].example.startswith("wholly.png")


def test_characters_without_a_glyph_are_named_with_their_code(found: SourceCheck) -> None:
    assert (found.uncovered.total, found.uncovered.different) == (3, 2)
    assert list(counts(found.uncovered.most_frequent).items()) == [("U+1F600 \U0001f600", 2), ("U+1F601 \U0001f601", 1)]
    assert found.uncovered.most_frequent["U+1F600 \U0001f600"].example == "emoji.png: 'Hi\U0001f600\U0001f600'"


def test_shares_of_colours_texts_and_lines(found: SourceCheck) -> None:
    n_lines = 8 + 3 + 2 + 2 + 1 + 2 + 3 + 1
    assert found.lines == n_lines and found.languages == {"Latin": n_lines}
    assert found.colors.told == 9 and found.colors.share_told == round(9 / n_lines, 4)
    assert (found.colors.share_black, found.colors.share_white) == (round(8 / 9, 4), round(1 / 9, 4))
    assert found.colors.mean == (round(330 / 9, 1), round(320 / 9, 1), round(335 / 9, 1))
    assert (found.text_lengths.most, found.text_lengths.share_above) == (37, round(1 / n_lines, 4))
    lines = found.lines_per_picture
    assert (lines.most, lines.share_above, found.pictures_without_lines) == (3, round(1 / 18, 4), 1)
    assert found.sizes.most_frequent == {"96 x 96": 15} and found.sizes.different == 1


def test_sound_samples_have_no_findings(found: SourceCheck) -> None:
    assert found.faulty == 0 and found.audit == {}


def test_a_bad_sample_trips_the_audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Glyphs drawn black on white, in one sample; and one that cannot be made at all."""
    sample = AnyWordDataset.sample

    def planted(self: AnyWordDataset, index: int, epoch: int) -> Any:
        if index == 4:
            raise IndexError("list index out of range")
        made = sample(self, index, epoch)
        return replace(made, glyph=1 - made.glyph) if index == 3 else made

    monkeypatch.setattr(AnyWordDataset, "sample", planted)
    found = check_source(data.write(tmp_path, data.sound_items(8)), OPTIONS)
    assert (found.checked, found.readable, found.faulty) == (8, 7, 2) and found.unreadable == {}
    assert found.audit["glyph page"].example.startswith("sound_3.png: ink covers ")
    assert found.audit["sample"].example == "sound_4.png: cannot be made: IndexError: list index out of range"
    (why,) = reasons_unusable(found, 0.0, 0.0)
    assert "2 of 8 samples fail the audit" in why and "sound_3.png" in why
    assert reasons_unusable(found, 0.0, 0.25) == []


def test_what_loading_left_out_is_reported(tmp_path: Path) -> None:
    items = data.sound_items(2)
    items[0]["annotations"].append(data.line("no", valid=False))
    items[1]["wm_score"] = 0.9
    found = check_source(data.write(tmp_path, items), replace(OPTIONS, wm_threshold=0.5))
    assert (found.items, found.usable, found.lines) == (2, 1, 1)
    assert counts(found.left_out) == {
        "lines: marked invalid (ignored by the loss)": 1,
        "pictures: watermark score above the threshold": 1,
    }


def test_sizes_name_the_smallest_and_the_largest(tmp_path: Path) -> None:
    source = data.write(tmp_path, data.sound_items(3))
    Image.new("RGB", (200, 40)).save(tmp_path / "imgs" / "sound_0.png")
    found = check_source(source, OPTIONS).sizes
    assert (found.different, found.smallest, found.largest) == (2, "200 x 40", "96 x 96")


def test_a_file_that_is_no_annotation_file_is_not_usable(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text("{'no json'}")
    found = check_source(path, OPTIONS)
    (why,) = reasons_unusable(found, 1.0, 1.0)
    assert str(path) in why and "\n" not in why and why in format_report(found)
    empty = check_source(data.write(tmp_path, [], "empty.json"), OPTIONS)
    assert "no usable item" in reasons_unusable(empty, 1.0, 1.0)[0] and "all inside" in format_report(empty)


def test_faulty_items_are_as_many_as_a_run_would_take(tmp_path: Path) -> None:
    items = data.sound_items(3)
    items[1]["annotations"][0]["polygon"] = "none"
    source = data.write(tmp_path, items)
    refused, taken = check_source(source, OPTIONS), check_source(source, OPTIONS, max_faulty=0.5)
    assert "data_list[1]" in refused.error and "polygon" in refused.error and taken.error == ""
    assert taken.lines == 2 and any("polygon" in reason for reason in taken.left_out)
    assert any("data_list[1]" in reason.example for reason in taken.left_out.values())


def test_a_limit_takes_pictures_from_all_over_the_file(faulty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    sample = AnyWordDataset.sample
    monkeypatch.setattr(AnyWordDataset, "sample", lambda self, i, epoch: seen.append(i) or sample(self, i, epoch))
    found = check_source(faulty, OPTIONS, limit=3)
    assert (found.items, found.checked) == (18, 3) and seen == [0, 6, 12]
    done: list[tuple[int, int]] = []
    check_source(faulty, OPTIONS, progress=lambda *at: done.append(at))
    assert done == [(16, 18), (18, 18)]


def test_counts_add_up_in_order() -> None:
    first, second = DatasetCounts(), DatasetCounts()
    first.count("audit", "rule", "a")
    second.count("audit", "rule", "b", 2)
    second.count("audit", "other", "c")
    first.add(second)
    assert {r: (c.count, c.example) for r, c in first.most_common("audit").items()} == {
        "rule": (3, "a"),
        "other": (1, "c"),
    }


def test_nothing_from_the_data_can_steer_the_terminal() -> None:
    assert escape_unprintable("招\x1b[2J\n\ud83d!") == "招\\x1b[2J\\n\\ud83d!"


def test_the_table_has_every_heading_and_the_faults(found: SourceCheck) -> None:
    text = format_report(found)
    for words in (
        "18 in the file, 18 usable, 18 checked, 15 readable",
        "image missing: 1, as ",
        f"{PARTLY_OUTSIDE}: 1, as partly.png",
        "U+1F600 \U0001f600: 2, as emoji.png",
        "4.5% are longer than 20",
        "5.6% of the pictures have more than 2",
        "9 lines (40.9%) tell theirs",
        "no findings",
    ):
        assert words in text, (words, text)


# --- the command ---


def test_the_exit_code_and_the_last_line_say_what_follows(
    faulty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made" / "report.json"
    rest = [*SMALL, "--workers", "0", "--out", str(out)]
    assert main([str(faulty), *rest]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"not usable: {faulty}: 3 of 18 pictures cannot be read (image corrupt: 2")
    report = json.loads(out.read_text(encoding="utf-8"))
    assert report["usable"] is False and report["why_not"][0] in last
    assert report["sources"] == json.loads(json.dumps([asdict(check_source(faulty, OPTIONS))]))
    assert report["options"]["max_lines"] == 2
    assert main([str(faulty), *rest, "--max-unreadable", "0.2"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "usable: 15 samples are sound"
    assert main([str(faulty), *rest, "data.max_unreadable=0.3", "--limit", "4"]) == 0
    assert "4 checked" in capsys.readouterr().out


@pytest.mark.process
def test_the_number_of_processes_does_not_change_the_report(faulty: Path, tmp_path: Path) -> None:
    reports = []
    for workers in ("0", "2"):
        out = tmp_path / f"{workers}.json"
        assert main([str(faulty), *SMALL, "--workers", workers, "--out", str(out)]) == 1
        reports.append(out.read_bytes())
    assert reports[0] == reports[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.json"], "nowhere.json: annotation file does not exist"),
        ([], "no annotation file given"),
        (["{file}", "max_line=2"], "known there: resolution, max_lines"),
        (["{file}", "resolution=100"], "resolution: 100 must be a multiple of 8"),
        (["{file}", "--limit", "0"], "--limit 0"),
        (["{file}", "--workers", "-1"], "--workers -1"),
        (["{file}", "--max-unreadable", "2"], "--max-unreadable 2.0"),
        (["{file}", "--recipe", "none.yaml"], "none.yaml"),
    ],
)
def test_bad_arguments_end_with_one_line_and_code_2(
    faulty: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([a.replace("{file}", str(faulty)) for a in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line


@pytest.mark.process
def test_the_command_as_a_process_writes_the_default_file_and_its_progress(tmp_path: Path) -> None:
    source = data.write(tmp_path, data.sound_items(3), "mine.json")
    root = ROOT
    done = subprocess.run(
        [sys.executable, str(root / "launch" / "check_dataset.py"), "mine.json", "data.options.resolution=96"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "mine.json: checked 3/3 pictures" in done.stderr
    assert done.stdout.splitlines()[-1] == "usable: 3 samples are sound"
    report = json.loads((tmp_path / "runs" / "check" / "mine.json").read_text(encoding="utf-8"))
    assert report["sources"][0]["source"] == source.name and report["options"]["resolution"] == 96
