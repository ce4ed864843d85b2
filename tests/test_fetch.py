"""The registry, and downloads from a server that misbehaves: whatever happens, no bad file ever has the good file's name."""

import errno
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
import warnings
import zipfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from misbehaving import Quick, Server, payload

from purebench import assets, networks
from purebench.assets import archives, bars, disk, download, readers, sources, verified
from purebench.assets import fetch as fetching
from purebench.errors import DOWNLOAD, USAGE, UserError
from purebench.running import storage

DATA = payload(300_000)
SHA, MD5 = hashlib.sha256(DATA).hexdigest(), hashlib.md5(DATA).hexdigest()
PUREBENCH = [sys.executable, "-c", "from purebench.cli import main; main()"]


@pytest.fixture
def server():
    with Server(DATA) as running:
        yield running


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A cache and a registry of its own: `world(sources..., sha256=..)` writes the asset `net` and gives its Part."""
    monkeypatch.setenv("PUREBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PUREBENCH_CHECKPOINTS", str(tmp_path / "checkpoints.toml"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def write(*sources, **facts):
        facts = {
            "kind": "classifier",
            "file": "file.pt",
            "licence": "MIT",
            "trust": "first-use",
            "summary": "a net",
        } | facts
        lines = [
            f"{key.replace('_', '-') if key.startswith('sha256_') else key} = {_toml(v)}" for key, v in facts.items()
        ]
        rows = [s if isinstance(s, dict) else {"http": s} for s in sources]
        text = "[assets.net]\n" + "\n".join(lines) + f"\nsources = [{', '.join(map(_toml, rows))}]\n"
        (tmp_path / "checkpoints.toml").write_text(text)
        return assets.parts("net")[0] if assets.parts("net") else None

    return write


def _toml(value):
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + " }"
    return json.dumps(value)


def fetch(**options):
    """(state, error text or "", seconds slept)."""
    clock = Quick()
    rows, wrong = fetching.fetch(["net"], clock=clock, show=bars.Quiet(), **options)
    assert all(error.code == DOWNLOAD for error in wrong)
    return rows[0]["state"], "".join(f"{e.message} {e.hint}" for e in wrong), clock.slept


def good(part):
    return part.file.is_file() and part.file.read_bytes() == DATA and not list(part.file.parent.glob("*.part*"))


# -------------------------------------------------------------------------------------------------------- a server misbehaves


def test_a_download_is_verified_locked_and_then_left_alone(server, world):
    part = world(server.url("fine"), sha256=SHA, md5=MD5, size=len(DATA), trust="publisher")
    assert fetch() == ("fetched", "", [])
    assert good(part)
    lock = json.loads(part.beside(".lock.json").read_text())
    assert (lock["sha256"], lock["size"], lock["source"], lock["trust"]) == (
        SHA,
        len(DATA),
        server.url("fine"),
        "publisher",
    )
    assert (assets.present("net"), assets.digest("net"), assets.need("net")) == (True, SHA, part.file)
    assert fetch() == ("present", "", [])
    assert server.gets == {"fine": 1}


@pytest.mark.parametrize("kind", ["cut", "weak"])
@pytest.mark.parametrize("hashes", [{}, {"sha256": SHA}])
def test_a_cut_connection_is_resumed_and_no_byte_is_sent_twice(server, world, kind, hashes):
    part = world(server.url(kind), **hashes)
    assert fetch()[0] == "fetched"
    assert good(part)
    assert server.gets[kind] == 3
    # Without a mark of the version, or a hash that finds out whether it was true, the last bytes are compared.
    assert server.sent[kind] == len(DATA) + (2 * download.OVERLAP if kind == "weak" or not hashes else 0)


@pytest.mark.parametrize(("kind", "waits"), [("busy", [3, 3]), ("busy-date", [7, 7])])
def test_a_busy_server_is_asked_again_when_it_says(server, world, kind, waits):
    part = world(server.url(kind), sha256=SHA)
    state, _, slept = fetch()
    assert state == "fetched"
    assert slept == pytest.approx(waits, abs=1.5)
    assert good(part)


def test_a_server_that_stays_busy_is_given_up_for_the_next(server, world):
    part = world(server.url("dead-busy"), server.url("fine"), sha256=SHA)
    assert fetch()[0] == "fetched"
    assert server.gets["dead-busy"] == 1  # nobody waits where another has the file whose hash is known
    assert good(part)


BAD = {  # behaviour -> what is said of it where the size is known, and where it is not
    "html": ("HTML page (`Sign in`)",) * 2, "sneaky-html": ("1,022 bytes", "HTML page"), "wrong": ("sha256",) * 2,
    "short": ("150,000 bytes", "sha256"), "long": ("600,000 bytes", "connection broke"), "endless": ("bytes, not", "sha256"),
    "empty": ("empty",) * 2, "missing": ("HTTP 404",) * 2, "dead-busy": ("503",) * 2,
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("size", [True, False])
def test_what_is_not_the_file_never_gets_its_name_and_the_next_mirror_is_tried(server, world, kind, size):
    facts = {"sha256": SHA} | ({"size": len(DATA)} if size else {})
    part = world(server.url(kind), **facts)
    state, message, _ = fetch()
    assert state == "failed"
    assert server.url(kind) in message
    assert str(part.file) in message
    assert BAD[kind][not size] in message
    assert not part.file.exists()
    assert not assets.present("net")
    part = world(server.url(kind), server.url("fine"), **facts)
    assert fetch()[0] == "fetched"
    assert good(part)


@pytest.mark.parametrize("kind", ["html", "sneaky-html", "empty", "missing"])
def test_without_any_hash_pages_are_still_refused(server, world, kind):
    part = world(server.url(kind))
    assert fetch()[0] == "failed"
    assert not part.file.exists()


def test_without_any_hash_a_network_must_look_like_one(server, world):
    server.data = b'{"error": "come back later"}'
    part = world(server.url("fine"))
    assert "neither a zip nor a pickle" in fetch()[1]
    assert not part.file.exists()


def test_a_body_in_chunks_of_unsaid_length_is_fine(server, world):
    part = world(server.url("chunked"))
    assert fetch()[0] == "fetched"
    assert good(part)


def test_a_server_that_ignores_range_starts_the_file_over(server, world):
    part = world(server.url("norange"), sha256=SHA)
    assert fetch()[0] == "fetched"
    assert good(part)


def test_a_file_that_changed_meanwhile_is_not_glued_together(server, world):
    part = world(server.url("changed"))
    assert fetch()[0] == "fetched"
    assert good(part)


def test_mirrors_continue_each_other_only_under_a_known_hash(server, world):
    # The last bytes of what there was are asked for again, to see whether it is the same file.
    rest = 150_000 + download.OVERLAP
    for facts, sent in ({"sha256": SHA}, rest), ({"md5": MD5}, rest), ({}, len(DATA)):
        part = world(server.url("fine"), **facts)
        part.file.parent.mkdir(parents=True, exist_ok=True)
        part.beside(".part").write_bytes(DATA[:150_000])
        part.beside(".part.json").write_text(json.dumps({"url": "http://elsewhere/", "validator": "", "size": None}))
        server.sent.clear()
        assert fetch()[0] == "fetched"
        assert good(part)
        assert server.sent["fine"] == sent
        shutil.rmtree(part.file.parent)


def test_a_bad_beginning_does_not_condemn_the_good_mirror(server, world):
    part = world(server.url("fine"), sha256=SHA)
    part.file.parent.mkdir(parents=True)
    part.beside(".part").write_bytes(b"\x80" * 1000)
    part.beside(".part.json").write_text(json.dumps({"url": "http://elsewhere/", "validator": "", "size": None}))
    assert fetch()[0] == "fetched"
    assert good(part)


def test_drives_scan_warning_is_passed_once(server, world, monkeypatch):
    monkeypatch.setattr(sources, "DRIVE", server.url("drive-scan") + "?id={}")
    part = world({"gdrive": "KEY"}, sha256=SHA)
    assert fetch()[0] == "fetched"
    assert good(part)
    assert server.asked[-1][1].endswith("file.pt?id=a%26b&confirm=t")


def test_drives_quota_page_sends_the_user_to_a_browser(server, world, monkeypatch):
    for name in ("DRIVE", "DRIVE_BEFORE"):
        monkeypatch.setattr(sources, name, server.url("drive-quota") + "?id={}")
    part = world({"gdrive": "KEY"}, {"gdrive-folder": "FOLDER"})
    state, message, _ = fetch()
    assert state == "failed"
    for words in (
        "quota",
        "https://drive.google.com/file/d/KEY/view",
        "folders/FOLDER",
        str(part.file),
        "fetch net --from FILE",
    ):
        assert words in message
    assert not part.file.exists()


def test_no_network_is_one_message_that_names_every_source(world):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    world(f"http://127.0.0.1:{port}/a/file.pt", f"http://127.0.0.1:{port}/b/file.pt")
    state, message, _ = fetch()
    assert state == "failed"
    assert message.count("no connection (Connection refused)") == 2


@pytest.mark.parametrize(
    "head", [b"<!DOCTYPE html>", b"\xef\xbb\xbf \r\n<HTML>", b"<!-- a proxy --><html>", b"<?xml version", b"\n<head>"]
)
def test_a_page_is_known_by_its_beginning_wherever_it_is_met(server, world, tmp_path, head):
    server.data = head + DATA
    part = world(server.url("fine"))
    called = "an XML text" if b"xml" in head else "an HTML page"
    assert f"it sends {called} instead of the file" in fetch()[1]
    assert not part.file.exists()
    (tmp_path / "page").write_bytes(server.data)
    assert assets.wrong_bytes(tmp_path / "page") == "it begins with an HTML page"
    with pytest.raises(UserError, match="it begins with an HTML page"):
        readers.state(tmp_path / "page", "edm-pickle")


# ------------------------------------------------------------------------------------------------------- processes, and the disk


def test_a_killed_fetch_goes_on_where_it_stopped(world):
    with Server(DATA) as server:
        part = world(server.url("slow"), sha256=SHA)
        process = subprocess.Popen([*PUREBENCH, "fetch", "net"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        wait_for(lambda: part.beside(".part").is_file() and part.beside(".part").stat().st_size > 100_000)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept = part.beside(".part").stat().st_size
        assert not part.file.exists()
        server.pause = 0
        assert fetch()[0] == "fetched"
        assert good(part)
        assert [headers.get("Range") for _, _, headers in server.asked] == [None, f"bytes={kept}-"]


def test_an_interrupted_fetch_says_what_it_kept_and_exits_130(world):
    with Server(DATA) as server:
        part = world(server.url("slow"))
        process = subprocess.Popen(
            [*PUREBENCH, "fetch", "net"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        wait_for(lambda: part.beside(".part").is_file() and part.beside(".part").stat().st_size > 50_000)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        assert process.returncode == 130, err
        assert "kept" in err
        assert "Traceback" not in err
        assert out == ""
        assert part.beside(".part").stat().st_size > 50_000


def test_three_processes_make_one_request(world):
    with Server(DATA) as server:
        part = world(server.url("slow"))
        command = [*PUREBENCH, "fetch", "net", "--json"]
        running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for _ in range(3)]
        states = [json.loads(process.communicate(timeout=30)[0])[0]["state"] for process in running]
        assert sorted(states) == ["fetched", "present", "present"]
        assert server.gets["slow"] == 1
        assert good(part)


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_too_little_space_is_said_before_anything_is_asked_for(server, world, monkeypatch):
    world(server.url("fine"), size=len(DATA))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=len(DATA)))
    with pytest.raises(UserError, match="no space") as stop:
        fetch()
    assert stop.value.code == DOWNLOAD
    assert not server.gets
    world(server.url("fine"))  # the size is first learnt from the server
    assert "no space" in fetch()[1]


def test_a_disk_that_fills_up_keeps_what_came(server, world, monkeypatch):
    part = world(server.url("fine"), sha256=SHA)
    real = disk.write

    def write(file, piece):
        real(file, piece[:5_000])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk, "write", write)
    state, message, _ = fetch()
    assert (state, "no space" in message) == ("failed", True)
    assert part.beside(".part").stat().st_size == 5_000
    assert not part.file.exists()
    monkeypatch.setattr(disk, "write", real)
    assert fetch()[0] == "fetched"
    assert good(part)


# ------------------------------------------------------------------------------------------------------------ what is there


@pytest.mark.parametrize("content", [b"", DATA[:1000], b"<!DOCTYPE html><html>virus scan</html>"])
@pytest.mark.parametrize("known", [{"sha256": SHA, "size": len(DATA)}, {"sha256": SHA}, {"sha256_prefix": SHA[:8]}])
def test_a_bad_file_that_lies_there_is_set_aside(server, world, content, known):
    part = world(server.url("fine"), **known)
    part.file.parent.mkdir(parents=True)
    part.file.write_bytes(content)
    assert fetch()[0] == "fetched"
    assert good(part)
    assert part.beside(".bad").read_bytes() == content


def test_what_is_missing_is_said_by_whoever_needs_it(world):
    part = world("http://127.0.0.1/file.pt", size=len(DATA))
    for content in (None, b"", DATA[:-1], b"<html>"):
        if content is not None:
            part.file.parent.mkdir(parents=True, exist_ok=True)
            part.file.write_bytes(content)
        assert not assets.present("net")
        with pytest.raises(UserError, match=r"not in the cache .*300 kB, licence: MIT") as stop:
            assets.need("net")
        assert (stop.value.code, stop.value.hint) == (DOWNLOAD, "`purebench fetch net`")


def test_a_file_put_there_by_hand_is_verified_and_adopted(server, world):
    part = world(server.url("fine"), sha256=SHA)
    part.file.parent.mkdir(parents=True)
    part.file.write_bytes(DATA)
    assert fetch()[0] == "present"
    assert (server.gets, part.lock()["sha256"]) == ({}, SHA)


def test_the_first_download_is_pinned(server, world):
    part = world(server.url("fine"))
    fetch()
    assert (part.lock()["sha256"], part.lock()["trust"], assets.digest("net")) == (SHA, "first-use", SHA)
    part.file.unlink()
    server.data = payload(len(DATA), 1)
    state, message, _ = fetch()
    assert (state, "was pinned" in message, str(part.beside(".lock.json")) in message) == ("failed", True, True)
    assert not part.file.exists()
    part.beside(".lock.json").unlink()
    assert fetch()[0] == "fetched"


def test_from_a_file(server, world, tmp_path):
    part = world(server.url("fine"), sha256=SHA, size=len(DATA))
    (tmp_path / "downloaded").write_bytes(DATA[:-1] + bytes([DATA[-1] ^ 1]))
    state, message, _ = fetch(given=tmp_path / "downloaded")
    assert (state, "sha256" in message, part.file.exists()) == ("failed", True, False)
    (tmp_path / "downloaded").write_bytes(DATA)
    assert fetch(given=tmp_path / "downloaded", offline=True)[0] == "fetched"
    assert good(part)
    assert (tmp_path / "downloaded").is_file()
    for wrong in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(UserError) as stop:
            fetch(given=wrong)
        assert stop.value.code == USAGE
    assert not server.gets


def test_offline_opens_no_socket(world, monkeypatch):
    part = world("http://127.0.0.1:9/file.pt")

    def refuse(*_, **__):
        raise AssertionError("a socket")

    monkeypatch.setattr(socket, "socket", refuse)
    state, message, _ = fetch(offline=True)
    assert state == "failed"
    for words in ("not in the cache", "http://127.0.0.1:9/file.pt", str(part.file)):
        assert words in message
    part.file.parent.mkdir(parents=True, exist_ok=True)
    part.file.write_bytes(DATA)
    assert fetch(offline=True)[0] == "present"
    part.beside(".lock.json").unlink()
    part.file.write_bytes(b"")
    assert fetch(offline=True)[0] == "failed"


def test_what_was_never_released_names_its_stand_in(world):
    world(released=False, stand_in="net-2", note="the authors kept it", file="x")
    facts = Path(os.environ["PUREBENCH_CHECKPOINTS"])
    facts.write_text(facts.read_text().replace('file = "x"\n', ""))
    state, message, _ = fetch()
    assert (state, "never released: the authors kept it" in message, "`net-2`" in message) == ("failed", True, True)
    with pytest.raises(UserError, match="never released"):
        assets.need("net")


@pytest.mark.parametrize("inside", [hashlib.md5(b"one").hexdigest(), "0" * 32])
def test_an_archive_is_unpacked_in_one_step_or_not_at_all(server, world, inside):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        info = tarfile.TarInfo("batches/one")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"one"))
    server.data = packed.getvalue()
    md5 = hashlib.md5(server.data).hexdigest()
    part = world(server.url("fine"), kind="dataset", file="a.tar.gz", unpack="batches", md5=md5, inside={"one": inside})
    state, message, _ = fetch()
    folder = Path(os.environ["PUREBENCH_CACHE"]) / "data" / "batches"
    assert assets.path("net") == folder
    if inside.startswith("0"):
        assert (state, "missing or another file" in message, folder.exists()) == ("failed", True, False)
        assert not assets.present("net")
    else:
        assert (state, (folder / "one").read_bytes(), part.file.exists()) == ("fetched", b"one", False)
        assert fetch()[0] == "present"
        assert assets.digest("net") == hashlib.sha256(server.data).hexdigest()


def test_an_archive_cannot_write_outside(server, world, tmp_path):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        info = tarfile.TarInfo("../../escaped")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"one"))
    server.data = packed.getvalue()
    world(server.url("fine"), kind="dataset", file="a.tar", unpack="batches")
    assert "cannot be unpacked" in fetch()[1]
    assert not list(tmp_path.rglob("escaped"))


def test_an_environment_variable_says_where_an_asset_lies(world, tmp_path, monkeypatch):
    world()
    monkeypatch.setenv("PUREBENCH_NET", str(tmp_path / "mine"))
    with pytest.raises(UserError, match="environment"):
        assets.need("net")
    (tmp_path / "mine").write_bytes(DATA)
    assert (assets.need("net"), assets.digest("net"), fetch()[0]) == (tmp_path / "mine", SHA, "present")


# ------------------------------------------------------------------------------------------------------------ the command


def test_the_command_tells_plan_and_outcome(server, world):
    world(server.url("fine"), size=len(DATA), sha256=SHA, non_commercial=True)
    run = subprocess.run([*PUREBENCH, "fetch", "net", "--json"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert [(row["state"], row["sha256"]) for row in json.loads(run.stdout)] == [("fetched", SHA)]
    for words in ("300 kB", "MIT", "non-commercial", "127.0.0.1", "next: "):
        assert words in run.stderr
    assert "\033" not in run.stderr
    world(server.url("missing"), file="other.pt")
    run = subprocess.run([*PUREBENCH, "fetch", "net"], capture_output=True, text=True)
    assert (run.returncode, "error: could not fetch" in run.stderr, "hint: " in run.stderr) == (DOWNLOAD, True, True)
    assert "Traceback" not in run.stderr
    run = subprocess.run([*PUREBENCH, "fetch", "nett"], capture_output=True, text=True)
    assert (run.returncode, "did you mean `net`" in run.stderr) == (USAGE, True)
    run = subprocess.run([*PUREBENCH, "fetch", "net", "--dry-run", "--json"], capture_output=True, text=True)
    assert (run.returncode, json.loads(run.stdout)[0]["state"], server.gets["missing"]) == (0, "to fetch", 1)


# ------------------------------------------------------------------------------------------------------------ the registry

GENERAL = {
    "score-sde-cifar10-vp", "score-sde-cifar10-ve", "score-sde-cifar100-vp", "edm-cifar10-uncond-vp", "edm-cifar10-cond-vp",
    "edm-cifar10-uncond-ve", "edm-imagenet64-cond-adm", "edm-baseline-cifar10-uncond-vp", "guided-diffusion-imagenet256-uncond",
    "guided-diffusion-imagenet256-classifier", "improved-diffusion-cifar10-uncond", "ddpm-cifar10-ema", "ddpm-cifar10-raw",
    "hf-google-ddpm-cifar10-32", "ddpm-celebahq-sdedit", "ncsnv2-cifar10", "adp-ncsnv2", "ebm-hill-cifar10", "ebm-hill-clf-cifar10",
    "diffpure-wrn-70-16-dropout", "diffpure-wideresnet-70-16", "diffpure-cifar10-resnet50", "gan-ensembling-celebahq-attr",
    "scoreopt-clf", "gdmp-wrn-28-10-drop", "torchvision-resnet50-v1", "torchvision-resnet152-v1", "torchvision-wide_resnet50_2-v1",
    "torchvision-resnet18-v1", "torchvision-resnet101-v1", "deit-s", "data-cifar10", "data-cifar100", "data-mnist",
    "data-fashionmnist", "data-cifar10-c", "data-cifar100-c", "data-imagenet-val", "data-tiny-imagenet", "data-celebahq",
    "data-svhn-test",
}  # fmt: skip
KNOWN = {  # asset -> what its hashes must begin with
    "guided-diffusion-imagenet256-uncond": (
        "a37c32fffd316cd494cf3f35b339936debdc1576dad13fe57c42399a5dbc78b1",
        "fd9dd2335b8736d5",
    ),
    "score-sde-cifar10-vp": ("db26ca82b7ea36b75199abf6ed94339d",),
    "edm-cifar10-uncond-vp": ("4d5dcc1f1d0d41c8934ad21626eeddbdc0460182becf9fc059a0631b1eedb4da",),
    "ddpm-cifar10-ema": ("1fa350b952534ae442b1d5235cce5cd3",),
    "ddpm-celebahq-sdedit": ("6cbb630eb856ff3ebe4854fe87af3c21a052765678955999db97ea15b5eeb8a5",),
    "diffpure-wrn-70-16-dropout": ("8b9579d9a1bdeb809aee2289993b00a8",),
    "torchvision-resnet50-v1": ("0676ba61",),
    "data-cifar10": ("c58f30108f718f92721af3b95e74349a",),
    "data-cifar10-c": ("56bf5dcef84df0e2308c6dcbcbbd8499", "c72763e101c723b7"),
}
ROBUSTBENCH = {  # some of its identifiers -> Drive
    "cifar10/Linf/Standard": "1t98aEuzeTL8P7Kpd5DIrCoCL21BNZUhC",
    "cifar10/Linf/Carmon2019Unlabeled": "15tUx-gkZMYx7BfEOw1GY5OKC-jECIsPQ",
    "cifar10/L2/Ding2020MMA": "13wgY0Q_eor52ltZ0PkfJx5BCZ8cLM52E",
    "cifar100/Linf/Wang2023Better_WRN-70-16": "1-yYcT73GP13c0y9HrgtpyB3NAfkGKgjY",
    "imagenet/Linf/Salman2020Do_50_2": "1OT7xaQYljrTr3vGbM37xK9SPoPJvbSKB",
}


def test_the_registry_holds_every_asset_and_no_other():
    names = set(assets.table())
    zoo = {name for name in names if name.startswith("robustbench/")}
    assert names - zoo == GENERAL | {"digits-classifier", "digits-score", "cifar10-score"}
    assert len(GENERAL) == 41
    assert len(zoo) == 45
    folders = Counter(name.rpartition("/")[0].removeprefix("robustbench/") for name in zoo)
    assert folders == {
        "cifar10/Linf": 19,
        "cifar10/L2": 16,
        "cifar10/corruptions": 1,
        "cifar100/Linf": 3,
        "imagenet/Linf": 6,
    }


def test_known_hashes_sizes_and_identifiers():
    for name, hashes in KNOWN.items():
        held = [assets.entry(name).get(kind, "") for kind in assets.HASHES]
        assert all(any(h.startswith(start) for h in held) for start in hashes), name
    for name, key in ROBUSTBENCH.items():
        assert [source["gdrive"] for source in assets.entry(f"robustbench/{name}")["sources"]] == [key]
        dataset, threat, identifier = name.split("/")
        assert (
            assets.path(f"robustbench/{name}")
            == assets.cache_folder() / "models" / dataset / threat / f"{identifier}.pt"
        )
    assert assets.entry("score-sde-cifar10-vp")["size"] == 1707310559
    assert assets.entry("guided-diffusion-imagenet256-uncond")["size"] == 2211383297


@pytest.mark.parametrize("name", sorted(assets.table()))
def test_an_entry_is_complete(name):
    facts = assets.entry(name)
    assert {"summary", "kind", "sources", "trust", "licence", "format", "input"} <= set(facts)
    assert facts["kind"] in ("score", "classifier", "dataset")
    assert facts["trust"] in ("publisher", "code", "crowd", "third-party", "first-use", "ours")
    assert facts["kind"] == "dataset" or {"network", "architecture"} & set(facts)
    assert "network" not in facts or facts["network"] in networks.FAMILIES
    assert (
        not any(word in facts["licence"] for word in ("NC", "NVIDIA Source", "CelebA terms")) or facts["non_commercial"]
    )
    assert facts.get("stand_in", "data-cifar10") in assets.table()
    assert facts.get("released", True) or "stand_in" in facts
    for part in assets.parts(name):
        hashed = [kind for kind in assets.HASHES if kind in part.facts]
        assert hashed or facts["trust"] == "first-use" or "by_hand" in facts or "md5-tree" in facts
        for kind in hashed:
            assert re.fullmatch(
                {"sha256": "[0-9a-f]{64}", "md5": "[0-9a-f]{32}", "sha256-prefix": "[0-9a-f]{8}"}[kind],
                part.facts[kind],
            )
        assert part.facts["sources"]
        for source in part.facts["sources"]:
            assert source.get("status", "unverified") in ("unverified", "dead", "other")
            assert fetching.browser(source, part.file.name).startswith("http")
    if "package" not in facts["sources"]:
        assert fetching.plan([name])[0]["state"] in ("present", "to fetch", "by hand", "never released")


def test_no_two_assets_share_a_file_or_a_variable():
    own = [name for name in assets.table() if "same_as" not in assets.entry(name)]
    files = Counter(part.file for name in own for part in assets.parts(name))
    results = Counter(part.result for name in own for part in assets.parts(name))
    assert set(files.values()) == set(results.values()) == {1}
    variables = Counter(map(assets.variable, assets.table()))
    assert set(variables.values()) == {1}
    assert not {"PUREBENCH_CACHE", "PUREBENCH_CHECKPOINTS"} & set(variables)


def test_sets_name_assets_and_cifar10_is_what_the_default_cell_needs():
    assert set(assets.sets()).isdisjoint(assets.table())
    assert all(name in assets.table() for names in assets.sets().values() for name in names)
    assert fetching.wanted(["cifar10", "data-cifar10"]) == [
        "data-cifar10",
        "score-sde-cifar10-vp",
        "robustbench/cifar10/Linf/Standard",
    ]
    assert {"diffpure", "coup", "scoreopt", "adp", "gdmp", "lee-kim", "cifar100", "mnist"} <= set(assets.sets())


# ----------------------------------------------------------------------------------------------- what nobody gave a hash of


def _zip(**members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/"), data)
    return out.getvalue()


@pytest.mark.parametrize(
    ("about", "state"), [(120_001, "fetched"), (749_999, "fetched"), (119_000, "failed"), (10**9, "failed")]
)
def test_a_file_far_from_its_known_size_is_neither_taken_nor_pinned(server, world, tmp_path, about, state):
    part = world(server.url("fine"), about=about)
    got, message, _ = fetch()
    assert (got, bool(part.lock()), part.file.exists()) == (state, state == "fetched", state == "fetched")
    assert ("is known to have about" in message) == (state == "failed")
    if state == "failed":
        (tmp_path / "mine").write_bytes(DATA)
        assert fetch(given=tmp_path / "mine")[0] == "failed"
        assert not part.lock()


def test_the_other_source_is_asked_for_a_file_of_the_known_size(world):
    with Server(_zip(archive__data=b"x" * 3000)) as small, Server(DATA) as right:
        part = world(small.url("fine"), right.url("fine"), about=310_000)
        assert fetch()[0] == "fetched"
        assert (good(part), small.sent["fine"] < 4000) == (True, True)


@pytest.mark.parametrize(
    "made", [_zip(), _zip(foo__one=b"1"), _zip(stuff__one=b"")], ids=["empty", "another", "no bytes"]
)
def test_an_archive_without_what_it_must_hold_is_not_pinned(server, world, made):
    server.data = made
    part = world(server.url("fine"), kind="dataset", file="a.zip", unpack="stuff")
    assert (fetch()[0], part.lock(), part.result.exists(), part.file.exists()) == ("failed", {}, False, False)


@pytest.mark.parametrize("known", [{}, {"sha256": SHA, "trust": "publisher"}])
@pytest.mark.parametrize("offline", [False, True])
def test_bytes_that_changed_in_the_cache_are_noticed(server, world, known, offline):
    part = world(server.url("fine"), **known)
    assert fetch()[0] == "fetched"
    # Only touched: it is looked at once and known again.
    os.utime(part.file, (1, 1))
    assert (fetch(offline=True)[0], part.changed(), part.lock()["source"]) == ("present", False, server.url("fine"))
    other = payload(len(DATA), 3)
    part.file.write_bytes(other)
    os.utime(part.file, (2, 2))
    assert assets.digest("net") == hashlib.sha256(other).hexdigest()
    assert fetch(offline=offline)[0] == ("failed" if offline else "fetched")
    assert (part.beside(".bad").read_bytes() == other, part.lock()["sha256"], part.file.exists()) == (
        True,
        SHA,
        not offline,
    )


@pytest.mark.parametrize("text", ["", "[]", '{"sha256": "831f", "size": 1}', "\x00" * 40])
def test_a_damaged_pin_is_not_dropped(server, world, tmp_path, text):
    part = world(server.url("fine"))
    assert fetch()[0] == "fetched"
    part.beside(".lock.json").write_text(text)
    (tmp_path / "mine").write_bytes(DATA)
    for options in ({}, {"offline": True}, {"given": tmp_path / "mine"}):
        state, message, _ = fetch(**options)
        assert (state, "pin of `net` is damaged" in message, part.beside(".lock.json").read_text()) == (
            "failed",
            True,
            text,
        )
    # Where the publisher's hash is known nothing is lost with it.
    world(server.url("fine"), sha256=SHA, trust="publisher")
    assert (fetch()[0], part.lock()["sha256"]) == ("present", SHA)


def test_a_hash_in_capitals_is_the_same_hash(server, world):
    part = world(
        server.url("fine"), sha256=SHA.upper(), md5=MD5.upper(), sha256_prefix=SHA[:8].upper(), trust="publisher"
    )
    assert (fetch()[0], good(part), assets.digest("net")) == ("fetched", True, SHA)


def test_what_the_user_brings_again_does_not_change_when_it_first_came(server, world, tmp_path):
    part = world(server.url("fine"))
    assert fetch()[0] == "fetched"
    before = {key: part.lock()[key] for key in ("source", "when", "sha256")}
    (tmp_path / "mine").write_bytes(DATA)
    time.sleep(1.1)
    assert fetch(given=tmp_path / "mine")[0] == "fetched"
    assert {key: part.lock()[key] for key in before} == before


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("licence = 7", "has `licence` = 7, which is not text"), ("", "has no `licence`"), ('size = "400000"', "`size` = '400000'"),
        ("size = 3.0", "`size` = 3.0"),
        ('sources = [{ htpp = "http://me:s3cret@a/b" }]', "has a source with htpp, and none of http"),
        ('sources = [{ github = "a/b" }]', "`github` and no `tag`"),
        ('sources = ["http://a/b"]', "'http://a/b', which is no table"), ('sources = "x"', "no list of tables"),
        ("sources = [{ http = 3 }]", "`http` is no text"), ('sha256 = "xyz"', "not 64 hexadecimal digits"),
        ('trust = "third party"', "not one of"),
        ('file = "../../x"', "`file` = '../../x', which is not a name below the cache"), ('folder = "/etc"', "below the cache"),
        ('files = [{ md5 = "" }]', "no `file` in one"), ('files = ["a"]', "no list of tables"),
    ],
)  # fmt: skip
def test_an_entry_of_the_users_that_is_wrong_is_one_message(world, tmp_path, line, says):
    world()
    facts = {
        "kind": '"score"',
        "summary": '""',
        "licence": '"MIT"',
        "trust": '"first-use"',
        "file": '"a"',
        "sources": "[]",
    }
    facts |= dict([line.split(" = ", 1)]) if line else {}
    if not line:
        del facts["licence"]
    (tmp_path / "checkpoints.toml").write_text("[assets.net]\n" + "".join(f"{k} = {v}\n" for k, v in facts.items()))
    for asked in (
        lambda: fetching.plan(["net"]),
        lambda: fetching.fetch(["net"]),
        lambda: fetching.plan(assets.table()),
    ):
        with pytest.raises(UserError, match="`net` in the registry") as stop:
            asked()
        assert (says in stop.value.message, stop.value.code, str(tmp_path) in stop.value.hint) == (True, USAGE, True)
    assert any(says in found.said or "no `licence`" in found.said for found in storage.checkpoints(Path()))


def test_an_entry_that_is_no_table_is_one_message(world, tmp_path):
    world()
    (tmp_path / "checkpoints.toml").write_text("[assets]\nnet = 3\n")
    with pytest.raises(UserError, match="`net` in the registry is no table"):
        fetching.plan(["net"])
    assert any("is no table" in found.said for found in storage.checkpoints(Path()))


def test_a_replaced_file_is_taken_as_the_hint_says(server, world, tmp_path):
    part = world(server.url("fine"))
    assert fetch()[0] == "fetched"
    other = payload(len(DATA), 8)
    (tmp_path / "mine").write_bytes(other)
    _, message, _ = fetch(given=tmp_path / "mine")
    assert f"delete `{part.beside('.lock.json')}` first" in message
    part.beside(".lock.json").unlink()
    assert (fetch(given=tmp_path / "mine")[0], part.file.read_bytes() == other) == ("fetched", True)


@pytest.mark.parametrize(("trust", "facts"), [("publisher", {"sha256": SHA}), ("code", {"sha256_prefix": SHA[:8]})])
def test_a_file_from_before_its_publisher_was_heard_is_held_to_the_hash(server, world, tmp_path, trust, facts):
    """It was pinned when nobody knew its hash; the registry has learnt it, and it is another file's."""
    part = world(server.url("fine"))
    (tmp_path / "mine").write_bytes(payload(len(DATA), 8))
    assert fetch(given=tmp_path / "mine")[0] == "fetched"
    first = assets.digest("net")
    part = world(server.url("fine"), **facts, trust=trust)
    assert assets.digest("net") == first == hashlib.sha256(part.file.read_bytes()).hexdigest()
    assert fetch(offline=True)[0] == "failed"
    assert (fetch()[0], good(part), assets.digest("net"), part.lock()["trust"]) == ("fetched", True, SHA, trust)
    assert fetch()[0] == "present"


def test_an_archive_from_before_its_publisher_was_heard_is_told(server, world, tmp_path):
    archive = tmp_path / "stuff.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        info = tarfile.TarInfo("stuff/a")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    facts = {"kind": "dataset", "file": "stuff.tar.gz", "unpack": "stuff"}
    world(server.url("fine"), **facts)
    assert fetch(given=archive)[0] == "fetched"
    part = world(server.url("fine"), **facts, sha256=SHA, trust="publisher")
    state, message, _ = fetch()
    assert (state, "unpacked from another file" in message, f"move `{part.result}` away" in message) == (
        "failed",
        True,
        True,
    )


def test_a_file_that_nobody_looked_at_is_known_by_its_own_hash(server, world, monkeypatch):
    part = world(server.url("fine"), sha256=SHA, trust="publisher")
    assert assets.digest("net") == SHA
    part.file.parent.mkdir(parents=True)
    part.file.write_bytes(payload(len(DATA), 9))
    own = hashlib.sha256(part.file.read_bytes()).hexdigest()

    def read_only(*_):
        raise OSError(30, "Read-only file system")

    # Several may share a cache that one of them can write.
    monkeypatch.setattr(assets.atomic, "replace", read_only)
    assert assets.digest("net") == own


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "it has no table `assets`"), ("assets = [1]", "it has no table `assets`"),
        ("[assets]\n[sets]\nmine = 3", "`mine` in its `sets` is no list of names"),
    ],
)  # fmt: skip
def test_a_registry_that_is_none_is_one_message(world, tmp_path, text, says):
    world()
    (tmp_path / "checkpoints.toml").write_text(text)
    with pytest.raises(UserError) as stop:
        fetching.plan(["net"])
    assert (says in stop.value.message, stop.value.code) == (True, USAGE)


def test_what_is_given_is_looked_at_before_the_plan(world, tmp_path):
    world()
    for given, says in ((tmp_path / "none", "does not exist"), (Path("http://a/b"), "takes a file, not a URL")):
        with pytest.raises(UserError, match=says):
            fetching.check_given(["net"], given)


def test_a_shared_cache_that_was_copied_without_its_times_need_not_be_written(server, world, monkeypatch):
    part = world(server.url("fine"), sha256=SHA, trust="publisher")
    assert fetch()[0] == "fetched"
    os.utime(part.file)

    def read_only(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(fetching, "locked", read_only)
    monkeypatch.setattr(assets.atomic, "replace", read_only)
    assert fetch()[0] == "present"


# ------------------------------------------------------------------------------------------------------------- archives


def _tar(*items, mode="w"):
    """(name, bytes, or what it links to as a text)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:
        for name, content in items:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def _flipped(data, place=None):
    """With one byte of the archive another one: all else of it can be read."""
    place = place or len(data) // 2
    return data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :]


def _zipped(*items, method=zipfile.ZIP_STORED, **changed):
    """changed: offsets in an entry's header, both where it stands and in the table of contents, and what stands there."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, content in items:
            archive.writestr(name, content)
    data = bytearray(out.getvalue())
    table = data.rindex(b"PK\x01\x02")
    for field, value in changed.items():
        for place in (6, table + 8) if field == "flags" else (8, table + 10):
            data[place] |= value
    return bytes(data)


ONE, TWO = ("stuff/one", DATA[:51_200]), ("stuff/two", DATA[51_200:102_400])
DAMAGED = {
    "tar.gz: a byte is another": _flipped(_tar(ONE, TWO, mode="w:gz")), "tar.xz: a byte is another": _flipped(_tar(ONE, TWO, mode="w:xz")),
    "tar.bz2: a byte is another": _flipped(_tar(ONE, TWO, mode="w:bz2")), "tar: cut between two files": _tar(ONE, TWO)[: 512 + 51_200],
    "tar: a header is damaged": _flipped(_tar(ONE, TWO), 512 + 51_200 + 3), "gz of gz": gzip.compress(gzip.compress(DATA)),
    "gz of tar.gz": gzip.compress(_tar(ONE, mode="w:gz")), "zip: one name twice": _zipped(("stuff/a", b"1"), ("/stuff/a", b"2")),
    "tar: one name twice": _tar(("stuff/a", b"1"), ("./stuff/a", b"2")), "zip: encrypted": _zipped(("stuff/a", DATA), flags=1),
    "zip: of a kind that is not known": _zipped(("stuff/a", DATA), method=8, kind=9),
    "zip: lzma, damaged": _flipped(_zipped(("stuff/a", DATA), method=zipfile.ZIP_LZMA), 5000),
    "tar: a name of 300": _tar(("stuff/" + "n" * 300, b"x")), "tar: file and folder": _tar(("stuff/a", b"x"), ("stuff/a/b", b"y")),
    "tar: links that leave it": _tar(("stuff/a", "../../../etc/passwd"), ONE), "no archive": b"PK and no more",
}  # fmt: skip


@pytest.mark.parametrize("made", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_archive_is_one_message_and_pins_nothing(server, world, made):
    server.data = made
    part = world(server.url("fine"), kind="dataset", file="a.bin", unpack="stuff")
    state, message, _ = fetch()
    assert (state, part.lock(), part.result.exists(), part.file.exists()) == ("failed", {}, False, False)
    assert "PUREBENCH_CACHE" not in message
    server.data = _tar(ONE)
    assert (fetch()[0], (part.result / "one").read_bytes()) == ("fetched", ONE[1])


def test_what_was_published_and_cannot_be_unpacked_is_kept_and_not_asked_for_again(server, world):
    server.data = _zipped(("stuff/a", DATA), flags=1)
    known = hashlib.sha256(server.data).hexdigest()
    part = world(server.url("fine"), kind="dataset", file="a.zip", unpack="stuff", sha256=known, trust="publisher")
    for _ in range(2):
        state, message, _ = fetch()
        assert (state, "cannot be unpacked" in message, str(part.file) in message) == ("failed", True, True)
    assert (server.gets["fine"], part.file.read_bytes() == server.data) == (1, True)


@pytest.mark.parametrize("pinned", [False, True])
def test_an_archive_is_pinned_by_what_it_holds_and_not_before(server, world, monkeypatch, pinned):
    """The process dies while it unpacks a cut archive; `pinned`: one of an earlier version, which pinned before that."""
    server.data = gzip.compress(DATA)[:-1000]
    part = world(server.url("fine"), kind="dataset", file="a.gz", unpack="a")

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(archives, "_extract", die)
        with pytest.raises(KeyboardInterrupt):
            fetch()
    assert (part.lock(), part.file.exists()) == ({}, True)
    if pinned:
        verified.pin(part, hashlib.sha256(server.data).hexdigest(), part.file, "earlier")
    server.data = gzip.compress(DATA)
    assert (fetch()[0], part.result.read_bytes() == DATA) == ("fetched", True)
    assert part.lock()["sha256"] == hashlib.sha256(server.data).hexdigest()
    assert fetch()[0] == "present"


LINK = zipfile.ZipInfo("stuff/two")
LINK.external_attr = 0o120777 << 16
LINKED = {
    "the folder is a link": _tar(("real/two", DATA), ("stuff", "real")),
    "to a file beside it": _tar(("p/blobs/a", DATA), ("p/stuff/two", "../blobs/a")),
    "to a folder beside it": _tar(("p/blobs/two", DATA), ("p/stuff/x", b"1"), ("p/stuff/more", "../blobs")),
    "inside": _tar(ONE, ("stuff/a/b", DATA), ("stuff/two", "a/b")), "in a zip": _zipped(("blobs/a", DATA), (LINK, "../blobs/a")),
}  # fmt: skip


@pytest.mark.parametrize("made", LINKED.values(), ids=LINKED)
def test_what_links_in_an_archive_lead_to_is_kept(server, world, made):
    server.data = made
    part = world(server.url("fine"), kind="dataset", file="a.tar", unpack="stuff")
    assert fetch()[0] == "fetched"
    found = part.result / ("more/two" if (part.result / "more").exists() else "two")
    assert found.read_bytes() == DATA
    assert (part.result.is_symlink(), fetch()[0], part.file.exists()) == (False, "present", False)


def test_a_compressed_file_that_begins_with_zeros_is_no_empty_archive(server, world):
    server.data = gzip.compress(bytes(4000) + b"tail")
    known = hashlib.sha256(server.data).hexdigest()
    for facts in ({}, {"sha256": known, "trust": "publisher"}):
        part = world(server.url("fine"), kind="dataset", file="z.gz", unpack="z", **facts)
        assert (fetch()[0], part.result.read_bytes()[-4:]) == ("fetched", b"tail")
        shutil.rmtree(part.file.parent)


@pytest.mark.parametrize("left", [".DS_Store", "Thumbs.db", "a/.hidden", "empty"])
def test_a_folder_put_there_by_hand_holds_something(server, world, left):
    server.data = _tar(ONE)
    known = hashlib.sha256(server.data).hexdigest()
    part = world(server.url("missing"), kind="dataset", file="a.tar", unpack="stuff", sha256=known, trust="publisher")
    place = part.result / left
    place.parent.mkdir(parents=True)
    place.write_bytes(b"" if left == "empty" else b"Bud1")
    assert (assets.present("net"), fetch(offline=True)[0]) == (False, "failed")
    (part.result / "one").write_bytes(b"1")
    # It is there, and what the archive's hash says is of another one's making.
    assert (fetch(offline=True)[0], assets.digest("net")) == ("present", "")


def test_a_folder_is_no_file(server, world):
    part = world(server.url("fine"), sha256=SHA)
    part.file.mkdir(parents=True)
    (part.file / "x").write_text("x")
    assert (assets.present("net"), fetch()[0], (part.file / "x").exists()) == (False, "failed", True)


# ---------------------------------------------------------------------------------------------- the registry and the cache


def test_a_name_is_quoted_in_its_address(server, world):
    world(server.root + "/dir/", file="model #1?x%20.bin", kind="dataset")
    fetch()
    assert server.asked[0][1] == "/dir/model%20%231%3Fx%2520.bin"
    for source in ({"hf": "a/b"}, {"zenodo": "1"}, {"github": "a/b", "tag": "v1"}):
        assert "/f%231.pt" in sources.address(source, "f#1.pt")


ENTRY = '[assets.{}]\nkind = "dataset"\nlicence = ""\ntrust = "ours"\nsummary = ""\n{}\n'


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (('file = "x"', 'file = "x"'), "have one place, `data/x`"), (('file = "x"\nunpack = "y"', 'file = "y"'), "one place, `data/y`"),
        (('files = [{ file = "x" }]', 'file = "x"'), "one place"), (('same_as = "b"', 'same_as = "a"'), "in a circle: a -> b -> a"),
        (('file = "x"\nfolder = "p"', 'file = "x"\nfolder = "./p"'), "one place"),
        ((f'file = "x"\nsha256 = "{SHA}"', f'file = "x"\nsha256 = "{SHA}"'), ""), (('file = "x"', 'same_as = "a"'), ""),
        (('file = "x"', 'file = "x"\nfolder = "p"'), ""),
    ],
)  # fmt: skip
def test_two_files_of_one_place_are_refused_when_the_registry_is_read(world, tmp_path, lines, says):
    world()
    (tmp_path / "checkpoints.toml").write_text(
        "".join(ENTRY.format(n, line) for n, line in zip("ab", lines, strict=True))
    )
    if not says:
        assert len(fetching.plan(["a", "b"])) == 2
        return
    with pytest.raises(UserError) as stop:
        fetching.plan(["a"])
    assert (says in stop.value.message, stop.value.code) == (True, USAGE)


def test_a_registry_that_is_a_pipe_is_not_waited_for(world, tmp_path):
    world()
    (tmp_path / "checkpoints.toml").unlink()
    os.mkfifo(tmp_path / "checkpoints.toml")
    with pytest.raises(UserError, match="it is no file"):
        assets.table()


@pytest.mark.parametrize("text", ["null", "[]", "3", "{", '{"KEY": 5}', '{"KEY": "short"}'])
def test_a_memory_of_hashes_that_is_none_is_made_again(world, tmp_path, text):
    part = world()
    part.file.parent.mkdir(parents=True)
    part.file.write_bytes(DATA)
    facts, memory = part.file.stat(), tmp_path / "cache" / "hashes.json"
    memory.write_text(text.replace("KEY", f"{part.file.resolve()} {facts.st_size} {facts.st_mtime_ns}"))
    assert assets.digest("net") == SHA
    assert SHA in json.loads(memory.read_text()).values()


def test_a_file_of_several_that_cannot_be_had_keeps_nobody_from_the_others(server, world, tmp_path):
    rows = "[" + ", ".join(f'{{ file = "{name}" }}' for name in ("a.pt", "b.pt", "c.pt")) + "]"
    world({"http": server.root + "/fine/"})
    registry = tmp_path / "checkpoints.toml"
    registry.write_text(registry.read_text().replace('file = "file.pt"', f"files = {rows}"))
    first, second, third = assets.parts("net")
    first.file.mkdir(parents=True)  # in its way
    state, message, _ = fetch()
    assert (state, second.whole(), third.whole(), "b.pt" in message) == ("failed", True, True, False)
    shutil.rmtree(first.file.parent)
    # What a hint of an endless download names, and what is still missing.
    (tmp_path / "a.pt.part").write_bytes(DATA)
    show = bars.Quiet()
    warned = []
    show.warn = warned.append
    assert fetching.fetch(["net"], given=tmp_path / "a.pt.part", show=show)[1] == []
    assert (first.whole(), "`b.pt`, `c.pt`" in warned[0]) == (True, True)
    (tmp_path / "a (1).pt").write_bytes(DATA)
    with pytest.raises(UserError) as stop:
        fetch(given=tmp_path / "a (1).pt")
    assert "`a.pt` or `b.pt` or `c.pt`" in stop.value.hint
    assert "--from PATH/b.pt" in sources.by_hand(second)


def test_another_archive_than_the_one_that_is_unpacked_is_not_said_to_be_there(server, world, tmp_path):
    server.data = _tar(ONE)
    part = world(server.url("fine"), kind="dataset", file="a.tar", unpack="stuff")
    assert fetch()[0] == "fetched"
    for made, state in ((_tar(TWO), "failed"), (b"a picture", "failed"), (server.data, "present")):
        (tmp_path / "mine").write_bytes(made)
        got, message, _ = fetch(given=tmp_path / "mine")
        assert (got, f"move `{part.result}` away" in message) == (state, state == "failed")


def test_whose_fault_it_is_that_a_file_cannot_be_read_or_written(server, world, tmp_path, monkeypatch):
    part = world(server.url("fine"))
    state, message, _ = fetch(given=Path("/proc/self/mem"))
    assert (state, "cannot read `/proc/self/mem`" in message, "PUREBENCH_CACHE" in message) == ("failed", True, False)

    def refused(_):
        raise PermissionError(errno.EACCES, "Permission denied", str(part.file))

    monkeypatch.setattr(assets.Part, "whole", refused)
    for asked in (lambda: fetching.plan(["net"]), fetch):
        with pytest.raises(UserError, match="Permission denied") as stop:
            asked()
        assert (stop.value.code, str(part.file) in stop.value.message, "PUREBENCH_CACHE" in stop.value.hint) == (
            DOWNLOAD,
            True,
            True,
        )
    _, errors = fetching.fetch(["net"], offline=True, show=bars.Quiet())
    assert "Permission denied" in errors[0].message
