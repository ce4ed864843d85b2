"""Parquet in the layout that public hubs use: a column `img` or `image` of encoded images, and one of labels; a file or its shards.

The image column is a struct{bytes, path} or plain bytes; `label` (or `fine_label`) holds numbers, or class names that are numbered as the
file's own metadata says, else as CIFAR-10 does. Of two such columns that are not equal one has to be named."""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from purebench import assets
from purebench.datasets.images import Images, check_channels, heads, read_anew
from purebench.datasets.pictures import decode, stack
from purebench.datasets.tree import is_hidden, shown
from purebench.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

INFO = {
    "parquet": {
        "summary": "your images in Parquet as on public hubs: columns img or image, and label; a file, or shards by folder or glob",
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
PATHS = "write `parquet:path=FILE`, a folder of one split's shards, or a glob: `path=data/test-*.parquet`"
SHARD = re.compile(r"(?P<split>.+)-(?P<number>\d+)-of-(?P<count>\d+)(-[0-9a-f]+)?\.parquet")  # as hubs name them
# Of converters and of Spark, which write no number of shards; behind Spark's number stands the id of the job.
NUMBERED = re.compile(r"(?P<split>.*?)(?P<number>\d+)(?:-[0-9a-f]{8}-[0-9a-f-]{27}[^/]*)?\.parquet")
HINT = "expected a column `img` or `image` (struct{bytes, path} or bytes) and a column `label` or `fine_label`"


def parquet(
    *,
    path: str = "",
    name: str = "",
    classes: int = 10,
    channels: int = 3,
    size: int = 0,
    crop: int = 0,
    image: str = "",
    label: str = "",
) -> Images:
    """Rows in the file's order. path: a file, a folder of shards, or a glob such as `data/test-*.parquet`; shards in the order of their
    names. name: what tables call it; the file's name if empty. classes: labels are 0 .. classes-1. channels: 3, or 1 for grey. size: scale
    the shorter side to it and cut out the centre; 0: the images have one size already. crop: the side of the centre, if not `size`.
    image, label: the columns; if empty `img` or `image`, `label` or `fine_label`."""
    check_channels(channels)
    files = _files(path)
    # Through str: on the command line a column's name of digits alone is read as a number.
    read_in = [_read(file, classes, str(image), str(label)) for file in files]
    if other := next((i for i, shard in enumerate(read_in) if shard[2] != read_in[0][2]), 0):
        message = f"`{shown(str(files[0]))}` and `{shown(str(files[other]))}` have different lists of class names"
        raise UserError(
            message, "shards of one split number their classes alike: download them again, or name one file"
        )
    labels = [label for shard in read_in for label in shard[1]]
    stored = [content for shard in read_in for content in shard[0]]
    names = [
        f"{shown(str(file))} row {i}" for file, shard in zip(files, read_in, strict=True) for i in range(len(shard[1]))
    ]
    digests = [assets.sha256(file) for file in files]
    # Of one file the file's own, as it always was.
    digest = digests[0] if len(files) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
    crop = crop or size
    digest = read_anew(digest, heads(stored, names, size, crop))
    # Told by the images and not by the file, which does not say how they were made; hubs store all in one way.
    lossy = stored[0].startswith(b"\xff\xd8")
    note = f"your own Parquet file{' of JPEG images, which are lossy' if lossy else ''}: no paper's images or order"

    def read(indices: Sequence[int]) -> Tensor:
        images = [decode(stored[i], channels, size, crop, name=names[i]) for i in indices]
        return stack(images, [names[i] for i in indices])

    known = read_in[0][2]
    said = (
        f"`{shown(Path(path).name)}`: {len(labels)} images of {len(set(labels))} classes, "
        f"{_of(min(labels), known)} to {_of(max(labels), known)}, in {len(files)} Parquet file{'s' * (len(files) > 1)}, "
        f"columns `{read_in[0][3][0]}` and `{read_in[0][3][1]}`"
    )
    y = torch.tensor(labels, dtype=torch.int64)

    def renumber(count: int) -> str:
        # Where the file names its classes another number is refused.
        if not known and max(labels) < count:
            return f"`classes={count}`, where its labels are numbers of these"
        return ""

    return Images(y, classes, f"sha256:{digest}", read, note, said=said, renumber=renumber)


def _of(number: int, known: Sequence[str]) -> str:
    return f"{number} (`{shown(known[number])}`)" if number < len(known) else f"{number}"


def _by_number(path: str, found: Sequence[Path]) -> list[Path]:
    """Files whose names differ by a number alone (`0000.parquet`, `part-00001-<id>.parquet`), in its order; none where they are no such
    shards. UserError for a number that is missing, or there twice."""
    parts = [NUMBERED.fullmatch(file.name) for file in found]
    if len(found) < 2 or not all(parts) or len({part["split"] for part in parts if part}) > 1:
        return []
    by_number = sorted(((int(part["number"]), file) for part, file in zip(parts, found, strict=True) if part))
    there = [number for number, _ in by_number]
    if len(set(there)) < len(there):
        message = f"`{shown(path)}` has {len(there)} files of {len(set(there))} shards: a shard is there twice"
        raise UserError(message, f"name one folder, or one file: path={shown(str(found[0]))}")
    if absent := sorted(set(range(min(there[0], 1), there[-1] + 1)) - set(there)):
        raise UserError(
            f"the Parquet files in `{shown(path)}` are no shards without a gap: number {absent[0]} is not there",
            f"download the rest of them; or name one: path={shown(str(found[0]))}",
        )
    return [file for _, file in by_number]


def _files(path: str) -> list[Path]:
    """The file, or the shards of one split in the order of their names. UserError for none, for several splits, and for a part of one."""
    if not path:
        raise UserError("the dataset `parquet` needs a path", PATHS)
    if Path(path).is_file():
        return [Path(path)]
    folder = Path(path).is_dir()
    # `**` and a name with brackets, too; a folder's own brackets mean themselves.
    pattern = str(Path(glob.escape(path), "*.parquet")) if folder else path
    found = [Path(file) for file in sorted(glob.glob(pattern, recursive=True)) if Path(file).is_file()]
    found = [file for file in found if not is_hidden(file.name)]
    if not found:
        what = "Parquet file in the folder" if folder else "file"
        # A hub's repository has them in `data`, or in a folder of each configuration.
        below = sorted({str(file.parent) for file in Path(path).rglob("*.parquet")}) if folder else []
        ways = " or ".join(f"path={shown(place)}" for place in below[:3])
        raise UserError(f"there is no {what} `{shown(path)}`", f"there is some below: write {ways}" if below else PATHS)
    if not any(SHARD.fullmatch(file.name) for file in found) and (numbered := _by_number(path, found)):
        return numbered
    shards = [SHARD.fullmatch(file.name) for file in found]
    # A hub has all its splits in one folder: training images among the test's would be judged with them.
    splits = sorted({shard["split"] if shard else file.stem for file, shard in zip(found, shards, strict=True)})
    if len(splits) > 1:
        raise UserError(
            f"`{shown(path)}` has several splits or files: {', '.join(map(shown, splits))}",
            f"name one: path={shown(_one(found, shards))}",
        )
    if any(shards):
        there = {int(shard["number"]) for shard in shards if shard}
        count = max(int(shard["count"]) for shard in shards if shard)
        if len(there) < len(found):
            message = f"`{shown(path)}` has {len(found)} files of {len(there)} shards: a shard is there twice"
            raise UserError(message, f"name one folder, or one file: path={shown(str(found[0]))}")
        if absent := sorted(set(range(count)) - there):
            message = f"`{shown(path)}` lacks {len(absent)} of {count} shards, first number {absent[0]}"
            raise UserError(message, "download the rest of them; one shard alone is `path=FILE`")
    return found


def _one(found: Sequence[Path], shards: Sequence[re.Match[str] | None]) -> str:
    """What to name of several splits, so that no file of another is read with it: a glob of shards, else a file."""
    first = next((i for i, shard in enumerate(shards) if shard), 0)
    if not (shard := shards[first]):
        return str(found[0])
    wanted = {file for file, other in zip(found, shards, strict=True) if other and other["split"] == shard["split"]}
    for pattern in (f"{shard['split']}-*.parquet", f"{shard['split']}-*-of-{shard['count']}.parquet"):
        if {file for file in found if fnmatch.fnmatchcase(file.name, pattern)} == wanted:
            return f"{glob.escape(str(found[first].parent))}/{pattern}"
    return str(found[first])


def _read(
    file: Path, classes: int, image: str, label: str
) -> tuple[list[bytes], list[int], tuple[str, ...], tuple[str, str]]:
    """The encoded images and the labels of one file, the class names that it gives, and the two columns. image, label: these, or empty."""
    import pyarrow as pa
    from pyarrow import parquet as pq

    # The schema first: a file of gigabytes without such columns is refused before it is read.
    try:
        schema = pq.read_schema(file)
        pictures = _columns(file, schema.names, (image,) if image else IMAGE, "image")
        kinds = _columns(file, schema.names, (label,) if label else LABEL, "label")
        table = pq.read_table(file, columns=[*pictures, *kinds]).combine_chunks()
    except (pa.ArrowException, OSError) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"cannot read `{shown(str(file))}` as Parquet: {why}", "download the file again") from None
    if not len(table):
        raise UserError(f"`{shown(str(file))}` has no rows", HINT)
    for key, columns in (("image", pictures), ("label", kinds)):
        if any(not table[name].equals(table[columns[0]]) for name in columns[1:]):
            ways = " or ".join(f"`{key}={name}`" for name in columns)
            raise UserError(
                f"`{shown(str(file))}` has columns `{'` and `'.join(columns)}`, which are not equal",
                f"say which: {ways}",
            )
    image, label = pictures[0], kinds[0]
    known = _names(schema.metadata or {}, label)
    labels = _numbers(file, label, table[label], known, classes)
    return _bytes(file, image, table[image]).to_pylist(), labels, known, (image, label)


def _columns(file: Path, names: Sequence[str], wanted: tuple[str, ...], key: str) -> list[str]:
    """Those of the wanted names that the file has as columns; UserError if it has none."""
    if found := [name for name in wanted if name in names]:
        return found
    raise UserError(
        f"`{file}` has no column `{'` or `'.join(wanted)}`: it has {', '.join(names) or 'none'}",
        f"{HINT}; `{key}=COLUMN` names another",
    )


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


def _numbers(file: Path, name: str, column: pa.ChunkedArray, known: tuple[str, ...], classes: int) -> list[int]:
    """Labels as class numbers; UserError for one that is no class, and for a split without labels."""
    values, place = column.to_pylist(), shown(str(file))
    # What hubs store in place of labels that nobody is to know.
    if unknown := sum(value is None or value == -1 for value in values):
        rows = "all rows" if unknown == len(values) else f"{unknown} of {len(values)} rows"
        raise UserError(
            f"`{place}` has no labels in {rows} of `{name}` (they are {'empty' if None in values else '-1'}): a test split without labels?",
            "take the validation split: without labels nothing can be judged",
        )
    if known and len(known) != classes:
        ends = f"`{shown(known[0])}` to `{shown(known[-1])}`"
        message = f"`{place}` names {len(known)} classes of `{name}` ({ends}), and there are to be {classes}"
        raise UserError(message, f"write `classes={len(known)}`")
    if any(isinstance(value, str) for value in values):
        # Never numbered by their sorted order: it is a class order that the classifier need not have.
        known = known or CIFAR10
        strange = sorted({str(value) for value in values} - set(known))
        if strange:
            raise UserError(
                f"`{place}` has a label `{strange[0]}` that is no class name",
                f"store numbers from 0, or the names of CIFAR-10: {', '.join(CIFAR10)}",
            )
        values = [known.index(value) for value in values]
    # Pandas makes floats of whole numbers. True is an int in Python, and would be class 1.
    values = [int(v) if isinstance(v, float) and v.is_integer() else v for v in values]
    if others := [v for v in values if isinstance(v, bool) or not isinstance(v, int)]:
        raise UserError(f"`{place}` has a label {others[0]!r}, which is no class number", "store whole numbers from 0")
    if wrong := [v for v in values if not 0 <= v < classes]:
        hint = f"say how many classes there are, {max(values) + 1} at least: `classes=N`"
        hint = f"its own list names {len(known)} classes: is `{name}` the column that was meant?" if known else hint
        below = "classes are numbered from 0"
        raise UserError(
            f"`{place}` has a label {wrong[0]}, expected 0 to {classes - 1}", below if min(values) < 0 else hint
        )
    return values


def _names(metadata: dict[bytes, bytes], name: str) -> tuple[str, ...]:
    """The class names that a hub's metadata gives for a column; empty if it gives none."""
    try:
        return tuple(json.loads(metadata[b"huggingface"])["info"]["features"][name]["names"])
    except (KeyError, TypeError, ValueError):
        return ()
