"""Downloads on a bad day: every case of `benchmarks/servers.py`, and what has to hold besides."""

import contextlib
import gzip
import hashlib
import importlib.util
import json
import pickle
import re
import socket
import ssl
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
import requests
import test_fetch
from misbehaving import Quick, Server, payload
from test_fetch import DATA, SHA, fetch, good

from purebench import assets
from purebench.assets import answers, bars, check, download, ends, mirrors, request, sources
from purebench.assets import fetch as fetching
from purebench.errors import DOWNLOAD, USAGE, UserError
from purebench.running import doctor, storage

ROOT = Path(__file__).parents[1]


def _benchmark():
    spec = importlib.util.spec_from_file_location("servers", ROOT / "benchmarks" / "servers.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["servers"] = module
    spec.loader.exec_module(module)
    return module


SERVERS = _benchmark()


server, world = test_fetch.server, test_fetch.world  # fixtures


@pytest.mark.parametrize("case", SERVERS.CASES, ids=lambda case: case.name)
def test_what_is_said_and_kept(case):
    assert SERVERS.run(case)


# --------------------------------------------------------------------------------------------------------------- waiting


def heard(names=("net",), **options):
    """(rows, errors, lines on the screen, seconds slept)."""
    clock = Quick()
    show = SERVERS.Heard(clock)
    rows, errors = fetching.fetch(list(names), clock=clock, show=show, **options)
    return rows, errors, "\n".join(show.lines), clock.slept


def test_a_network_that_is_down_is_waited_for_once_and_not_for_every_file(world, tmp_path):
    world("http://127.0.0.1:9/a/file.pt", "http://127.0.0.1:9/b/file.pt", sha256=SHA)
    registry = tmp_path / "checkpoints.toml"
    registry.write_text(registry.read_text() + registry.read_text().replace("assets.net", "assets.other"))
    _, errors, _, slept = heard(["net", "other"])
    assert [error.message.count("Connection refused") for error in errors] == [2, 2]
    # Two sources of the first file, side by side; the second file's are asked once each.
    assert (sum(slept), max(slept)) == (pytest.approx(88, abs=1), pytest.approx(60, abs=1))


def test_a_break_costs_no_try_of_a_connection_and_the_other_way_round(server, world):
    """Four connections fail after every break: nine failures in a row of either kind would be too many."""
    part = world(server.url("hangup-middle"), sha256=SHA)
    assert fetch() == ("fetched", "", pytest.approx([1, *mirrors.PAUSES], abs=0.5))
    assert good(part)


def test_without_a_hash_the_first_source_is_waited_for(server, world):
    part = world(server.url("hangup"), server.url("wrong"))
    assert fetch()[0] == "fetched"
    assert (good(part), server.gets["wrong"]) == (True, 0)


def test_a_mirror_with_another_file_is_found_out_at_once(server, world):
    """By the bytes that it sends again: the hash would tell after all of it had come."""
    part = world(server.url("fine"), sha256=SHA)
    part.file.parent.mkdir(parents=True)
    part.beside(".part").write_bytes(payload(len(DATA), 7)[:200_000])
    part.beside(".part.json").write_text(json.dumps({"url": "http://elsewhere/", "validator": "", "size": None}))
    _, errors, said, _ = heard()
    assert (errors, good(part), server.gets["fine"]) == ([], True, 2)
    assert "its file is another one than what came before" in said


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"Retry-After": "3"}, 3), ({"Retry-After": "0.5"}, 0.5),
        ({"Retry-After": "soon"}, None), ({}, None), ({"Retry-After": "-3"}, None),
        ({"RateLimit": '"api";r=0;t=280'}, 280), ({"RateLimit": "limit=10"}, None),
        ({"Retry-After": "Sun, 06 Nov 1994 08:49:47 GMT", "Date": "Sun, 06 Nov 1994 08:49:37 GMT"}, 10),
        ({"Retry-After": "Sun, 06 Nov 1994 08:49:37 GMT", "Date": "Sun, 06 Nov 1994 08:49:47 GMT"}, 0),
        ({"Retry-After": "Sun, 06 Nov 1994 08:49:47 GMT"}, None), ({"Retry-After": "Sun, 99 Nov 1994 08:49:47 GMT", "Date": "x"}, None),
    ],
)  # fmt: skip
def test_how_long_a_busy_server_asks_to_wait(headers, wait):
    assert answers.wait_asked(headers) == wait


def test_ten_breaks_and_another_file_in_the_middle(world):
    """What came of the old file is asked for twice, and nothing else (`benchmarks/breaking.py` in small)."""
    data = payload(3_000_000)
    with Server(data) as server:
        server.before = payload(len(data), 1)
        part = world(server.url("evening"), sha256=hashlib.sha256(data).hexdigest())
        _, errors, said, slept = heard()
        assert (errors, part.file.read_bytes() == data, server.gets["evening"]) == ([], True, 11)
        assert server.sent["evening"] == len(data) + 6 * (len(data) // 12)
        assert ("has another file now" in said, slept) == (True, pytest.approx([1] * 10, abs=0.1))


# ------------------------------------------------------------------------------------------------------- what is pinned


def test_a_file_unlike_a_third_partys_hash_is_taken_with_its_own(server, world, monkeypatch, capsys):
    part = world(server.url("fine"), sha256="0" * 64, size=len(DATA) + 1, trust="third-party")
    rows, errors, said, _ = heard()
    assert (errors, rows[0]["sha256"], rows[0]["state"]) == ([], SHA, "fetched")
    assert "warning: `net` from `127.0.0.1` is not the file that a third party knows" in said
    lock = part.lock()
    assert (lock["sha256"], lock["trust"], lock["size"]) == (SHA, "first-use", len(DATA))
    assert "bytes, not 300,001" in lock["doubt"]
    # It counts as there, under its own hash, and nothing calls it wrong.
    assert (assets.present("net"), assets.digest("net"), fetch()[0], storage._damaged(part)) == (
        True,
        SHA,
        "present",
        "",
    )
    part.file.unlink()
    server.data = payload(len(DATA), 1)
    state, message, _ = fetch()
    assert (state, "was pinned" in message, part.file.exists()) == ("failed", True, False)
    # Not even `--quiet` keeps it to itself.
    bars.Quiet().warn("unlike")
    assert capsys.readouterr().err == "purebench: warning: unlike\n"


def test_a_file_that_lies_there_is_known_by_its_own_hash_and_not_by_a_third_partys(server, world):
    part = world(server.url("fine"), sha256="0" * 64, trust="third-party")
    part.file.parent.mkdir(parents=True)
    part.file.write_bytes(DATA)
    assert (assets.digest("net"), storage._damaged(part)) == (SHA, "")
    rows, errors, said, _ = heard()
    assert (rows[0]["state"], rows[0]["sha256"], errors, server.gets) == ("present", SHA, [], {})
    assert "third party knows" in said
    part.beside(".lock.json").unlink()
    part.file.write_bytes(DATA[:-1])  # but it has to be whole
    assert fetch()[0] == "fetched"
    assert part.beside(".bad").read_bytes() == DATA[:-1]


@pytest.mark.parametrize("trust", ["publisher", "code", "crowd", "ours", "first-use"])
def test_any_other_hash_refuses(server, world, trust):
    part = world(server.url("wrong"), sha256=SHA, trust=trust)
    assert fetch()[0] == "failed"
    assert not part.lock()


def test_in_doubt_a_cut_file_is_still_refused(server, world):
    server.data = DATA[:-1000]
    part = world(server.url("fine"), sha256=SHA, trust="third-party")
    state, message, _ = fetch()
    assert (state, "cannot be seen to be whole" in message, part.lock(), part.file.exists()) == (
        "failed",
        True,
        {},
        False,
    )
    # Nor is one that comes twice in a body without a length.
    server.data = DATA
    part = world(server.url("endless"), sha256="0" * 64, size=len(DATA), trust="third-party")
    assert (fetch()[0], part.lock(), part.file.exists()) == ("failed", {}, False)


def test_a_file_of_the_users_is_taken_in_doubt_with_a_warning(server, world, tmp_path):
    part = world(server.url("fine"), sha256="0" * 64, trust="third-party")
    (tmp_path / "mine").write_bytes(DATA)
    rows, errors, said, _ = heard(given=tmp_path / "mine", offline=True)
    assert (errors, rows[0]["sha256"], part.lock()["trust"]) == ([], SHA, "first-use")
    assert "third party" in said


def test_an_archive_that_cannot_be_unpacked_is_not_pinned_and_the_mirror_is_asked(world):
    packed = BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        info = tarfile.TarInfo("batches/one")
        info.size = len(DATA)
        tar.addfile(info, BytesIO(DATA))
    with Server(packed.getvalue()[:-5000]) as cut, Server(packed.getvalue()) as whole:
        part = world(cut.url("fine"), kind="dataset", file="a.tar.gz", unpack="batches")
        assert fetch()[0] == "failed"
        assert not part.lock()
        world(cut.url("fine"), whole.url("fine"), kind="dataset", file="a.tar.gz", unpack="batches")
        assert fetch()[0] == "fetched"
        assert (part.result / "one").read_bytes() == DATA
        assert part.lock()["sha256"] == hashlib.sha256(packed.getvalue()).hexdigest()


def _made(kind, torch):
    out = BytesIO()
    if kind == "pickle":
        out.write(pickle.dumps({"ema": [1.5, "text", b"bytes" * 99]}, protocol=4))
    elif kind in ("torch", "torch-legacy"):
        state = {"a.weight": torch.arange(600.0), "b": torch.arange(70), "c": torch.zeros(3).half()}
        torch.save({"state_dict": state, "epoch": 3}, out, _use_new_zipfile_serialization=kind == "torch")
    elif kind == "gzip":
        out.write(gzip.compress(DATA[:5000]))
    elif kind == "tar":
        with tarfile.open(fileobj=out, mode="w") as tar:
            info = tarfile.TarInfo("one")
            info.size = 5000
            tar.addfile(info, BytesIO(DATA[:5000]))
    elif kind == "zip":
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr("one", DATA[:5000])
    elif kind == "parquet":
        out.write(b"PAR1" + DATA[:500] + b"PAR1")
    else:
        header = json.dumps(
            {"__metadata__": {}, "a": {"dtype": "U8", "shape": [500], "data_offsets": [0, 500]}}
        ).encode()
        out.write(len(header).to_bytes(8, "little") + header + DATA[:500])
    return out.getvalue()


@pytest.mark.parametrize("kind", ["pickle", "torch", "torch-legacy", "gzip", "tar", "zip", "parquet", "safetensors"])
def test_whether_a_file_ends_where_its_format_does(kind, tmp_path):
    torch = pytest.importorskip("torch")
    whole, path = _made(kind, torch), tmp_path / "file"
    path.write_bytes(whole)
    assert ends.at_end(path) is True
    for wrong in (whole[:-1], whole[: len(whole) // 2], whole[: len(whole) * 9 // 10]):
        path.write_bytes(wrong)
        # Of torch's files before zip not every cut can be told from another kind of file: it is not held to be whole.
        # And of a tar's end there is more than it needs.
        assert ends.at_end(path) in ((False, None) if kind in ("torch-legacy", "tar") else (False,))
    path.write_bytes(whole + b"\n")
    assert ends.at_end(path) is not True or kind in ("zip", "torch")  # a comment of the archive
    path.write_bytes(b"anything else")
    assert ends.at_end(path) is None


# ------------------------------------------------------------------------------------------------------ who is told what


def test_a_program_says_who_it_is_and_a_token_stays_with_the_hub(server, world, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", server.url("hub").removesuffix("/file.pt") + "/")
    monkeypatch.setenv("HF_TOKEN", " hf_secret\n")
    # What ~/.netrc has for the host would take the token's place.
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password other\n")
    monkeypatch.setenv("NETRC", str(netrc))
    part = world({"hf": "me/repo", "revision": "abc"}, sha256=SHA)
    assert fetch()[0] == "fetched"
    assert good(part)
    (first, path, asked), (second, _, led) = server.asked
    assert (first, path, second) == ("hub", "/hub/me/repo/resolve/abc/file.pt", "fine")
    assert asked["Authorization"] == "Bearer hf_secret"
    assert "Authorization" not in led
    assert "hf_secret" not in part.beside(".lock.json").read_text()
    assert asked["User-Agent"] == led["User-Agent"] == request.AGENT == "purebench/0.1.0"


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("", "https://huggingface.co"), ("https://hf-mirror.com/", "https://hf-mirror.com"),
        ("http://corp:8080/hub//", "http://corp:8080/hub"), (" https://a.b/c ", "https://a.b/c"),
    ],
)  # fmt: skip
def test_the_hub_lies_where_the_variable_says(monkeypatch, given, found):
    monkeypatch.setenv("HF_ENDPOINT", given)
    assert sources.address({"hf": "a/b"}, "f.pt") == f"{found}/a/b/resolve/main/f.pt"
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    # In clear it is for everybody on the way.
    assert sources.ways({"hf": "a/b"}, "f.pt")[0].token == ("hf_secret" if "https" in found else "")
    assert "hf_secret" not in repr(sources.ways({"hf": "a/b"}, "f.pt"))


@pytest.mark.parametrize(
    "value", ["hf-mirror.com", "ftp://a.b", "https://", "http://a:port", "https://a b", "mirror", "http://a:0"]
)
def test_a_variable_that_is_no_url_is_refused_before_anything_is_asked(server, world, monkeypatch, value):
    monkeypatch.setenv("HF_ENDPOINT", value)
    world(server.url("fine"), {"hf": "me/repo"})
    with pytest.raises(UserError, match="HF_ENDPOINT is no URL") as stop:
        fetch()
    assert (stop.value.code, bool(stop.value.hint), server.gets) == (USAGE, True, {})


def test_a_name_and_a_password_are_never_shown(monkeypatch, world):
    monkeypatch.setenv("HF_ENDPOINT", "https://me:s3cret@")
    with pytest.raises(UserError) as stop:
        sources.endpoint()
    assert "s3cret" not in str(stop.value)
    with Server(DATA) as server:
        part = world(
            server.url("fine").replace("//", "//me:s3cret@"), server.url("missing").replace("//", "//me:s3cret@")
        )
        assert fetch()[0] == "fetched"
        assert "s3cret" not in part.beside(".lock.json").read_text()
        world(server.url("missing").replace("//", "//me:s3cret@"), file="other.pt")
        assert "s3cret" not in fetch()[1]


def test_drive_is_asked_in_english_and_then_as_a_browser(server, world, monkeypatch):
    monkeypatch.setattr(sources, "DRIVE", server.url("drive-page") + "?id={}")
    monkeypatch.setattr(sources, "DRIVE_BEFORE", server.url("fine") + "?id={}")
    world({"gdrive": "KEY", "name": "natural.pt.tar"}, sha256=SHA)
    assert fetch()[0] == "fetched"
    agents = [headers["User-Agent"] for _, _, headers in server.asked]
    assert agents == [request.AGENT, request.BROWSER, request.BROWSER]
    assert {headers["Accept-Language"] for _, _, headers in server.asked} == {"en"}
    monkeypatch.setattr(sources, "DRIVE_BEFORE", server.url("drive-quota-de") + "?id={}")
    world({"gdrive": "KEY", "name": "natural.pt.tar"}, file="other.pt", sha256=SHA)
    message = fetch()[1]
    # Each reason once, and under which name the file comes out of a browser.
    assert message.count("Unsupported browser") == message.count("quota") == 1
    assert "FILE is what Drive hands out as `natural.pt.tar`, not unpacked" in message


CERTIFICATE = "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: "


@pytest.mark.parametrize(
    ("error", "says", "tries"),
    [
        (requests.exceptions.SSLError(CERTIFICATE + "certificate is not yet valid (_ssl.c:1)"), "clock", 1),
        (requests.exceptions.SSLError(CERTIFICATE + "certificate has expired (_ssl.c:1)"), "clock", 1),
        (requests.exceptions.SSLError(CERTIFICATE + "self-signed certificate (_ssl.c:1)"), "(self-signed certificate); behind a proxy", 1),
        (requests.exceptions.SSLError(ssl.SSLEOFError("EOF occurred in violation of protocol")), "no connection (EOF occurred)", 5),
        (requests.exceptions.InvalidSchema("Missing dependencies for SOCKS support."), "pip install PySocks", 1),
        (requests.exceptions.InvalidURL("http://me:s3cret@ is wrong"), "what is no URL", 1),
        (requests.TooManyRedirects(), "round in a circle", 1),
        (requests.ConnectTimeout(), "no answer in time", 5),
    ],
)  # fmt: skip
def test_why_there_is_no_answer(world, monkeypatch, error, says, tries):
    asked = []

    def get(url, **_):
        asked.append(url)
        raise error

    monkeypatch.setattr(requests, "get", get)
    world("https://files.example/file.pt")
    state, message, _ = fetch()
    assert (state, len(asked)) == ("failed", tries)
    assert says in message
    assert "s3cret" not in message


@pytest.mark.parametrize(
    "value", ["http://", ":8080", "http://me:s3cret@:bad", "ftp://me:s3cret@a", "http://[::1", "http://a b"]
)
def test_a_proxy_that_is_no_url_is_named(server, world, monkeypatch, value):
    monkeypatch.setenv("HTTP_PROXY", value)
    monkeypatch.setenv("NO_PROXY", "")
    world(server.url("fine"), server.url("cut"))
    for asked in (fetch, lambda: fetching.check_setup(["net"]), lambda: check.questions(["net"])):
        with pytest.raises(UserError, match="HTTP_PROXY is no URL of a proxy") as stop:
            asked()
        assert (stop.value.code, "s3cret" in str(stop.value), server.gets) == (USAGE, False, {})
    assert fetch(offline=True)[0] == "failed"


def test_a_file_of_certificates_that_is_not_there_is_named(world, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere/ca.pem")
    world("https://127.0.0.1:9/file.pt")
    state, message, slept = fetch()
    assert (state, slept) == ("failed", [])
    assert "REQUESTS_CA_BUNDLE: there is no file of certificates at `/nowhere/ca.pem`" in message


def test_the_doctor_knows_the_hubs_variables(monkeypatch):
    for name in (
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
    ):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    found = {}
    for endpoint, token in [("https://me:s3cret@hub.example/x", "hf_secret"), ("hub.example", ""), ("", "two words")]:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        monkeypatch.setenv("HF_TOKEN", token)
        found |= {finding.said: finding.state for finding in doctor._network(Path())}
    assert found == {
        "HF_ENDPOINT https://hub.example/x, HF_TOKEN is set; no connection was tried": "ok",
        "HF_ENDPOINT is no URL: `hub.example`": "wrong",
        "HF_TOKEN holds a space, a line break or a letter that no token has": "wrong",
    }


def test_the_command_refuses_a_variable_that_is_no_url(server, world, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "hf-mirror.com")
    world({"hf": "me/repo"})
    command = [sys.executable, "-c", "from purebench.cli import main; main()", "fetch", "net"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (USAGE, "")
    assert "error: HF_ENDPOINT is no URL: `hf-mirror.com`" in run.stderr
    assert "hint: `export HF_ENDPOINT=https://hf-mirror.com`, or unset it" in run.stderr


def test_failures_are_one_message_of_code_3(server, world):
    world(server.url("missing"), server.url("login"), sha256=SHA)
    _, (error,), _, _ = heard()
    assert error.code == DOWNLOAD
    assert [line.split(": ", 1)[1][:8] for line in error.message.splitlines()[1:]] == ["HTTP 404", "this net"]


# ------------------------------------------------------------------------------------------------- nothing waits without end


class Raw:
    """`with Raw(answer) as url`: answers each connection by `answer(connection, how many came before)`."""

    def __init__(self, answer):
        self.answer, self.turns = answer, 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.stop = threading.Event()

    def __enter__(self):
        threading.Thread(target=self.run, daemon=True).start()
        return f"http://127.0.0.1:{self.socket.getsockname()[1]}/file.pt"

    def __exit__(self, *_):
        self.stop.set()
        self.socket.close()

    def run(self):
        with contextlib.suppress(OSError):
            while not self.stop.is_set():
                connection, _ = self.socket.accept()
                threading.Thread(target=self.one, args=(connection, self.turns), daemon=True).start()
                self.turns += 1

    def one(self, connection, turn):
        with connection, contextlib.suppress(OSError):
            connection.recv(1 << 16)
            self.answer(connection, turn)

    def drip(self, connection, data, pause=0.05):
        """A few bytes at a time, and for ever the last one."""
        while not self.stop.is_set():
            connection.sendall(data[:2] or b".")
            data = data[2:]
            time.sleep(pause)


def _drip(head, data, pause=0.05):
    raw = Raw(lambda connection, _: (connection.sendall(head), raw.drip(connection, data, pause)))
    return raw


FOUND = b"HTTP/1.1 302 Found\r\nLocation: %s\r\nContent-Length: 9999999\r\n\r\n"


def test_what_stands_below_a_redirect_is_not_read(server, world):
    body = {}

    def redirects(connection, _):
        connection.sendall(FOUND % server.url("fine").encode())
        with contextlib.suppress(OSError):
            for sent in range(500):
                body["sent"] = sent
                connection.sendall(bytes(1 << 16))

    with Raw(redirects) as url:
        part = world(url, sha256=SHA)
        assert (fetch()[0], good(part)) == ("fetched", True)
    assert body["sent"] < 400  # of 500: what the sockets' own buffers took
    with _drip(FOUND % server.url("fine").encode(), b"") as url:
        part = world(url, file="other.pt")
        began = time.monotonic()
        assert (fetch()[0], time.monotonic() - began < 3) == ("fetched", True)


def test_headers_that_never_end_are_left(server, world, monkeypatch):
    monkeypatch.setattr(request, "TIMEOUT", (0.2, 0.3))
    with _drip(b"HTTP/1.1 200 OK\r\nX-Slow: ", b"") as url:
        part = world(url, server.url("fine"), sha256=SHA)
        _, errors, said, _ = heard()
        assert (errors, good(part), "no answer in time" in said) == ([], True, True)


def test_a_page_that_never_ends_is_left(server, world, monkeypatch):
    monkeypatch.setattr(answers, "PAGE_TIME", 0.3)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n"
    with _drip(head, b"<html><title>Wait</title>", 0.01) as url:
        part = world(url, server.url("fine"))
        _, errors, said, _ = heard()
        assert (errors, good(part), "HTML page (`Wait`)" in said) == ([], True, True)


def test_a_source_that_crawls_from_its_first_byte_on_is_left(server, world, monkeypatch):
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n"
    with _drip(head, DATA[:30], 0.2) as url:
        part = world(url, server.url("fine"), sha256=SHA, size=len(DATA))
        clock = Quick(100)
        show = SERVERS.Heard(clock)
        _, errors = fetching.fetch(["net"], clock=clock, show=show)
        assert (errors, good(part), any("it sends 0." in line for line in show.lines)) == ([], True, True)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"junk\r\n\r\n", "no HTTP"), (b"ICY 200 OK\r\n\r\n", "no HTTP"), (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 500 + b"\r\n", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 400000, 5\r\n\r\nx", "header that cannot be read"),
        (b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: /file.pt\r\n\r\n", "round in a circle"),
    ],
)  # fmt: skip
def test_an_answer_that_is_none_is_named_and_not_asked_for_again(world, answer, says):
    with Raw(lambda connection, _: connection.sendall(answer)) as url:
        world(url, sha256=SHA)
        state, message, slept = fetch()
        assert (state, says in message, slept) == ("failed", True, [])


@pytest.mark.parametrize("body", [DATA, b"<html><title>Sign in</title>".ljust(300_000)])
def test_a_file_that_is_called_a_page_is_looked_at_where_its_hash_is_known(world, body):
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 300000\r\n\r\n"
    with Raw(lambda connection, _: connection.sendall(head + body)) as url:
        part = world(url, sha256=SHA, trust="publisher")
        _, message, _ = fetch()
        assert (good(part), "HTML page (`Sign in`)" in message) == (body is DATA, body is not DATA)
        # Without one nothing would tell.
        world(url, file="other.pt")
        assert (fetch()[0], "HTML page" in fetch()[1]) == ("failed", True)


# ----------------------------------------------------------------------------------------------- a wrong mirror costs nothing


class Asks(Raw):
    """Its `answer` is given the first byte that is asked for too, and the whole question."""

    def one(self, connection, turn):
        with connection, contextlib.suppress(OSError):
            text = connection.recv(1 << 16).decode()
            found = re.search(r"Range: bytes=(\d+)-", text)
            self.said = text
            self.answer(connection, turn, int(found[1]) if found else 0)


def _range(connection, data, first, stop=None):
    connection.sendall(
        b'HTTP/1.1 206 Partial\r\nETag: "1"\r\nContent-Length: %d\r\nContent-Range: bytes %d-%d/%d\r\n\r\n'
        % (len(data) - first, first, len(data) - 1, len(data))
    )
    connection.sendall(data[first:stop])


@pytest.mark.parametrize("kind", ["another", "tail differs", "whole only", "shorter"])
@pytest.mark.parametrize("trust", ["code", "third-party"])
def test_a_wrong_mirror_does_not_cost_what_the_good_source_sent(world, kind, trust):
    """The good source is away for a while after 3/4 of the file; the mirror has another file."""
    most = len(DATA) * 3 // 4
    firsts = []

    def right(connection, turn, first):
        if turn == 1:
            connection.sendall(b"HTTP/1.1 503 Busy\r\nRetry-After: 20\r\nContent-Length: 0\r\n\r\n")
        else:
            firsts.append(first)
            if not first:
                connection.sendall(b'HTTP/1.1 200 OK\r\nETag: "1"\r\nContent-Length: %d\r\n\r\n' % len(DATA))
                connection.sendall(DATA[: most if turn == 0 else None])
            else:
                _range(connection, DATA, first)

    other = DATA[:-9] + b"x" * 9 if kind == "tail differs" else payload(len(DATA), 5)
    if kind == "shorter":
        other = other[: most // 2]

    def wrong(connection, _, first):
        if kind == "whole only" or not first:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(other) + other)
        elif first >= len(other):
            connection.sendall(
                b"HTTP/1.1 416 No\r\nContent-Range: bytes */%d\r\nContent-Length: 0\r\n\r\n" % len(other)
            )
        else:
            _range(connection, other, first)

    with Asks(right) as good_url, Asks(wrong) as wrong_url:
        part = world(good_url, wrong_url, sha256=SHA, trust=trust)
        _, errors, _, _ = heard()
    assert (errors, good(part)) == ([], True)
    assert firsts == [0, most]


# ------------------------------------------------------------------------------------------------------ true to the letter


def test_the_variable_that_wins_is_the_one_that_is_named(server, world, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    world(server.url("fine"))
    with pytest.raises(UserError) as stop:
        fetch()
    assert "`export http_proxy=http://HOST:PORT`" in stop.value.hint
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert request.proxy("http://a.b")[0] == "http_proxy"


@pytest.mark.parametrize(
    "value",
    ["https://huggingface.co:abc", "https://https://huggingface.co:abc", "http:/127.0.0.1", "https://a.b/?x=1", "https://a.b/#frag"],
)  # fmt: skip
def test_a_hint_for_the_hub_is_an_address_that_works(monkeypatch, value):
    monkeypatch.setenv("HF_ENDPOINT", value)
    with pytest.raises(UserError) as stop:
        sources.endpoint()
    assert (f"`{value}`" in stop.value.message, stop.value.hint) == (
        True,
        "write it as `https://huggingface.co`, or unset it",
    )


def test_a_server_without_ranges_is_not_said_to_change_its_file(world):
    answer = b"HTTP/1.1 416 No\r\nContent-Length: 0\r\n\r\n"
    with Raw(lambda connection, _: connection.sendall(answer)) as url:
        world(url, sha256=SHA)
        _, message, slept = fetch()
    assert ("HTTP 416" in message, "different files" in message, "other source" in message, slept) == (
        True,
        False,
        False,
        [],
    )


@pytest.mark.parametrize(
    "headers", [{"Retry-After": "1" + "0" * 12}, {"Retry-After": "9" * 400}, {"RateLimit": "t;t=" + "9" * 30}]
)
def test_whoever_asks_to_wait_for_years_is_not_asked_again_in_two_seconds(headers):
    assert answers.wait_asked(headers) == answers.NEVER


def test_what_came_without_a_length_is_taken_as_the_hint_says(world, tmp_path):
    """Nothing tells that it is all of the file: asking again ends in the same way."""
    answer = b"HTTP/1.1 200 OK\r\n\r\n" + b"\x93" + DATA
    with Raw(lambda connection, _: connection.sendall(answer)) as url:
        part = world(url, kind="dataset", file="file.bin")
        _, message, _ = fetch()
        assert "the same command goes on" not in message
        assert f"`purebench fetch net --from {part.beside('.part')}` takes it" in message
        assert fetch(given=part.beside(".part"))[0] == "fetched"
    assert part.file.read_bytes() == b"\x93" + DATA


def test_a_download_of_a_replaced_file_is_taken_as_the_hint_says(server, world):
    part = world(server.url("fine"))
    part.file.parent.mkdir(parents=True)
    part.beside(".lock.json").write_text(json.dumps({"sha256": "0" * 64, "size": len(DATA)}))
    assert f"delete `{part.beside('.lock.json')}`, and the same command takes the new one" in fetch()[1]
    part.beside(".lock.json").unlink()
    assert fetch()[0] == "fetched"


@pytest.mark.parametrize("head", [b"5;x=", b"%x\r\n%s\r\n0\r\nX-Slow: " % (len(DATA), DATA)], ids=["chunk", "trailer"])
@pytest.mark.parametrize("kind", ["application/zip", "text/html"])
def test_what_frames_a_body_and_never_ends_is_left(server, world, monkeypatch, head, kind):
    """Each byte of it keeps the library's own limit, and none is one of the file's."""
    monkeypatch.setattr(answers, "PAGE_TIME", 0.3)
    monkeypatch.setattr(check, "TIMEOUT", (0.1, 0.2))
    monkeypatch.setattr(download, "LOOK", 0.1)
    monkeypatch.setattr(download, "STUCK", 30)
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nTransfer-Encoding: chunked\r\n\r\n%s" % (kind.encode(), head)
    with _drip(answer, b"", 0.05) as url:
        part = world(url, server.url("fine"), sha256=SHA)
        clock = Quick(100)
        show = SERVERS.Heard(clock)
        _, errors = fetching.fetch(["net"], clock=clock, show=show)
        assert (errors, good(part)) == ([], True)
        if head == b"5;x=" and kind != "text/html":
            assert any("nothing of the file came for 30 s" in line for line in show.lines)
        assert len(list(check.answers(check.questions(["net"]), clock))) == 2


@pytest.mark.parametrize(
    ("body", "called"),
    [(b"<Error><Code>SlowDown</Code></Error>", "an XML text"), (b"<html><title>Log in</title></html>", "an HTML page")],
)
def test_why_a_store_refuses_is_no_page(world, body, called):
    body = b'<?xml version="1.0"?>' + body
    with Raw(
        lambda connection, _: connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    ) as url:
        world(url)
        assert f"it sends {called} instead of the file" in fetch()[1]


# ------------------------------------------------------------------------------------------------ what a part is held to


def _answer(status, headers, body=b""):
    lines = "".join(f"{key}: {value}\r\n" for key, value in headers.items())
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode("latin-1") + body


OLD, HALF = payload(len(DATA), 4), len(DATA) // 2


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}, {"Last-Modified": "Tue, 02 Jan 2024 00:00:00 GMT"}),
        ({"ETag": 'W/"a"', "Last-Modified": "Mon, 01 Jan 2024"}, {"ETag": 'W/"b"', "Last-Modified": "Mon, 01 Jan 2024"}),
        ({"ETag": 'W/"a"'}, {"ETag": 'W/"a"'}), ({}, {}), ({"ETag": '"a"'}, {"ETag": '"a"'}), ({"ETag": '"a"'}, {"ETag": '"b"'}),
    ],
    ids=["date", "weak", "weak, the same", "none", "strong, the same", "strong"],
)  # fmt: skip
def test_a_replaced_file_is_not_glued_on_whatever_its_marks_say(world, first, then):
    """After a break the file is another one of the same size, If-Range is ignored, and no hash is known."""

    def answer(connection, _, begin):
        if begin:
            about = {"Content-Range": f"bytes {begin}-{len(DATA) - 1}/{len(DATA)}", "Content-Length": len(DATA) - begin}
            connection.sendall(_answer("206 P", about | then, DATA[begin:]))
        else:
            connection.sendall(_answer("200 OK", {"Content-Length": len(DATA)} | first, OLD[:HALF]))

    with Asks(answer) as url:
        part = world(url)
        assert (fetch()[0], part.file.exists(), part.lock()) == ("failed", False, {})


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("bytes 5-9/10", (5, 9, 10)), ("bytes 5-9/*", (5, 9, None)), ("bytes */10", (None, None, 10)), ("Bytes 0-0/1", (0, 0, 1)),
        *[(text, (None, None, None)) for text in ("bytes 9-5/10", "bytes 5-10/10", "bytes -5/10", "items 5-9/10", "bytes \xb2-9/10", "")],
        ("bytes 0-1/" + "1" * 5000, (0, 1, None)), ("bytes 0-" + "1" * 5000 + "/*", (None, None, None)),
    ],
)  # fmt: skip
def test_what_a_content_range_says(text, found):
    assert download._range(text) == found


@pytest.mark.parametrize("ends", [True, False])
def test_a_part_is_held_to_the_size_that_was_said_first(world, ends):
    """`bytes 150000-299999/*`, in chunks that end cleanly 50 kB too early, or at the size that the first answer said. Its own
    format says nothing of its end."""
    data = bytes(9) + DATA

    def answer(connection, _, begin):
        if not begin:
            connection.sendall(_answer("200 OK", {"Content-Length": len(data), "ETag": '"a"'}, data[:HALF]))
            return
        body = data[begin : None if ends else 250_000]
        about = {"Content-Range": f"bytes {begin}-{len(data) - 1}/*", "Transfer-Encoding": "chunked", "ETag": '"a"'}
        connection.sendall(_answer("206 P", about, b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)))

    with Asks(answer) as url:
        part = world(url, kind="dataset")
        state = fetch()[0]
        whole = part.file.exists() and part.file.read_bytes() == data
        assert (state, whole, part.file.exists(), bool(part.lock())) == (
            ("fetched" if ends else "failed"),
            ends,
            ends,
            ends,
        )


def test_a_server_that_gives_a_part_at_a_time_gives_the_whole(world):
    def answer(connection, _, begin):
        end = min(begin + 80_000, len(DATA))
        about = {"Content-Range": f"bytes {begin}-{end - 1}/{len(DATA)}", "Transfer-Encoding": "chunked", "ETag": '"a"'}
        # More than it says is no part of it.
        body = DATA[begin:end] + b"junk"
        connection.sendall(_answer("206 P", about, b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)))

    with Asks(answer) as url:
        part = world(url)
        _, errors, said, _ = heard()
        assert (errors, good(part), "no more than 80 kB of it at once" in said) == ([], True, True)


@pytest.mark.parametrize("key", ["ETag", "Last-Modified"])
def test_machines_with_marks_of_their_own_behind_one_address_give_one_file(world, key):
    """Each breaks off after 4/5 of it; the hash is known."""
    sent = []

    def answer(connection, turn, begin):
        mark, text = f'"node {turn % 2}"', asks.said
        if begin and ("If-Range" not in text or mark in text):
            about = {"Content-Range": f"bytes {begin}-{len(DATA) - 1}/{len(DATA)}", "Content-Length": len(DATA) - begin}
            connection.sendall(_answer("206 P", about | {key: mark}, DATA[begin:]))
        else:
            connection.sendall(_answer("200 OK", {"Content-Length": len(DATA), key: mark}, DATA[:240_000]))
        sent.append(begin)

    asks = Asks(answer)
    with asks as url:
        part = world(url, sha256=SHA, trust="publisher")
        assert (fetch()[0], good(part), len(sent)) == ("fetched", True, 3)


@pytest.mark.parametrize(
    "note",
    [
        {"validator": 5, "size": len(DATA)},
        {"validator": None, "size": "9"},
        {"validator": ["a"], "size": 2.0},
        {"url": 5},
    ],
)
def test_what_another_version_noted_of_a_part_is_no_obstacle(server, world, note):
    part = world(server.url("fine"))
    part.file.parent.mkdir(parents=True)
    part.beside(".part").write_bytes(DATA[:HALF])
    part.beside(".part.json").write_text(json.dumps({"url": server.url("fine")} | note))
    assert (fetch()[0], good(part)) == ("fetched", True)


def test_a_body_far_beyond_what_is_known_of_the_file_is_cut(world):
    sent = []

    def answer(connection, _):
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(4000):
            connection.sendall(bytes(1 << 16))
            sent.append(1)

    with Raw(answer) as url:
        for facts in ({}, {"sha256": SHA}):
            part = world(url, about=len(DATA), **facts)
            state, message, _ = fetch()
            assert (state, "without an end" in message, part.beside(".part").exists()) == ("failed", True, False)
    assert len(sent) < 4000


@pytest.mark.parametrize(
    "headers", [{"Content-Length": "\xb2"}, {"Content-Length": "1" * 5000}, {"Content-Length": " "}]
)
def test_a_length_that_is_no_number_is_none(world, headers):
    with Raw(lambda connection, _: connection.sendall(_answer("200 OK", headers, DATA))) as url:
        part = world(url, sha256=SHA)
        assert (fetch()[0], good(part)) == ("fetched", True)
        assert [answer.size for answer in check.answers(check.questions(["net"]), Quick())] == [None]


def test_a_source_that_says_it_has_more_than_the_disk_does_not_stop_the_next(server, world):
    with Raw(lambda connection, _: connection.sendall(_answer("200 OK", {"Content-Length": 10**15}, DATA))) as url:
        part = world(url, server.url("fine"), sha256=SHA)
        _, errors, said, _ = heard()
        assert (errors, good(part), "no space for what it says" in said) == ([], True, True)


@pytest.mark.parametrize(
    ("name", "word", "refused"),
    [
        ("a.tgz", "x-gzip", False), ("a.tar.GZ", "gzip", False), ("a.pt", "Identity", False), ("a.pt", "aws-chunked", False),
        ("a.pt", "binary", False), ("a.pt", "", False), ("a.pt", "GZIP", True), ("a.pt", "identity, br", True), ("a.gz", "br", True),
    ],
)  # fmt: skip
def test_a_word_that_is_no_compression_makes_no_other_bytes(world, name, word, refused):
    with Raw(
        lambda connection, _: connection.sendall(
            _answer("200 OK", {"Content-Length": len(DATA), "Content-Encoding": word}, DATA)
        )
    ) as url:
        world(url, file=name, sha256=SHA, trust="publisher")
        assert (fetch()[0] == "failed") == refused


@pytest.mark.parametrize(
    ("url", "printed"),
    [
        ("http://me:s3cret@h/a/b?x=1", "http://h/a/b?x=1"), ("https://h/@me/x", "https://h/@me/x"),
        ("me:s3cret@hub.example", "hub.example"),
        ("http://me:a/s3cret@host/x", "http://host/x"), ("http://h:80/a@b", "http://h:80/a@b"), ("/x?sig=s3cret&id=1", "/x?sig=..&id=1"),
        ("https://h/f?X-Amz-Signature=s3cret&id=K", "https://h/f?X-Amz-Signature=..&id=K"), ("https://https://me:s3cret@h", "https://h"),
        ("me:s3cret@h/a//b", "h/a//b"),
    ],
)  # fmt: skip
def test_how_an_address_is_printed(url, printed):
    assert sources.shown(url) == printed


def test_a_password_is_in_no_message_of_any_command(server, world, monkeypatch):
    """The hub's own 404, where a source leads to, and what is no table in the user's registry."""
    monkeypatch.setenv("HF_ENDPOINT", server.url("missing").removesuffix("/file.pt").replace("//", "//me:s3cret@"))
    where = server.url("sneaky-html").replace("//", "//me:s3cret@")
    with Raw(
        lambda connection, _: connection.sendall(
            _answer("301 M", {"Location": where + "?sig=s3cret", "Content-Length": 0})
        )
    ) as url:
        world({"hf": "me/repo"}, url, {"manual": where}, {"http": where.replace("sneaky-html", "missing")})
        said = [*fetch()[:2], *heard()[2:3]]
        said += [repr(answer) for answer in check.answers(check.questions(["net"]), Quick())]
    assert "HTTP 404" in said[1] or "HTTP 404" in said[2]
    monkeypatch.setenv("HF_ENDPOINT", "me:s3cret@hub.example")
    with pytest.raises(UserError) as stop:
        sources.endpoint()
    said.append(str(stop.value))
    assert "https://NAME:PASSWORD@hub.example" in said[-1]
    assert any("moved for good to http://127.0.0.1" in line for line in said)
    assert "s3cret" not in "".join(said)


def test_what_a_page_says_steers_no_terminal(world):
    page = b"<html><title>\x1b[2J\x1b]0;mine\x07hi &#27;[1m</title>"
    with Raw(lambda connection, _: connection.sendall(_answer("200 OK", {"Content-Type": "text/html"}, page))) as url:
        world(url)
        message = fetch()[1]
    assert ("hi" in message, "\x1b" in message, "\x07" in message) == (True, False, False)
