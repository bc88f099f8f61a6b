"""The command ``help``: shows the manual pages in ftpkit/docs, and the help of each command."""

import re
import shutil
import sys
import textwrap
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Final

import click

_COMMENT: Final = re.compile(r"^<!--.*?-->\n", re.MULTILINE | re.DOTALL)
_PAGE_LINK: Final = re.compile(r"\[([^]]+)\]\(([a-z-]+)\.md(?:#[^)]*)?\)")
_FILE_LINK: Final = re.compile(r"\[([^]]+)\]\(\.\./[^)]*\)")
_CELLS: Final = re.compile(r"(?<!\\)\|")


@click.command()
@click.argument("words", metavar="[TOPIC|COMMAND]", nargs=-1)
@click.pass_context
def help(ctx: click.Context, words: tuple[str, ...]) -> None:  # noqa: A001  named like the command
    """Show a manual page, or the help of a command.

    Without TOPIC, list all topics. The pages are installed with ftpkit.

    \b
    Example:  ftpkit help serving
              ftpkit help token add
    """
    pages = _pages()
    if not words:
        click.echo("Manual pages (show one with 'ftpkit help TOPIC'):\n")
        width = max(map(len, pages))
        for topic, page in pages.items():
            click.echo(f"  {topic:{width}}  {_summary(page)}")
        click.echo(
            "\n'ftpkit --help' lists the commands, 'ftpkit help COMMAND' shows the help of one."
        )
    elif len(words) == 1 and words[0] in pages:
        text = _COMMENT.sub("", pages[words[0]].read_text("utf-8"))
        if sys.stdout.isatty():
            text = _for_terminal(text, shutil.get_terminal_size().columns)
        click.echo_via_pager(text.rstrip("\n"))
    else:
        click.echo(_help_of(ctx, words, list(pages)))


def _pages() -> dict[str, Traversable]:
    """Return the pages by topic, in alphabetical order."""
    pages = sorted((resources.files("ftpkit") / "docs").iterdir(), key=lambda page: page.name)
    return {page.name.removesuffix(".md"): page for page in pages}


def _for_terminal(text: str, columns: int) -> str:
    """Return a page with its links as commands, and each table row as wrapped paragraphs."""
    text = _PAGE_LINK.sub(r"\1 (ftpkit help \2)", text)
    text = _FILE_LINK.sub(r"\1", text)
    lines: list[str] = []
    heading: list[str] | None = None
    for line in text.splitlines():
        if not line.startswith("|"):
            heading = None
            lines.append(line)
            continue
        cells = [cell.strip().replace("\\|", "|") for cell in _CELLS.split(line)[1:-1]]
        if heading is None:
            heading = cells
        elif not set(line) <= set("|-: "):
            # The tests are of no use without the source.
            shown = cells[:-1] if heading[-1] == "test" else cells
            lines += textwrap.wrap(shown[0], columns, break_long_words=False)
            for cell in filter(None, shown[1:]):
                lines += textwrap.wrap(
                    cell,
                    columns,
                    initial_indent="    ",
                    subsequent_indent="    ",
                    break_long_words=False,
                )
    return "\n".join(lines)


def _summary(page: Traversable) -> str:
    """Return the summary in the title of a page, "# Topic: summary"."""
    title = page.read_text("utf-8").partition("\n")[0]
    return title.partition(": ")[2]


def _help_of(ctx: click.Context, words: tuple[str, ...], topics: list[str]) -> str:
    """Return the help of the command named by ``words``; UsageError if there is none."""
    found = ctx.find_root()
    for word in words:
        command = found.command
        inner = command.get_command(found, word) if isinstance(command, click.Group) else None
        if inner is None:
            raise click.UsageError(
                f"no topic or command {' '.join(words)!r}; topics are {', '.join(topics)}", ctx
            )
        found = click.Context(inner, info_name=word, parent=found)
    return found.get_help()
