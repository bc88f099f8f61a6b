"""Files that become corrupt on the server, and abandoned uploads."""

import os
from pathlib import Path

import pytest

from ftpkit import Client, CorruptDataError, Server
from ftpkit.cli import main
from ftpkit.osapi import files as os_files
from ftpkit.server.limits import Limits
from ftpkit.storage import DirectoryStore
from ftpkit.storage.api import UploadSpec

DAY_S = 86_400.0

needs_notes = pytest.mark.skipif(
    not hasattr(os, "setxattr"), reason="a digest is kept with a file as an extended attribute"
)


def rot(path: Path) -> None:
    """Flip one bit of a file behind everybody's back: length and time stay."""
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def keeps_notes(directory: Path) -> bool:
    (directory / "probe").touch()
    with open(directory / "probe", "rb") as file:
        os_files.set_xattr(file.fileno(), "ftpkit.probe", b"x")
        return os_files.get_xattr(file.fileno(), "ftpkit.probe") is not None


@needs_notes
@pytest.mark.parametrize("total", [1, 700_000, 9_000_000])
def test_a_corrupt_file_is_reported_and_not_delivered(
    server: Server, client: Client, root: Path, tmp_path: Path, total: int
) -> None:
    if not keeps_notes(tmp_path):
        pytest.skip("this disk keeps no extended attributes")
    (tmp_path / "f").write_bytes(os.urandom(total))
    client.put(tmp_path / "f")
    assert client.stat("f").content_digest == client.digest("f")
    rot(root / "f")
    with pytest.raises(CorruptDataError, match="damaged on the server"):
        client.get("f", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    assert not list(tmp_path.glob(".copy*"))
    with pytest.raises(SystemExit) as ended:
        main(["verify", "--from", str(server.address), "--quiet"])
    assert ended.value.code == 1


@needs_notes
def test_a_file_that_was_changed_locally_is_not_corrupt(
    client: Client, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "f").write_bytes(b"old")
    os.utime(tmp_path / "f", (1, 1))
    client.put(tmp_path / "f")
    (root / "f").write_bytes(b"new")
    assert client.stat("f").content_digest is None
    client.get("f", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"new"


def test_verify_tells_good_damaged_and_unknown(
    server: Server,
    client: Client,
    root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "f").write_bytes(b"stored")
    client.put(tmp_path / "f", "d/f")
    (root / "g").write_bytes(b"put there by hand")
    with pytest.raises(SystemExit) as ended:
        main(["verify", "--from", str(server.address)])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    kept = keeps_notes(tmp_path) and hasattr(os, "setxattr")
    assert lines[0] == ("good     d/f" if kept else "unknown  d/f")
    assert lines[1] == "unknown  g"


def test_an_abandoned_upload_expires(tmp_path: Path) -> None:
    with DirectoryStore(tmp_path) as store:
        wish = UploadSpec(name="f", total=3 * 65_536)
        forgotten = store.begin(wish, owner="", block=65_536)
        forgotten.release()
        running = store.begin(UploadSpec(name="g", total=65_536), owner="", block=65_536)
        for part in ("data", "journal"):
            for path in tmp_path.glob(f".ftpkit/uploads/*/{part}"):
                os.utime(path, (1, 1))
        store.sweep(uploads_s=7 * DAY_S, publications_s=DAY_S)
        assert len(list(tmp_path.glob(".ftpkit/uploads/*"))) == 1
        again = store.begin(wish, owner="", block=65_536)
        assert again.id != forgotten.id
        again.release()
        running.release()


def test_a_recent_upload_is_kept(tmp_path: Path) -> None:
    with DirectoryStore(tmp_path) as store:
        wish = UploadSpec(name="f", total=65_536)
        upload = store.begin(wish, owner="", block=65_536)
        upload.release()
        store.sweep(uploads_s=60.0, publications_s=DAY_S)
        again = store.begin(wish, owner="", block=65_536)
        assert again.id == upload.id
        again.release()


def test_a_server_sweeps_when_it_starts(root: Path) -> None:
    with DirectoryStore(root) as store:
        store.begin(UploadSpec(name="f", total=65_536), owner="", block=65_536).release()
    for path in root.glob(".ftpkit/uploads/*/*"):
        os.utime(path, (1, 1))
    with (
        Server(root, port=0, limits=Limits(expire_uploads_s=60.0)) as server,
        Client(server.address) as client,
    ):
        while list(root.glob(".ftpkit/uploads/*")):
            client.ping()
