"""The annotation archive: fetched, checked, unpacked whole or not at all; hostile ones refused."""

import hashlib
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import time
import tracemalloc
import zipfile
from types import SimpleNamespace

import pytest
from helpers.generated_imagenet import masks_of, snapshot, write_archive, write_toy_lists
from helpers.loopback import Fault, serve
from helpers.scripts import command, environment, run

from imagenets.common.errors import InputError
from imagenets.lists import ARCHIVES, Origin
from imagenets.masks import MAX_MASK_BYTES
from imagenets.preparation.annotations import MaskList, put_annotations
from imagenets.preparation.image_folders import LOCK

NAME = ARCHIVES["50"]


@pytest.fixture(scope="session")
def lists(tmp_path_factory):
    return write_toy_lists(tmp_path_factory.mktemp("lists"))


@pytest.fixture(scope="session")
def members(lists):
    return masks_of(lists, "50")


@pytest.fixture
def env(tmp_path, lists):
    return environment(IMAGENETS_LISTS=lists, XDG_CACHE_HOME=tmp_path / "cache")


@pytest.fixture
def host(tmp_path, members, env):
    content = write_archive(tmp_path / "good.zip", members, "ImageNetS50/").read_bytes()
    with serve({NAME: content}) as host:
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
    result = run("datapreparation_anno.sh", tmp_path / "save", "50", env=env)
    assert "there before" in result.stdout
    assert host.paths == [NAME]
    assert snapshot(tmp_path / "save") == before


@pytest.mark.parametrize("prefix", ["", "ImageNetS50/", "./a/b c/"])
def test_own_archive_with_any_prefix(tmp_path, env, members, prefix):
    archive = write_archive(tmp_path / "my own.zip", members, prefix)
    anno(tmp_path / "save", "--archive", archive, env=env)
    assert masks_in(tmp_path / "save") == members
    assert archive.exists()


def test_a_folder_as_mirror(tmp_path, env, members):
    archive = write_archive(tmp_path / "mirror" / NAME, members)
    anno(tmp_path / "save", "--mirror", tmp_path / "mirror", env=env)
    assert masks_in(tmp_path / "save") == members
    assert archive.exists()
    result = anno(tmp_path / "other", "--mirror", tmp_path / "nothing", env=env, status=1)
    assert f"{tmp_path / 'nothing' / NAME}: No such file" in result.stderr
    assert "IMAGENETS_MIRROR" in result.stderr
    assert "the archive itself" in result.stderr


def test_cut_off_and_503(tmp_path, env, host, members):
    host.faults = [Fault(503), Fault(cut_after=50_000)]
    result = anno(tmp_path / "save", env=env)
    assert "trying again" in result.stderr
    assert masks_in(tmp_path / "save") == members


@pytest.mark.parametrize(
    ("fault", "reason"), [(Fault(404), "answered 404"), (Fault(html=True), "a web page")]
)
def test_no_archive_to_be_had(tmp_path, env, host, fault, reason):
    host.faults = [fault]
    result = anno(tmp_path / "save", env=env, status=1)
    for text in (f"{host.url}/{NAME}", reason, "IMAGENETS_MIRROR", "the archive itself"):
        assert text in result.stderr
    assert list((tmp_path / "save").iterdir()) == []
    anno(tmp_path / "save", env=env)


def test_md5_is_a_warning(tmp_path, lists, members):
    """With the official lists the MD5 in the name counts; a mismatch changes nothing else."""
    wanted = MaskList(
        "50",
        [name.partition("/")[2] for name in members if name.startswith("validation")],
        [name.partition("/")[2] for name in members if name.startswith("train-semi")],
    )
    archive = write_archive(tmp_path / "a.zip", members)
    warnings: list[str] = []
    put_annotations(wanted, tmp_path / "save", Origin(), archive, warn=warnings.append)
    assert masks_in(tmp_path / "save") == members
    (warning,) = warnings
    assert hashlib.md5(archive.read_bytes()).hexdigest() in warning
    assert "a0fe9d82231f9bc4787ee76e304dfa51" in warning


# Archives that are not what they should be. Nothing may be written from any of them.


def refused(tmp_path, env, archive, *texts):
    result = anno(tmp_path / "save", "--archive", archive, env=env, status=1)
    for text in texts:
        assert text in result.stderr
    assert not (tmp_path / "save").exists() or snapshot(tmp_path / "save") == {}
    return result


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
def test_members_that_lead_elsewhere(tmp_path, env, members, name):
    archive = write_archive(tmp_path / "a.zip", members | {name: b"x"})
    refused(tmp_path, env, archive, "refused, 1 member with an absolute path", f"{name!r}")
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO])
def test_members_that_are_no_files(tmp_path, env, members, kind):
    archive = write_archive(tmp_path / "a.zip", dict(list(members.items())[1:]))
    info = zipfile.ZipInfo(next(iter(members)))
    info.create_system, info.external_attr = 3, (kind | 0o777) << 16
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr(info, "/etc/passwd")
    refused(tmp_path, env, archive, "no regular file", info.filename)


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
def test_a_missing_mask_is_named(tmp_path, env, members, folder):
    gone = next(name for name in members if name.startswith(folder))
    archive = write_archive(tmp_path / "a.zip", {k: v for k, v in members.items() if k != gone})
    refused(tmp_path, env, archive, "1 masks of mode 50 are missing", gone)


def test_no_train_semi_mask_at_all_is_a_warning(tmp_path, env, host, members):
    validation = {k: v for k, v in members.items() if k.startswith("validation")}
    host.files[NAME] = write_archive(tmp_path / "a.zip", validation).read_bytes()
    result = anno(tmp_path / "save", env=env)
    assert "no masks for train-semi" in result.stderr
    assert masks_in(tmp_path / "save") == validation
    anno(tmp_path / "save", env=env)
    assert host.paths == [NAME]  # what is not in the archive is not looked for in it again
    full = write_archive(tmp_path / "full.zip", members)
    anno(tmp_path / "save", "--archive", full, env=env)
    assert masks_in(tmp_path / "save") == members


def test_a_wrong_crc(tmp_path, env, members):
    archive = write_archive(tmp_path / "a.zip", members)
    victim = sorted(members)[3]
    content = archive.read_bytes()
    at = content.index(members[victim])
    archive.write_bytes(content[:at] + b"X" + content[at + 1 :])
    refused(tmp_path, env, archive, "1 masks are broken", victim, "CRC")


@pytest.mark.parametrize(
    "content", [b"", b"PK", b"<html></html>", None], ids=["empty", "short", "html", "cut off"]
)
def test_no_zip(tmp_path, env, members, content):
    archive = write_archive(tmp_path / "a.zip", members)
    archive.write_bytes(archive.read_bytes()[:-3000] if content is None else content)
    refused(tmp_path, env, archive, "not a complete ZIP", str(archive))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_unusual_compression(tmp_path, env, members, method):
    victim = sorted(members)[3]
    archive = write_archive(tmp_path / "a.zip", {k: v for k, v in members.items() if k != victim})
    with zipfile.ZipFile(archive, "a", method) as opened:
        opened.writestr(victim, members[victim])
    refused(tmp_path, env, archive, f"{victim}: compressed in an unusual way; store or deflate it")


def test_damage_in_a_compressed_member(tmp_path, env, members):
    archive, victim = tmp_path / "a.zip", sorted(members)[3]
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in members.items():
            opened.writestr(name, content)
        info = opened.getinfo(victim)
    content = bytearray(archive.read_bytes())
    at = info.header_offset + 30 + len(victim)
    content[at + 4 : at + info.compress_size] = b"\xff" * (info.compress_size - 4)
    archive.write_bytes(content)
    refused(tmp_path, env, archive, f"{archive}: 1 masks are broken", victim)


@pytest.mark.parametrize("damage", [b"\xff\xff\xff\x7f", b"\0\0\0\0"])
@pytest.mark.parametrize("field", [12, 16], ids=["size", "offset"])
def test_a_damaged_directory_of_the_zip(tmp_path, env, members, field, damage):
    archive = write_archive(tmp_path / "a.zip", members)
    content = bytearray(archive.read_bytes())
    at = content.rindex(b"PK\5\6") + field
    content[at : at + 4] = damage
    archive.write_bytes(content)
    refused(tmp_path, env, archive, str(archive))


@pytest.mark.parametrize(("content", "reason"), [(b"", "empty"), (b"<html>", "no PNG")])
def test_masks_that_are_no_png(tmp_path, env, host, members, content, reason):
    victim = sorted(members)[3]
    host.files[NAME] = write_archive(tmp_path / "a.zip", members | {victim: content}).read_bytes()
    result = anno(tmp_path / "save", env=env, status=1)
    assert f"{victim}: {reason}" in result.stderr
    assert f"It came from {host.url}/{NAME}" in result.stderr
    assert snapshot(tmp_path / "save") == {}


def test_no_such_archive(tmp_path, env):
    refused(tmp_path, env, tmp_path / "none.zip", f"{tmp_path / 'none.zip'}: No such file")


def test_a_mask_twice(tmp_path, env, members):
    archive = write_archive(tmp_path / "a.zip", members)
    name = next(iter(members))
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr(f"other/{name}", b"x")
    refused(tmp_path, env, archive, "1 masks are in it twice", name)


def test_an_encrypted_archive(tmp_path, env, members):
    archive = write_archive(tmp_path / "a.zip", members)
    content = bytearray(archive.read_bytes())
    name = next(iter(members)).encode()
    local = content.index(name) - 30
    central = content.rindex(name) - 46
    content[local + 6] |= 1
    content[central + 8] |= 1
    archive.write_bytes(content)
    refused(tmp_path, env, archive, "encrypted")


def test_a_downloaded_archive_that_is_wrong_is_not_kept(tmp_path, env, host, members):
    good = host.files[NAME]
    host.files[NAME] = write_archive(tmp_path / "a.zip", dict(list(members.items())[5:])).read_bytes()
    anno(tmp_path / "save", env=env, status=1)
    assert list((tmp_path / "save").iterdir()) == []
    host.files[NAME] = good
    anno(tmp_path / "save", env=env)


def test_too_little_room_to_unpack(tmp_path, lists, members, monkeypatch):
    archive = write_archive(tmp_path / "a.zip", members)
    wanted = MaskList("50", [k.partition("/")[2] for k in members if k.startswith("validation")], [])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10_000))
    with pytest.raises(InputError, match=r"unpacking the masks needs 614\.4 kB in .*, and only 10\.0 kB"):
        put_annotations(wanted, tmp_path / "save", Origin(lists=lists), archive)
    assert snapshot(tmp_path / "save") == {}


def test_lost_masks_are_filled_in(tmp_path, env, host, members):
    anno(tmp_path / "save", env=env)
    whole, root = snapshot(tmp_path / "save"), tmp_path / "save/ImageNetS50"
    (root / next(name for name in members if name.startswith("train-semi"))).unlink()
    shutil.rmtree(root / "validation-segmentation/n00001003")
    mine = root / "validation-segmentation/n00001004/mine.png"
    mine.write_bytes(b"mine")
    kept = root / next(name for name in members if "n00001005" in name)
    kept.write_bytes(b"edited")
    result = anno(tmp_path / "save", env=env)
    assert "train-semi-segmentation: 150 masks, 1 of them made now" in result.stdout
    edits = {str(path.relative_to(tmp_path / "save")): path.read_bytes() for path in (mine, kept)}
    assert snapshot(tmp_path / "save") == whole | edits
    (root / next(name for name in members if name.startswith("train-semi"))).unlink()
    archive = write_archive(tmp_path / "a.zip", members)
    anno(tmp_path / "save", "--archive", archive, env=env)
    assert snapshot(tmp_path / "save") == whole | edits
    assert len(host.asked) == 2


def test_an_empty_mask_is_made_again(tmp_path, env, host):
    """A computer that went down can leave such files; no run may be stopped by them for ever."""
    anno(tmp_path / "save", env=env)
    whole = snapshot(tmp_path / "save")
    for top in ("validation", "train-semi"):
        next((tmp_path / f"save/ImageNetS50/{top}-segmentation").rglob("*.png")).write_bytes(b"")
    anno(tmp_path / "save", env=env)
    assert snapshot(tmp_path / "save") == whole


def test_masks_are_on_the_disk_before_they_have_their_names(tmp_path, lists, members, monkeypatch):
    wanted = MaskList("50", [k.partition("/")[2] for k in members if k.startswith("validation")], [])
    archive = write_archive(tmp_path / "a.zip", members)
    synced, fsync = set(), os.fsync

    def noting(descriptor):
        assert not (tmp_path / "save/ImageNetS50/validation-segmentation").exists()
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    put_annotations(wanted, tmp_path / "save", Origin(lists=lists), archive)
    assert {path.stat().st_ino for path in (tmp_path / "save").rglob("*.png")} == synced


# Archives that would fill the memory or the disk.


@pytest.mark.parametrize("honest", [True, False])
def test_a_member_that_unpacks_to_far_more(tmp_path, lists, members, honest):
    """Refused by what the directory says; where it lies, no more is unpacked than it says."""
    victim = next(name for name in members if name.startswith("validation"))
    bomb = b"\x89PNG\r\n\x1a\n" + bytes(MAX_MASK_BYTES)
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        for name, content in members.items():
            if name == victim:
                opened.writestr(name, bomb, compress_type=zipfile.ZIP_DEFLATED)
            else:
                opened.writestr(name, content)
        info = opened.getinfo(victim)
    assert info.compress_size < 100_000
    if not honest:
        content = bytearray(archive.read_bytes())
        at = content.rindex(victim.encode()) - 46 + 24
        content[at : at + 4] = (5_000).to_bytes(4, "little")
        archive.write_bytes(content)
    wanted = MaskList("50", [k.partition("/")[2] for k in members if k.startswith("validation")], [])
    del bomb
    tracemalloc.start()
    with pytest.raises(InputError, match=re.escape(victim)) as caught:
        put_annotations(wanted, tmp_path / "save", Origin(lists=lists), archive)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert ("more than 64.0 MB" in str(caught.value)) == honest
    assert peak < 40_000_000
    assert snapshot(tmp_path / "save") == {}


# What is in the way.


@pytest.mark.parametrize("kind", ["class link", "folder", "link", "file", "link to the set"])
def test_what_is_in_the_way_is_named_and_kept(tmp_path, env, host, members, kind):
    folder = tmp_path / "save/ImageNetS50/validation-segmentation"
    (tmp_path / "elsewhere").mkdir()
    if kind == "class link":
        folder.mkdir(parents=True)
        folder /= "n00001000"
        folder.symlink_to(tmp_path / "elsewhere")
    elif kind == "folder":
        anno(tmp_path / "save", env=env)
        folder = next(path for path in folder.rglob("*.png"))
        folder.unlink()
        folder.mkdir()
    elif kind == "link to the set":
        folder.parent.parent.mkdir()
        folder.parent.symlink_to(tmp_path / "elsewhere")
        folder = folder.parent
    else:
        folder.parent.mkdir(parents=True)
        folder.symlink_to(tmp_path / "elsewhere") if kind == "link" else folder.write_bytes(b"mine")
    before, asked = snapshot(tmp_path / "save"), len(host.asked)
    result = anno(tmp_path / "save", env=env, status=1)
    assert "1 thing in the way" in result.stderr
    assert f"{folder}: " in result.stderr
    assert snapshot(tmp_path / "save") == before
    assert not any((tmp_path / "elsewhere").iterdir())
    assert len(host.asked) == asked


@pytest.mark.parametrize("end", ["", ".part", ".part.json"])
def test_links_where_the_download_writes(tmp_path, env, host, end):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "save/ImageNetS50").mkdir(parents=True)
    link = tmp_path / f"save/ImageNetS50/.{NAME}{end}"
    link.symlink_to(tmp_path / "mine")
    result = anno(tmp_path / "save", env=env, status=1)
    assert f"{link}: a link to {tmp_path / 'mine'}" in result.stderr
    assert (tmp_path / "mine").read_text() == "mine"
    assert link.is_symlink()


def test_two_runs_into_one_save(tmp_path, env, host, members):
    save = tmp_path / "save"
    host.pause, host.piece = 0.5, 20_000
    arguments = command("datapreparation_anno.py", "--save-dir", save, "--mode", "50")
    first = subprocess.Popen(arguments, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not host.asked:
        time.sleep(0.01)
    result = anno(save, env=env, status=1)
    assert f"another run is at work in {save}" in result.stderr
    assert first.wait() == 0
    assert masks_in(save) == members
    assert len(host.asked) == 1


def test_killed_at_random_moments(tmp_path, env, host):
    anno(tmp_path / "undisturbed", env=env)
    wanted = snapshot(tmp_path / "undisturbed")
    host.pause, host.piece = 0.02, 10_000
    save = tmp_path / "save"
    arguments = command("datapreparation_anno.py", "--save-dir", save, "--mode", "50")
    begin = time.perf_counter()
    anno(tmp_path / "timed", env=env)
    whole = time.perf_counter() - begin
    generator = random.Random(1)
    killed = 0
    for _ in range(14):
        process = subprocess.Popen(arguments, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(generator.uniform(0.2, 1.0) * whole)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        killed += process.returncode == -signal.SIGKILL
        for top in ("validation-segmentation", "train-semi-segmentation"):
            if (save / "ImageNetS50" / top).exists():
                assert snapshot(save / "ImageNetS50" / top) == snapshot(tmp_path / "timed/ImageNetS50" / top)
    assert killed
    anno(save, env=env)
    assert snapshot(save) == wanted
    assert not (save / LOCK).exists()


@pytest.mark.parametrize("moment", range(1, 6))
def test_killed_at_each_rename_and_removal(tmp_path, env, host, moment):
    anno(tmp_path / "undisturbed", env=env)
    program = f"""
import os, runpy, signal, sys
def counted(function):
    def call(*arguments, **named):
        global count
        count += 1
        if count == {moment}:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)
    return call
count = 0
os.rename, os.replace, os.unlink = counted(os.rename), counted(os.replace), counted(os.unlink)
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    python, *arguments = command("datapreparation_anno.py", "--save-dir", tmp_path / "save", "--mode", "50")
    died = subprocess.run([python, "-c", program, *arguments], env=env, stdout=subprocess.DEVNULL)
    assert died.returncode == -signal.SIGKILL
    anno(tmp_path / "save", env=env)
    assert snapshot(tmp_path / "save") == snapshot(tmp_path / "undisturbed")
