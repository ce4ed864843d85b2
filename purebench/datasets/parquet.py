"""A Parquet file in the layout that public hubs use: a column `img` or `image` of encoded images, and one of labels.

The image column is a struct{bytes, path} or plain bytes; `label` (or `fine_label`) holds numbers, or class names that are numbered as the
file's own metadata says, else as CIFAR-10 does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from purebench import assets
from purebench.datasets.images import Images, check_channels, decode, stack
from purebench.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

INFO = {
    "parquet": {
        "summary": "your images in a Parquet file as on public hubs: columns img or image, and label",
        "shape": [3, 0, 0],  # 0: known when read
        "classes": 0,
        "size": 0,
        "version": 1,
        "source": "your own",
        "licence": "your own",
        "assets": [],
        "training_set": "",  # yours to know
        "cite": "",
    }
}
IMAGE, LABEL = ("img", "image"), ("label", "fine_label")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
HINT = "expected a column `img` or `image` (struct{bytes, path} or bytes) and a column `label` or `fine_label`"


def parquet(*, path: str = "", name: str = "", classes: int = 10, channels: int = 3) -> Images:
    """Rows in the file's order. name: what tables call it; the file's name if empty. classes: labels are 0 .. classes-1.
    channels: 3, or 1 for grey."""
    import pyarrow as pa
    from pyarrow import parquet as pq

    check_channels(channels)
    # Through str: on the command line a name of digits alone is read as a number.
    file = Path(str(path))
    if path == "" or not file.is_file():
        raise UserError(
            f"there is no file `{path}`" if path != "" else "the dataset `parquet` needs a path",
            "write `parquet:path=FILE`; one Parquet file, not a folder",
        )
    # The schema first: a file of gigabytes without such columns is refused before it is read.
    try:
        schema = pq.read_schema(file)
        image, label = _column(file, schema.names, IMAGE), _column(file, schema.names, LABEL)
        table = pq.read_table(file, columns=[image, label]).combine_chunks()
    except (pa.ArrowException, OSError) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"cannot read `{path}` as Parquet: {why}", "download the file again") from None
    if not len(table):
        raise UserError(f"`{path}` has no rows", HINT)
    labels = _numbers(file, label, table[label], schema.metadata or {}, classes)
    stored = _bytes(file, image, table[image])
    digest = assets.sha256(file)
    # Told by the images and not by the file, which does not say how they were made; hubs store all in one way.
    lossy = stored[0].as_py().startswith(b"\xff\xd8")
    note = f"your own Parquet file{' of JPEG images, which are lossy' if lossy else ''}: no paper's images or order"

    def read(indices: Sequence[int]) -> Tensor:
        names = [f"{path} row {i}" for i in indices]
        content = [stored[i].as_py() for i in indices]
        return stack([decode(c, channels, name=n) for c, n in zip(content, names, strict=True)], names)

    return Images(torch.tensor(labels, dtype=torch.int64), classes, f"sha256:{digest}", read, note)


def _column(file: Path, names: Sequence[str], wanted: tuple[str, ...]) -> str:
    """The first of the wanted names that the file has as a column; UserError if it has none."""
    for name in wanted:
        if name in names:
            return name
    raise UserError(f"`{file}` has no column `{'` or `'.join(wanted)}`: it has {', '.join(names) or 'none'}", HINT)


def _bytes(file: Path, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The encoded images as an Arrow array of bytes."""
    import pyarrow as pa
    from pyarrow import compute as pc

    if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        column = pc.struct_field(column, "bytes")
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        raise UserError(f"the column `{name}` of `{file}` is {column.type}, not encoded images", HINT)
    if column.null_count:
        raise UserError(
            f"`{file}` has {column.null_count} rows without an image", "the images' bytes must be in the file itself"
        )
    return column


def _numbers(file: Path, name: str, column: pa.ChunkedArray, metadata: dict[bytes, bytes], classes: int) -> list[int]:
    """Labels as class numbers; UserError for one that is no class."""
    values = column.to_pylist()
    if any(isinstance(value, str) for value in values):
        # Never numbered by their sorted order: it is a class order that the classifier need not have.
        known = _names(metadata, name) or CIFAR10
        strange = sorted({str(value) for value in values} - set(known))
        if strange:
            raise UserError(
                f"`{file}` has a label `{strange[0]}` that is no class name",
                f"store numbers from 0, or the names of CIFAR-10: {', '.join(CIFAR10)}",
            )
        values = [known.index(value) for value in values]
    # True is an int in Python, and would be class 1.
    wrong = [v for v in values if isinstance(v, bool) or not isinstance(v, int) or not 0 <= v < classes]
    if wrong:
        raise UserError(
            f"`{file}` has a label {wrong[0]}, expected 0 to {classes - 1}",
            "say how many classes there are: `classes=100`",
        )
    return values


def _names(metadata: dict[bytes, bytes], name: str) -> tuple[str, ...]:
    """The class names that a hub's metadata gives for a column; empty if it gives none."""
    try:
        return tuple(json.loads(metadata[b"huggingface"])["info"]["features"][name]["names"])
    except (KeyError, TypeError, ValueError):
        return ()
