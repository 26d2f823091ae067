"""Samples of a dataset as one picture (contact sheet), and as an HTML page with every condition map.

Names, captions and texts of the data are not trusted: they never name a file, and the page escapes them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image, ImageDraw

from anytext2.core.batch import Batch, Sample, collate
from distill.viz.batch_pictures import (
    PALETTE,
    draw_boxes,
    draw_color_square,
    format_color,
    is_color,
    mask_to_image,
    positions_to_image,
    tensor_to_image,
)
from distill.viz.text import FAINT, GAP, PAPER, line_height, text_width, truncate_text, write_lines

PAGE = "index.html"
OVERVIEW = "contact_sheet.png"
IMAGES = "images"

_SMALLEST = 384  # pictures below this many pixels are enlarged before boxes and numbers are drawn


def evenly_spaced_indices(total: int, count: int) -> list[int]:
    """`count` indices, evenly over 0 to total - 1; all of them where there are fewer."""
    count = min(total, count)
    return [number * total // count for number in range(count)]


# --- the overview ---


def contact_sheet(samples: Sequence[Sample], columns: int = 4, panel: int = 240) -> Image.Image:
    """One tile a sample: the image with its numbered boxes, the glyph page, caption, colour conditions and texts.

    panel: width of either picture in pixels. The samples may differ in size.
    """
    tiles = [_tile(_batch_of_one(sample), panel) for sample in samples]
    columns = min(columns, len(tiles))
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    heights = [max(tile.height for tile in row) for row in rows]
    sheet = Image.new("RGB", (columns * tiles[0].width, sum(heights)), PAPER)
    for number, row in enumerate(rows):
        for column, tile in enumerate(row):
            sheet.paste(tile, (column * tile.width, sum(heights[:number])))
    return sheet


def _batch_of_one(sample: Sample) -> Batch:
    """A batch of one sample: samples may differ in size."""
    return collate([sample]).normalized()


def _tile(batch: Batch, panel: int) -> Image.Image:
    image = draw_boxes(tensor_to_image(batch.image[0]), batch, 0, panel)
    glyphs = draw_boxes(mask_to_image(batch.glyph[0]), batch, 0, panel)
    width = 2 * panel + GAP
    title = truncate_text(f"{batch.index[0]}: {batch.name[0]}", width)
    caption = truncate_text(batch.image_caption[0].strip() or "(no caption)", width, max_lines=2)
    above, below = len(title) * line_height() + GAP // 2, (len(caption) + batch.n_lines[0]) * line_height()
    tile = Image.new("RGB", (width + 2 * GAP, above + image.height + below + 4 * GAP), PAPER)
    draw = ImageDraw.Draw(tile)
    draw.line((GAP, 0, GAP + width, 0), fill=FAINT)
    write_lines(draw, (GAP, GAP // 2), title)
    y = above + GAP // 2
    tile.paste(image, (GAP, y))
    tile.paste(glyphs, (2 * GAP + panel, y))
    y += image.height + GAP // 2
    write_lines(draw, (GAP, y), caption)
    y += len(caption) * line_height()
    for line in range(batch.n_lines[0]):
        _line_words(draw, (GAP, y + line * line_height()), batch, line, width)
    return tile


def _line_words(draw: ImageDraw.ImageDraw, at: tuple[int, int], batch: Batch, line: int, width: int) -> None:
    """A line's number on its colour of PALETTE, its colour condition, text and language."""
    (x, y), side = at, line_height() - 6
    number, text, language = str(line + 1), *_words(batch, line)
    draw.rectangle((x, y + 1, x + side + 4, y + side + 1), fill=PALETTE[line % len(PALETTE)])
    write_lines(draw, (x + (side + 4 - text_width(number)) // 2, y - 1), [number])
    draw_color_square(draw, (x + side + 12, y + 3), side - 3, batch.color[0, line].tolist())
    start = 2 * side + 20
    write_lines(draw, (x + start, y - 1), truncate_text(f"{text}   ({language})", width - start))


def _words(batch: Batch, line: int) -> tuple[str, str]:
    """Text and language; also of a faulty batch that lacks them."""
    texts, languages = batch.texts[0], batch.languages[0]
    text = texts[line] if line < len(texts) else ""
    return text if text.strip() else "(no text)", languages[line] if line < len(languages) else "?"


# --- the page ---


def write_html_page(samples: Sequence[Sample], folder: Path, heading: str, facts: Sequence[str] = ()) -> Path:
    """Writes index.html, contact_sheet.png and images/ into `folder`; returns the page, which needs nothing else.

    facts: lines of text under the heading. Raises OSError where the folder cannot be written.
    """
    (folder / IMAGES).mkdir(parents=True, exist_ok=True)
    contact_sheet(samples).save(folder / OVERVIEW, compress_level=3)
    articles = [_article(_batch_of_one(sample), number, folder) for number, sample in enumerate(samples)]
    listed = "".join(f"<li>{escape(fact)}</li>" for fact in facts)
    page = (
        f"<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'><title>{escape(heading)}</title>\n"
        f"<meta name='viewport' content='width=device-width'><style>{_STYLE}</style></head>\n<body>\n"
        f"<h1>{escape(heading)}</h1>\n<ul>{listed}<li><a href='{OVERVIEW}'>all of them in one picture</a></li></ul>\n"
        + "\n".join(articles)
        + "\n</body></html>\n"
    )
    path = folder / PAGE
    path.write_bytes(page.encode("utf-8", "replace"))  # JSON can hold half a surrogate pair, UTF-8 cannot
    return path


def _article(batch: Batch, number: int, folder: Path) -> str:
    """One sample: saves its pictures and returns its part of the page."""
    mode = "editing" if batch.editing[0] else "generation"
    side = batch.image.shape[-1]
    panel = side * math.ceil(_SMALLEST / side)
    small = " class='small'" if side < _SMALLEST else ""
    maps = {
        "image, boxes, colours": draw_boxes(tensor_to_image(batch.image[0]), batch, 0, panel, show_colors=True),
        "glyph page": mask_to_image(batch.glyph[0]),
        "position": positions_to_image(batch.position[0]),
        "font hint": mask_to_image(batch.font_hint[0]),
        f"masked image ({mode})": tensor_to_image(batch.masked_image[0]),
        "inverse mask": mask_to_image(batch.inverse_mask[0]),
    }
    figures = [
        f"<figure>{_picture(image, folder, f'{number:04d}_{place}.png')}<figcaption>{label}</figcaption></figure>"
        for place, (label, image) in enumerate(maps.items())
    ]
    lines = "".join(_line(batch, line, f"{number:04d}_line_{line + 1}.png", folder) for line in range(batch.n_lines[0]))
    captions = (("image caption", batch.image_caption[0]), ("text caption", batch.text_caption[0]))
    described = "".join(f"<dt>{label}</dt><dd>{escape(caption)}</dd>" for label, caption in captions)
    count = f"{batch.n_lines[0]} line" + ("s" if batch.n_lines[0] != 1 else "")
    return (
        f"<article{small}><h2>{escape(batch.name[0])} "
        f"<small>sample {batch.index[0]}, {count}, {mode}</small></h2>\n"
        f"<div class='sample'>{figures[0]}<div><div class='maps'>{''.join(figures[1:])}</div>\n"
        f"<table>{lines}</table><dl>{described}</dl></div></div></article>"
    )


def _line(batch: Batch, line: int, file: str, folder: Path) -> str:
    text, language = _words(batch, line)
    color = batch.color[0, line].tolist()
    square = f"<span style='background:{_css(color)}'></span> " if is_color(color) else ""
    glyphs = _picture(mask_to_image(batch.glyph_line[0, line]), folder, file)
    return (
        f"<tr><th style='background:{_css(PALETTE[line % len(PALETTE)])}'>{line + 1}</th><td>{glyphs}</td>"
        f"<td class='text'>{escape(text)}</td><td>{escape(language)}</td>"
        f"<td>{square}colour {format_color(color)}</td></tr>"
    )


def _picture(image: Image.Image, folder: Path, name: str) -> str:
    """Saves the picture and returns the element that shows it, and opens it in full size."""
    image.save(folder / IMAGES / name, compress_level=3)
    return f"<a href='{IMAGES}/{name}'><img src='{IMAGES}/{name}' alt='' loading='lazy'></a>"


def _css(color: Sequence[float]) -> str:
    return f"rgb({','.join(str(round(value)) for value in color)})"


_STYLE = """
body { font: 15px/1.4 "Noto Sans", "Noto Sans CJK SC", "WenQuanYi Micro Hei", "Microsoft YaHei", sans-serif;
  margin: 1.5em; background: #fafafa; color: #191919 }
.small img { image-rendering: pixelated }
article { border-top: 1px solid #999; padding-bottom: 1em }
h1 { font-size: 1.4em } h2 { font-size: 1.1em; margin: .6em 0; overflow-wrap: anywhere }
small { font-weight: normal; color: #555; margin-left: .5em }
.sample { display: flex; gap: 10px } .sample > figure { flex: 0 0 420px } .sample > div { flex: 1; min-width: 0 }
.maps { display: grid; grid-template-columns: repeat(5, minmax(90px, 180px)); gap: 10px }
figure { margin: 0 } figcaption { font-size: .85em; color: #555 } figure img { width: 100% }
table { border-collapse: collapse; margin-top: .6em } th { width: 1.6em } td { padding: 2px 8px }
td img { height: 44px; display: block } .text { font-size: 1.2em; white-space: pre-wrap; overflow-wrap: anywhere }
td span { display: inline-block; width: 1.6em; height: 1em; border: 1px solid #555; vertical-align: middle }
dt { font-size: .85em; color: #555 } dd { margin: 0 0 .3em; white-space: pre-wrap; overflow-wrap: anywhere }
@media (max-width: 900px) { .sample { flex-wrap: wrap } }
"""
