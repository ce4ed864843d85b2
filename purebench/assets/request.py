"""One request to a server, and in words what went wrong on the way to it: no network, a proxy, a certificate."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import UTC, datetime
from http.client import HTTPException, IncompleteRead, RemoteDisconnected
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import purebench
from purebench.assets.sources import Way, host, is_url
from purebench.assets.troubles import SourceFailed, Unreached
from purebench.errors import DOWNLOAD, UserError

if TYPE_CHECKING:
    import requests

TIMEOUT = (10, 60)  # seconds to connect, and between two reads
AGENT = f"purebench/{purebench.__version__}"
BROWSER = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36"
SCHEMES = ("http", "https", "socks4", "socks4a", "socks5", "socks5h")
PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
BREAKS = (RemoteDisconnected, IncompleteRead)  # of a connection, which say nothing of what it speaks
CERTIFICATES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def headers(way: Way, have: int = 0, validator: str = "", one: bool = False) -> dict[str, str]:
    """What is sent along to ask for the bytes from `have` on (one: for the first alone): of the version `validator` if there is such
    a mark."""
    # Uncompressed: of a file compressed on the way, neither the size nor a byte range is that of the file.
    # English: the pages that explain a refusal are then in the language that we look for.
    found = {
        "Accept-Encoding": "identity",
        "Accept-Language": "en",
        "User-Agent": BROWSER if way.as_browser else AGENT,
    }
    if one:
        found["Range"] = "bytes=0-0"
    elif have:
        found["Range"] = f"bytes={have}-"
        # If the file has changed meanwhile, the server then sends all of it and not a part.
        if validator:
            found["If-Range"] = validator
    return found


def ask(
    way: Way, have: int = 0, validator: str = "", timeout: tuple[float, float] | None = None, one: bool = False
) -> requests.Response:
    """The server's answer. Unreached or SourceFailed if there is none; UserError if this machine is set up wrongly."""
    import requests

    check_proxy(way.url)

    def signed(request: requests.PreparedRequest) -> requests.PreparedRequest:
        if way.token:
            request.headers["Authorization"] = f"Bearer {way.token}"
        return request

    try:
        # As `auth` and not among the headers: there a password that ~/.netrc has for the host would take its place.
        # After a redirect to another host, `requests` takes it away.
        auth = signed if way.token else None
        sent, limits = headers(way, have, validator, one), timeout or TIMEOUT
        hooks = {"response": _leave_unread}
        return within(
            sum(limits),
            lambda: requests.get(way.url, headers=sent, auth=auth, hooks=hooks, stream=True, timeout=limits),
        )
    except requests.exceptions.SSLError as error:
        raise _certificate(error) from None
    except requests.exceptions.ProxyError as error:
        raise _proxy(way.url, error) from None
    except requests.TooManyRedirects:
        raise SourceFailed("it leads round in a circle") from None
    except requests.exceptions.InvalidHeader:
        raise SourceFailed("its answer has a header that cannot be read") from None
    except ValueError as error:
        if "SOCKS" in str(error):
            raise SourceFailed(f"{proxy(way.url)[0]} is a SOCKS proxy's: `pip install PySocks`") from None
        # Without the error's text: it may hold a password.
        raise SourceFailed(f"it leads to what is no URL ({type(error).__name__})") from None
    except requests.Timeout:
        raise Unreached("no answer in time") from None
    except requests.RequestException as error:
        if any(isinstance(cause, HTTPException) and not isinstance(cause, BREAKS) for cause in _causes(error)):
            raise SourceFailed("what it answers is no HTTP") from None
        name, where = proxy(way.url)
        if "SOCKS" in str(error):
            raise Unreached(f"no connection through the proxy `{where}` ({name}; {reason(error)})") from None
        raise Unreached(f"no connection ({reason(error)})") from None
    except OSError as error:
        # Not of the network: `requests` looks for the file of certificates before it asks.
        names = [name for name in CERTIFICATES if os.environ.get(name)]
        if not names:
            raise Unreached(f"no connection ({reason(error)})") from None
        message = f"{names[0]}: there is no file of certificates at `{os.environ[names[0]]}`"
        raise UserError(message, "mend or unset it", DOWNLOAD) from None


def within(seconds: float, call: Callable[[], requests.Response]) -> requests.Response:
    """The answer, or what was raised; Unreached if the headers take longer than that. The library's own limit is one of every read: a
    server that sends a byte a second keeps it for ever."""
    coming: Future[requests.Response] = Future()

    def run() -> None:
        try:
            coming.set_result(call())
        # Else whoever waits would wait in vain: it is raised there.
        except BaseException as error:
            coming.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return coming.result(seconds)
    except TimeoutError:
        if coming.done():
            raise
        coming.add_done_callback(lambda late: None if late.exception() else late.result().close())
        raise Unreached("no answer in time") from None


@contextlib.contextmanager
def limited(reply: requests.Response, seconds: float) -> Iterator[None]:
    """After so many seconds what is read of the answer ends as if the connection had broken, in the middle of a read too."""
    timer = threading.Timer(seconds, cut, [reply])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def cut(reply: requests.Response) -> None:
    """Ends what another thread reads of the answer."""
    # Closed, or handed back to the pool meanwhile: then there is nothing to end.
    with contextlib.suppress(ValueError, RuntimeError, OSError):
        reply.raw.shutdown()


def _leave_unread(reply: requests.Response, **_: object) -> None:
    """The library reads what stands below a redirect, however much comes and however slowly."""
    if reply.is_redirect:
        reply.raw.close()


def _causes(error: BaseException) -> list[BaseException]:
    """The error, and those that it was made of."""
    inside = [arg for arg in [*error.args, getattr(error, "reason", None)] if isinstance(arg, BaseException)]
    return [error, *(deeper for one in inside for deeper in _causes(one))]


def _certificate(error: Exception) -> SourceFailed | Unreached:
    text = str(error)
    if "CERTIFICATE_VERIFY_FAILED" not in text and "certificate verify failed" not in text:
        return Unreached(f"no connection ({reason(error)})")
    if re.search(r"expired|not yet valid", text):
        today = datetime.now(UTC).date()
        return SourceFailed(
            f"its certificate is not valid on {today}, which is today by this machine's clock: is it right?"
        )
    why = found[1].strip() if (found := re.search(r"certificate verify failed: ([^(\"']+)", text)) else "refused"
    return SourceFailed(
        f"its certificate cannot be trusted ({why}); behind a proxy that reads along, REQUESTS_CA_BUNDLE names the proxy's own"
    )


def _proxy(url: str, error: Exception) -> SourceFailed | Unreached:
    name, where = proxy(url)
    status = re.search(r"Tunnel connection failed: (\d{3})", str(error))
    if not status:
        return Unreached(f"no connection to the proxy `{where}` ({name}; {reason(error)})")
    return through_proxy(int(status[1]), url)


def through_proxy(status: int, url: str) -> SourceFailed | Unreached:
    """What it means that the proxy itself answered with this status."""
    name, where = proxy(url)
    if status == 407:
        return SourceFailed(
            f"the proxy `{where}` wants a name and a password (HTTP 407): {name}=http://NAME:PASSWORD@{where}"
        )
    if status in (500, 502, 503, 504):
        return Unreached(f"the proxy `{where}` ({name}) does not get there (HTTP {status})")
    return SourceFailed(f"the proxy `{where}` ({name}) does not let through to `{host(url)}` (HTTP {status})")


def check_proxy(url: str) -> None:
    """UserError if the variable that names the proxy for this URL has no URL."""
    name, found = _proxy_variable(url)
    if found and not is_url(found, SCHEMES):
        # Without the value, which may hold a password.
        raise UserError(f"{name} is no URL of a proxy", f"`export {name}=http://HOST:PORT`, or unset it")


def proxy(url: str) -> tuple[str, str]:
    """(variable that names the proxy for this URL, host:port of it without a password)."""
    name, found = _proxy_variable(url)
    return name, urlsplit(found).netloc.rpartition("@")[2]


def _proxy_variable(url: str) -> tuple[str, str]:
    """(the variable's name, its value with a scheme); two empty texts where no proxy is asked."""
    from requests.utils import get_environ_proxies, select_proxy

    found = select_proxy(url, get_environ_proxies(url)) or ""
    if not found:
        return "", ""
    # The one in small letters wins, and that of the scheme: what is named is what has to be mended.
    scheme = urlsplit(url).scheme.upper()
    order = sorted(PROXIES, key=lambda name: not name.startswith(f"{scheme}_"))
    names = [n for name in order for n in (name.lower(), name) if os.environ.get(n) == found]
    return names[0] if names else "a proxy variable", found if "://" in found else f"http://{found}"


def reason(error: BaseException) -> str:
    """The innermost cause in a few words: `Connection refused`."""
    text = str(error)
    found = re.findall(r"\[Errno -?\d+\] ([^'\")]+)|(Read timed out|IncompleteRead|EOF occurred)", text)
    if found:
        return next((a or b for a, b in found[::-1]), "")
    return "it hung up" if "without response" in text else type(error).__name__
