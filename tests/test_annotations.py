"""The annotation archive: fetched, checked, unpacked whole or not at all; hostile ones refused."""

import hashlib
import os
import shutil
import stat
import subprocess
import time
import tracemalloc
import zipfile
from functools import partial
from types import SimpleNamespace

import pytest
from helpers.generated_imagenet import masks_of, snapshot, write_archive
from helpers.loopback import Fault, serve
from helpers.scripts import command, killed_at, run

from imagenets.common.errors import InputError
from imagenets.lists import ARCHIVES, Origin
from imagenets.masks import MAX_MASK_BYTES
from imagenets.preparation.annotations import MaskList, put_annotations
from imagenets.preparation.image_folders import LOCK

NAME = ARCHIVES["50"]


@pytest.fixture(scope="session")
def members(lists):
    return masks_of(lists, "50")


@pytest.fixture
def archive(tmp_path, members):
    return write_archive(tmp_path / "my own.zip", members)


@pytest.fixture(scope="session")
def victim(members):
    """A mask of train-semi, which tests damage or leave out."""
    return sorted(members)[3]


@pytest.fixture(scope="session")
def wanted(members):
    of_folder = {"validation": [], "train-semi": []}
    for member in members:
        folder, _, mask = member.partition("-segmentation/")
        of_folder[folder].append(mask)
    return MaskList("50", *of_folder.values())


@pytest.fixture
def host(archive, env):
    with serve({NAME: archive.read_bytes()}) as host:
        env["IMAGENETS_MIRROR"] = host.url
        yield host


def anno(save, *options, **how):
    return run("datapreparation_anno.py", "--save-dir", save, "--mode", "50", *options, **how)


def masks_in(save):
    return {name: data for name, data in snapshot(save / "ImageNetS50").items() if data != "/"}


def test_download_unpack_and_nothing_left(tmp_path, env, host, members):
    run("datapreparation_anno.sh", tmp_path / "save", "50", env=env)
    assert masks_in(tmp_path / "save") == members
    assert [path.name for path in (tmp_path / "save").iterdir()] == ["ImageNetS50"]
    before = snapshot(tmp_path / "save")
    assert "there before" in anno(tmp_path / "save", env=env).stdout
    assert host.paths == [NAME]
    assert snapshot(tmp_path / "save") == before


@pytest.mark.parametrize("prefix", ["", "ImageNetS50/", "./a/b c/"])
def test_own_archive_with_any_prefix(tmp_path, env, members, prefix):
    archive = write_archive(tmp_path / "a.zip", members, prefix)
    anno(tmp_path / "save", "--archive", archive, env=env)
    assert masks_in(tmp_path / "save") == members
    assert archive.exists()


def test_a_folder_as_mirror(tmp_path, env, members):
    archive = write_archive(tmp_path / "mirror" / NAME, members)
    anno(tmp_path / "save", "--mirror", tmp_path / "mirror", env=env)
    assert masks_in(tmp_path / "save") == members
    assert archive.exists()
    result = anno(tmp_path / "other", "--mirror", tmp_path / "nothing", env=env, status=1)
    for text in (f"{tmp_path / 'nothing' / NAME}: No such file", "IMAGENETS_MIRROR", "the archive itself"):
        assert text in result.stderr


@pytest.mark.parametrize(
    ("fault", "reason"), [(Fault(404), "answered 404"), (Fault(html=True), "a web page")]
)
def test_no_archive_to_be_had(tmp_path, env, host, members, fault, reason):
    host.faults = [fault]
    result = anno(tmp_path / "save", env=env, status=1)
    for text in (f"{host.url}/{NAME}", reason, "IMAGENETS_MIRROR", "the archive itself"):
        assert text in result.stderr
    assert list((tmp_path / "save").iterdir()) == []
    host.faults = [Fault(503)]
    assert "trying again" in anno(tmp_path / "save", env=env).stderr
    assert masks_in(tmp_path / "save") == members


def test_md5_is_a_warning(tmp_path, wanted, members, archive):
    """With the official lists the MD5 in the name counts; a mismatch changes nothing else."""
    warnings: list[str] = []
    put_annotations(wanted, tmp_path / "save", Origin(), archive, warn=warnings.append)
    assert masks_in(tmp_path / "save") == members
    (warning,) = warnings
    assert hashlib.md5(archive.read_bytes()).hexdigest() in warning
    assert "a0fe9d82231f9bc4787ee76e304dfa51" in warning


# Archives that are not what they should be. Nothing may be written from any of them.


@pytest.fixture
def refused(tmp_path, env, archive):
    def refused(*texts):
        result = anno(tmp_path / "save", "--archive", archive, env=env, status=1)
        for text in (str(archive), *texts):
            assert text in result.stderr
        assert not (tmp_path / "save").exists() or snapshot(tmp_path / "save") == {}

    return refused


@pytest.mark.parametrize(
    "name",
    [
        "/etc/x.png",
        "/validation-segmentation/n00001000/x.png",
        "validation-segmentation/../../x.png",
        "validation-segmentation/n00001000/..",
        "../x.png",
        "a/..\\..\\x.png",
        "\\\\host\\share\\x.png",
        "C:/x.png",
        "C:\\x.png",
        "validation-segmentation/C:x.png",
    ],
)
def test_members_that_lead_elsewhere(tmp_path, archive, refused, name):
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr(name, b"x")
    refused("refused, 1 member with an absolute path", f"{name!r}")
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO])
def test_members_that_are_no_files(archive, refused, kind):
    info = zipfile.ZipInfo("validation-segmentation/n00001000/x.png")
    info.create_system, info.external_attr = 3, (kind | 0o777) << 16
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr(info, "/etc/passwd")
    refused("no regular file", info.filename)


def test_unknown_members_are_skipped_with_a_warning(tmp_path, env, members):
    others = {
        "validation-segmentation/.DS_Store": b"x",
        "train-semi-segmentation/n00001000/unknown.png": b"x",
        "__MACOSX/validation-segmentation/n00001000/._a.png": b"x",
        "readme.txt": b"x",
        "validation-segmentation/n00001000/": b"",
    }
    archive = write_archive(tmp_path / "a.zip", others | members)
    result = anno(tmp_path / "save", "--archive", archive, env=env)
    assert "skipped 3 members that are not in the list" in result.stderr
    assert ".DS_Store" in result.stderr
    assert masks_in(tmp_path / "save") == members


@pytest.mark.parametrize("folder", ["validation", "train-semi"])
def test_a_missing_mask_is_named(archive, refused, members, folder):
    gone = next(name for name in members if name.startswith(folder))
    write_archive(archive, {k: v for k, v in members.items() if k != gone})
    refused("1 masks of mode 50 are missing", gone)


def test_no_train_semi_mask_at_all_is_a_warning(tmp_path, env, host, archive, members):
    validation = {k: v for k, v in members.items() if k.startswith("validation")}
    host.files[NAME] = write_archive(tmp_path / "a.zip", validation).read_bytes()
    result = anno(tmp_path / "save", env=env)
    assert "no masks for train-semi" in result.stderr
    assert masks_in(tmp_path / "save") == validation
    anno(tmp_path / "save", env=env)
    assert host.paths == [NAME]  # what is not in the archive is not looked for in it again
    anno(tmp_path / "save", "--archive", archive, env=env)
    assert masks_in(tmp_path / "save") == members


def test_a_wrong_crc(archive, refused, members, victim):
    content = archive.read_bytes()
    at = content.index(members[victim])
    archive.write_bytes(content[:at] + b"X" + content[at + 1 :])
    refused("1 masks are broken", victim, "CRC")


@pytest.mark.parametrize(
    "content", [b"", b"PK", b"<html></html>", None], ids=["empty", "short", "html", "cut off"]
)
def test_no_zip(archive, refused, content):
    archive.write_bytes(archive.read_bytes()[:-3000] if content is None else content)
    refused("not a complete ZIP")


def test_no_such_archive(archive, refused):
    archive.unlink()
    refused(f"{archive}: No such file")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_unusual_compression(archive, refused, members, victim, method):
    write_archive(archive, {k: v for k, v in members.items() if k != victim})
    with zipfile.ZipFile(archive, "a", method) as opened:
        opened.writestr(victim, members[victim])
    refused(f"{victim}: compressed in an unusual way; store or deflate it")


def test_damage_in_a_compressed_member(archive, refused, members, victim):
    write_archive(archive, {k: v for k, v in members.items() if k != victim})
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr(victim, members[victim])
        info = opened.getinfo(victim)
    content = bytearray(archive.read_bytes())
    at = info.header_offset + 30 + len(victim)
    content[at + 4 : at + info.compress_size] = b"\xff" * (info.compress_size - 4)
    archive.write_bytes(content)
    refused("1 masks are broken", victim)


@pytest.mark.parametrize("damage", [b"\xff\xff\xff\x7f", b"\0\0\0\0"])
@pytest.mark.parametrize("field", [12, 16], ids=["size", "offset"])
def test_a_damaged_directory_of_the_zip(archive, refused, field, damage):
    content = bytearray(archive.read_bytes())
    at = content.rindex(b"PK\5\6") + field
    content[at : at + 4] = damage
    archive.write_bytes(content)
    refused()


def test_a_mask_twice(archive, refused, victim):
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr(f"other/{victim}", b"x")
    refused("1 masks are in it twice", victim)


def test_an_encrypted_archive(archive, refused, victim):
    content = bytearray(archive.read_bytes())
    content[content.index(victim.encode()) - 30 + 6] |= 1
    content[content.rindex(victim.encode()) - 46 + 8] |= 1
    archive.write_bytes(content)
    refused("encrypted")


@pytest.mark.parametrize(("content", "reason"), [(b"", ": empty"), (b"<html>", ": no PNG"), (None, "")])
def test_a_download_with_a_mask_that_is_none_is_not_kept(
    tmp_path, env, host, members, victim, content, reason
):
    good = host.files[NAME]
    wrong = {k: v for k, v in members.items() if k != victim} | ({} if content is None else {victim: content})
    host.files[NAME] = write_archive(tmp_path / "a.zip", wrong).read_bytes()
    result = anno(tmp_path / "save", env=env, status=1)
    assert f"{victim}{reason}" in result.stderr
    assert f"It came from {host.url}/{NAME}" in result.stderr
    assert snapshot(tmp_path / "save") == {}
    host.files[NAME] = good
    anno(tmp_path / "save", env=env)


def test_too_little_room_to_unpack(tmp_path, lists, wanted, archive, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10_000))
    with pytest.raises(InputError, match=r"unpacking the masks needs 1\.2 MB in .*, and only 10\.0 kB"):
        put_annotations(wanted, tmp_path / "save", Origin(lists=lists), archive)
    assert snapshot(tmp_path / "save") == {}


def test_lost_masks_are_filled_in(tmp_path, env, host, archive, victim):
    anno(tmp_path / "save", env=env)
    whole, root = snapshot(tmp_path / "save"), tmp_path / "save/ImageNetS50"
    (root / victim).unlink()
    shutil.rmtree(root / "validation-segmentation/n00001003")
    for top in ("validation", "train-semi"):  # a computer that went down can leave such files
        next((root / f"{top}-segmentation/n00001006").iterdir()).write_bytes(b"")
    mine = root / "validation-segmentation/n00001004/mine.png"
    mine.write_bytes(b"mine")
    kept = next((root / "validation-segmentation/n00001005").iterdir())
    kept.write_bytes(b"edited")
    result = anno(tmp_path / "save", env=env)
    assert "train-semi-segmentation: 150 masks, 2 of them made now" in result.stdout
    edits = {str(path.relative_to(tmp_path / "save")): path.read_bytes() for path in (mine, kept)}
    assert snapshot(tmp_path / "save") == whole | edits
    (root / victim).unlink()
    anno(tmp_path / "save", "--archive", archive, env=env)
    assert snapshot(tmp_path / "save") == whole | edits
    assert len(host.asked) == 2


def test_masks_are_on_the_disk_before_they_have_their_names(tmp_path, lists, wanted, archive, monkeypatch):
    synced, fsync = set(), os.fsync

    def noting(descriptor):
        assert not (tmp_path / "save/ImageNetS50/validation-segmentation").exists()
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    put_annotations(wanted, tmp_path / "save", Origin(lists=lists), archive)
    assert {path.stat().st_ino for path in (tmp_path / "save").rglob("*.png")} == synced


@pytest.mark.parametrize("honest", [True, False])
def test_a_member_that_unpacks_to_far_more(tmp_path, lists, wanted, members, victim, honest):
    """Refused by what the directory says; where it lies, no more is unpacked than it says."""
    archive = write_archive(tmp_path / "a.zip", {k: v for k, v in members.items() if k != victim})
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr(victim, b"\x89PNG\r\n\x1a\n" + bytes(MAX_MASK_BYTES))
        assert opened.getinfo(victim).compress_size < 100_000
    if not honest:
        content = bytearray(archive.read_bytes())
        at = content.rindex(victim.encode()) - 46 + 24
        content[at : at + 4] = (5_000).to_bytes(4, "little")
        archive.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(InputError, match=victim) as caught:
        put_annotations(wanted, tmp_path / "save", Origin(lists=lists), archive)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert ("more than 64.0 MB" in str(caught.value)) == honest
    assert peak < 40_000_000
    assert snapshot(tmp_path / "save") == {}


# What is in the way.


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("ImageNetS50", "link"),
        ("ImageNetS50", "file"),
        ("ImageNetS50/validation-segmentation", "link"),
        ("ImageNetS50/validation-segmentation", "file"),
        ("ImageNetS50/validation-segmentation/n00001000", "link"),
        ("ImageNetS50/validation-segmentation/n00001000/ILSVRC2012_val_00000050.png", "folder"),
        *((f"ImageNetS50/.{NAME}{end}", "link") for end in ("", ".part", ".part.json")),
    ],
)
def test_what_is_in_the_way_is_named_and_kept(tmp_path, env, host, place, kind):
    path = tmp_path / "save" / place
    path.parent.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    if kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"mine")
    before = snapshot(tmp_path / "save")
    result = anno(tmp_path / "save", env=env, status=1)
    assert "1 thing in the way" in result.stderr
    assert f"{path}: " in result.stderr
    assert snapshot(tmp_path / "save") == before
    assert not any((tmp_path / "elsewhere").iterdir())
    assert host.asked == []


# Two at a time, and killed ones.


def test_two_runs_into_one_save_and_killed_while_downloading(tmp_path, env, host, members):
    save = tmp_path / "save"
    host.files[NAME] = write_archive(tmp_path / "a.zip", {"large.txt": bytes(2 << 20)} | members).read_bytes()
    host.pause, host.piece = 0.02, 20_000
    arguments = command("datapreparation_anno.py", "--save-dir", save, "--mode", "50")

    def begin():
        asked = len(host.asked)
        process = subprocess.Popen(arguments, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while len(host.asked) == asked:
            assert process.poll() is None
            time.sleep(0.01)
        return process

    for _ in range(2):
        process = begin()
        time.sleep(0.4)
        process.kill()
        process.wait()
    first = begin()
    result = anno(save, env=env, status=1)
    assert f"another run is at work in {save}" in result.stderr
    assert first.wait() == 0
    assert masks_in(save) == members
    begun = [int(asked.strip("bytes=-")) for _, asked in host.asked[1:]]
    assert len(begun) == 2 and 0 < begun[0] < begun[1], "each goes on where the last one was killed"
    assert not (save / LOCK).exists()


@pytest.mark.parametrize("partly", [False, True])
def test_killed_again_and_again(tmp_path, env, members, partly):
    """Whatever a kill leaves, with the next one on top, ends in the same set; what has its name is whole."""
    env["IMAGENETS_MIRROR"] = str(write_archive(tmp_path / "mirror" / NAME, members).parent)
    save = tmp_path / "save"
    if partly:
        anno(save, env=env)
        for path in sorted(save.rglob("*.png"))[::2]:
            path.unlink()
    calls = ("rename", "replace", "mkdir", "fsync", "unlink", "rmdir")
    kills = [
        killed_at(moment, calls, partial(anno, save, env=env)) for moment in (1, 2, 4, 60, 405, 406, 407, 408)
    ]
    assert sum(kills) > 3
    for name, content in masks_in(save).items():
        assert ".incomplete-masks" in name or content == members[name]
    anno(save, env=env)
    assert masks_in(save) == members
    assert [path.name for path in save.iterdir()] == ["ImageNetS50"]
