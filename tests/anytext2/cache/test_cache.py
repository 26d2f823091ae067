"""The feature cache: its samples equal those drawn anew; no kill, truncation or other setting goes unnoticed."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from PIL import Image, features

from anytext2.cache.build import build_cache, estimate_cache_bytes
from anytext2.cache.encoders import make_image_encoder
from anytext2.cache.header import CacheHeader, CacheMismatchError, header_for
from anytext2.cache.store import FeatureCache, read_header
from anytext2.core.batch import Sample, collate
from anytext2.data.annotations import load_records
from anytext2.data.dataset import AnyWordDataset, SampleError
from anytext2.data.features import StoredLatents
from anytext2.glyphs.fonts import FontTable
from tests.helpers.stored_features import CONFIG, FONTS, content, dataset_of, in_child

pytestmark = pytest.mark.process


def same(one: Sample, other: Sample) -> list[str]:
    """The names of the fields that differ."""
    differ = []
    for field in fields(Sample):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
            equal = torch.equal(a, b)
        elif field.name == "polygons":
            equal = all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
        else:
            equal = type(a) is type(b) and a == b
        if not equal:
            differ.append(field.name)
    return differ


@pytest.mark.parametrize("rand_font", [True, False])
def test_samples_from_the_store_equal_those_drawn_anew(source: Path, store: Path, rand_font: bool) -> None:
    config = replace(CONFIG, rand_font=rand_font)
    drawn = dataset_of(source, config)
    stored = dataset_of(source, config, FeatureCache.open(store, header_for(config, FONTS, [source])))
    for index in range(len(drawn)):
        for epoch in (0, 5):
            assert same(drawn.sample(index, epoch), stored.sample(index, epoch)) == []
    glyphs = {drawn.sample(0, epoch).glyph.numpy().tobytes() for epoch in range(12)}
    assert (len(glyphs) > 1) == rand_font, "the font is still drawn for every epoch"


def test_the_hint_stays_random_and_is_drawn_from_the_stored_strokes(source: Path, store: Path) -> None:
    config = replace(CONFIG, font_hint_randaug=True, font_hint_prob=1.0)
    drawn = dataset_of(source, config)
    stored = dataset_of(source, config, FeatureCache.open(store, header_for(config, FONTS, [source])))
    agreement = []
    for index in range(20):
        ours, theirs = stored.sample(index, 3), drawn.sample(index, 3)
        assert set(same(ours, theirs)) <= {"font_hint"}
        a, b = ours.font_hint.bool(), theirs.font_hint.bool()
        agreement.append(((a & b).sum() / (a | b).sum()).item())
        assert not torch.equal(ours.font_hint, stored.sample(index, 4).font_hint)
    # the same change of strokes instead of pixels: not equal, but the same strokes in the same places
    assert np.mean(agreement) > 0.5


def test_every_field_of_the_header_is_checked_and_named(source: Path, store: Path, tmp_path: Path) -> None:
    other_source = tmp_path / "data.json"
    other_source.write_text(source.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    own_font = FontTable(FONTS.default, {"Latin": (FONTS.default,)})
    wanted = header_for(CONFIG, FONTS, [source])
    changed: list[tuple[CacheHeader, str]] = [
        (
            header_for(replace(CONFIG, resolution=128), FONTS, [source]),
            "resolution: the store has 64, the run wants 128",
        ),
        (header_for(replace(CONFIG, max_lines=5), FONTS, [source]), "max_lines: the store has 2"),
        (header_for(replace(CONFIG, max_chars=9), FONTS, [source]), "max_chars: the store has 20"),
        (header_for(replace(CONFIG, glyph_scale=1), FONTS, [source]), "glyph_scale: the store has 2"),
        (header_for(replace(CONFIG, ink_threshold=0.5), FONTS, [source]), "ink_threshold: the store has 0.1"),
        (header_for(replace(CONFIG, exif="apply"), FONTS, [source]), "exif: the store has ignore, the run wants apply"),
        (header_for(CONFIG, own_font, [source]), "fonts: .* are not the same"),
        (header_for(CONFIG, FONTS, [other_source]), "sources: data.json is not the same"),
        (replace(wanted, upright_degrees=20.0), "upright_degrees: the store has 10.0"),
        (replace(wanted, latents="abc"), "latents: the store has None, the run wants abc"),
        (replace(wanted, captions="abc"), "captions: the store has None, the run wants abc"),
        (replace(wanted, shard="1/2"), "shard: the store has , the run wants 1/2"),
        (replace(wanted, buckets=["64"]), r"buckets: the store has \[\], the run wants \['64'\]"),
        (header_for(CONFIG, FONTS, [source], size=(64, 128)), "resolution: the store has 64, the run wants 128x64"),
        (
            header_for(replace(CONFIG, like_reference=True), FONTS, [source]),
            "like_reference: the store has False, the run wants True",
        ),
    ]
    named = {line.split(":")[0] for _, line in changed}
    assert named | {"format"} == {field.name for field in fields(CacheHeader)}
    for header, line in changed:
        with pytest.raises(CacheMismatchError, match=line):
            FeatureCache.open(store, header)


def test_a_store_without_the_field_was_drawn_in_our_own_way(source: Path, store: Path) -> None:
    header = header_for(CONFIG, FONTS, [source])
    written = json.loads(header.to_json())
    del written["like_reference"]
    old = CacheHeader.from_json(json.dumps(written).encode(), store)
    assert old.differences(header) == []
    (difference,) = old.differences(header_for(replace(CONFIG, like_reference=True), FONTS, [source]))
    assert difference.startswith("like_reference: the store has False")


@pytest.mark.skipif(not features.check("raqm"), reason="this Pillow has no raqm layout")
def test_drawings_like_the_reference_are_stored_in_every_font(source: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, like_reference=True)
    records = load_records(source)[0].select(np.arange(3))
    drawn, header = AnyWordDataset(records, config, 7, FONTS), header_for(config, FONTS, [source])
    build_cache(tmp_path / "like.lmdb", drawn, header, workers=0)
    stored = AnyWordDataset(records, config, 7, FONTS, FeatureCache.open(tmp_path / "like.lmdb", header))
    for index in range(3):
        for epoch in range(4):
            assert same(drawn.sample(index, epoch), stored.sample(index, epoch)) == []
    lines = {drawn.sample(0, epoch).glyph_line.numpy().tobytes() for epoch in range(12)}
    assert len(lines) > 1, "the glyph line is in the font of the glyph page"


def test_truncated_and_foreign_files_are_refused_in_one_line(source: Path, store: Path, tmp_path: Path) -> None:
    whole = store.read_bytes()
    wanted = header_for(CONFIG, FONTS, [source])
    foreign = lmdb.open(str(tmp_path / "foreign"), subdir=False, lock=False)
    with foreign.begin(write=True) as transaction:
        transaction.put(b"num-samples", b"3")
    foreign.close()
    files = {
        "absent": None,
        "empty": b"",
        "text": b"not a store" * 1000,
        "quarter": whole[: len(whole) // 4],
        "page less": whole[:-4096],
        "first page": whole[:4096],
        "foreign": (tmp_path / "foreign").read_bytes(),
    }
    for name, data in files.items():
        path = tmp_path / f"{name}.lmdb"
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(ValueError, match=str(path)) as caught:
            FeatureCache.open(path, wanted)
        assert "\n" not in str(caught.value)
        assert data is None or path.read_bytes() == data, "a reader changes nothing"
    unfinished = tmp_path / "unfinished.lmdb"
    unfinished.write_bytes(_without_header(store, tmp_path))
    with pytest.raises(ValueError, match="no finished feature cache"):
        FeatureCache.open(unfinished, wanted)


def _without_header(store: Path, folder: Path) -> bytes:
    path = folder / "copy"
    path.write_bytes(store.read_bytes())
    environment = lmdb.open(str(path), subdir=False, lock=False)
    with environment.begin(write=True) as transaction:
        transaction.delete(b"header")
    environment.close()
    return path.read_bytes()


def test_killed_twenty_times_the_store_equals_one_built_in_one_go(source: Path, store: Path, tmp_path: Path) -> None:
    path, header = tmp_path / "killed.lmdb", header_for(CONFIG, FONTS, [source])
    rng, kills, unfinished = random.Random(1), 0, 0
    while kills < 20:
        child = in_child(partial(build_cache, path, dataset_of(source), header, workers=kills % 3, chunk=3))
        time.sleep(rng.uniform(0.0, 0.25))
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1
        if not path.exists():
            unfinished += path.with_name(path.name + ".partial").exists()
        else:
            assert content(path) == content(store)
            path.unlink()
    report = build_cache(path, dataset_of(source), header, workers=2)
    assert report.stored == 40 and content(path) == content(store)
    assert unfinished >= 5, "most kills must fall into the building"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["killed.lmdb"]


def test_what_is_there_is_not_drawn_again(source: Path, tmp_path: Path) -> None:
    path, header = tmp_path / "features.lmdb", header_for(CONFIG, FONTS, [source])
    done: list[int] = []

    class Stopped(Exception):
        pass

    def stop(number: int) -> None:
        done.append(number)
        if sum(done) >= 16:
            raise Stopped

    with pytest.raises(Stopped):
        build_cache(path, dataset_of(source), header, workers=0, chunk=8, progress=stop)
    assert not path.exists()
    report = build_cache(path, dataset_of(source), header, workers=0)
    assert (report.stored, report.added) == (40, 24 + 8 * (sum(done) > 16))


def test_a_partial_store_of_other_settings_is_begun_anew(source: Path, store: Path, tmp_path: Path) -> None:
    path = tmp_path / "features.lmdb"
    for start in (b"rubbish" * 999, store.read_bytes()):
        path.with_name(path.name + ".partial").write_bytes(start)
        report = build_cache(path, dataset_of(source), header_for(CONFIG, FONTS, [source]), workers=0)
        assert report.added == 40 and content(path) == content(store)


def test_unreadable_pictures_are_counted_and_left_to_the_run(source: Path, tmp_path: Path) -> None:
    records = list(load_records(source)[0])[:4]
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff")
    records[1] = replace(records[1], image_path=broken)
    records[2] = replace(records[2], image_path=tmp_path / "absent.png")
    dataset = AnyWordDataset(records, CONFIG, 7, FONTS)
    path, header = tmp_path / "features.lmdb", header_for(CONFIG, FONTS, [])
    report = build_cache(path, dataset, header, workers=0)
    assert report.stored == 2 and report.skipped == {"image corrupt": 1, "image missing": 1}
    served = AnyWordDataset(records, CONFIG, 7, FONTS, FeatureCache.open(path, header))
    assert served.sample(0, 0).n_lines and served.sample(3, 0).n_lines
    with pytest.raises(SampleError, match="absent.png: image missing"):
        served.sample(2, 0)


def test_turned_pictures_are_stored_turned(source: Path, tmp_path: Path) -> None:
    (record,) = list(load_records(source)[0])[:1]
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (128, 256), "white").save(tmp_path / "turned.jpg", exif=exif)  # shown 256 wide
    records, config = [replace(record, image_path=tmp_path / "turned.jpg")], replace(CONFIG, exif="apply")
    path, header = tmp_path / "features.lmdb", header_for(config, FONTS, [])
    assert build_cache(path, AnyWordDataset(records, config, 7, FONTS), header, workers=0).stored == 1
    store = FeatureCache.open(path, header)
    assert store.file_size(records[0]) == (128, 256)
    drawn, stored = (AnyWordDataset(records, config, 7, FONTS, cache).sample(0, 3) for cache in (None, store))
    assert same(drawn, stored) == []


def test_lines_outside_the_picture_are_not_in_the_store(source: Path, tmp_path: Path) -> None:
    """What is stored is numbered as the lines of a sample are."""
    record = next(record for record in load_records(source)[0] if len(record.lines) == 2)
    away = replace(record.lines[1], text="away", polygon=record.lines[1].polygon + np.float32(1000))
    records = [replace(record, lines=(away, *record.lines))]
    path, header = tmp_path / "features.lmdb", header_for(CONFIG, FONTS, [])
    drawn = AnyWordDataset(records, CONFIG, 7, FONTS)
    assert build_cache(path, drawn, header, workers=0).stored == 1
    stored = AnyWordDataset(records, CONFIG, 7, FONTS, FeatureCache.open(path, header))
    assert drawn.sample(0, 0).n_lines == 2 and same(drawn.sample(0, 0), stored.sample(0, 0)) == []


def test_the_size_is_estimated_and_limited(source: Path, store: Path, tmp_path: Path) -> None:
    estimate = estimate_cache_bytes(dataset_of(source), (64, 64))
    assert 0.5 < estimate / store.stat().st_size < 2
    with pytest.raises(ValueError, match="needs more than 0.00 GiB.*--map-size"):
        header = header_for(CONFIG, FONTS, [source])
        _build_in(tmp_path / "small.lmdb", source, header, max_bytes=1 << 16)


def _build_in(path: Path, source: Path, header: CacheHeader, max_bytes: int) -> None:
    build_cache(path, dataset_of(source), header, workers=0, max_bytes=max_bytes)


def test_one_builder_at_a_time(source: Path, tmp_path: Path) -> None:
    path, header = tmp_path / "features.lmdb", header_for(CONFIG, FONTS, [source])

    def second(_number: int) -> None:
        with pytest.raises(ValueError, match="another process is building"):
            build_cache(path, dataset_of(source), header, workers=0)

    assert build_cache(path, dataset_of(source), header, workers=0, progress=second).stored == 40


def test_latents_stand_in_for_the_picture(source: Path, tmp_path: Path) -> None:
    """The 'autoencoder' averages cells of 8 x 8 pixels, so that what is stored can be computed from the pictures."""

    def encode(pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean = torch.nn.functional.avg_pool2d(pictures, 8)
        return mean, mean.abs() + 0.5

    path, header = tmp_path / "features.lmdb", header_for(CONFIG, FONTS, [source], latents="cells")
    build_cache(path, dataset_of(source), header, workers=1, encode=make_image_encoder(encode, "cpu"))
    config = replace(CONFIG, mask_pos_prob=1.0)
    served = dataset_of(source, config, FeatureCache.open(path, header), latents=True)
    drawn = dataset_of(source, config)
    modes = set()
    for index in range(30):
        ours, theirs = served.sample(index, 1), drawn.sample(index, 1)
        many = len(served.records[index].lines) > config.max_lines
        changed = {"image", "masked_image", "posterior", "masked_latent"}
        assert set(same(ours, theirs)) <= changed | ({"editing", "inverse_mask"} if many else set())
        assert ours.image.shape == (3, 0, 0) and ours.posterior is not None and ours.masked_latent is not None
        mean, deviation = encode(collate([theirs]).normalized().image)
        torch.testing.assert_close(ours.posterior.float(), torch.cat([mean, deviation]), atol=2e-3, rtol=0)
        assert not (many and ours.editing)
        modes.add((ours.editing, many))
        if not ours.editing:
            assert not ours.masked_latent.any()
        else:
            hidden = torch.from_numpy(np.array(Image.open(served.records[index].image_path).resize((8, 8)))).any()
            assert hidden and (ours.masked_latent <= ours.posterior[0] + 2e-3).all(), "hidden cells are darker"
    assert len(modes) == 3
    batch = collate([served.sample(i, 1) for i in range(3)])
    assert batch.posterior is not None and batch.posterior.shape == (3, 2, 3, 8, 8)
    assert batch.masked_latent is not None and batch.masked_latent.shape == (3, 3, 8, 8)


def test_stored_latents_come_back_as_they_were() -> None:
    values = np.random.default_rng(0).normal(size=(3, 4, 2, 5)).astype(np.float16)
    back = StoredLatents.unpack(StoredLatents(values[0], values[1], values[2]).pack())
    for ours, theirs in zip((back.mean, back.std, back.masked), values, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_every_process_opens_the_store_for_itself(source: Path, store: Path) -> None:
    cache = FeatureCache.open(store, header_for(CONFIG, FONTS, [source]))
    record = load_records(source)[0][0]
    assert cache.entry(record) is not None
    read, write = os.pipe()
    child = in_child(lambda: os.write(write, b"y" if cache.entry(record) is not None else b"n"))
    os.close(write)
    os.waitpid(child, 0)
    assert os.read(read, 1) == b"y"
    assert read_header(store) == cache.header
