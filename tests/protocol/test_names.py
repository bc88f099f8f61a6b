"""Good and bad names."""

import contextlib
import sys
import unicodedata
from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ftpkit.errors import Code, RefusedError
from ftpkit.protocol.names import RESERVED, check_name, is_in, is_reserved, split_name

LONG = "/".join(["x" * 255] * 16)  # 4,095 bytes


@pytest.mark.parametrize(
    "name",
    [
        "a", "a/b/c.txt", " ", "a b", "...", "..a", ".hidden", "~", "-rf", "C:", "con", "é",
        "漢字/😀", "a\u00a0b", "a\u2028b", "x" * 255, "é" * 127, "漢" * 85, "😀" * 63, LONG,
        f"{LONG[:-1]}/y", ".ftpki", ".ftpk\u0131", "ftpkit", "a.ftpkit", "ftpkit/.ftp", "\ufffd",
    ],
)  # fmt: skip
def test_good_names(name: str) -> None:
    assert check_name(name) == name
    assert "/".join(split_name(name)) == name


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "empty"),
        ("/", "begins with a slash"),
        ("/a", "begins with a slash"),
        ("//a", "begins with a slash"),
        ("a/", "has an empty part"),
        ("a//b", "has an empty part"),
        (".", "'.'"),
        ("..", "'..'"),
        ("a/./b", "'.'"),
        ("a/../b", "'..'"),
        ("a/..", "'..'"),
        ("../a", "'..'"),
        ("a\0", "control"),
        ("a\nb", "control"),
        ("\x1f", "control"),
        ("\x7f", "control"),
        ("é\x80", "control"),
        ("é\x9f", "control"),
        ("a\\b", "backslash"),
        ("\\", "backslash"),
        ("x" * 256, "255 bytes"),
        ("é" * 128, "255 bytes"),
        ("漢" * 86, "255 bytes"),
        ("😀" * 64, "255 bytes"),
        (f"a/{'x' * 256}/b", "255 bytes"),
        (f"{LONG}/y", "4,096 bytes"),
        ("\ud800", "surrogate"),
        (".ftpkit", "are reserved"),
        (".ftpkit/journal", "are reserved"),
        ("a/.ftpkit", "are reserved"),
        (".ftpkit-more", "are reserved"),
    ],
)
def test_bad_names(name: str, why: str) -> None:
    with pytest.raises(RefusedError, match=why) as caught:
        check_name(name)
    assert caught.value.code is Code.BAD_NAME


def test_the_longest_name() -> None:
    name = f"{LONG[:-1]}/y"
    assert len(name) == 4096
    assert check_name(name) == name


@pytest.mark.parametrize(
    "part",
    [
        ".ftpkit", ".FTPKIT", ".FtpKit2", ".\uff46\uff54\uff50kit", "\uff0eftpkit", "\u2024ftpkit",
        ".ftp\u212ait", ".f\u200dtpkit", "\ufeff.ftpkit", ".ftpki\u00adt", ".ftpkit\u200b",
        ".ftp\u034fkit", ".ftpk\ufe0fit", "\u3164.ftpkit", ".ftpkit\U000e0100", ".\u2065ftpkit",
        ".\U0001d41f\U0001d42d\U0001d429kit", "\u180b.f\u115ft\uffa0p\U000e0fffkit",
        ".ftpk\u0131t", ".FTPK\u0130T", ".ftpki\u0307t",
    ],
)  # fmt: skip
def test_look_alikes_of_the_reserved_name_are_reserved(part: str) -> None:
    assert is_reserved(part)
    with pytest.raises(RefusedError, match="are reserved"):
        check_name(f"a/{part}/b")


def likenesses(character: str) -> set[str]:
    """What a file system may take a character for, whichever tables it goes by."""
    forms = {unicodedata.normalize(form, character) for form in ("NFC", "NFD", "NFKC", "NFKD")}
    # HFS+ and APFS compare what is decomposed, exFAT and NTFS capitals, ext4 what is folded.
    cases = {case(form) for form in forms for case in (str.lower, str.upper, str.casefold)}
    return {case(form) for form in cases for case in (str.lower, str.casefold)}


def test_no_unicode_character_leads_to_the_reserved_name() -> None:
    parts = [
        RESERVED[:at] + character + RESERVED[at + 1 :]
        for character in map(chr, range(128, sys.maxunicode + 1))
        if (taken := likenesses(character) & set(RESERVED))
        for at, letter in enumerate(RESERVED)
        if letter in taken
    ]
    assert len(parts) > 100
    assert [ascii(part) for part in parts if not is_reserved(part)] == []


# What HFS+ leaves out of a comparison (Apple, Technical Note TN1150, and what Git guards against).
IGNORED_BY_HFS: Final = "\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e" + (
    "\u206a\u206b\u206c\u206d\u206e\u206f\ufeff"
)


@pytest.mark.parametrize("ignored", IGNORED_BY_HFS, ids=ascii)
def test_ignored_characters_do_not_hide_the_reserved_name(ignored: str) -> None:
    for at in range(len(RESERVED) + 1):
        assert is_reserved(RESERVED[:at] + ignored + RESERVED[at:])


@pytest.mark.parametrize("part", ["", ".", "ftpkit", ".ftpki", ".ftpkì", "a.ftpkit", "漢.ftpkit"])
def test_similar_names_that_are_not_reserved(part: str) -> None:
    assert not is_reserved(part)


def test_the_root_is_a_name_only_if_allowed() -> None:
    assert check_name("", root=True) == ""
    assert check_name("a", root=True) == "a"
    assert split_name("") == []
    with pytest.raises(RefusedError, match="begins with a slash"):
        check_name("/", root=True)


def test_a_refusal_quotes_the_name_escaped_and_shortened() -> None:
    with pytest.raises(RefusedError) as caught:
        check_name("/\x1b[31m" + "é" * 1_000)
    message = str(caught.value)
    assert message.startswith("bad name '/\\x1b[31mé")
    assert message.isprintable()
    assert len(message) < 120


@given(st.text() | st.text("./\\a\0é", max_size=12))
@example("a/\u2025")
def test_any_text_is_a_safe_name_or_a_bad_name(text: str) -> None:
    with contextlib.suppress(RefusedError):
        name = check_name(text)
        parts = split_name(name)
        assert len(name.encode()) <= 4096
        assert all(0 < len(part.encode()) <= 255 for part in parts)
        assert not {".", "..", ""} & set(parts)
        assert not any(unicodedata.category(c) in ("Cc", "Cs") or c == "\\" for c in name)


def test_a_name_is_in_its_parents_and_in_itself() -> None:
    assert is_in("", "a/b")
    assert is_in("a", "a/b")
    assert is_in("a/b", "a/b")
    assert not is_in("a", "ab")
