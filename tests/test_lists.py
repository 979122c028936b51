"""The lists: from mirrors and folders, checked, cached, and refused with a message that helps."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from helpers.generated_imagenet import OFFICIAL_LISTS, write_toy_lists
from helpers.loopback import Fault, serve
from helpers.scripts import environment, run

from imagenets.classes import MODES
from imagenets.common.errors import InputError
from imagenets.lists import (
    SHA256,
    Origin,
    categories,
    categories_at_hand,
    categories_path,
    mapping,
    mapping_path,
    train_semi,
    train_semi_path,
)

official = pytest.mark.skipif(not OFFICIAL_LISTS.is_dir(), reason="the official lists are not at hand")
NOWHERE = Origin("http://127.0.0.1:9")  # nobody listens there
CATEGORIES = categories_path("50")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("IMAGENETS_LISTS", raising=False)
    monkeypatch.delenv("IMAGENETS_MIRROR", raising=False)


@pytest.fixture
def lists(tmp_path):
    return write_toy_lists(tmp_path / "lists")


@official
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_official_lists(mode):
    origin = Origin(str(OFFICIAL_LISTS))
    wnids = categories(mode.name, origin)
    assert len(wnids) == mode.classes
    validation = mapping(mode.name, "validation", wnids, origin)
    assert len(validation) == mode.validation
    assert len(mapping(mode.name, "test", wnids, origin)) == mode.test
    semi = train_semi(mode.name, wnids, origin)
    assert len(semi) == mode.train_semi
    if mode.merges:
        assert sum(image.source != image.target for image in semi) == 20
        assert sum(image.source != image.target for image in validation) == 1652
    assert all(image.source.split("/")[0] == image.source.split("/")[1].split("_")[0] for image in semi)
    # What came from the mirror's folder is in the cache now: no network, no mirror.
    assert categories(mode.name, NOWHERE) == wnids == categories_at_hand(mode.name)


@official
def test_download_once_then_cache(tmp_path):
    files = {name: (OFFICIAL_LISTS / name).read_bytes() for name in SHA256}
    cached = tmp_path / "cache/imagenets" / CATEGORIES
    cached.parent.mkdir(parents=True)
    cached.write_text("n00000000\n" * 50)  # damaged: fetched again
    with serve(files) as host:
        origin = Origin(host.url)
        assert categories("50", origin)[0] != "n00000000"
        mapping("50", "test", categories("50", origin), origin)
        assert host.paths == [CATEGORIES, mapping_path("50", "test")]
    kept = sorted(p.relative_to(tmp_path / "cache/imagenets") for p in (tmp_path / "cache").rglob("*.*"))
    assert [str(path) for path in kept] == [CATEGORIES, mapping_path("50", "test")]


@pytest.mark.parametrize("by", ["url", "folder"])
@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"n00000001\n", "is not the official list: its SHA-256 is .*IMAGENETS_LISTS"),
        (b"<!DOCTYPE html><html></html>", "a web page, not the list"),
    ],
)
def test_wrong_bytes_are_refused_and_not_kept(tmp_path, by, content, complaint):
    (tmp_path / CATEGORIES).parent.mkdir()
    (tmp_path / CATEGORIES).write_bytes(content)
    with serve({CATEGORIES: content}) as host, pytest.raises(InputError, match=complaint):
        categories("50", Origin(host.url if by == "url" else str(tmp_path)))
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_failed_download_names_url_reason_and_ways_out():
    with serve({}) as host, pytest.raises(InputError) as caught:
        categories("50", Origin(host.url))
    for text in (f"{host.url}/{CATEGORIES}", "404", "IMAGENETS_MIRROR, a URL", "IMAGENETS_LISTS, a folder"):
        assert text in str(caught.value)


@official
def test_a_list_arrives_in_spite_of_503_and_a_cut(tmp_path):
    name = train_semi_path("919")
    files = {n: (OFFICIAL_LISTS / n).read_bytes() for n in (name, categories_path("919"))}
    with serve(files) as host:
        wnids = categories("919", Origin(host.url))
        host.faults = [Fault(503), Fault(cut_after=300_000)]
        assert len(train_semi("919", wnids, Origin(host.url))) == 9_190
        assert [asked for path, asked in host.asked if path == name][:2] == [None, None]
        assert host.asked[-1][1].startswith("bytes=")


@official
def test_a_clone_of_the_official_repository_is_a_mirror(tmp_path):
    shutil.copytree(OFFICIAL_LISTS, tmp_path / "clone/data")
    assert len(categories("50", Origin(str(tmp_path / "clone")))) == 50


@official
def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(categories("50", Origin(str(OFFICIAL_LISTS)))) == 50
    with serve({}) as host, pytest.raises(InputError, match=r"file/imagenets.*: Not a dir.*XDG_CACHE_HOME"):
        categories("50", Origin(host.url))


@official
def test_without_a_home_lists_are_kept_where_the_user_is_told(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: Path("~").expanduser())
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert categories_at_hand("50") is None
    name = categories_path("50")
    warnings: list[str] = []
    with serve({name: (OFFICIAL_LISTS / name).read_bytes()}) as host:
        wnids = categories("50", Origin(host.url), warn=warnings.append)
    (warning,) = warnings
    (folder,) = tmp_path.iterdir()
    assert f"kept in {folder}" in warning and "XDG_CACHE_HOME" in warning
    assert categories_at_hand("50") == wnids
    monkeypatch.setattr(os, "getuid", lambda: int(folder.name.removeprefix("imagenets-")) + 1)
    folder.rename(tmp_path / f"imagenets-{os.getuid()}")
    with pytest.raises(InputError, match="not yours"):
        categories("50", Origin(host.url))


def test_own_lists_are_taken_as_they_are(tmp_path, lists):
    origin = Origin(lists=lists)
    path = lists / CATEGORIES
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # a byte order mark
    wnids = categories("50", origin)
    assert len(wnids) == 50 and wnids[0] == "n00001000"
    assert not origin.official
    assert len(mapping("50", "validation", wnids, origin)) == 150
    assert not (tmp_path / "cache").exists()
    path.write_text("n00000001\nn00000001\n")
    with pytest.raises(InputError, match="1 different classes, mode 50 has 50"):
        categories("50", origin)
    path.unlink()
    with pytest.raises(InputError, match=r"No such file or directory. IMAGENETS_LISTS") as caught:
        categories("50", origin)
    assert "network" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("n00001000/a.JPEG", "is not two paths"),
        ("n00001000/a.JPEG ../../etc/a.JPEG", "is not two paths"),
        ("n00001000/a.JPEG /etc/a.JPEG", "is not two paths"),
        ("n00001000/a.JPEG n00001000/.a.JPEG", "is not two paths"),
        ("n00001000/a.JPEG n00001000/b\\..\\a.JPEG", "is not two paths"),
        ("n00001000/a.JPEG n00001000/a.JPEG b", "is not two paths"),
        ("n00001000/a.JPEG n99999999/a.JPEG", "n99999999 is no class of this mode"),
        ("n00001001/x.JPEG n00001000/a.JPEG\nn00001000/a.JPEG n00001000/a.JPEG", "is listed twice"),
    ],
)
def test_own_lists_that_make_no_sense(lists, line, complaint):
    (lists / mapping_path("50", "test")).write_text(line)
    origin = Origin(lists=lists)
    with pytest.raises(InputError, match=complaint) as caught:
        mapping("50", "test", categories("50", origin), origin)
    assert mapping_path("50", "test") in str(caught.value)


def test_arguments_go_before_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("IMAGENETS_MIRROR", "http://127.0.0.1:9")
    assert Origin.chosen().mirror == "http://127.0.0.1:9"
    assert Origin.chosen(mirror=str(tmp_path)).mirror == str(tmp_path)
    monkeypatch.setenv("IMAGENETS_LISTS", "one")
    assert str(Origin.chosen(lists="two").lists) == "two"
    with pytest.raises(InputError, match="neither a http"):
        Origin.chosen(mirror="ftp://example.org/lists")


def test_a_script_without_a_network_says_what_to_do(tmp_path):
    imagenet = tmp_path / "imagenet"
    (imagenet / "val").mkdir(parents=True)
    env = environment(XDG_CACHE_HOME=tmp_path / "cache", IMAGENETS_MIRROR=tmp_path / "no mirror")
    result = run(
        *("datapreparation_val.py", "--imagenet-dir", imagenet, "--save-dir", tmp_path / "save"),
        *("--mode", "50"),
        env=env,
        status=1,
    )
    assert "IMAGENETS_MIRROR" in result.stderr
    assert not (tmp_path / "save").exists()
