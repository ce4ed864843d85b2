"""Files that are replaced whole: whoever looks, and whenever the process dies, finds the old content or the new one, never a part."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to: at the end that file is on disk under the name `path`.

    If the block raises, `path` stays as it was and the other file goes. The other name holds the process id, so that processes
    that replace one file at the same time do not write into each other's."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def replace(path: Path, text: str) -> None:
    """The file's content becomes the text, in UTF-8; bytes of a path that are none are spelt out as `\\udce9`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def sync(path: Path) -> None:
    """Waits until what was written to the file is on disk: else, after a loss of power, a new name could stand on an empty file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
