"""The HTML page of records: its numbers are the tables', its pictures the records' images; it asks nobody for anything, runs nothing that a
record says, and says what it leaves out."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from purebench import cli
from purebench.errors import UserError
from purebench.records import store
from purebench.report import chart, images, metrics, packed, page, purified, recipe, tables

EMBEDDED = Path(__file__).parents[1] / "results" / "embedded"
CELLS = (
    "none-null",
    "none-pgd-eot",
    "coup-null",
    "coup-pgd-eot-exact",
    "coup-autoattack-rand",
    "reverse-sde-pgd-eot-exact",
)
N = 60  # images of each
HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)">'
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A few embedded cells in a folder of their own."""
    folder = tmp_path_factory.mktemp("page") / "results"
    for name in CELLS:
        [cell] = (
            EMBEDDED.glob(f"digits-{name}-*") if "-null" not in name else EMBEDDED.glob(f"digits-{name}-??????????")
        )
        shutil.copytree(cell, folder / cell.name)
        lines = (cell / store.IMAGES).read_bytes().splitlines(keepends=True)
        (folder / cell.name / store.IMAGES).write_bytes(b"".join(lines[:N]))
        (folder / cell.name / store.ADVERSARIAL).write_bytes((cell / store.ADVERSARIAL).read_bytes()[: 256 * N])
    return folder


@pytest.fixture(scope="module")
def text(results):
    return page.render(store.load_all([results]))


def copied(results, to):
    shutil.copytree(results, to)
    return to


class Read(HTMLParser):
    """Elements of a page: tags with their attributes, and the text of those that have an id."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.style, self.policy, self.open = [], {}, "", "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open.append((tag, dict(attributes)))
        if dict(attributes).get("http-equiv") == "Content-Security-Policy":
            self.policy = dict(attributes)["content"]

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        if self.open:
            tag, attributes = self.open[-1]
            self.texts[attributes.get("id", tag)] = self.texts.get(attributes.get("id", tag), "") + data


def data_of(text):
    return json.loads(Read(text).texts["data"])


def block(text, name):
    return zlib.decompress(base64.b64decode(Read(text).texts[name]))


def lines_of(text):
    """The lines that the page's script reads, by cell."""
    raw, at, found = block(text, "answers"), 0, {}

    def take(dtype, *shape):
        nonlocal at
        array = np.frombuffer(raw, dtype, int(np.prod(shape)), at).reshape(shape)
        at += array.nbytes
        return array

    for cell in data_of(text)["cells"]:
        n = cell["n"]
        numbers, distances = take("<i4", 8, n), take("<f4", 2, n)
        clean, attacked = (take("<i2", n, k) for k in cell["draws"])
        at += -at % 4
        found[cell["id"]] = [
            {
                "position": int(numbers[0, i]), "index": int(numbers[1, i]), "label": int(numbers[2, i]), "undefended": int(numbers[3, i]),
                "state": int(numbers[4, i]), "nfe": numbers[5:7, i].tolist(), "linf": float(distances[0, i]), "l2": float(distances[1, i]),
                "clean": [a for a in clean[i].tolist() if a != -2], "adversarial": [a for a in attacked[i].tolist() if a != -2],
                "said": (["", *cell["said"]])[numbers[7, i]],
            }
            for i in range(n)
        ]  # fmt: skip
    assert at == len(raw)
    return found


# ---- numbers ----------------------------------------------------------------------------------------------------------


def test_the_numbers_are_the_metrics_and_the_answers_are_the_records(results, text):
    logs = {log.id: log for log in store.load_all([results])}
    cells, lines = {cell["id"]: cell for cell in data_of(text)["cells"]}, lines_of(text)
    assert cells.keys() == logs.keys() == lines.keys()
    for name, log in logs.items():
        found = metrics.summary(log)
        assert cells[name]["metrics"] == json.loads(
            json.dumps({metric: list(value) for metric, value in found.items()})
        )
        assert metrics.accuracy(lines[name]) == found["robust"]
        assert metrics.accuracy(lines[name], "clean") == found["clean"]
        for line, kept in zip(log.images, lines[name], strict=True):
            same = ("position", "index", "label", "undefended", "clean", "adversarial", "nfe", "linf", "l2")
            assert {key: kept[key] for key in same} == {key: line[key] for key in same}
            assert kept["state"] == (0 if line["verdict"] is None else 1 + line["verdict"])
    assert {line["said"] for line in lines[next(name for name in lines if "autoattack" in name)]} >= {
        "broken by apgd-ce"
    }


def test_the_tables_are_those_of_the_command(results, text):
    words = re.sub(r"<[^>]+>", "", text).replace("\u00a0", " ")
    for table in tables.printed(store.load_all([results])):
        for word in [table.title, *table.header, *(word for row in table.rows for word in row)]:
            assert word in words
        for note in [*table.notes, *table.warnings]:
            assert note.replace("`", "").replace("'", "&#x27;") in words
    bold = {table.rows[i][j] for table in tables.printed(store.load_all([results])) for i, j in table.bold}
    assert {
        f"{a} {b}" for a, b in re.findall(r'<strong>([\d.]+)\u00a0<span class="pm">(±[\d.]+)</span></strong>', text)
    } == bold


def test_the_browser_opens_with_the_strongest_attack_on_the_best_defense(results, text):
    [start] = [cell for cell in data_of(text)["cells"] if cell["id"] == data_of(text)["start"]]
    best = tables.printed(store.load_all([results]))[0].headlines[1]
    assert (start["defense"], start["attack"]) == (best.defense, best.attack)


# ---- pictures ---------------------------------------------------------------------------------------------------------


def test_clean_picture_and_perturbation_make_the_stored_image(results, text):
    data, truth = data_of(text), {log.id: log for log in store.load_all([results])}
    assert data["sets"][0]["shape"] == [1, 8, 8]
    clean = np.frombuffer(block(text, data["sets"][0]["clean"]["id"]), np.uint8).reshape(-1, 8, 8).astype(float)
    for cell in data["cells"]:
        kept = cell["attacked"]
        levels = np.frombuffer(block(text, kept["id"]), np.uint8).reshape(-1, 8, 8).astype(float) - 128
        assert kept["positions"] == len(levels) == cell["n"]
        stored = np.fromfile(truth[cell["id"]].folder / store.ADVERSARIAL, "<f4").reshape(-1, 8, 8)[: cell["n"]]
        shown = clean[: cell["n"]] + 255 * kept["step"] * levels
        assert np.abs(shown - 255 * stored).max() < 1
        if "null" not in cell["id"]:
            # The largest perturbation is shown as black or white as can be, and the page says by what factor.
            assert kept["magnified"] == pytest.approx(127 / 255 / 0.2, rel=1e-3)
            assert np.abs(levels).max() == 127


def test_without_the_images_it_opens_and_says_so(results, tmp_path):
    folder = copied(results, tmp_path / "r")
    for file in folder.glob("*/adversarial.f32"):
        file.unlink()
    found = page.render(store.load_all([folder]))
    assert "without their adversarial images (<code>adversarial.f32</code>)" in found
    data = data_of(found)
    assert all(cell["attacked"] is None for cell in data["cells"])
    assert data["sets"][0]["clean"]  # the digits ship with what is installed
    assert lines_of(found).keys() == {cell["id"] for cell in data["cells"]}


def test_a_dataset_that_is_not_here_leaves_clean_pictures_out(results, tmp_path):
    folder = copied(results, tmp_path / "r")
    for cell in folder.iterdir():
        (cell / store.CELL).write_text(
            (cell / store.CELL).read_text().replace('"dataset": "digits"', '"dataset": "parquet:name=mine"')
        )
    for cell in folder.glob("*-null-*"):
        shutil.rmtree(cell)  # the other source of clean images
    found = page.render(store.load_all([folder]))
    assert (
        "Clean pictures are left out: the dataset <code>parquet:name=mine</code> is not here (<code>--data</code> says"
        in found
    )
    data = data_of(found)
    assert data["sets"][0]["clean"] is None
    kept = data["cells"][0]["attacked"]
    assert "step" not in kept  # the adversarial picture itself
    stored = np.fromfile(next(folder.glob(f"{data['cells'][0]['id']}/adversarial.f32")), "<f4")
    pixels = np.frombuffer(block(found, kept["id"]), np.uint8)
    assert np.abs(pixels - 255 * stored[: len(pixels)]).max() <= 0.5 + 1e-4


def test_another_dataset_of_the_same_name_lends_no_picture(results, tmp_path):
    folder = copied(results, tmp_path / "r")
    for cell in folder.iterdir():
        data = json.loads((cell / store.CELL).read_text())
        data["cell"]["parts"]["dataset"]["hash"] = "0" * 64
        (cell / store.CELL).write_text(json.dumps(data))
        if "-null-" in cell.name:
            shutil.rmtree(cell)
    assert "the dataset <code>digits</code> here is not the one that was recorded" in page.render(
        store.load_all([folder])
    )


def test_an_image_that_is_not_the_recorded_one_is_not_shown(results, tmp_path):
    folder = copied(results, tmp_path / "r")
    [cell] = folder.glob("*-coup-pgd-eot-*")
    raw = bytearray((cell / store.ADVERSARIAL).read_bytes())
    raw[3 * 256] ^= 1
    (cell / store.ADVERSARIAL).write_bytes(raw)
    [log] = store.load_all([cell])
    assert images.adversarial(log, log.images).keys() == set(range(N)) - {3}


def test_what_does_not_fit_is_left_out_and_said(results):
    logs = store.load_all([results])

    def pack(**options):
        return packed.pack(logs, images.sets(logs), lambda log, found: {}, **options)

    whole = pack()
    assert whole.pictures == N
    assert not any("the first" in note for note in whole.notes)
    limit = whole.size // 2
    half = pack(limit=limit)
    assert 0.85 * limit < half.size <= limit
    assert half.lines == N  # of all answers
    assert any(f"Pictures of the first {half.pictures} of {N}" in note for note in half.notes)
    assert all(block.positions == list(range(len(block.positions))) for block in half.attacked.values())
    assert max(len(block.positions) for block in half.attacked.values()) == half.pictures
    least = pack(limit=1200)
    assert least.size <= 1200
    assert any(f"Answers of the first {least.lines} of {N}" in note for note in least.notes)
    assert pack(pictures=7).pictures == 7
    none = pack(pictures=0)
    assert not none.attacked
    assert none.notes == ["Pictures were left out, as asked (`--pictures 0`)."]


def test_large_pictures_are_means_of_blocks():
    x = np.random.default_rng(0).random((3, 256, 224)).astype(np.float32)
    assert packed.factor(x.shape) == 2
    assert packed.shrunk(x)[1, 5, 7] == pytest.approx(x[1, 10:12, 14:16].mean())
    assert packed.shrunk(np.ones((1, 299, 299), np.float32)).shape == (1, 100, 100)


# ---- purified ---------------------------------------------------------------------------------------------------------


def test_a_purified_picture_is_what_was_judged_first(results, tmp_path):
    folder = copied(results, tmp_path / "r")
    [cell] = folder.glob("*-coup-pgd-eot-*")
    logs = store.load_all([cell])
    assert purified.make(logs, 6, device="cpu") == {}
    found = purified.read(logs[0])
    assert found.answers == {line["position"]: line["adversarial"][0] for line in logs[0].images[:6]}
    written = (cell / purified.FILE).read_bytes()
    assert purified.make(logs, 6, device="cpu") == {}  # made once
    assert (cell / purified.FILE).read_bytes() == written
    [shown] = [of for of in data_of(page.render(store.load_all([folder])))["cells"] if of["id"] == cell.name]
    assert shown["purified"]["positions"] == 6
    assert shown["purified"]["answers"] == list(found.answers.values())
    # Of another image it says nothing, and a damaged file is none.
    logs[0].images[2]["adv_crc"] = "00000000"
    assert purified.read(logs[0]).pictures.keys() == {0, 1, 3, 4, 5}
    (cell / purified.FILE).write_bytes(written[:100])
    assert purified.read(logs[0]).pictures == {}


def test_another_defense_than_the_judged_one_purifies_nothing(results, tmp_path):
    folder = copied(results, tmp_path / "r")
    [cell] = folder.glob("*-coup-pgd-eot-*")
    data = json.loads((cell / store.CELL).read_text())
    data["cell"]["parts"]["score"]["hash"] = "0" * 64
    (cell / store.CELL).write_text(json.dumps(data))
    logs = store.load_all([cell])
    why = purified.make(logs, 2, device="cpu")
    assert why == {logs[0].id: "the score that was judged is another one now"}
    assert not (cell / purified.FILE).exists()
    assert "Not purified: 1 cell: the score that was judged is another one now." in page.render(logs, why_not=why)


# ---- a page of its own ------------------------------------------------------------------------------------------------


def test_nothing_is_asked_of_a_network_and_only_our_script_runs(text):
    read = Read(text)
    assert not [at for _, of in read.tags for key, at in of.items() if key in ("src", "action", "data", "srcset")]
    assert all(of["href"].startswith("#") for tag, of in read.tags if "href" in of)
    assert not re.search(r"@import|url\(", read.texts["style"])
    assert not [key for _, of in read.tags for key in of if key.startswith("on") or key == "style"]
    scripts = [of for tag, of in read.tags if tag == "script"]
    assert [of for of in scripts if "type" not in of] == [{}]
    for kind, body in (("style", "page.css"), ("script", "page.js")):
        content = (page.WEB / body).read_bytes()
        digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in read.policy
        assert content.decode() in text
    assert "default-src 'none'" in read.policy
    assert not re.search(
        r"\beval\b|innerHTML|outerHTML|document\.write|new Function|fetch\(|XMLHttp", (page.WEB / "page.js").read_text()
    )


def test_words_of_records_are_words(results, tmp_path):
    folder = copied(results, tmp_path / "r")
    for cell in folder.iterdir():
        data = json.loads((cell / store.CELL).read_text())
        data["cell"] |= {
            key: data["cell"][key] + HOSTILE
            for key in ("dataset", "classifier", "score", "defense", "attack", "threat")
        }
        data["cell"]["parts"]["defense"]["values"] = {HOSTILE: HOSTILE}
        data["runs"][-1] |= {"stand_in": [HOSTILE], "failed": HOSTILE, "device": HOSTILE, "git": HOSTILE}
        data["id"] += HOSTILE
        (cell / store.CELL).write_text(json.dumps(data))
        first, *rest = list(store.read_lines(cell / store.IMAGES))
        lines = [first | {"broken_by": HOSTILE, "not_finite": {"clean": HOSTILE}}, *rest]
        (cell / store.IMAGES).write_text(
            "".join(store.line({k: v for k, v in line.items() if k != "crc"}) for line in lines)
        )
    found = page.render(store.load_all([folder]), title=HOSTILE, why_not={"x": HOSTILE})
    assert "<script>alert" not in found
    assert "<img" not in found
    plain = Read(page.render(store.load_all([results])))
    assert {tag for tag, _ in Read(found).tags} <= {tag for tag, _ in plain.tags}
    named = re.findall(r'"id":"(pictures-\d+)"', Read(found).texts["data"])
    scripts = [of.get("id") for tag, of in Read(found).tags if tag == "script"]
    assert scripts == ["data", "answers", *named, None]
    assert HOSTILE in data_of(found)["cells"][0]["defense"]
    assert HOSTILE in Read(found).texts["title"]


def test_a_name_like_a_place_of_the_template_is_a_name(results):
    logs = store.load_all([results])
    assert page.render(logs, title="{{data}} {{js}}").count("{{data}} {{js}}") == 2


def test_the_same_records_give_the_same_bytes(results, text, tmp_path):
    elsewhere = copied(results, tmp_path / "elsewhere")
    assert page.render(store.load_all(sorted(elsewhere.iterdir(), reverse=True))) == text


def test_every_cell_has_the_grid_that_makes_it(text):
    # That it makes the cell, test_recorded.py says of every tracked one.
    assert "attacks = [&quot;pgd-eot:eot=5,loss=ce,random_start=true,rel_step=0.25,steps=15&quot;]" in text


def test_a_rotation_of_score_models_is_written_as_one():
    cell = {
        "dataset": "cifar10", "subset": "first", "classifier": "c", "score": "[a,(b:k=1)]", "defense": "adp", "gradient": "-",
        "attack": "null", "threat": "-", "seed": 3, "parts": {"defense": {"values": {"steps": 2}}, "score": {}, "score.1": {}},
    }  # fmt: skip
    assert recipe.grid(cell) == {
        "dataset": "cifar10", "subset": "first", "classifier": "c", "defenses": ["adp:score=[a,(b:k=1)],steps=2"], "attacks": ["null"],
        "seeds": [3],
    }  # fmt: skip


def test_the_drawing_has_every_defense_that_has_a_place(results):
    headlines = tables.printed(store.load_all([results]))[0].headlines
    found = chart.points(headlines)
    assert {point.name for point in found} == {"none", "coup", "reverse-sde"}
    drawn = chart.cost(found, 440)
    assert all(f">{point.name}</text>" in drawn for point in found)
    xs = dict(zip([p.name for p in found], [float(x) for x in re.findall(r'cx="([\d.]+)"', drawn)], strict=True))
    calls = {point.name: point.calls for point in found}
    assert sorted(xs, key=xs.get) == sorted(calls, key=calls.get)


# ---- the command ------------------------------------------------------------------------------------------------------


def report(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["purebench", "report", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code or 0, capsys.readouterr().err


def test_the_command_writes_a_page_with_the_papers_tables(results, tmp_path, monkeypatch, capsys):
    out = tmp_path / "new" / "page.html"
    options = ("--layout", "coup/1", "--dataset", "digits", "--grad", "exact", "--title", "Mine", "--pictures", "3")
    code, err = report(monkeypatch, capsys, results, "--out", out, *options)
    assert (code, "wrote" in err) == (0, True)
    found = out.read_text(encoding="utf-8")
    assert "<h1>Mine</h1>" in found
    assert "AutoAttack Linf (eps=8/255), CIFAR-10, WRN-28-10" in found
    assert "nothing here compares with the paper" in found
    assert "Our COUP</th>" in found


@pytest.mark.parametrize(
    ("arguments", "said", "hint"),
    [
        (["RESULTS", "--out", "FOLDER"], "is no page", "--out"),
        (["RESULTS", "--out", "PAGES"], "is a folder", "--out"),
        (["RESULTS", "--out", "RECORD"], "is in the folder of a record", "--out report.html"),
        (["EMPTY"], "there are no records in", "purebench run --out"),
        (["MISSING"], "there is no", "purebench run"),
        (["RESULTS", "--pictures", "-1"], "--pictures -1", "leave it out"),
        (["RESULTS", "--grad", "exact"], "none is asked for", "--layout coup/1"),
        (["RESULTS", "--layout", "cop/1"], "unknown layout", "coup/1"),
        (["RESULTS", "--data", "parquett:path=x"], "unknown dataset", "parquet"),
        (["RESULTS", "--data", "parquet:path=mine.parquet"], "no record is of `parquet:name=mine`", "recorded one"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_message_and_leaves_the_old_page(
    results, tmp_path, monkeypatch, capsys, arguments, said, hint
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "pages.html").mkdir()
    places = {"RESULTS": results, "FOLDER": tmp_path, "EMPTY": tmp_path / "empty", "MISSING": tmp_path / "none"}
    places |= {"PAGES": tmp_path / "pages.html", "RECORD": next(results.iterdir()) / "page.html"}
    out = tmp_path / "page.html"
    out.write_text("old")
    given = [places.get(word, word) for word in arguments]
    code, err = report(monkeypatch, capsys, *given, *([] if "--out" in given else ["--out", out]))
    assert code == 2
    assert said in err
    assert hint in err
    assert "Traceback" not in err
    assert out.read_text() == "old"


def test_a_page_takes_no_torch(results, tmp_path):
    words = ["purebench", "report", str(results), "--out", str(tmp_path / "page.html")]
    code = (
        f"import atexit, sys; sys.argv = {words}; from purebench import cli\n"
        "atexit.register(lambda: print(*sorted({'matplotlib', 'torch'} & set(sys.modules))))\ncli.main()"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_a_cell_without_a_line_is_there_and_empty(results, tmp_path):
    """A run that failed, or was killed before its first image."""
    [cell] = copied(results, tmp_path / "r").glob("digits-coup-pgd-eot-*")
    (cell / store.IMAGES).unlink()
    assert "not judged yet" in page.render(store.load_all([tmp_path / "r"]))


def test_a_damaged_cache_of_purified_pictures_is_not_there(results, tmp_path):
    [cell] = copied(results, tmp_path / "r").glob("digits-coup-pgd-eot-*")
    log = store.load(cell)
    lines = log.images[:3]
    arrays = {
        "position": np.array([line["position"] for line in lines]),
        "adv_crc": np.array([line["adv_crc"] for line in lines]),
        "answer": np.array([1, 1, 1]),
        "picture": np.zeros((3, 1, 8, 8), np.uint8),
    }
    np.savez(cell / purified.FILE, **arrays)
    assert len(purified.read(log).pictures) == 3
    for broken in (
        {"answer": arrays["answer"][:2]},
        {"picture": np.zeros((3, 1, 4, 4), np.uint8)},
        {"picture": np.zeros((3, 1, 8, 8))},
    ):
        np.savez(cell / purified.FILE, **arrays | broken)
        assert purified.read(log) == purified.NOTHING


def test_images_that_are_not_those_of_their_lines_are_left_out_and_counted(results, tmp_path):
    [cell] = copied(results, tmp_path / "r").glob("digits-coup-pgd-eot-*")
    path = cell / store.ADVERSARIAL
    path.write_bytes(b"\0" * 512 + path.read_bytes()[512:])
    found = page.render(store.load_all([tmp_path / "r"]))
    assert "2 stored images are not those of their lines (checksum) and are left out" in found


def test_no_records_is_an_error():
    with pytest.raises(UserError, match="no results"):
        page.render([])


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to open the page with")
def test_a_browser_opens_it_at_an_image(results, text, tmp_path):
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    [cell] = results.glob("*-coup-pgd-eot-*")
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=5000",
    ]
    address = f"{(tmp_path / 'page.html').as_uri()}#{cell.name}/17"
    done = subprocess.run([CHROMIUM, *options, "--dump-dom", address], capture_output=True, text=True, timeout=60)
    assert 'data-ready="' in done.stdout
    assert f"{N} of {N} images · coup under pgd-eot · robust " in done.stdout
    assert re.search(r"<h3>Image 17, label \d</h3>", done.stdout)
    assert 'id="trouble" role="alert" hidden' in done.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to open the page with")
def test_a_partner_is_on_the_same_score_model(results, tmp_path):
    """Of two score models the list of an image names the cells of its own alone."""
    [cell] = copied(results, tmp_path / "r").glob("digits-reverse-sde-pgd-eot-*")
    other = tmp_path / "r" / "digits-reverse-sde-other"
    shutil.copytree(cell, other)
    data = json.loads((cell / store.CELL).read_text())
    data["cell"]["score"], data["id"] = "other-vp", other.name
    del data["was"]  # by which it would be a copy of the same cell
    (other / store.CELL).write_text(json.dumps(data))
    (tmp_path / "page.html").write_text(page.render(store.load_all([tmp_path / "r"])), encoding="utf-8")
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=5000",
    ]
    shown = []
    for name in (cell.name, other.name):
        address = f"{(tmp_path / 'page.html').as_uri()}#{name}/5"
        done = subprocess.run([CHROMIUM, *options, "--dump-dom", address], capture_output=True, text=True, timeout=60)
        shown.append(done.stdout.partition("Under the same attack")[2].partition("</table>")[0])
    # On its own score model COUP stands beside it; on the other there is no COUP.
    assert ["coup" in text for text in shown] == [True, False]
