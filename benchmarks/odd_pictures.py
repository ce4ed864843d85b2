"""Odd picture files: each is read rightly or refused by name, by data sets and by `purebench purify`.

    python benchmarks/odd_pictures.py               a table, one line per file; exit code 1 if one is wrong
    python benchmarks/odd_pictures.py --keep DIR    the files too, to look at with another program

A file is made of an array that is known: what has to be read follows from that array and from the format's specification, and not
from a reader. All are 12 wide and 10 high, where they are not odd in that. `purify` sees what a viewer shows: turned by EXIF.
"""

from __future__ import annotations

import argparse
import io
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin, TiffImagePlugin

from purebench.datasets import pictures
from purebench.errors import UserError
from purebench.report import inputs

H, W = 10, 12
WHITE = np.ones(3)
RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (H, W, 3)).astype(np.uint8)
GREY = RGB[..., 0]
DEEP = RANDOM.integers(0, 65536, (H, W, 3)).astype(np.uint16)
ALPHA = np.where(np.arange(W) < W // 2, 0, 255).astype(np.uint8)[None].repeat(H, 0)  # the left half is hidden
SHARES = RANDOM.integers(0, 256, (H, W)).astype(np.uint8)


@dataclass(frozen=True)
class Odd:
    """content: of the file. right: (H,W,3) in [0,1], or the words of a refusal. within: the largest error that the format itself makes.
    seen: what `purify` has to show, where that is another."""

    content: bytes
    right: np.ndarray | str
    within: float = 1e-6
    seen: np.ndarray | str | None = None
    size: int = 0  # of `resize`


def of(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(values: np.ndarray, bits: int, key: tuple[int, ...] = (), says: int = 0) -> bytes:
    """As the specification says: (H,W,C) whole numbers below 2^bits, C 1 to 4. key: the transparent colour. says: a side that the header
    claims."""
    height, width, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b""
    for row in values.reshape(height, -1):
        digits = "".join(format(int(v), f"0{bits}b") for v in row)
        digits += "0" * (-len(digits) % 8)
        rows += b"\0" + bytes(int(digits[i : i + 8], 2) for i in range(0, len(digits), 8))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", says or width, says or height, bits, kind, 0, 0, 0))
    told = chunk(b"tRNS", struct.pack(f">{len(key)}H", *key)) if key else b""
    return b"\x89PNG\r\n\x1a\n" + head + told + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(values: np.ndarray, bits: int, kind: int = 1, colours: int = 1, order: str = "<") -> bytes:
    """Uncompressed, grey or RGB. kind: 1 unsigned, 2 signed, 3 float; colours: 0 the least is white, 1 black, 2 RGB."""
    height, width = values.shape[:2]
    channels = values.shape[2] if values.ndim == 3 else 1
    if bits == 12:
        digits = "".join(format(int(v), "012b") for v in values.ravel())
        data = bytes(int(digits[i : i + 8], 2) for i in range(0, len(digits), 8))
    else:
        data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    tags = [
        (256, width),
        (257, height),
        (258, bits),
        (259, 1),
        (262, colours),
        (273, 8),
        (277, channels),
        (278, height),
    ]
    tags += [(279, len(data)), (339, kind)]
    more = struct.pack(order + "3H", bits, bits, bits) if channels == 3 else b""
    at = 8 + len(data)
    entries = b""
    for tag, value in tags:
        if tag == 258 and channels == 3:
            entries += struct.pack(order + "HHII", tag, 3, 3, at)
        else:
            entries += struct.pack(order + "HHII", tag, 4, 1, value)
    begin = struct.pack(order + "2sHI", b"II" if order == "<" else b"MM", 42, at + len(more))
    return begin + data + more + struct.pack(order + "H", len(tags)) + entries + b"\0" * 4


def three(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey.astype(np.float64)[..., None], 3, 2)


def over(colours: np.ndarray, alpha: np.ndarray, behind: np.ndarray = WHITE) -> np.ndarray:
    return alpha[..., None] * colours + (1 - alpha[..., None]) * behind


def turned(orientation: int) -> tuple[bytes, np.ndarray]:
    """A file that says it has to be turned, and how it then looks, by EXIF's own words: which edges the stored first row and column are."""
    exif = Image.Exif()
    exif[274] = orientation
    looks = {
        2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1], 5: RGB.transpose(1, 0, 2), 6: RGB[::-1].transpose(1, 0, 2),
        7: RGB[::-1, ::-1].transpose(1, 0, 2), 8: RGB[:, ::-1].transpose(1, 0, 2),
    }  # fmt: skip
    return of(Image.fromarray(RGB), "PNG", exif=exif), looks[orientation] / 255


def odd() -> dict[str, Odd]:
    """All of them, by file name."""
    x, grey, deep = RGB / 255, three(GREY / 255), DEEP / 65535
    rgba, first = np.dstack([RGB, ALPHA]), tuple(int(v) for v in DEEP[0, 0])
    thousand, seven = DEEP[..., 0] % 1001, GREY % 7 * 40
    picture, line = Image.fromarray(RGB), np.arange(W)[None].repeat(H, 0)
    found = {
        "colour.png": Odd(png(RGB, 8), x),
        "grey.png": Odd(png(GREY[..., None], 8), grey),
        "1-bit.png": Odd(png((line % 2)[..., None], 1), three(line % 2)),
        "2-bit.png": Odd(png((line % 4)[..., None], 2), three(line % 4 / 3)),
        "4-bit.png": Odd(png(line[..., None], 4), three(line / 15)),
        "1-bit-key.png": Odd(png((line % 2)[..., None], 1, (0,)), three(np.ones((H, W)))),
        "2-bit-key.png": Odd(png((line % 4)[..., None], 2, (1,)), three(np.where(line % 4 == 1, 3, line % 4) / 3)),
        "4-bit-key.png": Odd(png(line[..., None], 4, (5,)), three(np.where(line == 5, 15, line) / 15)),
        "hidden-colour.png": Odd(png(rgba, 8), over(x, ALPHA / 255)),
        "half-transparent.png": Odd(png(np.dstack([RGB, SHARES]), 8), over(x, SHARES / 255), 1 / 255),
        "opaque-alpha.png": Odd(png(np.dstack([RGB, ALPHA | 255]), 8), x),
        "grey-alpha.png": Odd(png(np.dstack([GREY, ALPHA]), 8), over(grey, ALPHA / 255)),
        "grey-key.png": Odd(png(GREY[..., None], 8, (int(GREY[3, 3]),)), over(grey, (GREY[3, 3] != GREY).astype(float))),
        "colour-key.png": Odd(png(RGB, 8, tuple(map(int, RGB[3, 3]))), over(x, (RGB[3, 3] != RGB).any(2).astype(float))),
        "16-bit-grey.png": Odd(png(DEEP[..., :1], 16), three(deep[..., 0])),
        "16-bit-grey-key.png": Odd(png(DEEP[..., :1], 16, first[:1]), over(three(deep[..., 0]), (DEEP[..., 0] != first[0]).astype(float))),
        "16-bit-grey-alpha.png": Odd(png(DEEP[..., :2], 16), over(three(deep[..., 0]), deep[..., 1])),
        "16-bit-colour.png": Odd(png(DEEP, 16), deep),
        "16-bit-colour-key.png": Odd(png(DEEP, 16, first), over(deep, (DEEP[0, 0] != DEEP).any(2).astype(float))),
        "16-bit-colour-alpha.png": Odd(png(np.dstack([DEEP, DEEP[..., 1]]), 16), over(deep, deep[..., 1])),
        "16-bit-dark.png": Odd(png(DEEP[..., :1] // 256, 16), three(DEEP[..., 0] // 256 / 65535)),
        "16-bit-little.tif": Odd(tiff(DEEP[..., 0], 16), three(deep[..., 0])),
        "16-bit-big.tif": Odd(tiff(DEEP[..., 0], 16, order=">"), three(deep[..., 0])),
        "16-bit-white-is-0.tif": Odd(tiff(DEEP[..., 0], 16, colours=0), three(1 - deep[..., 0])),
        "12-bit.tif": Odd(tiff(DEEP[..., 0] // 16, 12), three(DEEP[..., 0] // 16 / 4095)),
        "16-bit-colour.tif": Odd(tiff(DEEP, 16, colours=2), deep, 1 / 255),
        "16-bit-signed.tif": Odd(tiff((DEEP[..., 0] // 2).astype(np.int16), 16, kind=2), "whole numbers"),
        "32-bit.tif": Odd(tiff(DEEP[..., 0].astype(np.int32), 32, kind=2), "whole numbers"),
        "float.tif": Odd(tiff(deep[..., 0].astype(np.float32), 32, kind=3), three(deep[..., 0])),
        "float-white-is-0.tif": Odd(tiff(deep[..., 0].astype(np.float32), 32, kind=3, colours=0), three(1 - deep[..., 0])),
        "float-to-255.tif": Odd(tiff(GREY.astype(np.float32), 32, kind=3), "its values are in"),
        "float-below-0.tif": Odd(tiff((2 * deep[..., 0] - 1).astype(np.float32), 32, kind=3), "its values are in [-"),
        "float-nan.tif": Odd(tiff(np.full((H, W), np.nan, np.float32), 32, kind=3), "nan"),
        "float.pfm": Odd(f"Pf\n{W} {H}\n-1.0\n".encode() + deep[::-1, :, 0].astype("<f4").tobytes(), three(deep[..., 0])),
        "to-1000.pgm": Odd(f"P5 {W} {H} 1000\n".encode() + thousand.astype(">u2").tobytes(), three(thousand / 1000), 1 / 65535),
        "16-bit.ppm": Odd(f"P6 {W} {H} 65535\n".encode() + DEEP.astype(">u2").tobytes(), deep, 1 / 255),
        "text.ppm": Odd(f"P3\n# a comment\n{W} {H} 255\n{' '.join(map(str, RGB.ravel()))}\n".encode(), x),
        "pages.tif": Odd(of(picture, "TIFF", save_all=True, append_images=[Image.new("RGB", (W, H))]), x),
        "cmyk.tif": Odd(of(Image.fromarray(np.dstack([255 - RGB, 0 * GREY]), "CMYK"), "TIFF"), x),
        "lab.tif": Odd(of(Image.fromarray(RGB, "LAB"), "TIFF"), "CIELAB"),
        "palette.gif": Odd(of(Image.fromarray(seven), "GIF"), three(seven / 255)),
        "animated.gif": Odd(of(Image.fromarray(seven), "GIF", save_all=True, append_images=[Image.new("L", (W, H))]), three(seven / 255)),
        "animated.png": Odd(of(picture, "PNG", save_all=True, append_images=[Image.new("RGB", (W, H))]), x),
        "hidden-colour.webp": Odd(of(Image.fromarray(rgba), "WEBP", lossless=True, exact=True), over(x, ALPHA / 255)),
        "hidden-colour.tga": Odd(of(Image.fromarray(rgba), "TGA"), over(x, ALPHA / 255)),
        "colour.bmp": Odd(of(picture, "BMP"), x),
        "lossless.jp2": Odd(of(picture, "JPEG2000"), x),
        "16-bit.jp2": Odd(of(Image.fromarray(DEEP[..., 0]), "JPEG2000"), three(deep[..., 0]), 1e-4),
        "cmyk.jpg": Odd(of(Image.new("CMYK", (W, H), (0, 255, 255, 0)), "JPEG"), np.zeros((H, W, 3)) + [1, 0, 0], 2 / 255),
        "ycbcr.jpg": Odd(of(Image.new("RGB", (W, H), (200, 30, 60)), "JPEG"), np.zeros((H, W, 3)) + np.array([200, 30, 60]) / 255, 3 / 255),
        "a-png-called.jpg": Odd(png(RGB, 8), x),
        "no-suffix": Odd(png(RGB, 8), x),
        "truncated.png": Odd(of(Image.effect_noise((64, 64), 50), "PNG")[:900], "end is missing"),
        "truncated.jpg": Odd(of(Image.effect_noise((64, 64), 50), "JPEG")[:600], "end is missing"),
        "empty.png": Odd(b"", "empty"),
        "a-page-called.png": Odd(b"<html>404 not found</html>", "not an image"),
        "broken.png": Odd(png(RGB, 8)[:40] + b"\xff\xff" + png(RGB, 8)[42:], "damaged"),
        "bomb.png": Odd(png(RGB, 8, says=60000), "more than"),
        "long-text.png": Odd(of(picture, "PNG", pnginfo=_text(PngImagePlugin.MAX_TEXT_CHUNK + 1)), "text chunks"),
        "radiance.hdr": Odd(b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 10 +X 12\n" + bytes(480), "not an image"),
        "open.exr": Odd(b"\x76\x2f\x31\x01" + bytes(300), "not an image"),
        "phone.heic": Odd(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), "not an image"),
        "drawing.svg": Odd(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        "a-line.png": Odd(png(np.zeros((1, 20000, 1), int), 8), "with a shorter side of 224", size=224),
        "one-pixel.png": Odd(png(RGB[:1, :1], 8), np.zeros((H, H, 3)) + x[0, 0], size=H, seen=np.zeros((H, W, 3)) + x[0, 0]),
    }  # fmt: skip
    for orientation in range(2, 9):
        content, looks = turned(orientation)
        found[f"turned-{orientation}.png"] = Odd(content, x, seen=looks)
    exif = TiffImagePlugin.ImageFileDirectory_v2()
    exif[274] = 6
    # Pillow itself turns TIFF files.
    found["turned-6.tif"] = Odd(of(picture, "TIFF", tiffinfo=exif), RGB[::-1].transpose(1, 0, 2) / 255)
    return found


def _text(length: int) -> PngImagePlugin.PngInfo:
    told = PngImagePlugin.PngInfo()
    told.add_text("Comment", "a" * length, zip=True)
    return told


def judged(right: np.ndarray | str, within: float, read: Callable[[], np.ndarray], path: Path) -> tuple[bool, str]:
    """Whether a reader did what has to be done, and what it did."""
    try:
        got = read()
    except UserError as error:
        fine = isinstance(right, str) and right in error.message and path.name in error.message
        return fine, f"refused: {error.message.replace(f'{path.parent}/', '')}"
    if isinstance(right, str):
        return False, "read, and had to be refused"
    if got.shape != right.shape:
        return False, f"read as {got.shape[1]}x{got.shape[0]}, expected {right.shape[1]}x{right.shape[0]}"
    error = float(np.abs(got - right).max())
    return error <= within + 1e-6, f"read, largest error {error * 255:.2g} of 255"


def results(folder: Path) -> list[tuple[str, bool, str, str]]:
    """(file, whether both are right, what a data set does, what `purify` does) of every file, written to the folder."""
    found = []
    for name, case in odd().items():
        path = folder / name
        path.write_bytes(case.content)
        seen = case.right if case.seen is None else case.seen
        height, width = seen.shape[:2] if isinstance(seen, np.ndarray) else (case.size or H, case.size or W)

        def data(path: Path = path, case: Odd = case) -> np.ndarray:
            x = pictures.unit(pictures.decode(path, resize=case.size, crop=case.size))
            return x.permute(1, 2, 0).double().numpy()

        def shown(path: Path = path, shape: tuple[int, int, int] = (3, height, width)) -> np.ndarray:
            return inputs.read(path, list(shape), {}).images[0].permute(1, 2, 0).double().numpy()

        one = judged(case.right, case.within, data, path)
        two = judged(seen, case.within, shown, path)
        found.append((name, one[0] and two[0], one[1], two[1]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where to write the files")
    keep = parser.parse_args().keep
    with tempfile.TemporaryDirectory() as scratch:
        folder = keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        rows = results(folder)
    print("| file | right | a data set | `purify` |\n|---|---|---|---|")
    for name, fine, data, shown in rows:
        print(f"| {name} | {'yes' if fine else '**NO**'} | {data} | {shown} |")
    print(f"\n{sum(row[1] for row in rows)} of {len(rows)} files are read rightly or refused by name")
    sys.exit(not all(row[1] for row in rows))


if __name__ == "__main__":
    main()
