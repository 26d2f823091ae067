"""What the page takes from a browser: how large an upload may be, of what kind, and where it is kept."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from anytext2.core.files import whole_file
from distill.inference.editing import load_picture
from launch.page.faults import PageFault

UPLOAD_MEGABYTES = 10
UPLOAD_BYTES = UPLOAD_MEGABYTES * 1024 * 1024
MOST_PIXELS = 24_000_000
"""Of an uploaded picture; a photograph of a phone has 12 million."""
LONGEST_SIDE = 8192
FORMATS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "BMP": "bmp"}
"""Pillow's name of a format -> suffix. A browser shows all of them."""
KEPT_UPLOADS = 20

_NAME = re.compile(rf"[0-9a-f]{{24}}\.(?:{'|'.join(FORMATS.values())})")


class Uploads:
    """Pictures that a user has sent, in a folder of the page, named by what is in them.

    folder: where they are kept. incoming: where the server puts what a browser sends; nothing else is read.
    """

    def __init__(self, folder: Path, incoming: Path) -> None:
        self.folder, self._incoming = folder, incoming.resolve()
        folder.mkdir(parents=True, exist_ok=True)

    def take(self, path: str, field: str) -> str:
        """Checks an upload and keeps it. Returns its name; what was sent is removed.

        path: below `incoming`; '' for an upload that the server has refused as too large.
        field: where a message belongs. Raises PageFault for what is not a picture of FORMATS within the limits.
        """
        if not path:
            raise PageFault(field, "upload_large", UPLOAD_MEGABYTES)
        sent = Path(path).resolve()
        if not sent.is_relative_to(self._incoming) or not sent.is_file():
            raise PageFault(field, "upload_unreadable")
        try:
            return self._keep(sent, field)
        finally:
            sent.unlink(missing_ok=True)

    def add(self, path: Path) -> str:
        """Keeps a picture of the page itself, an example. Returns its name."""
        return self._keep(path, "places")

    def path(self, name: str) -> Path:
        """The file of a name. Raises PageFault for a name that `take` did not give, or that is no longer kept."""
        if not _NAME.fullmatch(name) or not (self.folder / name).is_file():
            raise PageFault("places", "upload_gone")
        return self.folder / name

    def size(self, name: str) -> tuple[int, int]:
        """Width and height of a kept picture as it is seen."""
        with Image.open(self.path(name)) as image:
            is_lying = image.getexif().get(0x0112, 1) >= 5
            return (image.height, image.width) if is_lying else (image.width, image.height)

    def _keep(self, sent: Path, field: str) -> str:
        if sent.stat().st_size > UPLOAD_BYTES:
            raise PageFault(field, "upload_large", UPLOAD_MEGABYTES)
        suffix = checked_format(sent, field)
        content = sent.read_bytes()
        name = f"{hashlib.sha256(content).hexdigest()[:24]}.{suffix}"
        with whole_file(self.folder / name) as file:
            file.write_bytes(content)
        self._forget_old()
        return name

    def _forget_old(self) -> None:
        kept = sorted(self.folder.glob("*.*"), key=lambda file: file.stat().st_mtime, reverse=True)
        for file in kept[KEPT_UPLOADS:]:
            file.unlink(missing_ok=True)


def checked_format(path: Path, field: str) -> str:
    """The suffix of a picture's format. Raises PageFault, with what is wrong, for one that is not taken."""
    try:
        with Image.open(path, formats=tuple(FORMATS)) as image:
            kind, (width, height) = image.format or "", image.size
    except Image.DecompressionBombError as error:
        raise PageFault(field, "upload_pixels", MOST_PIXELS // 1_000_000) from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise PageFault(field, "upload_unreadable") from error
    if width * height > MOST_PIXELS or max(width, height) > LONGEST_SIDE:
        raise PageFault(field, "upload_pixels", MOST_PIXELS // 1_000_000)
    if min(width, height) < 16:
        raise PageFault(field, "upload_tiny", f"{width} x {height}")
    try:
        load_picture(path, field)
    except ValueError as error:
        raise PageFault(field, "upload_unreadable") from error
    return FORMATS[kind]
