"""The last ten results, also after the page was started again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from distill.inference.prompt_file import read_metadata, save_png
from launch.page.store import KEPT, ResultStore


def entry(name: str) -> dict[str, Any]:
    return {"name": name, "pictures": [{"file": f"{name}-0-student-phased-4.png", "role": "student"}], "lines": []}


def draw(store: ResultStore) -> str:
    name = store.new_name()
    for picture in entry(name)["pictures"]:
        save_png(Image.new("RGB", (8, 8)), store.folder / picture["file"], entry(name))
    store.add(name, entry(name), {"prompt": name})
    return name


def test_the_last_ten_are_kept_newest_first(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "results")
    names = [draw(store) for _ in range(KEPT + 3)]
    assert len(set(names)) == KEPT + 3
    again = ResultStore(tmp_path / "results")
    assert [result.name for result in again.last()] == names[: -KEPT - 1 : -1]
    assert again.last()[0].form == {"prompt": names[-1]}
    assert len(list(store.folder.glob("*.png"))) == len(list(store.folder.glob("*.json"))) == KEPT
    file = store.folder / entry(names[-1])["pictures"][0]["file"]
    assert read_metadata(file)["name"] == names[-1]


def test_what_a_stopped_drawing_left_is_removed(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    kept, name = draw(store), store.new_name()
    half = tmp_path / f"{name}-0-student-phased-4.png"
    half.touch()
    store.discard(name)
    assert not half.exists() and len(store.last()) == 1
    half.touch()
    assert [result.name for result in ResultStore(tmp_path).last()] == [kept]
    assert not half.exists()


def test_other_files_stay(tmp_path: Path) -> None:
    (tmp_path / "mine.png").touch()
    (tmp_path / "20261128.json").touch()
    ResultStore(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["../x", "", "20261128-120000-0", "a"])
def test_a_name_that_is_none_gives_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.json").write_text('{"entry": {}, "form": {}}')
    assert ResultStore(tmp_path / "results").get(name) is None


def test_a_broken_file_is_left_out(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    name = draw(store)
    (tmp_path / f"{name}.json").write_text("{")
    assert store.last() == []
