"""The structure of the package: imports point down and in no circle, no package is crowded."""

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Final

import pytest

import ftpkit

PACKAGE: Final = Path(ftpkit.__file__).parent

# A part may import itself and parts on lower floors, but no other part on its own floor.
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
    "lab": 4,
    "compare": 5,
    "cli": 6,
}
FREE: Final = {"__init__", "__main__"}
# The names that the top of the package exports are on the floor of client and server.
TOP: Final = "ftpkit"
TOP_FLOOR: Final = 3

ONLY_CLI: Final = {"click", "tqdm"}
MAX_MODULES: Final = 12
# It has one module for each command.
UNLIMITED: Final = {"ftpkit.cli.commands"}

# Above storage/, only the public names and the default of Server and the CLI name it.
DIRECTORY_STORE: Final = "DirectoryStore"
NAMES_DIRECTORY_STORE: Final = {"ftpkit", "ftpkit.server.handler"}
# A download is staged beside its target with the parts of the directory store.
DIRECTORY_PACKAGE: Final = "ftpkit.storage.directory"
USES_DIRECTORY_PACKAGE: Final = {"ftpkit.client.transfer.target"}

ENVIRONMENT: Final = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}

# The protocol is pure: no sockets, files, clocks or threads.
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


def imported(tree: ast.AST, module: str, *, is_package: bool) -> Iterator[str]:
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


def imported_modules(source: str, module: str, known: set[str], *, is_package: bool) -> set[str]:
    """Return which of the modules ``known`` the text ``source`` of ``module`` imports."""
    found = set()
    statements = ast.walk(ast.parse(source))
    for node in (each for each in statements if isinstance(each, ast.Import | ast.ImportFrom)):
        for name in imported(node, module, is_package=is_package):
            inside = {f"{name}.{alias.name}" for alias in node.names} & known
            # What is taken from a package is one of its modules, or else a name of its own.
            found |= inside or {name} & known
    return found - {module}


def circle(imports: Mapping[str, set[str]]) -> list[str]:
    """Return modules that import each other in a circle, or nothing."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def crowded(names: Iterable[str]) -> list[str]:
    """Return the packages in which more than MAX_MODULES of the modules ``names`` are."""
    packages = Counter(name.rpartition(".")[0] for name in names)
    return [
        package
        for package, count in sorted(packages.items())
        if count > MAX_MODULES and package not in UNLIMITED
    ]


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


def sources() -> dict[str, tuple[str, bool]]:
    """Return the text of each module, and whether it is the ``__init__`` of a package."""
    return {
        module: (path.read_text("utf-8"), path.name == "__init__.py") for module, path in modules()
    }


def test_no_modules_import_each_other() -> None:
    # The top of the package imports what it exports only when it is used.
    texts = {module: text for module, text in sources().items() if module != TOP}
    imports = {
        module: imported_modules(source, module, set(texts), is_package=is_package)
        for module, (source, is_package) in texts.items()
    }
    assert circle(imports) == []


def test_a_planted_circle_is_found() -> None:
    known = {"ftpkit.net.a", "ftpkit.net.b", "ftpkit.net.c"}
    planted = {
        "ftpkit.net.a": "import typing\nif typing.TYPE_CHECKING:\n    from ftpkit.net import b",
        "ftpkit.net.b": "def f():\n    from ftpkit.net.a import x",
        "ftpkit.net.c": "from . import a, b",
    }
    imports = {
        module: imported_modules(source, module, known, is_package=False)
        for module, source in planted.items()
    }
    assert imports["ftpkit.net.c"] == {"ftpkit.net.a", "ftpkit.net.b"}
    assert set(circle(imports)) == {"ftpkit.net.a", "ftpkit.net.b"}


def test_no_package_is_crowded() -> None:
    names = [module for module, (_, is_package) in sources().items() if not is_package]
    assert crowded(names) == []
    assert crowded([*names, *(f"ftpkit.net.planted{number}" for number in range(12))]) == [
        "ftpkit.net"
    ]


def names_directory_store(source: str) -> bool:
    """Whether code (and no comment or docstring) in ``source`` names the directory store."""
    return any(
        (isinstance(node, ast.Name) and node.id == DIRECTORY_STORE)
        or (isinstance(node, ast.Attribute) and node.attr == DIRECTORY_STORE)
        or (isinstance(node, ast.alias) and node.name == DIRECTORY_STORE)
        for node in ast.walk(ast.parse(source))
    )


def test_only_the_defaults_name_the_directory_store() -> None:
    found = {
        module
        for module, (source, _) in sources().items()
        if part_of(module) != "storage" and names_directory_store(source)
    }
    assert found == NAMES_DIRECTORY_STORE
    assert names_directory_store("from ftpkit import storage\nstorage.DirectoryStore('x')")


def test_only_downloads_use_the_parts_of_the_directory_store() -> None:
    found = {
        module
        for module, (source, is_package) in sources().items()
        if part_of(module) != "storage"
        and any(
            name.startswith(DIRECTORY_PACKAGE)
            for name in imported(ast.parse(source), module, is_package=is_package)
        )
    }
    assert found == USES_DIRECTORY_PACKAGE


def test_scheduling_moves_no_bytes() -> None:
    allowed = {"threading", "time"}  # for the threads that wait for their turns
    for module, (source, is_package) in sources().items():
        if part_of(module) == "scheduling":
            names = imported(ast.parse(source), module, is_package=is_package)
            assert not {name.split(".")[0] for name in names} & (IMPURE - allowed), module
