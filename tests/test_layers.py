"""Imports point down: which part of ftpkit may know which other part."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

import ftpkit

PACKAGE: Final = Path(ftpkit.__file__).parent

# A part may import itself and what lies on a lower floor; parts on the same floor are strangers.
FLOORS: Final = {
    "errors": 0,
    "osapi": 0,
    "private_files": 1,
    "protocol": 1,
    "scheduling": 1,
    "storage": 2,
    "net": 2,
    "tokens": 2,
    "server": 3,
    "client": 3,
    "lab": 3,
    "compare": 4,
    "cli": 5,
}
FREE: Final = {"__init__", "__main__"}
# What people import from the top of the package stands on the floor of client and server.
TOP: Final = "ftpkit"
TOP_FLOOR: Final = 3

ONLY_CLI: Final = {"click", "tqdm"}
ENVIRONMENT: Final = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}

# The protocol is pure: it moves no byte, opens no file, sees no clock and starts no thread.
PURE_EXTRAS: Final = {"blake3"}
PURE_PARTS: Final = {"errors", "protocol"}
IMPURE: Final = {
    "_thread", "asyncio", "builtins", "concurrent", "ctypes", "datetime", "fcntl", "fileinput",
    "ftplib", "getpass", "glob", "http", "importlib", "io", "locale", "logging", "mmap",
    "multiprocessing", "os", "pathlib", "pickle", "platform", "posix", "pty", "queue", "random",
    "resource", "sched", "secrets", "select", "selectors", "shelve", "shutil", "signal", "site",
    "socket", "socketserver", "sqlite3", "ssl", "subprocess", "sys", "syslog", "tempfile",
    "threading", "time", "urllib", "uuid", "zoneinfo",
}  # fmt: skip


def part_of(module: str) -> str:
    """Return the part that ``ftpkit.part.…`` belongs to, or TOP."""
    names = module.split(".")
    return names[1] if len(names) > 1 else TOP


def imported(tree: ast.Module, module: str, *, is_package: bool) -> Iterator[str]:
    """Yield the full name of all that a module imports, wherever in it the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = module.split(".")
                up = up[: len(up) - node.level + is_package]
                base = ".".join([*up, base]) if base else ".".join(up)
            # "from ftpkit import net" names a part; "from ftpkit.net import x" is of one.
            yield from (f"{base}.{alias.name}" if base == TOP else base for alias in node.names)


def faults(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """Return what the imports of ``module``, whose text is ``source``, do that they may not."""
    part, tree = part_of(module), ast.parse(source)
    if part in FREE or module == TOP:
        return []
    if part not in FLOORS:
        return [f"{part} has no floor"]
    found = [
        fault
        for name in imported(tree, module, is_package=is_package)
        if (fault := _fault(part, name)) is not None
    ]
    if part != "cli" and any(_reads_environment(node) for node in ast.walk(tree)):
        found.append(f"{part} reads the environment")
    return found


def _fault(part: str, name: str) -> str | None:
    root = name.split(".")[0]
    if root == TOP:
        return _fault_inside(part, name)
    if root in ONLY_CLI and part != "cli":
        return f"{part} imports {root}"
    if part == "protocol" and (root in IMPURE or root not in sys.stdlib_module_names | PURE_EXTRAS):
        return f"protocol imports {root}"
    return None


def _fault_inside(part: str, name: str) -> str | None:
    target = part_of(name)
    if target == "__version__":
        return None if part != "protocol" else "protocol imports ftpkit"
    if target not in FLOORS:  # a name that the package's top offers
        target, floor = TOP, TOP_FLOOR
    else:
        floor = FLOORS[target]
    if target == part:
        return None
    if floor >= FLOORS[part] or (part == "protocol" and target not in PURE_PARTS):
        return f"{part} imports {target}"
    return None


def _reads_environment(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute):
        return node.attr in ENVIRONMENT and isinstance(node.value, ast.Name)
    if isinstance(node, ast.ImportFrom):
        return node.module == "os" and any(alias.name in ENVIRONMENT for alias in node.names)
    return False


def modules() -> Iterator[tuple[str, Path]]:
    """Yield the full name and the path of every module of the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        names = path.relative_to(PACKAGE.parent).with_suffix("").parts
        yield ".".join(names[:-1] if names[-1] == "__init__" else names), path


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=str)
def test_imports_point_down(module: str, path: Path) -> None:
    found = faults(path.read_text("utf-8"), module, is_package=path.name == "__init__.py")
    assert found == []


def test_the_whole_package_is_looked_at() -> None:
    found = {module for module, _ in modules()}
    assert {"ftpkit", "ftpkit.errors", "ftpkit.protocol", "ftpkit.protocol.frame"} <= found


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("ftpkit.errors", "from ftpkit.protocol import Decoder", "errors imports protocol"),
        ("ftpkit.errors", "import ftpkit.osapi", "errors imports osapi"),
        ("ftpkit.protocol.frame", "import socket", "protocol imports socket"),
        ("ftpkit.protocol.frame", "import os.path", "protocol imports os"),
        ("ftpkit.protocol.frame", "from concurrent import futures", "protocol imports concurrent"),
        ("ftpkit.protocol.frame", "def f():\n    import time", "protocol imports time"),
        ("ftpkit.protocol.frame", "if 0:\n    from io import BytesIO", "protocol imports io"),
        ("ftpkit.protocol.frame", "import cryptography", "protocol imports cryptography"),
        ("ftpkit.protocol.frame", "from ftpkit import osapi", "protocol imports osapi"),
        ("ftpkit.protocol.frame", "from ftpkit import __version__", "protocol imports ftpkit"),
        ("ftpkit.protocol.frame", "from ..net import stream", "protocol imports net"),
        ("ftpkit.protocol.frame", "from .. import net", "protocol imports net"),
        ("ftpkit.protocol.frame", "import click", "protocol imports click"),
        ("ftpkit.scheduling.fifo", "import ftpkit.protocol.frame", "scheduling imports protocol"),
        ("ftpkit.storage.directory", "from ftpkit.net import stream", "storage imports net"),
        ("ftpkit.net.stream", "from ftpkit.storage import Store", "net imports storage"),
        ("ftpkit.net.stream", "from ftpkit import tokens", "net imports tokens"),
        ("ftpkit.tokens", "from .storage import Store", "tokens imports storage"),
        ("ftpkit.net.stream", "from ftpkit.server.session import x", "net imports server"),
        ("ftpkit.server.session", "import ftpkit.client.known_hosts as h", "server imports client"),
        ("ftpkit.client.client", "from ftpkit.server import Server", "client imports server"),
        ("ftpkit.client.client", "from ftpkit import Server", "client imports ftpkit"),
        ("ftpkit.server.server", "import ftpkit", "server imports ftpkit"),
        ("ftpkit.server.server", "from tqdm import tqdm", "server imports tqdm"),
        ("ftpkit.server.server", "from ftpkit import cli", "server imports cli"),
        ("ftpkit.compare.report", "from ftpkit.cli import main", "compare imports cli"),
        ("ftpkit.server.server", "import os\nos.environ['A']", "server reads the environment"),
        ("ftpkit.server.server", "import os\nos.getenv('A')", "server reads the environment"),
        ("ftpkit.server.server", "from os import environ as e", "server reads the environment"),
        ("ftpkit.helpers.misc", "", "helpers has no floor"),
    ],
)
def test_a_planted_import_is_caught(module: str, source: str, fault: str) -> None:
    assert faults(source, module) == [fault]


def test_a_planted_import_in_a_package_is_caught() -> None:
    source = (
        "from .. import net\nfrom ..server import Server\nfrom . import frame\nfrom .names import x"
    )
    assert faults(source, "ftpkit.protocol", is_package=True) == [
        "protocol imports net",
        "protocol imports server",
    ]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ftpkit", "import click\nfrom ftpkit.cli import main"),
        ("ftpkit.__main__", "from ftpkit.cli import main"),
        ("ftpkit.protocol.frame", "import json\nimport blake3\nfrom ftpkit.errors import Code"),
        ("ftpkit.protocol.frame", "from . import names\nfrom .digest import digest_of"),
        ("ftpkit.net.stream", "import socket\nfrom ftpkit import osapi\nimport ftpkit.protocol"),
        (
            "ftpkit.server.session",
            "from ftpkit import __version__, net, tokens\nimport os\nos.stat",
        ),
        ("ftpkit.compare.report", "from ftpkit import Client, Server\nimport ftpkit.client"),
        (
            "ftpkit.cli.settings",
            "import click, tqdm, os, ftpkit\nos.environ\nimport ftpkit.compare",
        ),
    ],
)
def test_imports_that_point_down_are_fine(module: str, source: str) -> None:
    assert faults(source, module) == []


def test_every_floor_is_a_module_name() -> None:
    assert all(re.fullmatch(r"[a-z_]+", part) for part in FLOORS)
