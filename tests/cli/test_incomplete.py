"""Commands on many names report what they cannot read, and go on with the others."""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftpkit import Client, Server
from tests.cli.conftest import Run

LOCKED = "ftpkit: lost+found/: cannot be read: Permission denied\n"


@pytest.fixture
def root(run: Run, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The root of a server, with a directory that the server may not read."""
    if not hasattr(os, "seteuid") or os.geteuid() != 0:
        pytest.skip("changing the user takes root")
    # A directory that the other user can reach, unlike tmp_path.
    top = Path(tempfile.mkdtemp())
    for variable in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(variable, str(top / "home"))
    root = top / "root"
    with Server(root, port=0) as server, Client(server.address) as client:
        monkeypatch.setenv("FTPKIT_URL", str(server.address))
        (top / "source").write_bytes(b"data")
        for name in ("a", "lost+found-too", "lost+found/inside", "z/f"):
            client.put(top / "source", name)
        for command in ("ls", "verify"):  # the other user may not read the modules of this Python
            assert run(command).exit_code == 0
        (root / "lost+found").chmod(0)
        for path in (top, *top.rglob("*")):
            os.chown(path, 65534, 65534)
        os.seteuid(65534)
        try:
            yield root
        finally:
            os.seteuid(0)
    shutil.rmtree(top)


def test_ls_lists_what_is_beside_an_unreadable_directory(run: Run, root: Path) -> None:
    result = run("ls", "-R")
    assert [line.split()[-1] for line in result.stdout.splitlines()] == [
        *("a", "lost+found/", "lost+found-too", "z/", "z/f")
    ]
    assert result.stderr == f"{LOCKED}ftpkit: 1 not listed\n"
    assert result.exit_code == 1


def test_verify_verifies_what_is_beside_an_unreadable_file(run: Run, root: Path) -> None:
    (root / "a").chmod(0)
    result = run("verify")
    assert result.stdout == (
        "good     lost+found-too\ngood     z/f\n2 good, 0 damaged, 0 unknown, 2 failed\n"
    )
    assert result.stderr == f"ftpkit: the server has no permission to access 'a'\n{LOCKED}"
    assert result.exit_code == 1
    assert run("verify", "z", "missing").exit_code == 3


@pytest.mark.skipif(sys.platform != "linux", reason="file names are not bytes everywhere")
def test_ls_names_and_counts_files_whose_names_are_not_utf8(run: Run, root: Path) -> None:
    (root / os.fsdecode(b"z/caf\xe9")).touch()
    result = run("ls", "z")
    assert result.stdout.endswith("  z/f\n")
    assert result.stderr == ("ftpkit: z/caf\\xe9: the name is not UTF-8\nftpkit: 1 not listed\n")
    assert result.exit_code == 1
    lines = [json.loads(line) for line in run("ls", "z", "--json").stdout.splitlines()]
    assert [(line["name"], line["error"]) for line in lines] == [
        ("z/caf\\xe9", "the name is not UTF-8"),
        ("z/f", None),
    ]
