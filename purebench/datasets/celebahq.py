"""CelebA-HQ (Karras et al. 2018) at 256x256 with one of CelebA's 40 attributes, as DiffPure uses it: the validation part.

The user's folder has `images/` (named as in CelebA, png or jpg), `list_attr_celeba.txt` and `list_eval_partition.txt`. An image is in
the part that CelebA's own partition gives it. Label 1: the face has the attribute (+1 in the list), 0: it has not (-1)."""

from __future__ import annotations

from pathlib import Path

from purebench.datasets.images import Images, of_files, own_folder
from purebench.datasets.tree import is_hidden, is_picture
from purebench.errors import UserError, unknown

INFO = {
    "celebahq": {
        "summary": "CelebA-HQ validation, your folder: faces at 256x256, does one have the attribute or not",
        "shape": [3, 256, 256],
        "classes": 2,
        "size": 0,  # known when read
        "own": {"asset": "data-celebahq", "variable": "PUREBENCH_CELEBAHQ"},
        "expected": 2993,  # of the 30,000 faces those in CelebA's validation part
        "version": 1,
        "source": "https://github.com/tkarras/progressive_growing_of_gans",
        "licence": "CelebA agreement: non-commercial research",
        "assets": [],
        "cite": "karras2018progressive liu2015deep",
    }
}
LAYOUT = "`images/`, `list_attr_celeba.txt` and `list_eval_partition.txt`"
ATTRIBUTES, PARTITION, VALIDATION = "list_attr_celeba.txt", "list_eval_partition.txt", "1"


def celebahq(*, folder: str = "", attribute: str = "Smiling") -> Images:
    """folder: see above; PUREBENCH_CELEBAHQ if empty. attribute: a column of `list_attr_celeba.txt`. Order: sorted file names."""
    given = own_folder("celebahq", folder, INFO["celebahq"], LAYOUT)
    # The folder above it is taken too, as of every other dataset.
    root = given / "celebahq" if (given / "celebahq").is_dir() else given
    absent = [name for name in ("images", ATTRIBUTES, PARTITION) if not (root / name).exists()]
    if absent:
        raise UserError(f"`{given}` is not the CelebA-HQ folder: no `{absent[0]}`", f"it should hold {LAYOUT}")
    has, part = _attribute(root / ATTRIBUTES, attribute), _partition(root / PARTITION)
    files, labels = [], []
    faces: dict[str, str] = {}
    for path in sorted((root / "images").iterdir()):
        if is_hidden(path.name) or not is_picture(path.name):
            continue
        # The lists have CelebA's names, whatever format the copies at 256x256 were stored in.
        listed = f"{path.stem}.jpg"
        # CelebA-HQ's own numbering (0 to 29999) is another one: under it every label would be another face's.
        if listed not in has or listed not in part:
            raise UserError(
                f"`{path}` is not in CelebA's lists", "the images are named as in CelebA, such as `000004.png`"
            )
        if faces.setdefault(listed, path.name) != path.name:
            message = f"`{root / 'images'}` has one face twice: `{faces[listed]}` and `{path.name}`"
            raise UserError(message, "remove one of the two")
        if part[listed] == VALIDATION:
            files.append(f"images/{path.name}")
            labels.append(has[listed])
    if not files:
        raise UserError(f"`{root / 'images'}` has no image of the validation part", f"the folder should hold {LAYOUT}")
    whole = INFO["celebahq"]["expected"]
    # Another number of images is another choice of them.
    note = "" if len(files) == whole else f"{len(files)} of CelebA-HQ's {whole} validation images"
    return of_files(root, files, labels, classes=2, resize=256, note=note)


def _attribute(path: Path, attribute: str) -> dict[str, int]:
    """file name -> 1 or 0. The list: a count, the 40 names, then `000001.jpg -1 1 ..` per image."""
    # Two more lines, so that an empty file is told below as one without the attribute.
    _, header, *rows = [*_lines(path), "", ""]
    names = header.split()
    if attribute not in names:
        raise unknown("attribute of CelebA", attribute, names)
    column = names.index(attribute) + 1
    found = {}
    for row in filter(None, rows):
        cells = row.split()
        if len(cells) != len(names) + 1 or cells[column] not in ("1", "-1"):
            raise UserError(
                f"cannot read the line `{row[:40]}` of `{path}`",
                "expected CelebA's list: a file name, then 1 or -1 each",
            )
        found[cells[0]] = int(cells[column] == "1")
    return found


def _partition(path: Path) -> dict[str, str]:
    """file name -> 0 (train), 1 (validation) or 2 (test)."""
    rows = [line.split() for line in _lines(path) if line.strip()]
    if any(len(row) != 2 for row in rows):
        raise UserError(f"cannot read `{path}`", "expected CelebA's list: a file name and 0, 1 or 2 per line")
    return {row[0]: row[1] for row in rows}


def _lines(path: Path) -> list[str]:
    """The lines of one of CelebA's lists; UserError if it is no text file."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise UserError(f"cannot read `{path}`", "expected CelebA's list, a text file") from None
