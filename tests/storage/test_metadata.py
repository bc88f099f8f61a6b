"""Metadata of a stored file: what its directory gives, and what a file system cannot store."""

import errno
import os
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ftpkit.errors import Code
from ftpkit.protocol.digest import digest_of
from ftpkit.storage import DirectoryStore, Store
from ftpkit.storage.api import UploadSpec
from ftpkit.storage.directory import filesystem
from tests.storage.stores import BLOCK, OWNER, Place, commit, fetch, refused, send, stage

fcntl = pytest.importorskip("fcntl")

Put = Callable[..., None]


def put_staged(store: Store, name: str, mode: int | None = None) -> None:
    stage(store, name, b"new", mode=mode, mtime=10**18)


def put_upload(store: Store, name: str, mode: int | None = None) -> None:
    spec = UploadSpec(name=name, total=3, mode=mode, mtime=10**18)
    upload = store.begin(spec, owner=OWNER, block=BLOCK)
    try:
        send(upload, 0, b"new")
        commit(upload, 3)
    finally:
        upload.release()


puts = pytest.mark.parametrize("put", [put_staged, put_upload])


@puts
@pytest.mark.parametrize("mode", [0, 0o040, 0o200, 0o400])
def test_the_server_can_read_back_a_file_of_any_mode(
    unprivileged: Path, put: Put, mode: int
) -> None:
    with Place(unprivileged) as place:
        store = place.open()
        put(store, "f", mode)
        assert fetch(store, "f") == b"new"
        assert store.stat("f").mode == mode | 0o400
        assert store.stat("f").content_digest == digest_of(b"new")


def test_an_upload_whose_commit_was_refused_is_resumed_though_its_file_is_read_only(
    unprivileged: Path,
) -> None:
    spec = UploadSpec(name="f", total=3, mode=0o400, overwrite=False)
    with Place(unprivileged) as place:
        store = place.open()
        upload = store.begin(spec, owner=OWNER, block=BLOCK)
        send(upload, 0, b"new")
        stage(store, "f", b"old")
        with refused(Code.EXISTS):
            commit(upload, 3)
        upload.release()
        upload = store.upload(upload.id, owner=OWNER)
        (unprivileged / "f").unlink()
        commit(upload, 3)
        upload.release()
        assert fetch(store, "f") == b"new"
        assert store.stat("f").mode == 0o400


# What a directory gives to the files in it

_ACL = struct.Struct("<HHI")
_NOBODY = 2**32 - 1


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    if not hasattr(os, "setxattr") or os.geteuid() != 0:
        pytest.skip("needs Linux and root")
    path = tmp_path / "root/d"
    path.mkdir(parents=True)
    return path


def set_default_acl(path: Path, mask: int) -> None:
    entries = [
        (0x01, 7, _NOBODY), (0x02, 6, 1234), (0x04, 5, _NOBODY), (0x10, mask, _NOBODY),
        (0x20, 0, _NOBODY),
    ]  # fmt: skip
    value = struct.pack("<I", 2) + b"".join(_ACL.pack(*entry) for entry in entries)
    try:
        os.setxattr(path, "system.posix_acl_default", value)
    except OSError as error:
        pytest.skip(f"no access control lists here: {error}")


def access(path: Path) -> tuple[int, int, bytes | None]:
    status = path.stat()
    acl = None
    if "system.posix_acl_access" in os.listxattr(path):
        acl = os.getxattr(path, "system.posix_acl_access")
    return stat.S_IMODE(status.st_mode), status.st_gid, acl


@puts
@pytest.mark.parametrize("mode", [None, 0o640, 0o755])
@pytest.mark.parametrize("mask", [7, 4])
@pytest.mark.parametrize("of_root", [False, True])
def test_a_file_has_the_group_and_acl_of_one_that_is_created_in_its_directory(
    directory: Path, put: Put, mode: int | None, mask: int, of_root: bool
) -> None:
    # Those of the root are inherited by the staging directory.
    given = directory.parent if of_root else directory
    os.chown(given, -1, 4321)
    given.chmod(0o2775)
    set_default_acl(given, mask)
    with DirectoryStore(directory.parent) as store:
        for name in ("d/f", "f"):
            put(store, name, mode)
            native = directory.parent / f"{name}.native"
            os.close(os.open(native, os.O_CREAT | os.O_WRONLY, 0o666))
            if mode is not None:
                native.chmod(mode)
            assert access(directory.parent / name) == access(native)


# What a file system lacks


def fail_if(
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    name: str,
    number: int,
    is_meant: Callable[[Any], bool] = lambda fd: True,
) -> None:
    real = getattr(module, name)

    def failing(fd: Any, *rest: Any, **options: Any) -> Any:
        if is_meant(fd):
            raise OSError(number, os.strerror(number))
        return real(fd, *rest, **options)

    monkeypatch.setattr(module, name, failing)
    if module is os and real in os.supports_fd:
        monkeypatch.setattr(os, "supports_fd", {*os.supports_fd, failing})


def is_directory(fd: int) -> bool:
    return stat.S_ISDIR(os.fstat(fd).st_mode)


LACKS: dict[str, tuple[Any, str, int, Callable[[Any], bool]]] = {
    "permission bits": (os, "chmod", errno.EPERM, lambda fd: True),
    "modification times": (os, "utime", errno.EPERM, lambda fd: True),
    "fsync of directories": (os, "fsync", errno.EINVAL, is_directory),
    "fsync: ": (os, "fsync", errno.EINVAL, lambda fd: not is_directory(fd)),
    "fdatasync": (os, "fdatasync", errno.EINVAL, lambda fd: True),
    "flock": (fcntl, "flock", errno.ENOLCK, lambda fd: True),
    "extended attributes": (os, "setxattr", errno.ENOTSUP, lambda fd: True),
}


@pytest.fixture
def forget_warnings() -> Iterator[None]:
    filesystem.warn_unsupported.cache_clear()
    yield
    filesystem.warn_unsupported.cache_clear()


@pytest.mark.skipif(not hasattr(os, "setxattr"), reason="needs the calls of Linux")
@pytest.mark.usefixtures("forget_warnings")
@pytest.mark.parametrize("what", LACKS)
def test_what_a_file_system_lacks_is_warned_of_once_and_files_are_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    module, name, number, is_meant = LACKS[what]
    fail_if(monkeypatch, module, name, number, is_meant)
    with DirectoryStore(tmp_path / "root") as store:
        for put in (put_staged, put_upload):
            for number in range(2):
                put(store, f"d/{number}", 0o640)
                assert fetch(store, f"d/{number}") == b"new"
        known = store.stat("d/1").content_digest
        assert known == (None if name == "setxattr" else digest_of(b"new"))
    (warning,) = [record.getMessage() for record in caplog.records]
    assert f"does not support {what}" in warning


@pytest.mark.skipif(not hasattr(os, "setxattr"), reason="needs the calls of Linux")
@pytest.mark.parametrize("name", ["fsync", "chmod", "utime"])
@puts
def test_another_error_of_the_same_call_is_not_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, put: Put
) -> None:
    with DirectoryStore(tmp_path / "root") as store:
        fail_if(monkeypatch, os, name, errno.EIO)
        with pytest.raises(OSError, match="Input/output error"):
            put(store, "f", 0o640)
        assert not (tmp_path / "root/f").exists()
