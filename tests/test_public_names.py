"""The public names of ``ftpkit``: listed for completion, and imported when first used."""

import rlcompleter
import subprocess
import sys

import pytest

import ftpkit


@pytest.mark.parametrize("name", ftpkit.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(ftpkit, name) is not None


def test_dir_lists_the_public_names() -> None:
    assert dir(ftpkit) == sorted(ftpkit.__all__)


def test_completion_offers_them() -> None:
    completer = rlcompleter.Completer({"ftpkit": ftpkit})
    assert completer.complete("ftpkit.Cli", 0) in ("ftpkit.Client", "ftpkit.Client(")


def test_listing_them_imports_nothing() -> None:
    code = (
        "import sys, ftpkit; dir(ftpkit);"
        "print([name for name in sys.modules if name.startswith('ftpkit.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
