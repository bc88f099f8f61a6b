"""README.md and the pages of ftpkit/docs: their examples run, and what they name exists."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import ftpkit
from ftpkit import Server
from ftpkit.cli import main
from ftpkit.cli.commands import compare_transports

TOP = Path(__file__).parent.parent
README = TOP / "README.md"
DOCS = Path(ftpkit.__file__).parent / "docs"
SERVING = DOCS / "serving.md"
PAGES = {path: path.read_text("utf-8") for path in [README, *sorted(DOCS.glob("*.md"))]}
TEXT = "".join(PAGES.values())

LINK = re.compile(r"\[[^]]+\]\(([^)]+)\)")
FENCED = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`]+)`")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def example(marker: str) -> str:
    """Return the code block behind a comment."""
    matches = re.findall(rf"<!-- {re.escape(marker)} -->\n```\w*\n(.*?)```", TEXT, re.DOTALL)
    assert len(matches) == 1, f"{len(matches)} blocks are marked {marker!r}"
    return str(matches[0])


def output_behind(marker: str) -> str:
    """Return the text block that follows a marked code block: what it prints."""
    code = re.escape(example(marker))
    match = re.search(rf"{code}```\n+```text\n(.*?)```", TEXT, re.DOTALL)
    assert match is not None, f"no output is shown of {marker!r}"
    return match[1]


def run(code: str, directory: Path) -> str:
    """Run ``code`` in a process of its own, in ``directory``; return what it prints."""
    package = str(Path(ftpkit.__file__).parent.parent)
    path = os.pathsep.join([package, os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "ignore::ResourceWarning", "-c", code],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def at(code: str, port: int) -> str:
    """Return ``code`` with another port."""
    assert "9021" in code
    return code.replace("9021", str(port))


def console(path: Path, first: str) -> list[tuple[list[str], str]]:
    """Return the commands of a console block, found by its first one, and what each prints."""
    blocks = re.findall(r"^```console\n(.*?)^```$", PAGES[path], re.MULTILINE | re.DOTALL)
    block = next(block for block in blocks if block.startswith(f"$ {first}"))
    return [
        (shlex.split(line), shown)
        for line, shown in re.findall(r"^\$ (.+)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
    ]


def masked(text: str) -> list[str]:
    """Return the lines of an output without what differs from run to run."""
    text = re.sub(r"ftpk://\S+", "URL", text)
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d", "DATE", text)
    text = re.sub(r"[\d.]+ [kMG]?B", "SIZE", text)
    text = re.sub(r"[\d.]+ m?s\b", "TIME", text)
    return [" ".join(line.split()) for line in text.splitlines()]


def test_the_sessions_print_what_is_shown(tmp_path: Path) -> None:
    (tmp_path / "bigfile.iso").write_bytes(os.urandom(3_000_000))
    environment = {
        **{
            key: value for key, value in os.environ.items() if not key.startswith(("FTPKIT", "XDG"))
        },
        "HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(DOCS.parents[1]), os.environ.get("PYTHONPATH", "")]),
    }

    def start(words: list[str], errors: int) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )

    [(serve, shown)] = console(README, "ftpkit serve")
    here = ["--host", "127.0.0.1", "--port", "0"]
    root = str(tmp_path / "inbox")
    with start(["ftpkit", "serve", root, *here], subprocess.DEVNULL) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            assert masked(line.replace(root, serve[-1])) == masked(shown)
            url = line.split()[-1]
            session = console(README, "ftpkit login") + console(SERVING, "ftpkit token")
            for words, shown in session:
                words = [url if word.startswith("ftpk://") else word for word in words]
                with start(words, subprocess.STDOUT) as process:
                    printed, _ = process.communicate(timeout=60)
                assert masked(printed) == masked(shown), words
        finally:
            server.terminate()


def test_embedding_example_prints_what_is_shown(tmp_path: Path) -> None:
    with Server(tmp_path / "root", port=0) as server:
        printed = run(at(example("embedding example"), server.address.port), tmp_path)
    assert printed == output_behind("embedding example")


def test_library_example_brings_the_file_back(tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "bigfile.iso").write_bytes(content)
    printed = run(example("library example"), tmp_path)
    assert printed.startswith("3000000 bytes, blake3:")
    assert (tmp_path / "copy.iso").read_bytes() == content


def test_secure_example_is_served_and_shows_no_secret(tmp_path: Path) -> None:
    (tmp_path / "bigfile.iso").write_bytes(os.urandom(3_000))
    printed = run(example("secure example"), tmp_path)
    assert re.fullmatch(r"3000 bytes at ftpk://127\.0\.0\.1:\d+\n", printed)


def test_future_example_tells_of_each(tmp_path: Path) -> None:
    (tmp_path / "bigfile.iso").write_bytes(os.urandom(3_000_000))
    told = run(example("future example"), tmp_path).splitlines()
    there = [f"copy-{number}.iso is there, verified" for number in range(4)]
    # The last one waits behind the others, unless these were very quick.
    assert sorted(told) in (["cancelled", *there], [*there, "copy-4.iso is there, verified"])


def test_ten_line_client_just_works(tmp_path: Path) -> None:
    (tmp_path / "bigfile.iso").write_bytes(b"x" * 5000)
    with Server(tmp_path / "root", port=0) as server:
        printed = run(at(example("ten-line client"), server.address.port), tmp_path)
    assert "'ok': True" in printed
    assert (tmp_path / "root" / "bigfile.iso").read_bytes() == b"x" * 4096


def test_readme_is_short() -> None:
    content = README.read_bytes()
    assert len(content.splitlines()) <= 180
    assert len(content) <= 10_000


def test_readme_has_the_two_commands() -> None:
    assert "ftpkit serve" in example("main command")
    assert "pytest" in example("test command")


def test_readme_links_every_page() -> None:
    linked = {README.parent / target for target in LINK.findall(PAGES[README])}
    assert PAGES.keys() - {README} == {path for path in linked if path.parent == DOCS}


@pytest.mark.parametrize(
    ("path", "target"),
    [
        pytest.param(path, target, id=f"{path.stem}-{target}")
        for path, text in PAGES.items()
        for target in LINK.findall(text)
        if not target.startswith("https://")
    ],
)
def test_every_link_resolves(path: Path, target: str) -> None:
    name, _, anchor = target.partition("#")
    linked = (path.parent / name).resolve()
    assert linked.is_file()
    if anchor:
        headings = re.findall(r"^#+ (.+)$", linked.read_text("utf-8"), re.MULTILINE)
        assert anchor in {heading.lower().replace(" ", "-") for heading in headings}


def test_every_command_is_told_of() -> None:
    for command in main.list_commands(click.Context(main)):
        assert f"`ftpkit {command}" in PAGES[README] or f"`{command} " in PAGES[README]


def commands(group: click.Group, *names: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every command below ``group`` with the words that call it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*names, name), command
        if isinstance(command, click.Group):
            yield from commands(command, *names, name)


COMMANDS = {(): main, **dict(commands(main))}


def options(command: click.Command) -> set[str]:
    """Return the long options of a command."""
    params = command.get_params(click.Context(command))
    return {word for param in params for word in param.opts if word.startswith("--")}


def bench_options() -> set[str]:
    """Return the options of the programs in tests/bench."""
    sources = (path.read_text("utf-8") for path in (TOP / "tests" / "bench").glob("*.py"))
    return {option for source in sources for option in re.findall(r'"(--[a-z-]+)"', source)}


def code(text: str) -> Iterator[str]:
    """Yield the lines of code blocks, and every code span."""
    for block in FENCED.findall(text):
        yield from block.splitlines()
    for span in SPAN.findall(FENCED.sub("", text)):
        yield " ".join(span.split())


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_option_exists(path: Path) -> None:
    known = set().union(*map(options, COMMANDS.values())) | bench_options()
    for piece in code(PAGES[path]):
        if "pip install" in piece or not (named := set(OPTION.findall(piece))):
            continue
        assert named <= known, piece
        for call in re.findall(r"\bftpkit ((?!&&)[^|&]+)", piece):
            words = call.split()
            called = max((key for key in COMMANDS if tuple(words[: len(key)]) == key), key=len)
            assert set(OPTION.findall(call)) <= options(COMMANDS[called]), piece


def test_every_variable_exists() -> None:
    params = [param for each in COMMANDS.values() for param in each.params]
    known = {param.envvar for param in params} | {"FTPKIT_DEBUG"}
    assert set(re.findall(r"FTPKIT_[A-Z_]+", TEXT)) <= known


def test_every_directory_that_readme_names_exists() -> None:
    named = re.findall(r"`(ftpkit/[^`]+)`", PAGES[README])
    assert named
    assert [name for name in named if not (TOP / name).exists()] == []


@pytest.mark.parametrize("page", ["reliability", "security"])
def test_the_tables_of_faults_and_attacks_name_tests(page: str) -> None:
    rows = [row for row in PAGES[DOCS / f"{page}.md"].splitlines() if row.startswith("| ")]
    tied = [row for row in rows if re.search(r"\| `tests/[^`]+` \|$", row)]
    assert len(tied) == len(rows) - 1  # all but the heading


@pytest.mark.parametrize("row", re.findall(r"\| `(tests/[^`]+)` \|$", TEXT, re.MULTILINE))
def test_every_test_that_a_table_names_exists(row: str) -> None:
    path, _, name = row.partition("::")
    assert f"def {name}(" in (TOP / path).read_text()


def test_every_public_name_is_described() -> None:
    page = PAGES[DOCS / "python-api.md"]
    assert [name for name in ftpkit.__all__ if f"`{name}" not in page] == []


def tree(block: str) -> dict[str, set[str]]:
    """Return the packages that an indented tree shows, each with its modules."""
    shown: dict[str, set[str]] = {"": set()}
    above: dict[int, str] = {0: ""}
    for line in block.splitlines()[1:]:
        words = line.split()
        depth = len(line) - len(line.lstrip())
        package = above[depth - 2]
        if words[0].endswith("/"):
            package += words.pop(0)
            above[depth] = package
        shown.setdefault(package, set()).update(words)
    return shown


def test_the_tree_in_architecture_is_that_of_the_package() -> None:
    [block] = [each for each in FENCED.findall(TEXT) if each.startswith("ftpkit/\n")]
    for package, modules in tree(block).items():
        found = {path.stem for path in (DOCS.parent / package).glob("*.py")}
        assert modules == found - {"__init__", "__main__"}, package


def test_the_files_that_a_change_touches_exist() -> None:
    section = (DOCS / "architecture.md").read_text("utf-8").partition("## Where a change goes")[2]
    files = re.findall(r"`([A-Za-z0-9_./]+(?:\.py|\.md|\.toml|/))`( \(new\))?", section)
    missing = [name for name, new in files if not new and not (TOP / "ftpkit" / name).exists()]
    assert len(files) > 20
    assert set(missing) <= {"ftpkit/", "tests/"}


def test_the_tables_of_compare_transports_have_the_columns_that_it_prints() -> None:
    page = (DOCS / "performance.md").read_text("utf-8")
    headings = [line.split() for line in page.splitlines() if line.endswith("  verified")]
    titles = " ".join(column.title for column in compare_transports._COLUMNS).split()
    assert headings == [titles, titles]
