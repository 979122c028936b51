"""The folder of a run: records of earlier versions are read, other runs are refused."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")

from prepared_set import write_image

from imagenets.common.errors import InputError
from imagenets.learning.images import Images, fingerprint
from imagenets.learning.processes import Processes
from imagenets.learning.run_folder import Record, digests_of, held_folder

ALONE = Processes(0, 1, torch.device("cpu"))
SETTINGS = {"backbone": "resnet18", "neighbours": 10, "weights": None}


def enter(folder, settings=SETTINGS, images=None):
    """Hold and leave a folder; says whether the run was new."""
    record = Record("record.json", settings, ("validation", "test"), images)
    with held_folder(folder, record, ALONE) as is_new:
        return is_new


def refused(folder, settings=SETTINGS, images=None):
    before = (folder / "record.json").read_bytes()
    with pytest.raises(InputError) as found:
        enter(folder, settings, images)
    assert (folder / "record.json").read_bytes() == before
    return str(found.value)


def test_a_record_of_an_earlier_version_is_read_and_splits_are_added(tmp_path):
    (tmp_path / "validation").mkdir()
    earlier = {"settings": {"backbone": "resnet18", "neighbours": 10}, "images": {"validation": "aa"}}
    (tmp_path / "record.json").write_text(json.dumps(earlier, indent=2) + "\n")
    assert enter(tmp_path, images={"validation": "aa"}) is False
    enter(tmp_path, images={"test": "bb"})
    assert json.loads((tmp_path / "record.json").read_text()) == {
        "settings": SETTINGS,
        "images": {"validation": "aa", "test": "bb"},
    }
    assert "(validation: other images then); name another" in refused(tmp_path, images={"validation": "cc"})
    changed = {"backbone": "resnet18", "neighbours": 5, "size": 512}
    said = refused(tmp_path, changed, {"validation": "aa"})
    assert "(neighbours: 10 then, 5 now; size: not set then, 512 now); name another" in said


def test_a_trainings_record_is_its_settings_and_0_is_one_that_is_set(tmp_path):
    settings = {"size": 0, "neighbours": 5, "old": "x"}
    assert enter(tmp_path, settings | {"neighbours": 10}) is True
    assert enter(tmp_path, settings) is False, "nothing was made with the others"
    assert json.loads((tmp_path / "record.json").read_text()) == settings
    (tmp_path / "test").mkdir()
    assert "(neighbours: 5 then, 10 now)" in refused(tmp_path, settings | {"neighbours": 10})
    assert "(size: 0 then, not set now)" in refused(tmp_path, settings | {"size": None})
    assert "(old: x then, not set now)" in refused(tmp_path, {"size": 0, "neighbours": 5})


def test_what_is_stored_on_the_way_is_named_by_some_settings_or_all():
    record = Record("record.json", SETTINGS, ())
    assert record.identity("weights", "backbone") == "None resnet18"
    assert record.identity() == "resnet18 10 None"


def test_what_no_run_made_and_a_damaged_record_are_refused(tmp_path):
    (tmp_path / "test").mkdir()
    with pytest.raises(InputError, match="/test: not made by this script"):
        enter(tmp_path)
    for text in ("", "[]", '{"settings": 1}'):
        (tmp_path / "record.json").write_text(text)
        assert "record.json: damaged" in refused(tmp_path, images={})
    with (
        held_folder(tmp_path / "other", Record("record.json", {}, ()), ALONE),
        pytest.raises(InputError, match="another run is at work"),
    ):
        enter(tmp_path / "other")


def test_half_written_files_go_when_a_run_fails_and_when_the_next_begins(tmp_path):
    record = Record("record.json", {}, ("validation",), {})
    left = [tmp_path / ".0123456789abcdef.tmp", tmp_path / "validation/.0123456789abcdef.tmp"]
    others = [tmp_path / ".0123.tmp", tmp_path / "validation/0123456789abcdef.tmp"]
    with pytest.raises(KeyboardInterrupt), held_folder(tmp_path, record, ALONE):
        left[0].write_text("half")
        raise KeyboardInterrupt
    assert not left[0].exists()
    (tmp_path / "validation").mkdir()
    for path in (*left, *others):
        path.write_text("half")
    with held_folder(tmp_path, record, ALONE):
        assert not any(path.exists() for path in left)
        assert all(path.exists() for path in others), "not ours"


def test_images_of_a_record_are_known_by_their_fingerprint(tmp_path):
    write_image(tmp_path / "n1/a.JPEG", 8, 9)
    images = Images(tmp_path, ["n1/a.JPEG"])
    assert digests_of({"test": images}) == {"test": fingerprint(tmp_path, images.names)}
