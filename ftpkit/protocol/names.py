"""Names: relative paths that cannot leave the server's root (WIRE.md section 4)."""

import re
import unicodedata
from typing import Final

from ftpkit.errors import Code, RefusedError

MAX_NAME: Final = 4096
MAX_PART: Final = 255
RESERVED: Final = ".ftpkit"

# Unicode's Default_Ignorable_Code_Point without category Cf, which is tested separately.
_IGNORABLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8"
    "\U000e0000-\U000e0fff]"
)


def check_name(name: str, *, root: bool = False) -> str:
    """Return ``name``, or raise RefusedError ``bad-name``; ``root`` allows "", the root."""
    if not name:
        if root:
            return name
        raise RefusedError(Code.BAD_NAME, "the name is empty")
    fault = _fault(name)
    if fault is not None:
        raise RefusedError(Code.BAD_NAME, f"bad name {_shown(name)}: {fault}")
    return name


def split_name(name: str) -> list[str]:
    """Return the parts of a checked name; none for the root."""
    return name.split("/") if name else []


def is_in(top: str, name: str) -> bool:
    """Whether ``name`` is ``top`` or below it; everything is below the root, ""."""
    return top in ("", name) or name.startswith(f"{top}/")


def is_reserved(part: str) -> bool:
    """Whether a file system that folds case or normalizes could take ``part`` for ``.ftpkit…``.

    Ignorable characters are dropped, as ext4 does where it folds case, and so are accents:
    a dotted capital I decomposes to an i with a dot, and a dotless i has the capital I.
    """
    if part.isascii():
        return part.lower().startswith(RESERVED)
    seen = "".join(c for c in _IGNORABLE.sub("", part) if unicodedata.category(c) != "Cf")
    plain = "".join(c for c in unicodedata.normalize("NFKD", seen) if not unicodedata.combining(c))
    return plain.upper().casefold().startswith(RESERVED)


def _fault(name: str) -> str | None:
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        return "it has an unpaired surrogate"
    if length > MAX_NAME:
        return f"it is longer than {MAX_NAME:,} bytes"
    if name.startswith("/"):
        return "it begins with a slash"
    if "\\" in name:
        return "it contains a backslash"
    if not name.isprintable() and any(unicodedata.category(c) == "Cc" for c in name):
        return "it contains a control character"
    return next((fault for part in name.split("/") if (fault := _part_fault(part))), None)


def _part_fault(part: str) -> str | None:
    if part == "":
        return "it has an empty part"
    if part in (".", ".."):
        return f"it has a part {part!r}"
    if len(part) * 4 > MAX_PART and len(part.encode()) > MAX_PART:
        return f"it has a part of more than {MAX_PART} bytes"
    if is_reserved(part):
        return f"names that begin with {RESERVED} are reserved"
    return None


def _shown(name: str) -> str:
    text = repr(name)
    return text if len(text) <= 80 else f"{text[:77]}..."
