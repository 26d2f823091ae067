"""Samples: exact masks, captions, padding, and the same sample whoever makes it."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
import torch
from PIL import Image, features

from anytext2.core.batch import Record, Sample, TextLine, collate
from anytext2.data.annotations import load_records
from anytext2.data.dataset import AnyWordDataset, SampleError, missing_glyphs
from anytext2.data.geometry import scale_polygons
from anytext2.data.options import DatasetConfig
from anytext2.glyphs.fonts import load_font_table

FONTS = load_font_table()
needs_raqm = pytest.mark.skipif(not features.check("raqm"), reason="this Pillow has no raqm layout")
EXACT = DatasetConfig(
    resolution=128, max_lines=3, font_hint_prob=0, mask_img_prob=0, rand_font=False, font_hint_randaug=False
)


def _box(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], np.float32)


def _line(
    text: str, top: float, color: tuple[int, int, int] | None = (10, 20, 30), language: str = "Latin"
) -> TextLine:
    return TextLine(text, _box(10, top, 90, top + 20), language, color)


@pytest.fixture
def record(tmp_path: Path) -> Record:
    pixels = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    lines = (_line("Open", 10), _line("药房", 60, None, "Chinese"))
    return Record(path, "a.png", "a shop", lines, (_box(5, 100, 40, 120),))


def _sample(record: Record, config: DatasetConfig = EXACT, seed: int = 0, epoch: int = 0) -> Sample:
    return AnyWordDataset([record], config, seed, FONTS).sample(0, epoch)


def _exact_position(config: DatasetConfig, record: Record) -> Sample:
    """A sample in whose epoch no position edge was moved."""
    for epoch in range(50):
        sample = _sample(record, config, epoch=epoch)
        if [int(m.sum()) for m in sample.position[:2]] == [81 * 21, 81 * 21]:
            return sample
    raise AssertionError("no epoch with exact positions in fifty")


def test_shapes_dtypes_and_ranges(record: Record) -> None:
    sample = _sample(record, replace(EXACT, glyph_scale=2, font_hint_prob=1))
    expected = {
        "image": ((3, 128, 128), torch.uint8),
        "masked_image": ((3, 128, 128), torch.uint8),
        "glyph": ((1, 256, 256), torch.uint8),
        "position": ((3, 128, 128), torch.uint8),
        "glyph_line": ((3, 80, 512), torch.uint8),
        "font_hint": ((1, 128, 128), torch.uint8),
        "color": ((3, 3), torch.float32),
        "inverse_mask": ((1, 128, 128), torch.uint8),
    }
    tensors = {f.name: getattr(sample, f.name) for f in fields(sample) if torch.is_tensor(getattr(sample, f.name))}
    assert {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()} == expected
    maps = [t for name, t in tensors.items() if t.dtype == torch.uint8 and "image" not in name]
    assert len(maps) == 5 and all(set(torch.unique(t).tolist()) <= {0, 1} for t in maps)


def test_image_is_the_file_in_minus_one_to_one(record: Record) -> None:
    pixels = np.asarray(Image.open(record.image_path)).astype(np.float64)
    batch = collate([_sample(record)]).normalized()
    assert batch.image.dtype == torch.float32 and batch.image.is_contiguous()
    np.testing.assert_allclose(batch.image[0].permute(1, 2, 0).numpy(), pixels / 127.5 - 1, atol=1e-6)


def test_lines_and_padding(record: Record) -> None:
    sample = _exact_position(EXACT, record)
    assert (sample.n_lines, sample.texts, sample.languages) == (2, ("Open", "药房"), ("Latin", "Chinese"))
    for row, top in enumerate((10, 60)):
        expected = np.zeros((128, 128), np.uint8)
        expected[top : top + 21, 10:91] = 1
        np.testing.assert_array_equal(sample.position[row].numpy(), expected)
        assert sample.glyph_line[row].any()
        assert (sample.glyph[0].numpy() & expected).any()
    boxes = np.zeros((128, 128), np.uint8)
    boxes[8:34, 8:94] = boxes[58:84, 8:94] = 1
    assert not (sample.glyph[0].numpy() & ~boxes).any(), "ink lies in the boxes only"
    assert not sample.position[2].any() and not sample.glyph_line[2].any()
    assert sample.color.tolist() == [[10, 20, 30], [500, 500, 500], [500, 500, 500]]


def test_generation_mode_hides_the_picture_and_ignores_invalid_text(record: Record) -> None:
    sample = _sample(record)
    assert not sample.editing and (collate([sample]).normalized().masked_image == -1).all()
    expected = np.zeros((128, 128), np.uint8)
    expected[100:121, 5:41] = 1
    np.testing.assert_array_equal(sample.inverse_mask[0].numpy(), expected)


def test_editing_mode_hides_the_lines_only(record: Record) -> None:
    sample = _exact_position(replace(EXACT, mask_img_prob=1), record)
    assert sample.editing and not sample.inverse_mask.any()
    union = sample.position.sum(0, keepdim=True).float()
    batch = collate([sample]).normalized()
    torch.testing.assert_close(batch.masked_image[0], (batch.image[0] - union * 10).clamp(-1, 1))
    assert (batch.masked_image != batch.image).any() and (batch.masked_image == batch.image).any()


def test_too_many_lines_leave_the_rest_to_the_inverse_mask(record: Record) -> None:
    many = replace(record, lines=tuple(_line(f"w{n}", 2 + 14 * n) for n in range(5)), ignored_polygons=())
    many = replace(
        many, lines=tuple(replace(x, polygon=_box(5, 24 * n + 2, 90, 24 * n + 12)) for n, x in enumerate(many.lines))
    )
    before = [line.polygon.copy() for line in many.lines]
    orders = set()
    for epoch in range(12):
        sample = _sample(many, epoch=epoch)
        assert sample.n_lines == 3 and len(set(sample.texts)) == 3
        left_out = [n for n in range(5) if f"w{n}" not in sample.texts]
        expected = np.zeros((128, 128), np.uint8)
        for n in left_out:
            expected[24 * n + 2 : 24 * n + 13, 5:91] = 1
        np.testing.assert_array_equal(sample.inverse_mask[0].numpy(), expected)  # does not pile up over the epochs
        orders.add(sample.texts)
        for text, polygon in zip(sample.texts, sample.polygons, strict=True):
            np.testing.assert_array_equal(polygon, before[int(text[1])])
    assert len(orders) > 4
    assert all(np.array_equal(a, line.polygon) for a, line in zip(before, many.lines, strict=True))


def test_pictures_of_another_size_take_their_polygons_along(record: Record, tmp_path: Path) -> None:
    large = replace(scale_polygons(record, 3, 2), image_path=tmp_path / "large.png")
    Image.fromarray(np.zeros((256, 384, 3), np.uint8)).save(large.image_path)
    sample, reference = _sample(large), _sample(record)
    for name in ("position", "glyph", "inverse_mask"):
        assert torch.equal(getattr(sample, name), getattr(reference, name)), name
    np.testing.assert_allclose(sample.polygons[0], record.lines[0].polygon)


def test_a_picture_without_text_has_one_blank_line(record: Record) -> None:
    sample = _sample(replace(record, lines=()), replace(EXACT, font_hint_prob=1))
    assert (sample.n_lines, sample.texts, sample.languages) == (1, (" ",), ("Latin",))
    assert not sample.glyph.any() and not sample.glyph_line.any() and not sample.font_hint.any()
    assert sample.color[0].tolist() == [500, 500, 500]
    np.testing.assert_allclose(sample.polygons[0], _box(10, 10, 100, 100) / 4)


def test_long_texts_are_cut(record: Record) -> None:
    long = replace(record, lines=(_line("abcdefghij" * 3, 10),))
    assert _sample(long, replace(EXACT, max_chars=7)).texts == ("abcdefg",)


@pytest.mark.heavy
def test_probabilities_of_what_is_told(record: Record) -> None:
    never = _sample(record, replace(EXACT, mask_pos_prob=0, color_prob=0, font_hint_prob=0))
    assert not never.position.any() and (never.color == 500).all() and not never.font_hint.any()
    often = replace(EXACT, mask_img_prob=0.3, color_prob=0.5, font_hint_prob=0.5)
    samples = [_sample(record, often, epoch=epoch) for epoch in range(200)]
    assert 0.2 < np.mean([s.editing for s in samples]) < 0.4
    assert 0.4 < np.mean([s.color[0, 0] == 10 for s in samples]) < 0.6
    assert 0.4 < np.mean([bool(s.font_hint[0, :40].any()) for s in samples]) < 0.6
    both = [(bool(s.font_hint[0, :40].any()), bool(s.font_hint[0, 50:].any())) for s in samples]
    assert len(set(both)) == 4, "each line has its own chance"


def test_font_hint_lies_in_the_boxes(record: Record) -> None:
    hint = _sample(record, replace(EXACT, font_hint_prob=1, font_hint_area=(1.0, 1.0))).font_hint[0].numpy()
    boxes = np.zeros((128, 128), np.uint8)
    boxes[10:31, 10:91] = boxes[60:81, 10:91] = 1
    assert hint.sum() > 0.2 * boxes.sum() and not (hint & ~boxes).any()


def test_random_fonts_keep_the_spelling(record: Record) -> None:
    one = replace(record, lines=(_line("Shop", 40),))
    pages = {_sample(one, replace(EXACT, rand_font=True), epoch=e).glyph.numpy().tobytes() for e in range(40)}
    able = [font for font in FONTS.fonts_for("Latin") if not font.capitals]
    assert len(pages) == len(able), "every font but the one without small letters"


def test_sample_is_a_function_of_seed_epoch_and_index(record: Record) -> None:
    config = DatasetConfig(resolution=128, font_hint_prob=1)
    alone = AnyWordDataset([record, record], config, 3, FONTS)
    other = AnyWordDataset([record] * 9, config, 3, FONTS)
    other.sample(0, 0)  # what was drawn before does not matter
    first, second = alone.sample(1, 4), other.sample(1, 4)
    for field in fields(first):
        a, b = getattr(first, field.name), getattr(second, field.name)
        same = torch.equal(a, b) if torch.is_tensor(a) else np.array_equal(a, b)
        assert same, field.name
    hints = {alone.sample(1, epoch).font_hint.numpy().tobytes() for epoch in range(5)}
    assert len(hints) == 5 and not torch.equal(alone.sample(0, 4).font_hint, first.font_hint)


def test_missing_and_corrupt_images_say_why(record: Record, tmp_path: Path) -> None:
    with pytest.raises(SampleError, match="image missing") as error:
        _sample(replace(record, image_path=tmp_path / "absent.png"))
    assert error.value.reason == "image missing"
    whole = record.image_path.read_bytes()
    for content in (whole[: len(whole) // 2], b"no picture", b""):
        path = tmp_path / "corrupt.png"
        path.write_bytes(content)
        with pytest.raises(SampleError) as error:
            _sample(replace(record, image_path=path))
        assert error.value.reason == "image corrupt" and str(path) in str(error.value)


def test_truncated_jpeg_is_corrupt(record: Record, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.open(record.image_path).save(path, quality=95)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(SampleError, match="image corrupt"):
        _sample(replace(record, image_path=path))


def test_a_turned_picture_is_the_upright_one(record: Record, tmp_path: Path) -> None:
    """Polygons that were drawn in a viewer lie where they belong once the orientation is applied."""
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = Image.open(record.image_path).crop((0, 0, 128, 96))
    upright.save(tmp_path / "upright.png")
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    expected = _sample(replace(record, image_path=tmp_path / "upright.png"))
    turned = replace(record, image_path=tmp_path / "turned.png")
    found = _sample(turned, replace(EXACT, exif="apply"))
    for field in ("image", "position", "glyph", "glyph_line"):
        assert torch.equal(getattr(found, field), getattr(expected, field)), field
    assert not torch.equal(_sample(turned).image, expected.image)


def test_gray_and_transparent_pictures_become_colour(record: Record, tmp_path: Path) -> None:
    for mode in ("L", "P", "RGBA", "1"):
        path = tmp_path / f"{mode}.png"
        Image.new(mode, (128, 128)).save(path)
        assert _sample(replace(record, image_path=path)).image.shape == (3, 128, 128)


# Captions


def test_captions_do_not_grow_over_the_epochs(record: Record) -> None:
    dataset = AnyWordDataset([record], EXACT, 0, FONTS)
    assert {dataset.sample(0, epoch).image_caption for epoch in range(5)} == {"a shop. "}


# Configuration and fonts


def test_missing_glyphs_are_counted(record: Record) -> None:
    strange = replace(record, lines=(_line("ab\U00012000c\U00012000", 10, language="Others"), _line("药房", 40)))
    assert dict(missing_glyphs([strange, record], FONTS)) == {"\U00012000": 2}
    assert _sample(strange).n_lines == 2


@pytest.mark.parametrize("like_reference", [False, pytest.param(True, marks=needs_raqm)])
@pytest.mark.parametrize(("word", "language"), [("がぎパ", "Japanese"), ("bệnh viện", "Latin"), ("Grüße Öl", "Latin")])
def test_texts_that_are_equal_when_normalised_make_equal_pictures(
    record: Record, word: str, language: str, like_reference: bool
) -> None:
    config = replace(EXACT, font_hint_prob=1, rand_font=True, like_reference=like_reference)
    spellings = [word, normalize("NFD", word), f" {word}\n", f"\ufeff{word}\u200b", word.replace(" ", "\u00a0\t")]
    samples = []
    for spelling in spellings:
        line = {"polygon": _box(10, 10, 90, 40).tolist(), "text": spelling, "language": language}
        content = {"data_root": ".", "data_list": [{"img_name": "a.png", "annotations": [line]}]}
        path = record.image_path.with_name("data.json")
        path.write_text(json.dumps(content), encoding="utf-8")
        samples.append(AnyWordDataset(load_records(path)[0], config, 0, FONTS).sample(0, 0))
    assert samples[0].glyph.any() and samples[0].glyph_line.any() and samples[0].texts == (word,)
    for sample in samples[1:]:
        for name in ("image", "glyph", "glyph_line", "position", "font_hint", "color", "texts", "text_caption"):
            ours, expected = getattr(sample, name), getattr(samples[0], name)
            assert torch.equal(ours, expected) if isinstance(ours, torch.Tensor) else ours == expected, name


@needs_raqm
def test_like_reference_the_glyph_line_has_the_glyph_pages_font(record: Record) -> None:
    config = replace(EXACT, rand_font=True, like_reference=True)
    latin = replace(record, lines=record.lines[:1])
    pages, lines = set(), set()
    for epoch in range(30):
        sample = _sample(latin, config, epoch=epoch)
        pages.add(sample.glyph.numpy().tobytes())
        lines.add((sample.glyph.numpy().tobytes(), sample.glyph_line.numpy().tobytes()))
    assert len(pages) == len(lines) > 3
    assert (
        len({_sample(latin, replace(config, rand_font=False), epoch=n).glyph_line.sum().item() for n in range(5)}) == 1
    )


def test_a_sample_can_have_any_size_and_its_polygons_follow(record: Record) -> None:
    sample = AnyWordDataset([record], EXACT, 7, FONTS).sample(0, 0, size=(64, 192))
    assert sample.image.shape == (3, 64, 192) and sample.position.shape[1:] == (64, 192)
    assert sample.glyph.shape == sample.font_hint.shape == sample.inverse_mask.shape == (1, 64, 192)
    np.testing.assert_allclose(sample.polygons[0], record.lines[0].polygon * [1.5, 0.5])
    ink = sample.glyph[0].numpy() > 0
    ys, xs = np.nonzero(ink)
    left, top = (record.lines[0].polygon * [1.5, 0.5]).min(0)
    assert xs.min() >= left - 2 and ys.min() >= top - 2


def test_characters_without_a_glyph_are_left_out_and_lines_of_them_ignored(record: Record) -> None:
    first, second = record.lines
    record = replace(
        record, lines=(replace(first, text="O\U00012000pen"), replace(second, text="\U00012000\U00012001"))
    )
    sample = AnyWordDataset([record], EXACT, 7, FONTS).sample(0, 0)
    assert sample.n_lines == 1 and sample.texts == ("O\U00012000pen",)
    plain = AnyWordDataset([replace(record, lines=(first,))], EXACT, 7, FONTS).sample(0, 0)
    assert torch.equal(sample.glyph_line, plain.glyph_line) and torch.equal(sample.glyph, plain.glyph)
    x, y = second.polygon.mean(0).round().astype(int)
    assert sample.inverse_mask[0, y, x] == 1 and plain.inverse_mask[0, y, x] == 0


def test_lines_outside_the_picture_are_left_out(record: Record) -> None:
    def moved(line: TextLine, x: float, y: float) -> TextLine:
        return replace(line, polygon=line.polygon + np.array([x, y], np.float32))

    inside = record.lines[1]
    outside = [moved(record.lines[0], x, y) for x, y in ((0, 500), (500, 0), (-300, 0), (0, -31.6), (1e5, 1e5))]
    sample = _sample(replace(record, lines=(*outside, inside)))
    assert sample.texts == (inside.text,) and sample.position[0].any()
    border = moved(record.lines[0], 127 - 10, 0)  # its left side is the picture's last column
    assert _sample(replace(record, lines=(border, inside))).texts == ("Open", "药房")
    nothing = _sample(replace(record, lines=tuple(outside)))
    assert nothing.texts == (" ",) and nothing.position[0].any(), "as a picture without text"


def test_folders_of_pictures_may_be_links(record: Record, tmp_path: Path) -> None:
    (tmp_path / "other_disk").symlink_to(record.image_path.parent)
    linked = replace(record, image_path=tmp_path / "other_disk" / record.image_path.name)
    torch.testing.assert_close(_sample(linked).image, _sample(record).image)
    for name in (".", "other_disk"):
        with pytest.raises(SampleError, match="image corrupt"):
            _sample(replace(record, image_path=tmp_path / name, name=name))
