"""What is on the disk below a server's root."""

from pathlib import Path

PRIVATE = ".ftpkit"


def published(root: Path) -> dict[str, bytes]:
    """Return the names and bytes of all files below ``root`` but for private ones."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if not path.is_dir() and name.split("/")[0] != PRIVATE:
            found[name] = path.read_bytes()
    return found


def staged(root: Path) -> list[str]:
    """Return the names of unfinished files and uploads in the private directory."""
    private = root / PRIVATE
    return sorted(
        path.relative_to(private).as_posix()
        for part in ("staging", "uploads")
        for path in (private / part).iterdir()
    )
