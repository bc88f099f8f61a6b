"""A process that swaps files under a root for links and special files, as fast as it can."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

# What is swapped in and where, each for a moment only.
ATTACKS: Final = {
    "link for a directory": ("link", "d", "d/e"),
    "link for a file": ("link", "f", "d/f"),
    "hard link for a file": ("hard link", "f", "d/f"),
    "FIFO for a file": ("fifo", "f", "d/f"),
    "FIFO for a directory": ("fifo", "d", "d/e"),
    "socket for a file": ("socket", "f", "d/f"),
    "device for a file": ("device", "f", "d/f"),
    "directory for a file": ("directory", "f", "d/f"),
    "file for a directory": ("file", "d", "d/e"),
    "link for the private directory": ("link", ".ftpkit"),
    "directory for the private directory": ("directory", ".ftpkit"),
    "private directory in the tree": ("nothing", ".ftpkit", "/into the tree"),
    "links for the private directories": (
        "link", ".ftpkit/staging", ".ftpkit/uploads", ".ftpkit/published",
    ),
    "links for uploads": ("link", ".ftpkit/uploads/*", ".ftpkit/uploads/*/*"),
    "hard links for uploads": ("hard link", ".ftpkit/uploads/*/*", ".ftpkit/published/*"),
    "FIFOs for uploads": ("fifo", ".ftpkit/uploads/*/*", ".ftpkit/published/*"),
    "link for the root": ("link", "../root"),
}  # fmt: skip

_SOURCE: Final = r"""
import glob, os, shutil, socket, sys

outside, kind, *places = sys.argv[2:]
os.chdir(sys.argv[1])
os.set_blocking(0, False)
root, rounds = os.getcwd(), 0

def trying(call, *args):
    try:
        call(*args)
    except OSError:
        return False
    return True

def bind(name):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(name)

def target(name):
    # The same name outside, if it exists.
    inner = os.path.join(outside, os.path.relpath(name, root))
    return inner if os.path.exists(inner) else os.path.join(outside, "f")

MAKE = {
    "link": lambda name: os.symlink(target(name) if os.path.basename(name) != "root" else outside,
                                    name),
    "hard link": lambda name: os.link(target(name), name),
    "fifo": os.mkfifo,
    "socket": bind,
    "device": lambda name: os.mknod(name, 0o20666, os.makedev(1, 5)),
    "directory": os.mkdir,
    "file": lambda name: os.close(os.open(name, os.O_CREAT | os.O_EXCL)),
    "nothing": lambda name: None,
}
aside = "d/spare" if "/into the tree" in places else "../spare"

print("ready", flush=True)
while rounds % 16 or sys.stdin.buffer.raw.read(1) is None:
    for name in [name for place in places for name in glob.glob(place) or [place]]:
        moved = trying(os.rename, name, aside)
        trying(MAKE[kind], name)
        trying(os.unlink, name) or trying(os.rmdir, name)
        if moved and not trying(os.rename, aside, name):
            # Another file has been created there meanwhile.
            trying(os.unlink, aside) or shutil.rmtree(aside, ignore_errors=True)
    rounds += 1
print(rounds, flush=True)
"""


@contextlib.contextmanager
def attacker(root: Path, outside: Path, attack: str) -> Iterator[None]:
    """Swap files in a loop until the block ends; check that at least one round was made."""
    assert root.name == "root"
    with subprocess.Popen(
        [sys.executable, "-c", _SOURCE, str(root), str(outside), *ATTACKS[attack]],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"ready\n"
            yield
        finally:
            process.stdin.close()
            rounds = int(process.stdout.read() or 0)
    assert rounds > 0
