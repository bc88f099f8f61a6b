"""Records runs of a store, and crashes them at every point of the record."""

import contextlib
import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from ftpkit.errors import Code, RefusedError
from ftpkit.protocol.digest import DEFAULT, digest_of
from ftpkit.storage import DirectoryStore
from ftpkit.storage.api import UploadSpec
from ftpkit.storage.directory.upload import DirectoryUpload
from tests.storage.crash_disk import Disk, Event, Image, Sync, SyncDirectory
from tests.storage.crash_promise import (
    BLOCK,
    OWNER,
    ROOT,
    BrokenPromiseError,
    Claim,
    Promise,
    Tree,
    blocks_of,
    check,
    ignore,
    moved,
    require,
    tree_of,
    with_entry,
    with_parents,
    without,
)
from tests.storage.crash_record import RecordingFiles

# What a client may be told that asks again for what the crash did not undo.
_DONE_BEFORE: Final = {Code.EXISTS, Code.NOT_FOUND}


class Run:
    """A client and its store; keeps a record of what the store has promised.

    Every operation allows what it may leave behind before it begins, and
    forbids all but its result once it is acknowledged.
    """

    def __init__(self, files: RecordingFiles, promise: Promise) -> None:
        self.files = files
        self.history = [(len(files.events), promise)]
        self.store = DirectoryStore(files.top / ROOT, files)

    @property
    def promise(self) -> Promise:
        return self.history[-1][1]

    def promised(self, promise: Promise) -> None:
        """Expect this from now on."""
        self.history.append((len(self.files.events), promise))

    def put(
        self, name: str, content: bytes, *, overwrite: bool = True, mtime: int | None = None
    ) -> None:
        spec = UploadSpec(name=name, total=len(content), overwrite=overwrite, mtime=mtime)
        with self._changing(self._arrived(name, content), name):
            staged = self.store.stage(spec, digest_of(content))
            staged.write(memoryview(content))
            staged.commit()

    def mkdir(self, name: str) -> None:
        with self._changing(lambda tree: with_parents(tree, f"{name}/")[-1], f"{name}/"):
            self.store.mkdir(name)

    def rename(self, name: str, to: str, *, overwrite: bool) -> None:
        both = [
            with_entry(with_parents(tree, to)[-1], to, dict(tree)[name])
            for tree in self.promise.trees
            if dict(tree).get(name) is not None
        ]

        def result(tree: Tree) -> Tree:
            gone = moved(with_parents(tree, to)[-1], name, to)
            return gone if name in dict(tree) else tree

        with self._changing(result, to, both):
            self.store.rename(name, to, overwrite=overwrite)

    def delete(self, name: str, *, recursive: bool = False) -> None:
        with self._changing(lambda tree: without(tree, name), name):
            self.store.delete(name, recursive=recursive, progress=ignore)

    def begin(self, name: str, content: bytes, *, overwrite: bool = True) -> DirectoryUpload:
        spec = UploadSpec(name=name, total=len(content), overwrite=overwrite)
        upload = self.store.begin(spec, owner=OWNER, block=BLOCK)
        claim = Claim(upload.id, spec, content)
        for other in self.promise.claims:
            if other.identity == upload.id:
                claim = replace(other, spec=spec, content=content)
            elif other.spec == spec and not other.done:
                require(not other.held, "begin does not know blocks that it should hold")
                self.forsake(other.identity)
        self._claim(claim)
        return upload

    def send(self, upload: DirectoryUpload, content: bytes, *offsets: int) -> None:
        """Send these blocks, unless the store holds them."""
        held = {record.offset: record.digest for record in upload.records(DEFAULT)}
        for offset in offsets:
            block = blocks_of(content)[offset]
            digest = digest_of(block)
            if held.get(offset) == digest:
                continue
            claim = self._claim_of(upload)
            self._claim(replace(claim, held=claim.held - {offset}))
            writer = upload.write(offset, len(block), digest)
            writer.write(memoryview(block))
            writer.finish()

    def checkpoint(self, upload: DirectoryUpload) -> None:
        upload.checkpoint()
        held = frozenset(record.offset for record in upload.records(DEFAULT))
        self._claim(replace(self._claim_of(upload), held=held))

    def commit(self, upload: DirectoryUpload) -> None:
        """Commit and release, without a digest: the store has to verify its own bytes."""
        claim = self._claim_of(upload)
        self._claim(replace(claim, committing=True))
        with self._changing(self._arrived(claim.spec.name, claim.content), claim.spec.name):
            upload.commit(len(claim.content), None, None, ignore)
            self._claim(replace(claim, committing=True, done=True))
        upload.release()

    def upload(self, name: str, content: bytes, *, overwrite: bool = True) -> None:
        """Send a file as ``ftpkit put`` does: the missing blocks, then commit."""
        upload = self.begin(name, content, overwrite=overwrite)
        self.send(upload, content, *blocks_of(content))
        self.commit(upload)

    def forsake(self, identity: str | None = None) -> None:
        """Expect nothing any more of this upload, or of any."""
        claims = [c for c in self.promise.claims if c.identity != identity and identity]
        self.promised(replace(self.promise, claims=tuple(claims)))

    def ask_again(self) -> None:
        """Repeat the commits whose reply may have been lost."""
        for claim in self.promise.claims:
            if claim.committing and self.store.published(claim.identity, owner=OWNER):
                self._claim(replace(claim, done=True))
                if not claim.done:
                    self.acknowledged(self._arrived(claim.spec.name, claim.content))

    @contextlib.contextmanager
    def _changing(
        self, result: Callable[[Tree], Tree], name: str, others: Iterable[Tree] = ()
    ) -> Iterator[None]:
        before = self.promise.trees
        partly = {partial for tree in before for partial in with_parents(tree, name)}
        after = {result(tree) for tree in before}
        trees = frozenset({*before, *partly, *others, *after})
        self.promised(replace(self.promise, trees=trees))
        yield
        self.acknowledged(result)

    def acknowledged(self, result: Callable[[Tree], Tree]) -> None:
        trees = frozenset(result(tree) for tree in self.promise.trees)
        self.promised(replace(self.promise, trees=trees))

    def _arrived(self, name: str, content: bytes) -> Callable[[Tree], Tree]:
        return lambda tree: with_entry(with_parents(tree, name)[-1], name, content)

    def _claim_of(self, upload: DirectoryUpload) -> Claim:
        return next(claim for claim in self.promise.claims if claim.identity == upload.id)

    def _claim(self, claim: Claim) -> None:
        others = [c for c in self.promise.claims if c.identity != claim.identity]
        self.promised(replace(self.promise, claims=(*others, claim)))


def nothing(run: Run) -> None:
    """Prepare nothing."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """Actions to crash: ``act``, after ``prepare`` is on stable storage (None: from the start).

    Where a crash comes first, ``act`` is done again as a client would do it.
    """

    name: str
    act: Callable[[Run], None]
    prepare: Callable[[Run], None] | None = nothing

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Recording:
    """The events of a run, and the promises after how many of them."""

    start: Disk
    events: list[Event]
    history: list[tuple[int, Promise]]

    def is_before_sync(self, count: int) -> bool:
        """Whether the next event is a sync, or none: then the most is not yet stable."""
        following = self.events[count : count + 1]
        return all(isinstance(event, Sync | SyncDirectory) for event in following)

    def points(self) -> Iterator[tuple[int, Disk, list[Promise]]]:
        """Yield the disk after each event, with the promises of that time."""
        disk = self.start.copy()
        for count in range(len(self.events) + 1):
            if count:
                disk.apply(self.events[count - 1])
            here = [promise for at, promise in self.history if at == count]
            past = [promise for at, promise in self.history if at < count]
            yield count, disk, list(dict.fromkeys(here or past[-1:]))


class Explorer:
    """Crashes runs at every point, and checks the states that are possible then.

    ``limit`` is how many states are looked at for a point, ``deeper`` how many
    of them are continued, and crashed anew, for a scenario.
    """

    def __init__(
        self,
        path: Path,
        *,
        limit: int,
        deeper: int,
        seed: int,
        files: type[RecordingFiles] = RecordingFiles,
    ) -> None:
        self.states = 0
        self._path, self._files = path, files
        self._limit, self._deeper = limit, deeper
        self._random = random.Random(seed)
        self._known = set[tuple[str, Promise]]()
        self._made = 0

    def explore(self, scenario: Scenario) -> None:
        """Crash a scenario at every point; raise BrokenPromiseError if the store fails."""
        recording = self._record(scenario)
        crashed = self._crash(scenario.name, recording, self._limit)
        points = [
            (disk.copy(), promises[-1])
            for count, disk, promises in recording.points()
            if recording.is_before_sync(count)
        ]
        for disk, promise in self._random.sample(points, min(self._deeper, len(points))):
            self._continue(scenario, disk, promise, "the server was killed, ")
        for image, promise in self._random.sample(crashed, min(self._deeper, len(crashed))):
            self._continue(scenario, Disk(image), promise, "the machine crashed, ")

    def _record(self, scenario: Scenario) -> Recording:
        files = self._open(Disk())
        start = files.disk.copy()
        run = Run(files, Promise(frozenset({frozenset()})))
        with run.store:
            if scenario.prepare is not None:
                scenario.prepare(run)
                files.disk.settle()
                files.events.clear()
                start = files.disk.copy()
                run.history = [(0, run.promise)]
            scenario.act(run)
        files.assert_complete()
        return Recording(start, files.events, run.history)

    def _continue(self, scenario: Scenario, disk: Disk, promise: Promise, how: str) -> None:
        """Restart after a crash, continue as a client would, and crash that."""
        files = self._open(disk)
        start = disk.copy()
        run = Run(files, promise)
        try:
            with run.store:
                found = tree_of(files.top / ROOT)
                require(found in promise.trees, "the restart has changed something")
                run.ask_again()
                try:
                    scenario.act(run)
                except RefusedError as error:
                    require(error.code in _DONE_BEFORE, f"refused: {error}")
            files.assert_complete()
        except BrokenPromiseError as error:
            raise BrokenPromiseError(f"{scenario.name}: {how}{error}") from error
        recording = Recording(start, files.events, run.history)
        self._crash(f"{scenario.name}: {how}and then", recording, max(4, self._limit // 8))

    def _crash(self, name: str, recording: Recording, limit: int) -> list[tuple[Image, Promise]]:
        looked_at = []
        for count, disk, promises in recording.points():
            for image in disk.crashes(self._random, limit):
                for promise in promises:
                    key = image.fingerprint(), promise
                    if key in self._known:
                        continue
                    self._known.add(key)
                    looked_at.append((image, promise))
                    try:
                        self._check(image, promise)
                    except (BrokenPromiseError, RefusedError, OSError) as error:
                        events = "\n".join(
                            f"{at}. {event}" for at, event in enumerate(recording.events[:count], 1)
                        )
                        raise BrokenPromiseError(
                            f"{name}: crash after event {count}: {error!r}\n{events}\n\n"
                            f"found:\n{image.fingerprint()}"
                        ) from error
        return looked_at

    def _check(self, image: Image, promise: Promise) -> None:
        path = self._fresh()
        image.build(path)
        self.states += 1
        check(path, promise, changed=self.states % 2 == 0)
        shutil.rmtree(path)

    def _open(self, disk: Disk) -> RecordingFiles:
        """Make a disk as the kernel shows it, for a store to be opened on."""
        path = self._fresh()
        return self._files(path, disk, disk.now().build(path))

    def _fresh(self) -> Path:
        self._made += 1
        path = self._path / str(self._made)
        path.mkdir()
        return path
