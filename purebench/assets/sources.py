"""Where a file may come from: the registry's kinds of sources, as addresses for a program and for a person.

HF_ENDPOINT    another address of Hugging Face, such as a mirror's
HF_TOKEN       sent to that address alone, and only if nobody on the way can read it; never printed
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit

from purebench import assets
from purebench.assets import Entry, Part
from purebench.errors import UserError

# `confirm=t` passes over the page that says that a file is too large to be scanned; where Drive shows it still, it is answered.
DRIVE = "https://drive.usercontent.google.com/download?id={}&export=download&confirm=t"
DRIVE_BEFORE = (
    "https://drive.google.com/uc?id={}&export=download&confirm=t"  # leads to the other, and at times past its pages
)
HUB = "https://huggingface.co"
# What a signed address lets in whoever knows it.
SECRET = re.compile(
    r"([?&](?:[\w-]*(?:signature|token|secret|password|credential|(?:api|access)_?key)|sig)=)[^&#]*", re.IGNORECASE
)
HERE = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Way:
    """How a source is asked: its address, whether as a browser, and with which token. `how`: what messages say of that."""

    url: str
    how: str = ""
    as_browser: bool = False
    token: str = field(default="", repr=False)


def sources(part: Part) -> list[Entry]:
    """Where it may come from, in order, without what is known to be dead or another file."""
    return [s for s in part.facts.get("sources", []) if s.get("status") not in ("dead", "other")]


def automatic(source: Entry) -> bool:
    """Whether a program can download from it; the others are for a person in a browser."""
    return not {"gdrive-folder", "manual"} & set(source)


def ways(source: Entry, file: str) -> list[Way]:
    """How the source is asked, one after the other while it does not give the file. The first one's address names it."""
    url = address(source, file)
    match source:
        case {"gdrive": key}:
            # At times Drive sends programs away that it would let in as a browser.
            before = DRIVE_BEFORE.format(key)
            return [Way(url), Way(url, "as a browser", True), Way(before, "at its older address", True)]
        case {"hf": _} if secret := token(url):
            # A token that is refused keeps nobody from what everybody may have.
            return [Way(url, token=secret), Way(url, "without HF_TOKEN")]
    return [Way(url)]


def address(source: Entry, file: str) -> str:
    """The URL that a source's file is downloaded from. UserError if it is none."""
    match source:
        case {"http": url}:
            if not is_url(url):
                raise UserError(
                    f"`{shown(url)}` is no URL, and a source of `{file}`", f"mend `{assets.registry_file()}`"
                )
            return url + _named(file) if url.endswith("/") else url
        case {"gdrive": key}:
            return DRIVE.format(key)
        case {"hf": repo}:
            return f"{endpoint()}/{repo}/resolve/{_named(source.get('revision', 'main'))}/{_named(source.get('file', file))}"
        case {"zenodo": record}:
            return f"https://zenodo.org/records/{record}/files/{_named(source.get('file', file))}?download=1"
        case {"github": repo, "tag": tag}:
            return f"https://github.com/{repo}/releases/download/{_named(tag)}/{_named(source.get('file', file))}"
    raise UserError(f"no known kind of source: {', '.join(source)}", f"mend `{assets.registry_file()}`")


def _named(name: str) -> str:
    """A file's name in a URL's path: behind a `#` or a `?` that is no part of it, the server would be asked for another file."""
    return quote(name, safe="/!$&'()*+,;=:@~")


def browser(source: Entry, file: str) -> str:
    """The URL for a person's browser."""
    match source:
        case {"gdrive": key}:
            # Where a quota is used up for programs, a browser that is logged in may still get the file.
            return f"https://drive.google.com/file/d/{key}/view"
        case {"gdrive-folder": key}:
            return f"https://drive.google.com/drive/folders/{key}"
        case {"manual": url}:
            return shown(url)
    return shown(address(source, file))


def by_hand(part: Part) -> str:
    """What a person can do: where to click, under which name the file comes, and where to put it."""
    found = sources(part)
    urls = [browser(source, part.file.name) for source in found]
    where = f"open {' or '.join(urls)} in a browser" if urls else "find the file"
    if "by_hand" in part.facts:
        return f"{where}, {part.facts['by_hand']}, below `{part.file}` or wherever {assets.variable(part.asset)} says"
    asset, several = shlex.quote(part.asset), "files" in part.facts
    text = f"{where}, then `purebench fetch {asset} --from {'PATH/' + part.file.name if several else 'FILE'}`"
    text += f" (renamed to that); it goes to `{part.file}`" if several else f"; it goes to `{part.file}`"
    if any("gdrive" in source for source in found):
        names = [f"`{source['name']}`" for source in found if "name" in source]
        called = f" as {names[0]}" if names else ", whatever it is called"
        text += f"; {'it' if several else 'FILE'} is what Drive hands out{called}, not unpacked"
    return text


def endpoint() -> str:
    """Hugging Face's address, or the one that HF_ENDPOINT names (a path is kept); no slash at its end."""
    given = os.environ.get("HF_ENDPOINT", "").strip().rstrip("/")
    if not given:
        return HUB
    if is_url(given) and not set(given) & set("?#"):
        return given
    close = f"https://{given}"
    near = is_url(close) and "." in given and not set(given) & set("?#") and not re.match(r"\w+:/", given)
    if shown(close) != close:
        close = f"https://NAME:PASSWORD@{shown(close).removeprefix('https://')}"
    hint = f"`export HF_ENDPOINT={close}`, or unset it" if near else f"write it as `{HUB}`, or unset it"
    raise UserError(f"HF_ENDPOINT is no URL: `{shown(given)}`", hint)


def is_hub(url: str) -> bool:
    """Whether the URL is one of Hugging Face's, wherever that lies."""
    try:
        return url.startswith(f"{endpoint()}/")
    except UserError:
        return False


def token(url: str) -> str:
    """HF_TOKEN, where it may be sent to this address of Hugging Face's; else "". UserError for what can be no token."""
    found = os.environ.get("HF_TOKEN", "").strip()
    # Without the value: what stands in an error is pasted into reports. The library would print it.
    if not all("!" <= letter <= "~" for letter in found):
        raise UserError(
            "HF_TOKEN holds a space, a line break or a letter that no token has", "copy it again, or unset it"
        )
    parts = urlsplit(url)
    return found if parts.scheme == "https" or parts.hostname in HERE else ""


def shown(url: str) -> str:
    """The URL, or what was meant to be one, as it may be printed: without a user's name, a password and a signature."""
    scheme = found[0] if (found := re.match(r"(?:[A-Za-z][\w+.-]*:)?//", url)) else ""
    rest = url[len(scheme) :]
    where = re.split("[/?#]", rest, maxsplit=1)[0]
    # A password that is not spelt as it must be in a URL holds what ends the host's name: it is all before the last `@` then.
    odd = re.search(r":(?!\d+$)", where.rpartition("@")[2])
    cut = rest.rfind("@", 0, len(rest) if odd else len(where)) + 1
    return re.sub(SECRET, r"\1..", scheme + rest[cut:])


def host(url: str) -> str:
    """What messages call the server of a URL."""
    return urlsplit(url).hostname or shown(url)


def is_url(text: str, schemes: tuple[str, ...] = ("http", "https")) -> bool:
    """Whether it has a scheme of these, a host and no port that is none."""
    try:
        parts = urlsplit(text)
        # A port that is no number raises when it is asked for.
        named = bool(parts.hostname) and not parts.netloc.endswith(":")
        return parts.scheme in schemes and named and parts.port != 0 and not set(text) & set(" \t\n")
    except ValueError:
        return False
