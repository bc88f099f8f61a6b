"""Uploads and downloads: content, metadata, and changes of the file during a transfer."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import blake3
import pytest

from ftpkit import Client, LocalFileError, RefusedError, Server, SourceChangedError
from ftpkit.client import TransferResult
from ftpkit.client.transfer.source import Source
from ftpkit.net.token_bucket import TokenBucket
from tests.support.hostile import relay
from tests.support.logs import Log
from tests.support.raw import Raw
from tests.support.trees import published, staged

KIB, MIB = 1024, 1024 * 1024
BLOCK = 4 * MIB
SIZES = [
    0, 1, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, MIB - 1, MIB, MIB + 1, 4 * MIB - 1, 4 * MIB,
    4 * MIB + 1, 9 * MIB,
]  # fmt: skip
MTIME = 1_234_567_890_123_456_789


def b3(data: bytes) -> str:
    return f"blake3:{blake3.blake3(data).hexdigest()}"


def made(path: Path, total: int) -> bytes:
    data = os.urandom(total)
    path.write_bytes(data)
    return data


def parts(directory: Path) -> list[str]:
    """Return what a download has left in an empty directory."""
    return sorted(name for name in os.listdir(directory) if name.endswith(".part"))


@pytest.mark.parametrize("total", SIZES)
def test_a_file_goes_up_and_comes_down(
    client: Client, root: Path, tmp_path: Path, total: int
) -> None:
    source, copy = tmp_path / "source.bin", tmp_path / "copy.bin"
    data = made(source, total)
    source.chmod(0o640)
    os.utime(source, ns=(MTIME, MTIME))
    seen: list[tuple[int, int]] = []
    up = client.put(source, on_progress=lambda moved, of: seen.append((moved, of)))
    assert (up.name, up.path, up.total) == ("source.bin", str(source), total)
    assert up.content_digest == b3(data)
    assert seen[0] == (0, total)
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)
    assert published(root) == {"source.bin": data}
    assert client.stat("source.bin").version == up.version
    seen.clear()
    down = client.get("source.bin", copy, on_progress=lambda moved, of: seen.append((moved, of)))
    assert (down.name, down.path, down.total) == ("source.bin", str(copy), total)
    assert (down.version, down.content_digest) == (up.version, b3(data))
    assert seen[0] == (0, total)
    assert seen[-1] == (total, total)
    assert copy.read_bytes() == data
    for path in (root / "source.bin", copy):
        assert path.stat().st_mtime_ns == MTIME
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert parts(tmp_path) == []
    assert staged(root) == []


def test_names(client: Client, root: Path, tmp_path: Path) -> None:
    made(tmp_path / "f", 3)
    for name in ("a/b/c.txt", "é ✓/\U0001f600", "-rf", "a b", "*", "~"):
        assert client.put(tmp_path / "f", name).name == name
        got = client.get(name, tmp_path / "copy")
        assert got.name == name
    assert len(published(root)) == 6
    for name in ("../f", "/f", "a//b", "", ".ftpkit/x", "a\nb"):
        with pytest.raises(RefusedError) as caught:
            client.put(tmp_path / "f", name)
        assert caught.value.code == "bad-name"
        with pytest.raises(RefusedError):
            client.get(name, tmp_path / "copy")
    assert len(published(root)) == 6


@pytest.mark.parametrize("total", [3, MIB + 1])
def test_put_without_overwrite(client: Client, root: Path, tmp_path: Path, total: int) -> None:
    data = made(tmp_path / "f", total)
    client.put(tmp_path / "f", overwrite=False)
    made(tmp_path / "f", total)
    with pytest.raises(RefusedError) as caught:
        client.put(tmp_path / "f", overwrite=False)
    assert caught.value.code == "exists"
    assert published(root) == {"f": data}
    client.put(tmp_path / "f")
    assert published(root) == {"f": (tmp_path / "f").read_bytes()}


def test_get_without_overwrite(client: Client, root: Path, tmp_path: Path) -> None:
    made(root / "f", 3)
    (tmp_path / "copy").write_bytes(b"mine")
    with pytest.raises(LocalFileError, match="exists"):
        client.get("f", tmp_path / "copy", overwrite=False)
    assert (tmp_path / "copy").read_bytes() == b"mine"
    client.get("f", tmp_path / "new", overwrite=False)
    client.get("f", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == (root / "f").read_bytes()


def test_get_without_overwrite_does_not_replace_a_file_created_meanwhile(
    client: Client, root: Path, tmp_path: Path
) -> None:
    made(root / "f", 3)
    (tmp_path / "here").mkdir()
    with pytest.raises(LocalFileError, match="exists"):
        client.get(
            "f",
            tmp_path / "here/copy",
            overwrite=False,
            on_progress=lambda moved, of: (tmp_path / "here/copy").touch(),
        )
    assert (tmp_path / "here/copy").read_bytes() == b""
    # The blocks are kept for the next download.
    client.get("f", tmp_path / "here/copy")
    assert os.listdir(tmp_path / "here") == ["copy"]


def test_get_into_a_directory_and_the_current_one(
    client: Client, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "d").mkdir()
    data = made(root / "d/f", 3)
    (tmp_path / "into").mkdir()
    assert client.get("d/f", tmp_path / "into").path == str(tmp_path / "into/f")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert client.get("d/f").path == "f"
    assert (tmp_path / "here/f").read_bytes() == (tmp_path / "into/f").read_bytes() == data


@pytest.mark.parametrize("letter", ["a", "漢", "\U0001f600"])
def test_the_longest_names_go_up_and_come_down(
    client: Client, root: Path, tmp_path: Path, letter: str
) -> None:
    size = len(letter.encode())
    name = letter * ((255 - 4) // size) + "." * ((255 - 4) % size) + ".txt"
    assert len(name.encode()) == 255
    (tmp_path / "here").mkdir()
    data = made(tmp_path / "source", 3)
    client.put(tmp_path / "source", name)
    client.get(name, tmp_path / "here")
    assert (tmp_path / "here" / name).read_bytes() == data
    assert os.listdir(tmp_path / "here") == [name]


def test_names_that_begin_alike_are_downloaded_at_once(
    client: Client, root: Path, tmp_path: Path
) -> None:
    names = [f"{'n' * 230}{number}" for number in range(8)]
    datas = {name: made(root / name, 100_000) for name in names}
    (tmp_path / "here").mkdir()
    for future in [client.submit_get(name, tmp_path / "here") for name in names]:
        future.result(20.0)
    assert {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()} == datas


@pytest.mark.parametrize("mine", ["data", "journal", "other", "", None])
def test_a_directory_named_like_the_staged_blocks_is_left_alone(
    client: Client, root: Path, tmp_path: Path, mine: str | None
) -> None:
    data, here = made(root / "f", 9 * MIB), tmp_path / "here"
    (here / ".f.part").mkdir(parents=True)
    if mine:
        (here / ".f.part" / mine).write_bytes(b"mine")
    elif mine is None:
        (here / ".f.part").rmdir()
        (here / ".f.part").write_bytes(b"mine")

    def die(moved: int, of: int) -> None:
        if moved > 5 * MIB:
            raise Died

    with pytest.raises(Died):
        client.get("f", here, on_progress=die)
    client.get("f", here)
    assert (here / "f").read_bytes() == data
    assert sorted(os.listdir(here)) == [".f.part", "f"]
    if mine:
        assert os.listdir(here / ".f.part") == [mine]
        assert (here / ".f.part" / mine).read_bytes() == b"mine"


def test_what_is_put_among_the_staged_blocks_is_left_alone(
    client: Client, root: Path, tmp_path: Path
) -> None:
    made(root / "f", 9 * MIB)
    staging = tmp_path / "here/.f.part"
    staging.parent.mkdir()

    def put_one_there(moved: int, of: int) -> None:
        if moved > 5 * MIB:
            (staging / "mine").touch()

    client.get("f", staging.parent, on_progress=put_one_there)
    assert os.listdir(staging) == ["mine"]


def test_get_to_an_invalid_path(client: Client, root: Path, tmp_path: Path) -> None:
    made(root / "f", 3)
    (tmp_path / "into/f").mkdir(parents=True)
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "into", tmp_path / "missing/f", tmp_path / "file/f"):
        with pytest.raises(LocalFileError):
            client.get("f", path)
    assert os.listdir(tmp_path / "into") == ["f"]
    client.ping()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_get_into_a_directory_without_permission(
    client: Client, root: Path, tmp_path: Path
) -> None:
    made(root / "f", 3)
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(LocalFileError, match="denied"):
        client.get("f", tmp_path / "closed")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_put_of_a_file_without_permission(client: Client, tmp_path: Path) -> None:
    (tmp_path / "f").touch(mode=0o000)
    with pytest.raises(LocalFileError, match="denied"):
        client.put(tmp_path / "f")


def test_get_of_a_directory_or_a_missing_file(client: Client, root: Path, tmp_path: Path) -> None:
    (root / "d").mkdir()
    (tmp_path / "here").mkdir()
    for name, code in (("none", "not-found"), ("d", "is-a-directory"), ("d/x", "not-found")):
        with pytest.raises(RefusedError) as caught:
            client.get(name, tmp_path / "here/copy")
        assert caught.value.code == code
    assert os.listdir(tmp_path / "here") == []


def test_put_of_what_is_not_a_regular_file(client: Client, root: Path, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    for name, words in (
        ("none", "No such file"),
        ("dangling", "No such file"),
        ("d", "is a directory"),
        ("fifo", "not a regular file"),
        ("file/below", "Not a directory"),
    ):
        with pytest.raises(LocalFileError, match=words):
            client.put(tmp_path / name)
    assert published(root) == {}


@pytest.mark.parametrize("path", ["/proc/cpuinfo", "/sys/kernel/mm/transparent_hugepage/enabled"])
def test_a_source_whose_size_is_not_that_of_its_content(
    client: Client, root: Path, tmp_path: Path, path: str
) -> None:
    if not os.access(path, os.R_OK):
        pytest.skip(f"there is no {path} here")
    assert client.put(path, "f").total > 0
    # Of /proc/cpuinfo, the frequency of a processor may differ each time.
    assert len((root / "f").read_bytes()) == pytest.approx(len(Path(path).read_bytes()), abs=100)
    assert (root / "f").read_bytes()[:9] == Path(path).read_bytes()[:9]


def test_get_makes_a_directory_that_ends_in_a_slash(
    client: Client, root: Path, tmp_path: Path
) -> None:
    data = made(root / "f", 3)
    assert client.get("f", f"{tmp_path}/new/er/").path == str(tmp_path / "new/er/f")
    assert (tmp_path / "new/er/f").read_bytes() == data
    with pytest.raises(LocalFileError, match="cannot make"):
        client.get("f", f"{tmp_path}/new/er/f/")


def test_get_to_what_is_not_a_regular_file(client: Client, root: Path, tmp_path: Path) -> None:
    made(root / "f", 3)
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/null")):
        with pytest.raises(LocalFileError, match="not a regular file"):
            client.get("f", path)
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)


# A source that changes


def grown(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"more")


def shrunk(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def rewritten(path: Path) -> None:
    with open(path, "r+b") as file:
        file.write(b"changed")
        file.seek(-7, os.SEEK_END)
        file.write(b"changed")
    os.utime(path, ns=(MTIME, MTIME))


@pytest.mark.parametrize("how", [grown, shrunk, emptied, rewritten])
@pytest.mark.parametrize(
    ("total", "share"),
    # A small file has no progress before its end.
    [(1000, 0.0), (64 * KIB + 1, 0.0), (MIB, 0.0), (9 * MIB, 0.0), (9 * MIB, 0.4)],
)
def test_a_source_that_changes_during_an_upload(
    client: Client,
    root: Path,
    tmp_path: Path,
    how: Callable[[Path], None],
    total: int,
    share: float,
) -> None:
    made(root / "f", 5)
    before = published(root)
    source, changes = tmp_path / "f", [how]
    made(source, total)

    def change(moved: int, of: int) -> None:
        if moved >= share * of and changes:
            changes.pop()(source)

    with pytest.raises(SourceChangedError):
        client.put(source, on_progress=change)
    assert not changes
    client.ping()
    assert published(root) == before
    assert staged(root) == []
    assert client.put(source).total == source.stat().st_size


def written_with_its_time_set_back(path: Path) -> None:
    """Overwrite the first and the last bytes; size and mtime stay as they were."""
    before = path.stat()
    with open(path, "r+b") as file:
        file.write(b"changed")
        file.seek(-7, os.SEEK_END)
        file.write(b"changed")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def made_read_only(path: Path) -> None:
    path.chmod(0o400)


def linked(path: Path) -> None:
    path.with_name("second name").hardlink_to(path)


@pytest.mark.parametrize("how", [written_with_its_time_set_back, made_read_only, linked])
@pytest.mark.parametrize(
    ("total", "share"), [(1000, 0.0), (MIB, 0.0), (9 * MIB, 0.0), (9 * MIB, 0.4), (9 * MIB, 1.0)]
)
def test_a_source_of_which_only_the_ctime_changes_is_read_again(
    client: Client,
    root: Path,
    tmp_path: Path,
    how: Callable[[Path], None],
    total: int,
    share: float,
) -> None:
    source, changes = tmp_path / "f", [how]
    made(source, total)

    def change(moved: int, of: int) -> None:
        if moved >= share * of and changes:
            changes.pop()(source)

    done = client.put(source, on_progress=change)
    assert not changes
    assert published(root) == {"f": source.read_bytes()}
    assert done.content_digest == b3(source.read_bytes())
    assert staged(root) == []


@pytest.mark.parametrize("total", [1000, 9 * MIB])
def test_a_source_that_never_stops_changing_is_not_published(
    client: Client, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, total: int
) -> None:
    made(tmp_path / "f", total)
    touched = Source.was_touched

    def change(source: Source) -> bool:
        written_with_its_time_set_back(tmp_path / "f")
        return touched(source)

    monkeypatch.setattr(Source, "was_touched", change)
    with pytest.raises(SourceChangedError, match="upload it again"):
        client.put(tmp_path / "f")
    assert published(root) == {}


def test_a_write_in_the_tick_of_the_last_one_is_noticed(tmp_path: Path) -> None:
    for number in range(20):
        path = tmp_path / str(number)
        path.write_bytes(b"before")
        status = path.stat()
        with Source(str(path)) as source:
            path.write_bytes(b"behind")
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
            assert source.was_touched()
            assert not source.was_touched()


def test_a_file_that_is_replaced_during_a_download(
    client: Client, root: Path, tmp_path: Path
) -> None:
    made(root / "f", 64 * MIB)
    made(root / "g", 64 * MIB)
    (tmp_path / "here").mkdir()

    def replace(moved: int, of: int) -> None:
        if moved >= BLOCK and (root / "g").exists():
            os.replace(root / "g", root / "f")

    client.get("f", tmp_path / "here/copy", on_progress=replace)
    assert not (root / "g").exists()
    assert os.listdir(tmp_path / "here") == ["copy"]
    assert (tmp_path / "here/copy").read_bytes() == (root / "f").read_bytes()


# Damage on the network


def test_a_damaged_block_of_an_upload_is_sent_again_alone(
    server: Server, root: Path, tmp_path: Path, log: Log
) -> None:
    data = made(tmp_path / "f", 3 * BLOCK)
    with (
        relay(server.address, up=(BLOCK + BLOCK // 2,)) as address,
        Client(f"ftpk://127.0.0.1:{address[1]}", timeout_s=10.0) as client,
    ):
        done = client.put(tmp_path / "f")
    assert done.content_digest in (None, b3(data))
    assert published(root) == {"f": data}
    # hello, begin, three blocks and one again, commit
    assert log.wait_for("connection")["requests"] == 7


def test_a_damaged_small_file_is_sent_again(server: Server, root: Path, tmp_path: Path) -> None:
    data = made(tmp_path / "f", 10 * KIB)
    with (
        relay(server.address, up=(5 * KIB,)) as address,
        Client(f"ftpk://127.0.0.1:{address[1]}", timeout_s=10.0) as client,
    ):
        client.put(tmp_path / "f")
    assert published(root) == {"f": data}


@pytest.mark.parametrize("position", [1000, BLOCK + BLOCK // 2])
def test_a_damaged_range_of_a_download_is_fetched_again(
    server: Server, root: Path, tmp_path: Path, log: Log, position: int
) -> None:
    data = made(root / "f", 3 * BLOCK)
    with (
        relay(server.address, down=(position,)) as address,
        Client(f"ftpk://127.0.0.1:{address[1]}", timeout_s=10.0) as client,
    ):
        done = client.get("f", tmp_path / "copy")
    assert done.content_digest == b3(data)
    assert (tmp_path / "copy").read_bytes() == data
    assert log.wait_for("connection")["requests"] == 5


# Resume


class Died(Exception):
    """Raised to kill a client."""


@pytest.mark.parametrize("held", [1, 3])
def test_an_upload_of_a_killed_client_is_resumed(
    client: Client,
    connect: Callable[[], Raw],
    root: Path,
    tmp_path: Path,
    log: Log,
    held: int,
) -> None:
    total = 6 * BLOCK + 100
    data, raw = made(tmp_path / "f", total), connect()

    def records() -> int:
        reply = raw.granted("begin", name="f", total=total, block=BLOCK)
        return len(reply.body) // 44

    def die(moved: int, of: int) -> None:
        if moved >= (held + 1) * BLOCK:
            while records() < held:
                pass
            raise Died

    with pytest.raises(Died):
        client.put(tmp_path / "f", on_progress=die)
    log.wait_for("connection")
    assert published(root) == {}
    kept = records()
    assert held <= kept < 7
    seen: list[int] = []
    client.put(tmp_path / "f", on_progress=lambda moved, of: seen.append(moved))
    assert published(root) == {"f": data}
    assert seen[-1] == total
    client.close()
    # hello, begin, the missing blocks, commit
    assert log.wait_for("connection")["requests"] == 3 + 7 - kept


def test_a_changed_file_is_resumed_with_the_blocks_that_differ(
    client: Client, connect: Callable[[], Raw], root: Path, tmp_path: Path, log: Log
) -> None:
    data, raw = bytearray(made(tmp_path / "f", 3 * BLOCK)), connect()
    upload = raw.granted("begin", name="f", total=len(data), block=BLOCK)["upload"]
    for offset in (0, BLOCK):
        block = bytes(data[offset : offset + BLOCK])
        raw.granted("write", block, upload=upload, offset=offset, digest=b3(block))
    data[BLOCK] ^= 1
    (tmp_path / "f").write_bytes(data)
    client.put(tmp_path / "f")
    assert published(root) == {"f": bytes(data)}
    client.close()
    assert log.wait_for("connection")["requests"] == 5


# Rate


@pytest.mark.parametrize("total", [100 * KIB, 3 * MIB])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_rate_limit_is_kept(
    client: Client, root: Path, tmp_path: Path, total: int, direction: str
) -> None:
    now, pauses = [0.0], list[float]()

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    rate = 500_000.0
    client._connection._limiter = TokenBucket(rate, clock=lambda: now[0], sleep=sleep)
    made(tmp_path / "f", total)
    made(root / "g", total)
    if direction == "up":
        client.put(tmp_path / "f")
    else:
        client.get("g", tmp_path / "copy")
    # Time passes only in sleep.
    assert total / rate - 0.1 <= now[0] <= total / rate + 0.1
    assert max(pauses) < 0.2
    assert len(pauses) >= 5


def test_a_rate_must_be_positive() -> None:
    with pytest.raises(ValueError, match="rate"):
        Client(bytes_per_s=-1)


@pytest.mark.parametrize("way", ["put", "get"])
def test_a_resumed_transfer_counts_what_moves_now(
    client: Client, root: Path, tmp_path: Path, way: str
) -> None:
    total = 5 * BLOCK + 1
    source = root / "f" if way == "get" else tmp_path / "f"
    source.write_bytes(os.urandom(total))
    os.utime(source, (1, 1))
    (tmp_path / "here").mkdir()

    seen: list[int] = []

    def transfer(stop_at: int) -> TransferResult:
        def stop(moved: int, total: int) -> None:
            seen.append(moved)
            if moved >= stop_at:
                raise KeyboardInterrupt

        if way == "put":
            return client.put(source, "copy", on_progress=stop)
        return client.get("f", tmp_path / "here" / "copy", on_progress=stop)

    with pytest.raises(KeyboardInterrupt):
        transfer(3 * BLOCK)
    seen.clear()
    done = transfer(total + 1)
    # An upload counts what it sent, which the server may not hold yet.
    assert way == "put" or seen[0] >= 2 * BLOCK
    assert done.moved == total - seen[0]
    assert done.total == total
