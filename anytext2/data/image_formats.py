"""Names of file formats: which picture formats are read, and what a file that is none of them is.

A format is recognised by its first bytes, because the ending of a file's name is often wrong.
"""

from __future__ import annotations

from PIL import features

_ALWAYS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "PPM")
_OPTIONAL = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}  # Pillow's name -> feature of the build


def _is_built_in(feature: str) -> bool:
    """Whether this Pillow has a feature; an older one may not even know its name."""
    is_module = feature in features.modules and features.check_module(feature)
    return is_module or (feature in features.codecs and features.check_codec(feature))


FORMATS = (*_ALWAYS, *(name for name, feature in _OPTIONAL.items() if _is_built_in(feature)))
"""Pillow's formats that are read. Others are rare on the web, or run another program (EPS runs Ghostscript)."""

SNIFFED_BYTES = 4096
"""So many bytes from the beginning of a file are enough for `format_of`."""

_DISPLAYED = {"WEBP": "WebP", "JPEG2000": "JPEG 2000", "MPO": "JPEG (MPO)"}

_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"II\xbc", "JPEG XR"),
    (b"8BPS", "PSD (Photoshop)"),
    (b"gimp xcf", "XCF (GIMP)"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"DDS ", "DDS"),
    (b"qoif", "QOI"),
    (b"SIMPLE  =", "FITS"),
    (b"\0\0\1\0", "ICO"),
    (b"\xd7\xcd\xc6\x9a", "WMF"),
    (b"%!PS", "PostScript (EPS)"),
    (b"\xc5\xd0\xd3\xc6", "PostScript (EPS)"),
    (b"%PDF", "PDF"),
    (b"PK\x03\x04", "ZIP archive"),
    (b"Rar!", "RAR archive"),
    (b"7z\xbc\xaf", "7z archive"),
    (b"\x1f\x8b", "gzip file"),
    (b"\x93NUMPY", "NumPy array"),
    (b"\x1aE\xdf\xa3", "video (Matroska or WebM)"),
    (b"version https://git-lfs", "Git LFS pointer (`git lfs pull` gets the picture)"),
    (b"BM", "BMP"),
)

_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"), "HEIC"),
    **dict.fromkeys((b"mif1", b"msf1"), "HEIF"),
    **dict.fromkeys((b"crx ",), "camera raw (CR3)"),
}
"""Brands of the box `ftyp`, the most telling ones first. A file may name several."""


def readable_formats() -> str:
    """The names of the formats that are read, as they are shown to a person."""
    return ", ".join(displayed_format(name) for name in FORMATS)


def displayed_format(name: str) -> str:
    """Pillow's name of a format, as it is shown to a person."""
    return _DISPLAYED.get(name, name)


def is_readable(displayed: str) -> bool:
    """Whether files of a format, as `format_of` names it, are read."""
    return displayed in {displayed_format(name) for name in FORMATS}


def format_of(head: bytes) -> str:
    """The format of a file by its first bytes; empty if they are not known."""
    if head[4:8] == b"ftyp":
        return _iso_media_format(head)
    if head[:4] == b"RIFF":
        kinds = {b"WEBP": "WebP", b"AVI ": "video (AVI)", b"WAVE": "sound (WAV)"}
        return kinds.get(head[8:12], "RIFF file")
    if head[128:132] == b"DICM":
        return "DICOM"
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace():
        return displayed_format("PPM")
    return next((name for signature, name in _SIGNATURES if head.startswith(signature)), "") or _markup_format(head)


def _iso_media_format(head: bytes) -> str:
    """AVIF, HEIC and videos share one container; its first box lists the brands."""
    length = int.from_bytes(head[:4], "big")
    listed = head[8 : max(12, min(length, len(head)))]
    brands = {listed[at : at + 4] for at in range(0, len(listed), 4)}
    return next((name for brand, name in _BRANDS.items() if brand in brands), "video (MP4 or MOV)")


def _markup_format(head: bytes) -> str:
    """SVG, HTML, XML and JSON begin with text, possibly after a byte-order mark, white space or comments."""
    text = head.decode("utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig", "ignore")
    start = text.lstrip().lower()
    if not start.startswith(("<", "{", "[")):
        return ""
    if start[0] != "<":
        return "JSON text"
    if "<html" in start or "<!doctype html" in start or "<head" in start or "<body" in start:
        return "HTML page (a failed download)"
    if "<svg" in start:
        return "SVG"
    return "XML text"
