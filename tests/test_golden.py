"""The tracked copies of recorded arrays: small, described, equal to the whole set where that is given, and read where it is not."""

import gzip
from pathlib import Path

import helpers
import numpy as np
import pytest
from helpers import GOLDEN, SMALL, published, recorded
from test_networks_classifiers import NCSNV2

FILES = sorted(str(path.relative_to(SMALL)) for path in SMALL.rglob("*.*") if path.suffix != ".md")
whole = pytest.mark.skipif(not GOLDEN, reason="PUREBENCH_GOLDEN, the folder of all recorded arrays, is not set")
BY_RULE = {  # files without weights -> family, what their configuration leaves out
    "score_sde/ddpmpp_tinyB.npz": ("ddpmpp", {}),
    "score_sde/adm_tiny.npz": ("adm", {}),
    "score_sde/ddpm_celeba_tiny.npz": ("ddpm", {}),
    "edm/tiny_ddpmpp.npz": ("edm", {}),
    "adp/a_ncsnv2_tiny.npz": ("ncsnv2", NCSNV2),
    "adp/d_ebm_tiny.npz": ("ebm", {"n_f": 4}),
}


def test_they_are_small_and_described():
    assert sum((SMALL / name).stat().st_size for name in FILES) < 2_000_000
    told = (SMALL / "README.md").read_text()
    assert [n for n in FILES if Path(n).name not in told and not Path(n).name.startswith("manifest_")] == []
    with np.load(SMALL / "score_sde/ddpmpp_tinyB.npz") as arrays:
        assert not [key for key in arrays if key.startswith("param/")]


def pieces(copy, original):
    """Whether the copy is rows of the original, cut along its first axes: the same numbers, of the same type."""
    if copy.dtype != original.dtype or copy.ndim != original.ndim:
        return False
    if copy.shape == original.shape:
        return copy.tobytes() == original.tobytes()
    if copy.shape[1:] == original.shape[1:]:
        rows = [row.tobytes() for row in original]
        return all(row.tobytes() in rows for row in copy)
    return any(pieces(row, other) for row in copy for other in original)


@whole
@pytest.mark.parametrize("name", FILES)
def test_they_are_the_recorded_arrays(name):
    copy = SMALL / name
    if copy.suffix == ".gz":
        assert gzip.decompress(copy.read_bytes()) == (Path(GOLDEN) / name.removesuffix(".gz")).read_bytes()
    elif copy.suffix != ".npz":
        assert copy.read_bytes() == (Path(GOLDEN) / name).read_bytes()
    else:
        with np.load(copy) as ours, np.load(Path(GOLDEN) / name) as theirs:
            keys = set(ours) - {"weights", "weights_prefix"}
            assert [key for key in keys if not pieces(ours[key], theirs[key])] == []


@whole
@pytest.mark.parametrize("name", BY_RULE)
def test_the_weights_by_rule_are_the_recorded_ones(name, monkeypatch):
    family, config = BY_RULE[name]
    theirs, _ = published(family, name, **config)
    monkeypatch.setattr(helpers, "GOLDEN", "")
    ours, _ = published(family, name, **config)
    for (key, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert a.equal(b), key


def test_what_is_not_here_is_skipped_and_says_so(monkeypatch):
    monkeypatch.setattr(helpers, "GOLDEN", "")
    with pytest.raises(pytest.skip.Exception, match=r"`vp/loss_inner` of edm/tiny_ddpmpp.npz .* PUREBENCH_GOLDEN"):
        recorded("edm/tiny_ddpmpp.npz")["vp/loss_inner"]
    with pytest.raises(pytest.skip.Exception, match=r"edm/nothing.npz .* PUREBENCH_GOLDEN"):
        recorded("edm/nothing.npz")


def test_a_folder_that_lacks_a_file_is_an_error(monkeypatch, tmp_path):
    """Skipping there would hide that a folder is the wrong one."""
    monkeypatch.setattr(helpers, "GOLDEN", str(tmp_path))
    with pytest.raises(FileNotFoundError):
        recorded("edm/tiny_ddpmpp.npz")
