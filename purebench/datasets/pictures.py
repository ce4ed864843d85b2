"""One reader of pictures, for data sets and `purify`: what a file shows, as numbers in [0,1], or one error that names it.

Of a file with several pictures (an animation, pages) the first. Colour profiles are not applied, as nobody's data sets apply them."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from purebench.errors import UserError, decimal, unknown

if TYPE_CHECKING:
    from PIL import Image

INTERPOLATIONS = ("bilinear", "bicubic", "lanczos", "nearest")
LUMA = 0.299, 0.587, 0.114  # of red, green and blue, as Pillow takes them
LARGEST = 200_000_000  # pixels of a picture after scaling: of a line of pixels the longer side would fill any memory
JPEG_END, TAIL = b"\xff\xd9", 4096  # bytes: other programs leave something behind it
TIFF_BITS, TIFF_COLOURS = 258, 262  # tags: bits per sample; 0 where the least value is white
ORIENTATION = 274  # the tag of EXIF and TIFF


@dataclass(frozen=True)
class Facts:
    """What a picture's file says of it. width and height: as `decode` gives it without `turn`."""

    width: int
    height: int
    bits: int  # per channel: 8, 16, or 32 for floats and long whole numbers
    transparent: bool  # it has an alpha channel or a transparent colour; all of it may be opaque all the same
    orientation: int = 1  # by its EXIF data, 1 to 8; 1: not turned
    frames: int = 1
    turned: bool = False  # by Pillow, which turns TIFF files itself

    @property
    def plain(self) -> bool:
        """Whether it is 8 bits and opaque: what every reader reads alike."""
        return self.bits == 8 and not self.transparent


def look(source: Path | bytes, name: str = "", *, whole: bool = False) -> Facts:
    """Its facts, by its header alone; `whole`: orientation, frames and turning too, for which all of it may be read. Raises UserError."""
    with _opened(source, name) as image:
        facts = *image.size, _bits(image), image.has_transparency_data
        if not whole:
            return Facts(*facts)
        turned = image.format == "TIFF" and image.getexif().get(ORIENTATION, 1) in range(2, 9)
        return Facts(*facts, _orientation(image), _frames(image), turned)


def check_whole(source: Path | bytes, name: str = "") -> None:
    """Raises UserError for a file that is damaged behind a good head. Of PNG and JPEG only what looks damaged is decoded."""
    try:
        with _opened(source, name) as image:
            if image.format in ("JPEG", "MPO") and JPEG_END in _end(source):
                return
            if image.format == "PNG":
                image.verify()
                return
    except UserError:
        pass  # also what decoding passes over, such as a note behind the image with a wrong checksum
    with _opened(source, name) as image:
        image.load()


def _end(source: Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source[-TAIL:]
    with source.open("rb") as file:
        file.seek(max(0, source.stat().st_size - TAIL))
        return file.read()


def decode(
    source: Path | bytes, channels: int = 3, resize: int = 0, crop: int | tuple[int, int] = 0, name: str = "", *,
    background: str = "white", turn: bool = False, interpolation: str = "bilinear", frame: bool = False,
) -> Tensor:  # fmt: skip
    """One image file or its bytes as (C,H,W): uint8, or of more than 8 bits per channel float32 in [0,1].

    The shorter side is scaled to `resize` (antialiased, as PIL does), then the centre `crop` (a side, or height and width) is cut out;
    0 leaves out either. background: what is seen behind transparent pixels, a colour's name or #rrggbb. turn: as the EXIF data says,
    which viewers do and torchvision, and so the papers, do not. frame: an image smaller than `crop` gets a black frame, as
    torchvision's centre crop makes it, and so RobustBench's images. name: what an error calls bytes. Raises UserError for a file that
    cannot be read, one whose range is not certain, and, without a frame, one smaller than `crop`."""
    shown, behind = _shown(source, name), colour(background)
    if interpolation not in INTERPOLATIONS:
        raise unknown("interpolation", interpolation, INTERPOLATIONS)
    with _opened(source, name) as image:
        planes = _planes(source, image, shown, behind, channels)
        # Only now: of a PNG file Pillow loads the image for it, and then no longer says how many bits it had.
        orientation = _orientation(image) if turn else 1
    return torch.cat([_prepared(plane, orientation, resize, crop, interpolation, shown, frame) for plane in planes])


def stack(images: Sequence[Tensor], names: Sequence[str]) -> Tensor:
    """(C,H,W) images of one size, uint8 or float32 in [0,1], as (B,C,H,W) float32 in [0,1]."""
    for image, name in zip(images, names, strict=True):
        if image.shape != images[0].shape:
            (_, h0, w0), (_, h, w) = images[0].shape, image.shape
            raise UserError(
                f"images of different sizes: `{names[0]}` is {w0}x{h0}, `{name}` is {w}x{h}",
                "scale and crop them to one size; the dataset `folder` does so with `size=N`",
            )
    return torch.stack([unit(image) for image in images])


def unit(image: Tensor) -> Tensor:
    """What `decode` gave, as float32 in [0,1]."""
    return image.float() / 255 if image.dtype == torch.uint8 else image


def _shown(source: Path | bytes, name: str) -> str:
    return name if isinstance(source, bytes) else str(source)


@contextmanager
def _opened(source: Path | bytes, name: str) -> Iterator[Image.Image]:
    """Pillow's image. Whatever is raised while it is looked at is one UserError."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            # Of sizes between its two limits, and of metadata that it leaves aside.
            warnings.filterwarnings("ignore", module="PIL")
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                _key(image)
                yield image
    except UserError:
        raise
    except Exception as error:  # on damaged files Pillow raises whatever it happens upon
        raise _unreadable(source, _shown(source, name), error) from None


def _key(image: Image.Image) -> None:
    """Pillow scales grey values of 2 and 4 bits up to 255, and not the transparent one among them."""
    scale = {"L;2": 85, "L;4": 17}.get(_raw(image))
    if scale and "transparency" in image.info:
        image.info["transparency"] *= scale


def _raw(image: Image.Image) -> str:
    """How a PNG file that is not loaded yet stores its values, in Pillow's words such as `L;2`; empty for other formats."""
    tiles = getattr(image, "tile", []) if image.format == "PNG" else []
    return str(tiles[0].args) if tiles else ""


def _unreadable(source: Path | bytes, shown: str, error: Exception) -> UserError:
    from PIL import Image

    said, hint = (
        str(error),
        "put a whole copy in its place; a dataset is known by its content, so its cells are new ones then",
    )
    if isinstance(source, bytes):
        hint = "what holds it has to be made again with whole pictures; its cells are new ones then"
    empty = not source if isinstance(source, bytes) else source.is_file() and not source.stat().st_size
    if isinstance(error, OSError) and error.strerror:
        why = error.strerror
        hint = "a folder is no picture: name the files in it" if isinstance(error, IsADirectoryError) else hint
    elif empty:
        why = "it is empty"
    elif isinstance(error, Image.DecompressionBombError):
        pixels = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        why, hint = f"it has more than {pixels:,} pixels", "scale it down with another program"
    elif "text chunk" in said or "MAX_TEXT_CHUNK" in said or "MAX_TEXT_MEMORY" in said:
        why, hint = "its text chunks are too large", "save it again without its comments and metadata"
    elif isinstance(error, Image.UnidentifiedImageError):
        why = "it is not an image of a format that is read, or is damaged"
    elif isinstance(error, MemoryError):
        why, hint = "there is not enough memory for it", "scale it down with another program"
    elif "truncated" in said.lower() or isinstance(error, EOFError):
        why = "it is damaged: its end is missing"
    else:
        why = "it is damaged, or of a kind that is not read"
    return UserError(f"cannot read `{shown}`: {why}", hint)


def colour(background: str) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255. Raises UserError for what is none."""
    from PIL import ImageColor

    wrong = UserError(f"`{background}` is no colour", "a background is a name such as white or black, or #rrggbb")
    try:
        found = ImageColor.getrgb(background)
    except ValueError:
        raise wrong from None
    if len(found) != 3:
        raise wrong
    return found


def _bits(image: Image.Image) -> int:
    """Per channel, of an image that is not loaded yet. Of 16-bit colours Pillow keeps 8; those of PNG are read whole here, since
    attacked images are stored so."""
    if image.mode[0] in "IF":
        # Of PPM, Pillow scales whatever range the file names to 16 bits.
        return 16 if image.mode.startswith("I;16") or (image.format, image.mode) == ("PPM", "I") else 32
    return 16 if ";16" in _raw(image) else 8


def _orientation(image: Image.Image) -> int:
    # Pillow turns TIFF files when they are loaded.
    found = 1 if image.format == "TIFF" else image.getexif().get(ORIENTATION, 1)
    return found if found in range(1, 9) else 1


def _frames(image: Image.Image) -> int:
    # The layers of a PSD file are no pictures of their own: the first is what they make together.
    return 1 if image.format == "PSD" else getattr(image, "n_frames", 1)


def _planes(
    source: Path | bytes, image: Image.Image, shown: str, behind: tuple[int, int, int], channels: int
) -> list[Image.Image]:
    """The image without transparency and in the wanted channels: of 8 bits as one of mode L or RGB, else as one of mode F in [0,1] per
    channel."""
    from PIL import Image

    if _bits(image) == 8:
        return [_flat(image, shown, behind).convert({1: "L", 3: "RGB"}[channels])]
    raw = _raw(image)
    image.load()  # so that what is wrong with it is told by its name
    x = _sixteen(source, raw) if image.mode in ("RGB", "RGBA") else _grey(image, shown)
    if x.shape[2] in (2, 4):
        x, alpha = x[..., :-1], x[..., -1:]
        if alpha.min() < 1:
            x = alpha * x + (1 - alpha) * np.array(behind, np.float32) / 255
    if x.shape[2] == 3 and channels == 1:
        x = x @ np.array(LUMA, np.float32)[:, None]
    return [Image.fromarray(np.ascontiguousarray(x[..., c % x.shape[2]])) for c in range(channels)]


def _flat(image: Image.Image, shown: str, behind: tuple[int, int, int]) -> Image.Image:
    """An image of 8 bits per channel without transparency: a colour that it hides is no part of what is seen."""
    from PIL import Image

    if image.mode == "LAB":
        # Their conversion needs a white point, which the file need not name.
        raise UserError(f"cannot read `{shown}`: its colours are CIELAB", "save it as RGB")
    if not image.has_transparency_data:
        return image
    seen = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    if seen.getchannel("A").getextrema()[0] == 255:
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, (*behind, 255)), seen)


def _sixteen(source: Path | bytes, raw: str) -> np.ndarray:
    """A PNG file of 16 bits per channel, colours or alpha, as (H,W,C) float32 in [0,1]; C 2 to 4, alpha the last."""
    if raw == "LA;16B":
        # Read as if its four bytes per pixel were four channels.
        stored, key = _bytes(source, "RGBA")
        x = stored[..., 0::2] * 256 + stored[..., 1::2]
    else:
        # In the other order of bytes the high one is the low one.
        (high, key), (low, _) = _bytes(source, raw), _bytes(source, f"{raw[:-1]}L")
        x = high * 256 + low
    alpha = [] if key is None else [(x != np.array(key)).any(2, keepdims=True)]
    return np.concatenate([x / np.float32(65535), *alpha], 2, dtype=np.float32)


def _bytes(source: Path | bytes, raw: str) -> tuple[np.ndarray, object]:
    """The values of a PNG file, read as if it was stored in another of Pillow's ways: (H,W,C) int32; and its transparent colour or None."""
    with _opened(source, "") as image:
        image.tile = [tile._replace(args=raw) for tile in image.tile]  # type: ignore[attr-defined]
        return np.array(image, np.int32), image.info.get("transparency")


def _grey(image: Image.Image, shown: str) -> np.ndarray:
    """A grey image of more than 8 bits as (H,W,1) float32 in [0,1] (with alpha C = 2). UserError where nothing says what is white."""
    x, tags = np.array(image)[..., None].astype(np.float64), getattr(image, "tag_v2", {})
    if _bits(image) == 16:
        x /= 2.0 ** tags.get(TIFF_BITS, (16,))[0] - 1
    elif image.mode == "I":
        raise UserError(
            f"cannot read `{shown}`: of its signed or 32-bit whole numbers nothing says which is white",
            "store it with 8 or 16 bits per channel, or as floats in [0,1]",
        )
    key, low, high = image.info.get("transparency"), float(x.min()), float(x.max())
    # Written so that NaN is refused too.
    if not (low >= 0 and high <= 1):
        raise UserError(
            f"cannot read `{shown}`: its values are in [{decimal(low)}, {decimal(high)}]", "store floats in [0,1]"
        )
    # In some files the least value is white; of 8 bits Pillow knows it.
    seen = 1 - x if tags.get(TIFF_COLOURS) == 0 else x
    alpha = [] if key is None else [np.array(image)[..., None] != key]
    return np.concatenate([seen, *alpha], 2, dtype=np.float32, casting="unsafe")


def _prepared(
    image: Image.Image,
    orientation: int,
    resize: int,
    crop: int | tuple[int, int],
    interpolation: str,
    shown: str,
    frame: bool,
) -> Tensor:
    """Turned, scaled and cropped: (C,H,W), uint8 or of mode F float32 in [0,1]."""
    from PIL import Image

    ways = Image.Transpose
    # What undoes each of EXIF's orientations.
    turns = (
        ways.FLIP_LEFT_RIGHT, ways.ROTATE_180, ways.FLIP_TOP_BOTTOM, ways.TRANSPOSE, ways.ROTATE_270, ways.TRANSVERSE,
        ways.ROTATE_90,
    )  # fmt: skip
    if orientation > 1:
        image = image.transpose(turns[orientation - 2])
    if resize:
        scaled = resize * resize * max(image.size) / min(image.size)
        if scaled > LARGEST:
            raise UserError(
                f"`{shown}` is {image.width}x{image.height}: with a shorter side of {resize} it has {scaled:.2g} pixels",
                "cut it to a more usual shape",
            )
        image = _resized(image, resize, interpolation)
    if crop:
        height, width = (crop, crop) if isinstance(crop, int) else crop
        # torchvision would put a black frame around it.
        if not frame and (image.height < height or image.width < width):
            raise UserError(
                f"`{shown}` is {image.width}x{image.height}, too small to cut {width}x{height} out of it",
                "scale it up first",
            )
        left, top = _middle(image.width, width), _middle(image.height, height)
        image = image.crop((left, top, left + width, top + height))  # beyond its edges Pillow sees black
    x = np.array(image)
    # reshape: PIL gives a grey image no axis of channels. clip: bicubic goes beyond the values that there are.
    return (
        torch.from_numpy(x if x.dtype == np.uint8 else x.clip(0, 1))
        .reshape(image.height, image.width, -1)
        .permute(2, 0, 1)
    )


# As torchvision scales and crops Pillow's images, to the bit, without its import, which may take longer than all the rest.
def _resized(image: Image.Image, resize: int, interpolation: str) -> Image.Image:
    """The shorter side scaled to `resize`; the longer one is rounded down."""
    from PIL import Image

    shorter, longer = min(image.size), max(image.size)
    long = int(resize * longer / shorter)
    size = (resize, long) if image.width <= image.height else (long, resize)
    return image if size == image.size else image.resize(size, Image.Resampling[interpolation.upper()])


def _middle(has: int, wanted: int) -> int:
    """Where the middle of a side begins: of an odd rest to the even pixel; negative where the image is smaller."""
    return round((has - wanted) / 2) if has >= wanted else -((wanted - has) // 2)
