"""Downloads over real sockets, with all that goes wrong on the way."""

import shutil
from types import SimpleNamespace

import pytest
from helpers.loopback import Fault, serve

from imagenets.common import download as module
from imagenets.common.download import download
from imagenets.common.errors import InputError

BODY = b"PK" + bytes(range(256)) * 4000  # about a megabyte


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    for name, value in (("ATTEMPTS", 3), ("FIRST_WAIT", 0.01), ("TIME_OUTS", (2, 0.3))):
        monkeypatch.setattr(module, name, value)


@pytest.fixture
def host():
    with serve({"a.zip": BODY}) as host:
        yield host


@pytest.fixture
def get(host, tmp_path):
    def call(**options):
        warnings: list[str] = []
        download(f"{host.url}/a.zip", tmp_path / "a.zip", warn=warnings.append, **options)
        assert (tmp_path / "a.zip").read_bytes() == BODY
        assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]
        return warnings

    return call


@pytest.fixture
def refused(host, tmp_path):
    def call(message, **options):
        with pytest.raises(InputError, match=message):
            download(f"{host.url}/a.zip", tmp_path / "a.zip", **options)
        assert not (tmp_path / "a.zip").exists()

    return call


@pytest.fixture
def half_done(host, tmp_path, refused):
    """Bytes that a download brought before it failed in the middle."""
    host.faults = [Fault(cut_after=300_000), Fault(404)]
    refused("404")
    have = (tmp_path / "a.zip.part").stat().st_size
    assert 0 < have <= 300_000
    host.asked.clear()
    return have


def test_plain_also_where_it_is_slow_and_where_the_first_byte_comes_alone(host, get):
    assert get() == []
    assert host.asked == [("a.zip", None)]
    host.pause, host.piece = 0.05, 1 << 17
    assert get() == []
    host.faults = [Fault(chunked=True)]
    assert get(zip_expected=True) == []


@pytest.mark.parametrize("fault", [{}, {"reset": True}, {"stall": 0.6}], ids=["closed", "reset", "stalled"])
def test_cut_off_in_the_middle_goes_on(host, get, fault):
    host.faults = [Fault(cut_after=500_000, **fault)]
    assert "trying again" in get()[0]
    (_, first), (_, second) = host.asked
    assert first is None
    assert 0 < int(second.removeprefix("bytes=").rstrip("-")) <= 500_000


@pytest.mark.parametrize("etag", ['"one"', None])
def test_a_later_run_resumes(host, get, refused, tmp_path, etag):
    host.etag = etag
    host.faults = [Fault(cut_after=300_000), Fault(404)]
    refused("404")
    have = (tmp_path / "a.zip.part").stat().st_size
    get()
    assert 0 < have <= 300_000
    assert host.asked[2:] == [("a.zip", f"bytes={have}-")]


def test_a_whole_part_needs_no_request(host, get, tmp_path, half_done):
    (tmp_path / "a.zip.part").write_bytes(BODY)
    get()
    assert host.asked == []


@pytest.mark.parametrize("change", ["etag", "length", "no ranges"])
def test_what_cannot_be_resumed_starts_afresh(host, get, tmp_path, half_done, change):
    (tmp_path / "a.zip.part").write_bytes(bytes(half_done))  # another version's bytes
    if change == "etag":
        host.etag = '"two"'
    elif change == "length":
        state = tmp_path / "a.zip.part.json"
        state.write_text(state.read_text().replace(str(len(BODY)), str(len(BODY) + 5)))
    else:
        host.ranges = False
    get()
    assert host.asked[-1] == ("a.zip", None if change != "no ranges" else f"bytes={half_done}-")


def test_a_part_of_unknown_origin_is_not_trusted(host, get, tmp_path):
    (tmp_path / "a.zip.part").write_bytes(b"something else")
    get()


@pytest.mark.parametrize("end", [".part", ".part.json"])
def test_a_link_is_not_written_through(host, get, tmp_path, monkeypatch, end):
    """Also where the link came after somebody had looked."""
    monkeypatch.setattr("pathlib.Path.unlink", lambda path, missing_ok=False: None)
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / f"a.zip{end}").symlink_to("mine")
    with pytest.raises(OSError, match="symbolic links"):
        download(f"{host.url}/a.zip", tmp_path / "a.zip")
    assert (tmp_path / "mine").read_bytes() == b"mine"


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_5xx_then_fine(host, get, status):
    host.faults = [Fault(status), Fault(status)]
    assert len(get()) == 2


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_4xx_is_refused_at_once(host, tmp_path, refused, status):
    host.faults = [Fault(status)]
    refused(rf"{host.url}/a.zip: the server answered {status}")
    assert len(host.asked) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fault", [Fault(503), Fault(announce=len(BODY) + 1000)], ids=["503", "length"])
def test_patience_ends(host, refused, fault):
    host.faults = [fault] * 9
    refused(rf"{host.url}/a.zip: ")
    assert len(host.asked) == 3 or fault.announce


def test_patience_counts_attempts_without_a_new_byte(host, get):
    host.faults = [Fault(cut_after=200_000)] * 5  # more than patience.attempts, but each brings some
    get()


def test_time_out_then_fine(host, get):
    host.faults = [Fault(stall=0.7)]
    assert "timed out" in get()[0]


def test_a_web_page_is_no_zip(host, tmp_path, refused):
    host.faults = [Fault(html=True)]
    refused("web page", zip_expected=True)
    host.files["a.zip"] = b"<html>Sign in</html>"
    refused("is not a ZIP: it begins with b'<html>", zip_expected=True)
    assert list(tmp_path.iterdir()) == []


def test_sent_on_to_what_is_no_url(host, refused):
    host.faults = [Fault(location="http://[::bad")]
    refused(rf"cannot download {host.url}/a.zip: ")


def test_nobody_listens(tmp_path):
    with pytest.raises(InputError, match=r"cannot download http://127\.0\.0\.1:9/a\.zip: .*refused"):
        download("http://127.0.0.1:9/a.zip", tmp_path / "a.zip")


def test_full_disk_is_told_before_the_first_byte(refused, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    refused(r"needs 1\.0 MB in .* only 1\.0 kB are free")


def test_the_proxy_of_the_environment_is_used(host, tmp_path, monkeypatch):
    # A proxy is asked for the whole URL; this one has a file of that name.
    host.files["http://no.such.host.invalid/a.zip"] = BODY
    monkeypatch.setenv("http_proxy", host.url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    download("http://no.such.host.invalid/a.zip", tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == BODY
