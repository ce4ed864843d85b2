"""Image folders and Parquet shards as people have them: each is read rightly, or refused by name. Exit code 1 if one is not.

    python benchmarks/odd_folders.py [WORD ..]      # of those whose name has one of the words

Every picture shows its class: class k is grey of 20 k, so that a label is right or wrong whatever any code says of it."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from purebench.errors import UserError
from purebench.plan import resolved
from purebench.spec import Part

WNIDS = ("n01440764", "n02102040", "n02979186")  # tench, English springer, cassette player: 0, 217 and 482 of ImageNet


@dataclass(frozen=True)
class Layout:
    """`make(root)` builds it and returns what `folder` is given beside its path. `said`: words of the plan's line; `refused`: words of the
    refusal; where there are none every label must be the picture's."""

    make: Callable[[Path], dict[str, object]]
    refused: tuple[str, ...] = ()
    said: tuple[str, ...] = ()
    kind: str = "folder"


def encoded(shade: int, size: tuple[int, int] = (6, 6), kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((*size, 3), 20 * (shade % 13), np.uint8)).save(stream, kind)
    return stream.getvalue()


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def picture(path: Path, shade: int, size: tuple[int, int] = (6, 6), kind: str = "PNG") -> None:
    put(path, encoded(shade, size, kind))


def tree(root: Path, shades: dict[str, int], each: int = 2) -> None:
    """One class folder per name, whose pictures show the class."""
    for name, shade in shades.items():
        for i in range(each):
            picture(root / name / f"{i}.png", shade)


def text(root: Path, name: str, content: str) -> str:
    """A list of classes beside the folder."""
    put(root.parent / name, content.encode("utf-8", "surrogateescape"))
    return str(root.parent / name)


def trees(shades: dict[str, int], **options: object) -> Callable[[Path], dict[str, object]]:
    def make(root: Path) -> dict[str, object]:
        tree(root, shades)
        return options

    return make


def listed(shades: dict[str, int], name: str, content: str, **options: object) -> Callable[[Path], dict[str, object]]:
    def make(root: Path) -> dict[str, object]:
        tree(root, shades)
        return {"classes": text(root, name, content), **options}

    return make


def flat(files: dict[str, int], name: str = "", content: str = "") -> Callable[[Path], dict[str, object]]:
    def make(root: Path) -> dict[str, object]:
        for file, shade in files.items():
            picture(root / file, shade)
        return {"classes": text(root, name, content)} if name else {}

    return make


def hidden(root: Path) -> dict[str, object]:
    tree(root, {"cat": 0, "dog": 1})
    for place in (root, root / "cat", root / "dog"):
        picture(place / ".ipynb_checkpoints" / "0-checkpoint.png", 9)
        put(place / "._0.png", b"Mac OS X")
        put(place / ".DS_Store", b"Bud1")
        put(place / "Thumbs.db", b"\xd0\xcf")
        picture(place / "@eaDir" / "0.png", 9)
    tree(root / "__MACOSX", {"cat": 9, "dog": 9})
    return {}


def formats(root: Path) -> dict[str, object]:
    for i, (kind, suffix) in enumerate(
        (("GIF", "gif"), ("TGA", "tga"), ("JPEG2000", "jp2"), ("BMP", "BMP"), ("TIFF", "Tiff"))
    ):
        picture(root / f"{i}" / f"x.{suffix}", i, (16, 16), kind)
        picture(root / f"{i}" / "y.PNG", i, (16, 16))
    picture(root / "0" / "z.webp", 0, (16, 16), "WEBP")
    put(root / "0" / "notes.txt", b"notes")
    return {}


def loop(root: Path) -> dict[str, object]:
    tree(root, {"cat": 0, "dog": 1})
    (root / "cat" / "up").symlink_to(root)
    (root / "dog" / "self").symlink_to(root / "dog")
    (root / "all").symlink_to(root)
    return {}


def links(root: Path) -> dict[str, object]:
    """Class folders, a folder inside a class, and files by links; the same folder by two links is read once."""
    away = root.parent / "away"
    tree(away, {"c": 0, "more": 1})
    tree(root, {"dog": 1})
    picture(away / "single.png", 1)
    (root / "cat").symlink_to(away / "c")
    (root / "dog" / "more").symlink_to(away / "more")
    (root / "dog" / "again").symlink_to(away / "more")
    (root / "dog" / "a.png").symlink_to(away / "single.png")
    return {}


def crossed(root: Path) -> dict[str, object]:
    """A link inside a class to another class takes no image from that."""
    tree(root, {"cat": 0, "dog": 1})
    (root / "cat" / "see").symlink_to(root / "dog")
    return {}


def synology(root: Path) -> dict[str, object]:
    tree(root, {"cat": 0, "dog": 1})
    for name in ("#recycle", "@Recycle", "CVS", "#snapshot"):
        picture(root / name / "0.png", 9)
    return {}


def empty_number(root: Path, **options: object) -> dict[str, object]:
    tree(root, {"0": 0, "1": 1})
    (root / "2").mkdir()
    return options


def twins(root: Path) -> dict[str, object]:
    tree(root, {"cat": 0})
    (root / "katze").symlink_to(root / "cat")
    return {}


def broken(root: Path) -> dict[str, object]:
    tree(root, {"cat": 0, "dog": 1})
    (root / "cat" / "x.png").symlink_to(root / "gone.png")
    return {}


def pipe(root: Path) -> dict[str, object]:
    tree(root, {"cat": 0, "dog": 1})
    os.mkfifo(root / "cat" / "x.png")
    return {}


def bytes_in_names(root: Path) -> dict[str, object]:
    tree(root, {os.fsdecode(b"caf\xe9"): 0, "zebra": 1})
    picture(root / "zebra" / os.fsdecode(b"\xff.png"), 1)
    return {}


def bytes_listed(root: Path) -> dict[str, object]:
    bytes_in_names(root)
    return {"classes": text(root, "c.csv", os.fsdecode(b"caf\xe9,0\nzebra,1\n"))}


def beside(root: Path) -> dict[str, object]:
    tree(root, {"cat": 0, "dog": 1})
    picture(root / "cover.png", 9)
    put(root / "labels.csv", b"cat,0")
    return {}


def nested(root: Path) -> dict[str, object]:
    tree(root, {"cat": 0, "dog": 1, "dog/small/brown": 1})
    return {}


def empty_class(root: Path) -> dict[str, object]:
    tree(root, {"cat": 0, "dog": 1})
    (root / "bird").mkdir()
    return {}


def sizes(root: Path, **options: object) -> dict[str, object]:
    tree(root, {"cat": 0, "dog": 1})
    picture(root / "dog" / "9.png", 1, (6, 8))
    return options


def bad(content: bytes) -> Callable[[Path], dict[str, object]]:
    def make(root: Path) -> dict[str, object]:
        tree(root, {"cat": 0, "dog": 1})
        put(root / "dog" / "bad.png", content)
        return {"size": 4}

    return make


def devkit(root: Path, meta: bool = True) -> dict[str, object]:
    """A flat `val`, and the devkit's list, whose numbers are its own: here 1 is the last wnid."""
    from scipy.io import savemat

    for i, shade in enumerate((2, 0, 1, 2), 1):
        picture(root / f"ILSVRC2012_val_{i:08}.JPEG", shade)
    kinds = [("ILSVRC2012_ID", "i4"), ("WNID", "U9"), ("num_children", "i4")]
    rows = [(1, WNIDS[2], 0), (2, WNIDS[0], 0), (3, WNIDS[1], 0), (4, "n00001740", 3)]
    if meta:
        savemat(root.parent / "meta.mat", {"synsets": np.array(rows, kinds)})
    return {"classes": text(root, "ILSVRC2012_validation_ground_truth.txt", "1\n2\n3\n1\n")}


def parquet(root: Path, labels: list[object], name: str = "x.parquet") -> str:
    import pyarrow as pa
    from pyarrow import parquet as pq

    (root / name).parent.mkdir(parents=True, exist_ok=True)
    shades = [label if isinstance(label, int) else 0 for label in labels]
    pq.write_table(
        pa.table({"image": [{"bytes": encoded(s), "path": ""} for s in shades], "label": labels}), root / name
    )
    return str(root / name)


def columns(root: Path, *, names: tuple[str, ...] = (), **options: object) -> dict[str, object]:
    """Two columns of labels, of which `fine_label` is what the pictures show. names: of its classes, in the metadata."""
    import pyarrow as pa
    from pyarrow import parquet as pq

    root.mkdir()
    table = pa.table(
        {
            "img": [encoded(i) for i in range(4)],
            "label": [0, 0, 1, 1],
            "fine_label": [0, 1, 2, 3],
            "coarse_label": [7] * 4,
        }
    )
    table = table.drop_columns(["label"]) if names else table
    features = {"fine_label": {"names": names, "_type": "ClassLabel"}}
    about = {"huggingface": json.dumps({"info": {"features": features}})} if names else None
    pq.write_table(table.replace_schema_metadata(about), root / "x.parquet")
    return {"path": str(root / "x.parquet"), **options}


def shards(*names: str, path: str = "") -> Callable[[Path], dict[str, object]]:
    def make(root: Path) -> dict[str, object]:
        for i, name in enumerate(names):
            parquet(root, [i, 9 - i], name)
        return {"path": str(root / path)}

    return make


def rows(*labels: object) -> Callable[[Path], dict[str, object]]:
    return lambda root: {"path": parquet(root, list(labels))}


def odd_rows(root: Path, **options: object) -> dict[str, object]:
    import pyarrow as pa
    from pyarrow import parquet as pq

    root.mkdir()
    pq.write_table(pa.table({"img": [encoded(0), encoded(1, (6, 9))], "label": [0, 1]}), root / "x.parquet")
    return {"path": str(root / "x.parquet"), **options}


TEN = {str(i + 1): i for i in range(10)}
SVHN = {str(i): i % 10 for i in range(1, 11)}
LAYOUTS = {
    "names": Layout(trees({"ant": 0, "bee": 1, "cow": 2}), said=("6 images of 3 classes; `ant` is class 0, `cow` is class 2",)),
    "1 to 10": Layout(trees(TEN), said=("`1` is class 0, `10` is class 9", "by number")),
    "0 to 99": Layout(trees({str(i): i for i in range(100)}), said=("`99` is class 99",)),
    "00 to 10": Layout(trees({f"{i:02}": i for i in range(11)})),
    "class_1 to class_10": Layout(
        trees({name: i for i, name in enumerate(sorted(f"class_{k}" for k in range(1, 11)))}),
        said=("in the order of text", "`class_10` before `class_2`"),
    ),
    "digits with a gap": Layout(trees({"0": 0, "1": 1, "3": 3}), refused=("2 is not among them", "classes=4", "classes=sorted")),
    "a gap, classes=4": Layout(trees({"0": 0, "1": 1, "3": 3}, classes=4), said=("1 of 4 classes have no image",)),
    "a gap, classes=sorted": Layout(trees({"0": 0, "7": 1, "30": 2}, classes="sorted")),
    "one folder, and it is 3": Layout(trees({"3": 3}), refused=("class 3, or class 0", "classes=4", "classes=sorted")),
    "superscripts": Layout(trees({"\u00b2": 0, "\u00b3": 1, "\u00b9": 2}), said=("in the order of text", "`\u00b2` before `\u00b9`")),
    "a number beyond classes": Layout(trees({"0": 0, "4": 4}, classes=4), refused=("`4`", "0 to 3")),
    "1 and 01": Layout(trees({"0": 0, "1": 1, "01": 1}), refused=("two folders of one number",)),
    "SVHN by JSON": Layout(listed(SVHN, "c.json", json.dumps(SVHN))),
    "a CSV with a header": Layout(listed({"a": 1, "b": 0}, "c.csv", "name,label\na,1\nb,0\n")),
    "a CSV of number,name": Layout(listed({"a": 1, "b": 0}, "c.csv", '0,b\n1,"a"\n')),
    "a text of names": Layout(listed({"b": 0, "a": 1}, "c.txt", "b\r\na\r\n")),
    "a text of name number": Layout(listed({"hot dog": 0, "a": 1}, "c.txt", "hot dog 0\na 1\n")),
    "JSON as Keras has it": Layout(listed({"n02": 0, "n01": 1}, "c.json", '{"0": ["n02", "x"], "1": ["n01", "y"]}')),
    "a folder not listed": Layout(listed({"a": 0, "b": 1}, "c.csv", "a,0\n"), refused=("does not name the class folder `b`",)),
    "a name listed twice": Layout(listed({"a": 0, "b": 1}, "c.csv", "a,0\nb,1\na,1\n"), refused=("as class 0 and as class 1",)),
    "a name twice in JSON": Layout(listed({"0": 0, "1": 1}, "c.json", '{"0": 1, "1": 1, "0": 0}'), refused=("`0` as 1 and as 0",)),
    "a number twice in JSON": Layout(listed({"a": 0, "b": 1}, "c.json", '{"0": "b", "1": "b", "0": "a"}'), refused=("`0` as b and as a",)),
    "a list that is no list": Layout(listed({"a": 0}, "c.csv", "a,zero\nb,one\n"), refused=("no class number",)),
    "no such list": Layout(trees({"a": 0}, classes="gone.csv"), refused=("gone.csv",)),
    "an accent in two spellings": Layout(listed({"cafe\u0301": 1, "a": 0}, "c.csv", "caf\u00e9,1\na,0\n")),
    "wnids": Layout(trees({w: i for i, w in enumerate(WNIDS)}), said=("classes=imagenet",)),
    "wnids, classes=imagenet": Layout(trees(dict(zip(WNIDS, (0, 217, 482), strict=True)), classes="imagenet")),
    "no wnid, classes=imagenet": Layout(trees({WNIDS[0]: 0, "n99999999": 1}, classes="imagenet"), refused=("n99999999",)),
    "hidden and system entries": Layout(hidden, said=("left out: 16 hidden or system",)),
    "many formats": Layout(formats, said=("1 no picture's ending (`0/notes.txt`)",)),
    "links in a circle": Layout(loop, said=("4 images of 2 classes", "3 links to a folder that is read already")),
    "links to elsewhere": Layout(links, said=("7 images of 2 classes", "1 links to a folder that is read already")),
    "a disk station's folders": Layout(synology, said=("4 images of 2 classes", "left out: 4 hidden or system")),
    "a link to another class": Layout(crossed, said=("4 images of 2 classes",)),
    "two classes, one folder": Layout(twins, refused=("`cat` and `katze`", "one folder")),
    "a link to nothing": Layout(broken, refused=("x.png", "link to nothing")),
    "a pipe": Layout(pipe, refused=("x.png", "no file")),
    "names that are not UTF-8": Layout(bytes_in_names, said=("`caf\\xe9` is class 0",)),
    "these in a list": Layout(bytes_listed),
    "images beside the classes": Layout(beside, said=("1 beside the class folders (`cover.png`)", "labels.csv")),
    "folders in a class": Layout(nested, said=("6 images of 2 classes",)),
    "train and val": Layout(trees({"train/a": 0, "train/b": 1, "val/a": 0, "val/b": 1}), refused=("no classes", "/val`")),
    "one level too high": Layout(trees({"data/a": 0, "data/b": 1}), refused=("sub-folders of `data`", "/data`")),
    "a class without an image": Layout(empty_class, refused=("`bird`",)),
    "a class of digits without an image": Layout(empty_number, refused=("`2`", "`classes=3`")),
    "the same, classes=3": Layout(lambda root: empty_number(root, classes=3), said=("1 of 3 classes have no image",)),
    "nothing": Layout(lambda root: root.mkdir() or {}, refused=("no image and no sub-folder",)),
    "flat": Layout(flat({"1.png": 0, "2.png": 1}), refused=("no sub-folder per class", "classes=FILE")),
    "flat by CSV": Layout(flat({"a.png": 1, "b.png": 0, "c.png": 5}, "c.csv", "file,y\na.png,1\nb,0\nc.png,5\n"), said=("classes 0 to 5",)),
    "flat by numbers": Layout(flat({"a.png": 1, "b.png": 0}, "c.txt", "1\n0\n")),
    "flat by numpy's numbers": Layout(flat({"a.png": 1, "b.png": 0}, "c.txt", "1.000000000000000000e+00\n0.0\n")),
    "flat 0 to 11 by numbers": Layout(
        flat({f"{i}.png": i for i in range(12)}, "c.txt", "\n".join(map(str, range(12)))), said=("`11.png` is of class 11", "by number")
    ),
    "flat img_1 to img_12 by numbers": Layout(
        flat({f"img_{i}.png": i for i in range(12)}, "c.txt", "\n".join(map(str, range(12)))),
        refused=("numbers alone", "`img_10.png` is before `img_2.png`", "image,number"),
    ),
    "flat img_00 to img_11 by numbers": Layout(flat({f"img_{i:02}.png": i for i in range(12)}, "c.json", json.dumps(list(range(12))))),
    "flat A and b by numbers": Layout(flat({"a.png": 0, "B.png": 1}, "c.txt", "0\n1\n"), refused=("`B.png` is before `a.png`",)),
    "flat 1 and 01 by numbers": Layout(flat({"1.png": 0, "01.png": 1}, "c.txt", "0\n1\n"), refused=("two images of one number",)),
    "flat, one number short": Layout(flat({"a.png": 1, "b.png": 0}, "c.txt", "1\n"), refused=("1 numbers", "2 images")),
    "flat by numbers from 1": Layout(flat({"a.png": 0, "b.png": 1}, "c.txt", "1\n2\n"), refused=("none is 0",)),
    "flat val, the devkit": Layout(devkit),
    "flat val, no meta.mat": Layout(lambda root: devkit(root, meta=False), refused=("devkit's own", "meta.mat")),
    "two sizes": Layout(sizes, refused=("6x6", "8x6", "9.png", "size=N")),
    "two sizes, size=4": Layout(lambda root: sizes(root, size=4)),
    "a crop too large": Layout(lambda root: sizes(root, crop=7), refused=("too small to cut 7x7",)),
    "a cut PNG": Layout(bad(encoded(1)[:50]), refused=("bad.png", "its end is missing")),
    "a cut JPEG": Layout(bad(encoded(1, (64, 64), "JPEG")[:-40]), refused=("bad.png", "its end is missing")),
    "a good head and a wrong checksum": Layout(bad(encoded(1)[:45] + b"\0" + encoded(1)[46:]), refused=("bad.png", "damaged")),
    "an empty file": Layout(bad(b""), refused=("bad.png", "empty")),
    "a web page": Layout(bad(b"<html>"), refused=("bad.png", "not an image")),
    "Parquet: a folder of shards": Layout(
        shards("test-00000-of-00002.parquet", "test-00001-of-00002.parquet"), said=("4 images", "2 Parquet files"), kind="parquet"
    ),
    "Parquet: a glob": Layout(
        shards("test-00000-of-00002.parquet", "test-00001-of-00002.parquet", "train-00000-of-00001.parquet", path="test-*"),
        said=("4 images",), kind="parquet",
    ),
    "Parquet: two splits": Layout(
        shards("test-00000-of-00001.parquet", "train-00000-of-00001.parquet"), refused=("several splits", "test-*"), kind="parquet"
    ),
    "Parquet: a browser's copy": Layout(
        shards("test-00000-of-00001.parquet", "test-00000-of-00001 (1).parquet"),
        refused=("several splits", "test-*-of-00001.parquet"), kind="parquet",
    ),
    "Parquet: a shard twice": Layout(
        shards("a/test-00000-of-00001.parquet", "b/test-00000-of-00001.parquet", path="*/test-*"), refused=("there twice",), kind="parquet"
    ),
    "Parquet: two columns of labels": Layout(columns, refused=("`label` and `fine_label`", "`label=fine_label`"), kind="parquet"),
    "Parquet: one of two": Layout(
        lambda root: columns(root, label="fine_label"), said=("columns `img` and `fine_label`", "0 to 3"), kind="parquet"
    ),
    "Parquet: four names": Layout(
        lambda root: columns(root, names=("a", "b", "c", "d")), refused=("names 4 classes", "`a` to `d`", "`classes=4`"), kind="parquet"
    ),
    "Parquet: four names, classes=4": Layout(
        lambda root: columns(root, names=("a", "b", "c", "d"), classes=4), said=("0 (`a`) to 3 (`d`)",), kind="parquet"
    ),
    "Parquet: 0000 and 0001": Layout(shards("0000.parquet", "0001.parquet"), said=("4 images", "2 Parquet files"), kind="parquet"),
    "Parquet: Spark's parts": Layout(
        shards(*(f"part-{i}-8b9cd4a1-1111-4222-8333-0123456789ab-c000.snappy.parquet" for i in (0, 1))),
        said=("4 images", "2 Parquet files"), kind="parquet",
    ),
    "Parquet: 0 and 2": Layout(shards("test-0.parquet", "test-2.parquet"), refused=("without a gap", "number 1"), kind="parquet"),
    "Parquet: a hub's repository": Layout(
        shards("data/0000.parquet", "data/0001.parquet"), refused=("no Parquet file in the folder", "/data"), kind="parquet"
    ),
    "Parquet: a shard missing": Layout(shards("test-00000-of-00002.parquet"), refused=("lacks 1 of 2 shards",), kind="parquet"),
    "Parquet: labels of -1": Layout(rows(-1, -1), refused=("no labels in all rows", "test split"), kind="parquet"),
    "Parquet: labels missing": Layout(rows(1, None), refused=("no labels in 1 of 2 rows",), kind="parquet"),
    "Parquet: labels as floats": Layout(rows(1.5, 0.0), refused=("label 1.5", "whole numbers"), kind="parquet"),
    "Parquet: two sizes": Layout(odd_rows, refused=("row 0", "row 1", "6x6", "9x6"), kind="parquet"),
    "Parquet: two sizes, size=4": Layout(lambda root: odd_rows(root, size=4), kind="parquet"),
}  # fmt: skip


def outcome(layout: Layout, folder: Path) -> tuple[str, bool]:
    """What came of a layout, built in `folder`, and whether it is right."""
    root = folder / "root"
    options = layout.make(root)
    given = {"path": str(root), "name": "odd"} | options
    try:
        found = resolved.of("dataset", Part(layout.kind, tuple(given.items())))
        images, said = found.images, found.described
        x, y = images.take(range(len(images)))
    except UserError as error:
        text = f"{error.message} ({error.hint})"
        return f"refused: {text.replace(str(folder), '')}", bool(layout.refused) and all(
            word in text for word in layout.refused
        )
    shades = (x.mean((1, 2, 3)) * 255 / 20).round().long()
    right = bool((shades == y % 13).all())
    told = f"read: {said or f'{len(y)} images'}"
    return f"{told}{'' if right else '; LABELS WRONG'}", right and not layout.refused and all(
        word in said for word in layout.said
    )


def main(words: list[str]) -> int:
    wrong = 0
    for name, layout in LAYOUTS.items():
        if words and not any(word in name for word in words):
            continue
        folder = Path(tempfile.mkdtemp())
        try:
            text, right = outcome(layout, folder)
        finally:
            shutil.rmtree(folder)
        wrong += not right
        print(f"| {name} | {'right' if right else '**WRONG**'} | {text} |")
    print(f"\n{wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
