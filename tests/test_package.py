"""What is built from this tree holds all that an installation and a packager need."""

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from configparser import ConfigParser
from email.message import Message
from email.parser import Parser
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from ftpkit import __version__
from ftpkit.__main__ import run

TOP = Path(__file__).parents[1]
DIST_INFO = f"ftpkit-{__version__}.dist-info"


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the sdist, and with the wheel that was built from it, without a network."""
    path = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(path), str(TOP)]
    # What the portable run switches off in Python is not for the build to miss.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        command,
        cwd=path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    return path


@pytest.fixture(scope="module")
def wheel(dist: Path) -> dict[str, str]:
    """The files of the wheel, by their names, as text."""
    with zipfile.ZipFile(dist / f"ftpkit-{__version__}-py3-none-any.whl") as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


@pytest.fixture(scope="module")
def sdist(dist: Path) -> set[str]:
    """The names of the files of the sdist, below its top."""
    with tarfile.open(dist / f"ftpkit-{__version__}.tar.gz") as archive:
        return {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}


@pytest.fixture(scope="module")
def metadata(wheel: dict[str, str]) -> "Message[str, str]":
    """The metadata of the wheel."""
    return Parser().parsestr(wheel[f"{DIST_INFO}/METADATA"])


def in_tree(*directories: str) -> set[str]:
    """Return the names of the files below ``directories`` of this tree."""
    return {
        path.relative_to(TOP).as_posix()
        for directory in directories
        for path in (TOP / directory).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def project() -> dict[str, Any]:
    """Return what pyproject.toml says of the project."""
    table: dict[str, Any] = tomllib.loads((TOP / "pyproject.toml").read_text("utf-8"))["project"]
    return table


def test_the_wheel_holds_the_package_and_nothing_else(wheel: dict[str, str]) -> None:
    assert {name for name in wheel if not name.startswith(DIST_INFO)} == in_tree("ftpkit")


@pytest.mark.parametrize(
    "name", ["ftpkit/py.typed", "ftpkit/protocol/WIRE.md", "ftpkit/docs/using.md"]
)
def test_the_wheel_holds_what_is_no_python(wheel: dict[str, str], name: str) -> None:
    assert name in wheel


def test_the_wheel_has_the_command(wheel: dict[str, str]) -> None:
    points = ConfigParser()
    points.read_string(wheel[f"{DIST_INFO}/entry_points.txt"])
    assert dict(points["console_scripts"]) == {"ftpkit": "ftpkit.__main__:run"}
    command = EntryPoint("ftpkit", points["console_scripts"]["ftpkit"], "console_scripts")
    assert command.load() is run


def test_the_metadata_says_what_it_is(metadata: "Message[str, str]") -> None:
    about = project()
    assert (metadata["Name"], metadata["Version"]) == ("ftpkit", __version__)
    assert metadata["Summary"] == about["description"]
    assert metadata["Author"] == "The ftpkit maintainers"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Keywords"]


def test_the_metadata_has_the_classifiers(metadata: "Message[str, str]") -> None:
    told = metadata.get_all("Classifier", [])
    assert sorted(told) == sorted(project()["classifiers"])
    assert "Typing :: Typed" in told


def test_the_metadata_names_the_license(
    metadata: "Message[str, str]", wheel: dict[str, str]
) -> None:
    assert metadata["License-Expression"] == "MIT"
    assert metadata["License-File"] == "LICENSE"
    assert wheel[f"{DIST_INFO}/licenses/LICENSE"] == (TOP / "LICENSE").read_text("utf-8")


def test_the_metadata_has_the_readme(metadata: "Message[str, str]") -> None:
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert str(metadata.get_payload()).strip() == (TOP / "README.md").read_text("utf-8").strip()


def test_the_metadata_has_what_must_be_installed(metadata: "Message[str, str]") -> None:
    needed = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert sorted(needed) == sorted(project()["dependencies"])
    assert metadata.get_all("Provides-Extra") == ["bench", "dev", "fuzz", "plot"]


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "LICENSE",
        "pyproject.toml",
        "conf/ftpkit.toml",
        "ftpkit/docs/using.md",
        "tests/__init__.py",
    ],
)
def test_the_sdist_holds_what_a_packager_needs(sdist: set[str], name: str) -> None:
    assert name in sdist


def test_the_sdist_holds_the_whole_tree(sdist: set[str]) -> None:
    assert in_tree("ftpkit", "tests", "conf") <= sdist
