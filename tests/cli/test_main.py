import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import WAIT_S, Run, Served, command


def test_up_and_down_again(run: Run, served: Served) -> None:
    content = bytes(range(256)) * 8192
    Path("big.bin").write_bytes(content)
    result = run("put", "big.bin", "--as", "dir/copy.bin")
    assert result.exit_code == 0
    assert result.stdout.startswith("dir/copy.bin: 2.10 MB in ")
    assert result.stdout.endswith("/s, verified\n")
    assert result.stderr == ""
    assert (served.root / "dir" / "copy.bin").read_bytes() == content
    assert run("get", "dir/copy.bin").exit_code == 0
    assert Path("copy.bin").read_bytes() == content
    assert run("get", "dir/copy.bin", "-o", "other.bin", "--quiet").output == ""
    assert Path("other.bin").read_bytes() == content


def test_several_up_and_into_a_directory(run: Run, served: Served) -> None:
    for name in ("a", "b"):
        Path(name).write_text(name)
    assert run("put", "a", "./b").exit_code == 0
    Path("down").mkdir()
    assert run("get", "a", "b", "-o", "down").exit_code == 0
    assert [path.read_text() for path in sorted(Path("down").iterdir())] == ["a", "b"]


def test_no_overwrite(run: Run, served: Served) -> None:
    Path("a").write_text("new")
    (served.root / "a").write_text("old")
    put, get = run("put", "a", "--no-overwrite"), run("get", "a", "--no-overwrite")
    message = "ftpkit: 'a' already exists; leave out --no-overwrite to replace it\n"
    assert (put.exit_code, put.stderr) == (3, message)
    assert (get.exit_code, get.stderr) == (1, message)
    assert (Path("a").read_text(), (served.root / "a").read_text()) == ("new", "old")
    assert run("put", "a").exit_code == 0
    assert (served.root / "a").read_text() == "new"


def test_get_writes_to_the_standard_output_and_makes_a_directory(
    run: Run, served: Served, tmp_path: Path
) -> None:
    data = bytes(range(256)) * 20_000
    (served.root / "f").write_bytes(data)
    (served.root / "g").write_bytes(b"g")
    got = run("get", "f", "-o", "-")
    assert (got.exit_code, got.stdout_bytes, got.stderr) == (0, data, "")
    missing = run("get", "none", "-o", "-")
    assert (missing.exit_code, missing.stdout_bytes) == (3, b"")
    assert not (tmp_path / "-").exists()
    for args in (("f", "g"), ("f", "--json")):
        assert run("get", *args, "-o", "-").exit_code == 2
    assert run("get", "f", "g", "-o", f"{tmp_path}/new/").exit_code == 0
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["f", "g"]


@pytest.mark.parametrize("rate", ["100k", "0"])
def test_rate(run: Run, served: Served, rate: str) -> None:
    Path("a").write_bytes(bytes(30_000))
    result = run("put", "a", "--rate", rate, "--json")
    done = json.loads(result.stdout.splitlines()[-1])
    assert done["event"] == "done"
    assert rate == "0" or done["seconds"] >= 0.2


def test_ls_stat_mkdir_mv_and_rm(run: Run, served: Served) -> None:
    (served.root / "a").write_text("four")
    assert run("mkdir", "d/e", "f").output == ""
    assert run("mv", "a", "d/a").output == ""
    names = [line[27:] for line in run("ls", "-R").stdout.splitlines()]
    assert names == ["d/", "d/a", "d/e/", "f/"]
    assert [line[27:] for line in run("ls", "d").stdout.splitlines()] == ["d/a", "d/e/"]
    entries = [json.loads(line) for line in run("ls", "-R", "--json").stdout.splitlines()]
    assert [(entry["name"], entry["kind"]) for entry in entries] == [
        ("d", "dir"),
        ("d/a", "file"),
        ("d/e", "dir"),
        ("f", "dir"),
    ]
    assert entries[0].keys() == {"name", "kind", "total", "mtime", "error"}
    assert "size      4 B (4 bytes)" in run("stat", "d/a").stdout
    stat = json.loads(run("stat", "d/a", "--json").stdout)
    assert {"name", "kind", "total", "mtime", "version", "content_digest"} <= set(stat)
    result = run("get", "d")
    assert result.exit_code == 3
    assert result.stderr == "ftpkit: 'd' is a directory; name a file ('ftpkit ls d' lists them)\n"
    result = run("rm", "d")
    assert result.exit_code == 3
    assert result.stderr.endswith("'d' is not empty; use -r to delete its contents too\n")
    assert run("rm", "-r", "d", "f").output == ""
    assert run("ls").output == ""


def test_mv_replaces_a_file_only_with_overwrite(run: Run, served: Served) -> None:
    for name in ("a", "b"):
        (served.root / name).write_text(name)
    result = run("mv", "a", "b")
    assert result.exit_code == 3
    assert result.stderr == "ftpkit: 'b' already exists; use --overwrite to replace a file\n"
    assert run("mv", "a", "b", "--overwrite").exit_code == 0
    assert (served.root / "b").read_text() == "a"


def test_ping(run: Run, served: Served) -> None:
    result = run("ping")
    assert result.stdout.startswith(f"reply from {served.url} in ")


def test_a_hostile_name_is_escaped(run: Run, served: Served) -> None:
    (served.root / "gpj.\u202eexe").touch()
    (served.root / "red\x1b[31m").touch()
    listing = run("ls").stdout
    assert "gpj.\\u202eexe" in listing
    assert "\x1b" not in listing
    assert "\\x1b" in run("stat", "red\x1b[31m").stderr
    assert "gpj.\\u202eexe: 0 B in " in run("get", "gpj.\u202eexe").stdout


def test_directories_may_be_named_as_a_shell_completes_them(run: Run, served: Served) -> None:
    assert run("mkdir", "d/").exit_code == 0
    (served.root / "d" / "f").touch()
    assert run("ls", "/").stdout.endswith("  d/\n")
    for name in ("d/", "/d", "/d/"):
        assert run("ls", name).stdout.endswith("  d/f\n")
        assert "dir" in run("stat", name).stdout
        assert "d/f" in run("verify", name).stdout


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
def test_a_deleted_current_directory_is_named(served: Served, tmp_path: Path) -> None:
    for args in (("put", "f"), ("put", "."), ("get", "f")):
        line = 'mkdir gone && cd gone && rmdir ../gone && exec "$@"'
        done = subprocess.run(
            ["sh", "-c", line, "sh", *command(*args)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )
        assert done.stderr == "ftpkit: the current directory was deleted: change to another one\n"
        assert done.returncode == 1


@pytest.mark.parametrize("year", [1700, 1890, 1969, 2040, 2262, 2300])
def test_any_time_of_a_file_travels(run: Run, served: Served, year: int) -> None:
    """File systems keep other ranges: what the disk made of the time is what must travel."""
    Path("f").write_bytes(b"data")
    seconds = (year - 1970) * 31_556_952
    os.utime("f", ns=(0, seconds * 10**9))
    mtime = os.stat("f").st_mtime_ns
    beyond = mtime > 2**63 - 1
    result = run("put", "f")
    assert result.exit_code == 0
    assert ("outside 1677 to 2262" in result.stderr) is beyond
    assert json.loads(run("ls", "--json").stdout)["mtime"] == min(mtime, 2**63 - 1)
    assert json.loads(run("stat", "f", "--json").stdout)["mtime"] == min(mtime, 2**63 - 1)
    assert run("get", "f", "-o", "copy").exit_code == 0
    assert os.stat("copy").st_mtime_ns == min(mtime, 2**63 - 1)
    # A time that another program gave to a file of the server.
    os.utime(served.root / "f", ns=(0, seconds * 10**9))
    assert run("ls").exit_code == 0
    assert run("get", "f", "-o", "copy").exit_code == 0


def test_messages_show_printable_characters_as_they_are(run: Run, served: Served) -> None:
    assert run("get", "café-漢").stderr == "ftpkit: no such file or directory: 'café-漢'\n"
    assert run("stat", "\u202eread").stderr == "ftpkit: no such file or directory: '\\u202eread'\n"


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_commands_work_with_closed_standard_streams(
    served: Served, tmp_path: Path, closed: str
) -> None:
    (tmp_path / "f").write_bytes(b"data")
    line = f'"$@" {closed}'
    for args in (
        ("put", str(tmp_path / "f")),
        ("get", "f", "-o", str(tmp_path / "copy")),
        ("ls",),
        ("verify",),
        ("status",),
    ):
        done = subprocess.run(
            ["sh", "-c", line, "sh", *command(*args)],
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), args
    assert (tmp_path / "copy").read_bytes() == b"data"
    failed = subprocess.run(["sh", "-c", line, "sh", *command("get", "missing")], check=False)
    assert failed.returncode == 3
