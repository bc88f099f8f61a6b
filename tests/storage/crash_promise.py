"""What a store has promised to a client, and whether it still holds after a restart."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ftpkit.errors import Code, RefusedError
from ftpkit.protocol.digest import DEFAULT, digest_of
from ftpkit.storage import DirectoryStore
from ftpkit.storage.api import FileInfo, UploadSpec
from ftpkit.storage.directory.filesystem import FileSystem
from tests.storage.crash_record import look

# The store makes its root itself, in a directory that was there.
ROOT: Final = "root"
PRIVATE: Final = ".ftpkit"
OWNER: Final = "somebody"
BLOCK: Final = 1024

Tree = frozenset[tuple[str, bytes | None]]
"""All that is under the root, by name: the content of files, None for directories."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What was promised of one upload.

    ``held`` are the blocks that were acknowledged and checkpointed,
    ``committing`` that a commit was asked for, ``done`` that it was answered.
    """

    identity: str
    spec: UploadSpec
    content: bytes
    held: frozenset[int] = frozenset()
    committing: bool = False
    done: bool = False


@dataclass(frozen=True, slots=True)
class Promise:
    """What must be found: one of these trees, and all of these uploads."""

    trees: frozenset[Tree]
    claims: tuple[Claim, ...] = ()


class BrokenPromiseError(Exception):
    """The store lost, mixed up or invented content."""


def require(kept: bool, text: str) -> None:
    """Raise BrokenPromiseError unless the promise is kept."""
    if not kept:
        raise BrokenPromiseError(text)


def ignore(done: int, total: int) -> None:
    """Report no progress."""


def tree_of(root: Path) -> Tree:
    """Return what is below a root, read without the store."""
    return frozenset(look(root, past=PRIVATE))


def with_parents(tree: Tree, name: str) -> list[Tree]:
    """Return the tree with none, one, and so on up to all of the parents of a name."""
    parts, trees = name.split("/"), [tree]
    for depth in range(1, len(parts)):
        trees.append(with_entry(trees[-1], "/".join(parts[:depth]), None))
    return trees


def with_entry(tree: Tree, name: str, content: bytes | None) -> Tree:
    """Return the tree with ``name`` added or replaced."""
    return frozenset({**dict(tree), name: content}.items())


def without(tree: Tree, name: str) -> Tree:
    """Return the tree without ``name`` and what is below it."""
    return frozenset(item for item in tree if not f"{item[0]}/".startswith(f"{name}/"))


def moved(tree: Tree, name: str, to: str) -> Tree:
    """Return the tree after a rename."""
    items = {f"{to}{inner[len(name) :]}": content for inner, content in tree - without(tree, name)}
    return frozenset({**dict(without(tree, name)), **items}.items())


def blocks_of(content: bytes) -> dict[int, bytes]:
    """Return the blocks of a file, by offset."""
    return {offset: content[offset : offset + BLOCK] for offset in range(0, len(content), BLOCK)}


def check(top: Path, promise: Promise, *, changed: bool) -> None:
    """Restart a store on the disk, and check the promise.

    An unfinished upload is then finished, with ``changed`` by a client whose file is another now.
    """
    root = top / ROOT
    with DirectoryStore(root, FileSystem(durable=False)) as store:
        standing = tree_of(root)
        require(standing in promise.trees, f"this stands under the root: {shown(standing)}")
        _check_digests(store, root, standing)
    with DirectoryStore(root, FileSystem(durable=False)) as store:
        require(tree_of(root) == standing, "a second start has changed something")
        require(not list((root / PRIVATE / "staging").iterdir()), "staging is not empty")
        for claim in promise.claims:
            content = dict(standing).get(claim.spec.name)
            info = store.published(claim.identity, owner=OWNER)
            if info is not None:
                _check_answer(store, claim, info, content)
                continue
            # Once its file has been replaced, an upload may be forgotten.
            stands = claim.committing and content == claim.content
            require(not stands or _is_doubled(claim, promise), "published, but not known")
            if not claim.done:
                standing = _finish(store, root, claim, standing, changed=changed)
        _check_digests(store, root, standing)
        store.sweep(uploads_s=-1, publications_s=-1)
        require(tree_of(root) == standing, "the sweep has changed something")
    left = {name for name, _ in look(root / PRIVATE)}
    require(left == {"lock", "published", "staging", "uploads"}, f"left over: {left}")


def _check_digests(store: DirectoryStore, root: Path, standing: Tree) -> None:
    listed = {info.name: info.kind for info in store.list_files("", recursive=True, after=None)}
    require(listed.keys() == {name for name, _ in standing}, f"listed are {listed}")
    for name, content in standing:
        if listed[name] == "other":
            # A disk may forget the half of a rename that removes the old name.
            require((root / name).stat().st_nlink > 1, f"{name} is not served")
            continue
        known = store.stat(name).content_digest
        require(known is None or known == digest_of(content or b""), f"wrong digest of {name}")


def _is_doubled(claim: Claim, promise: Promise) -> bool:
    """Whether another upload may have published the same content under the name."""
    others = [other for other in promise.claims if other.identity != claim.identity]
    return any(other.committing and other.content == claim.content for other in others)


def _check_answer(
    store: DirectoryStore, claim: Claim, info: FileInfo, content: bytes | None
) -> None:
    """Check the result of a repeated commit, while ``content`` is published."""
    require(claim.committing, "nobody asked for this commit")
    require(info.content_digest == digest_of(claim.content), "the answer has a wrong digest")
    if not claim.done or info.version == store.stat(claim.spec.name).version:
        require(content == claim.content, "the answer tells of a file that does not stand there")


def _finish(
    store: DirectoryStore, root: Path, claim: Claim, standing: Tree, *, changed: bool
) -> Tree:
    name, content = claim.spec.name, claim.content
    if changed:
        content = bytes(byte ^ 0xFF for byte in content)
    try:
        upload = store.begin(claim.spec, owner=OWNER, block=BLOCK)
    except RefusedError as error:
        taken = error.code is Code.EXISTS and not claim.spec.overwrite and name in dict(standing)
        require(taken, f"begin is refused: {error}")
        return standing
    records = {record.offset: record for record in upload.records(DEFAULT)}
    require(claim.held <= records.keys(), f"lost blocks: {set(claim.held - records.keys())}")
    data = (root / PRIVATE / "uploads" / upload.id.partition("-")[0] / "data").read_bytes()
    for offset, record in records.items():
        true = digest_of(data[offset : offset + record.length]) == record.digest
        require(true, f"the block at {offset} is not what its record says")
    for offset, block in blocks_of(content).items():
        digest = digest_of(block)
        if offset not in records or records[offset].digest != digest:
            writer = upload.write(offset, len(block), digest)
            writer.write(memoryview(block))
            writer.finish()
    require(tree_of(root) == standing, "unfinished bytes are seen under a name")
    info = upload.commit(len(content), None, None, ignore)
    upload.release()
    standing = with_entry(with_parents(standing, name)[-1], name, content)
    require(tree_of(root) == standing, "the finished upload is not what was sent")
    require(info.content_digest == digest_of(content), "the finished upload has a wrong digest")
    require(store.published(upload.id, owner=OWNER) == info, "a second commit has another answer")
    return standing


def shown(tree: Tree | Mapping[str, bytes | None]) -> str:
    """Return a short description of a tree."""
    items: Iterable[tuple[str, bytes | None]] = tree.items() if isinstance(tree, Mapping) else tree
    return ", ".join(
        f"{name}/" if content is None else f"{name} ({len(content)} bytes, {content[:2]!r}…)"
        for name, content in sorted(items, key=lambda item: item[0])
    )
