"""Object storage: a run at s3://BUCKET/PREFIX or gs://BUCKET/PREFIX, mirrored on every node.

    s3://lab/first/current.json   <->   CACHE/rocketray.mirror/s3/lab/first/current.json

Everything in rocketray works on paths, and the path of a mirrored file says what it mirrors, so
nothing else has to be carried to workers. The store is the truth: a file counts once it is there.
A mirror holds what its node has made or has needed; it may be removed whenever nothing works in it.

Functions take paths. For a path outside a mirror the file itself is the truth, and they do nothing
or the plain thing. Uploads are single puts (in parts where a file is large), so readers see the old
file or the new; answers 5xx, time-outs and cut connections are tried again, with growing pauses.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from rocketray.errors import UserError

if TYPE_CHECKING:  # The library is loaded once a store is used: a run on a disk does without.
    from obstore import GetOptions, ObjectMeta
    from obstore.store import GCSStore, S3Store

CACHE = "/var/tmp/rocketray"
"""Where mirrors lie without ROCKETRAY_CACHE: the same on all nodes, and it outlives a restart."""
MARK = "rocketray.mirror"
"""The folder below which a path is a remote one."""
URL = re.compile(r"(s3|gs):/{1,2}(.*)", re.DOTALL)  # A Path has lost one of the slashes.
METADATA = "169.254.169.254"
"""Where clouds tell a machine its role: asked last, where there are no other credentials."""
PART = 8 << 20
"""Bytes of an upload's part."""
PIECE = 32 << 20
"""Bytes of one request of a download. Any must come within the client's 30 seconds."""
AT_ONCE = 16
"""Requests under way, where many files are wanted."""
PAUSES = (0.2, 0.5, 1.0)
"""Seconds before an answer that was cut short is asked for again."""
PATIENCE = 60.0
"""Seconds after which a request that failed has been tried often enough by the library."""
SECONDS = 10.0
"""Between two times that a file is sent which somebody goes on writing, such as a log."""
WAITING = 8
"""Uploads in the background that may wait before whoever adds one waits too."""

Item = TypeVar("Item")
Answer = TypeVar("Answer")


# --------------------------------------------------------------------------------------- places


@dataclass(frozen=True)
class _Place:
    """Where a mirrored path is in the store."""

    mirror: Path
    scheme: str
    bucket: str
    key: str

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.key}".rstrip("/")

    @property
    def store(self) -> S3Store | GCSStore:
        return _store(self.mirror, self.scheme, self.bucket)


def locate(name: str | Path) -> Path:
    """The path people mean: a url's mirror on this node, or the path as it is.

    Raises:
        UserError: a url without bucket, or with a part that leads elsewhere.
    """
    found = URL.fullmatch(str(name))
    if not found:
        return Path(name)
    scheme, rest = found.groups()
    parts = rest.rstrip("/").split("/")
    if not {"", ".", ".."}.isdisjoint(parts):
        raise UserError(
            f"{name}: write it as {scheme}://BUCKET/PREFIX, without empty parts or `..`."
        )
    return _cache() / MARK / scheme / Path(*parts)


def mirrored(path: Path) -> bool:
    """Whether a path belongs to a mirror."""
    return MARK in path.parts


def shown(path: Path) -> str:
    """What people call a path: its url where it is mirrored."""
    return _place(path).url if mirrored(path) else str(path)


def _cache() -> Path:
    return Path(os.environ.get("ROCKETRAY_CACHE") or CACHE).absolute()


def _place(path: Path) -> _Place:
    at = path.parts.index(MARK) + 1
    scheme, bucket, *key = path.parts[at:]
    return _Place(Path(*path.parts[:at]), scheme, bucket, "/".join(key))


# ---------------------------------------------------------------------------------------- sending


def push(path: Path, name: Path | None = None) -> None:
    """Send a finished file, or all files below a folder, to the store.

    Args:
        name: under this path's name, which is not here yet.
    """
    name = name or path
    if mirrored(name):
        inside = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
        together(lambda file: _send(file, name / file.relative_to(path)), inside)


def _send(file: Path, path: Path) -> None:
    import obstore

    place = _place(path)
    # A small file at once: a log may grow while it is read.
    content = file.read_bytes() if file.stat().st_size <= PART else file
    sizes: dict[str, Any] = {"chunk_size": PART, "max_concurrency": 4}
    sent = _ask(path, lambda: obstore.put(place.store, place.key, content, **sizes))
    _seen[path] = sent["e_tag"]


def create(path: Path, text: str) -> bool:
    """Make a file that must not be there yet; False if it is. Of several at once one makes it.

    Raises:
        UserError: the file system has no hard links. `open` in mode x would do without, but shows
            others the file before its text is in it.
    """
    content = text.encode()
    if mirrored(path) and not _create(path, content):
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    temporary.write_bytes(content)
    if mirrored(path):
        temporary.replace(path)
        return True
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        raise UserError(
            f"{path.parent} cannot hold hard links ({error.strerror}), by which one writer is told"
            " from two. Use another file system, or a url (docs/storage.md)."
        ) from error
    finally:
        temporary.unlink()
    return True


def _create(path: Path, content: bytes) -> bool:
    """By a conditional put. One whose answer was lost is put again and finds itself there."""
    import obstore
    from obstore.exceptions import AlreadyExistsError

    place = _place(path)
    try:
        _ask(
            path,
            lambda: obstore.put(place.store, place.key, content, mode="create"),
            AlreadyExistsError,
        )
    except AlreadyExistsError:
        return read(path) == content
    return True


def copy(source: Path, target: Path) -> None:
    """Have the store copy a mirrored file: nothing passes through this node if that can be."""
    if not _copied(source, target):
        fetch(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        push(target)


def _copied(source: Path, target: Path) -> bool:
    import obstore
    from obstore.exceptions import BaseError

    origin, place = _place(source), _place(target)
    if (origin.scheme, origin.bucket) != (place.scheme, place.bucket):
        return False
    try:
        obstore.copy(place.store, origin.key, place.key)
    except BaseError:  # S3 copies no file above 5 GB in one go, some stores none at all.
        return False
    return True


def remove(path: Path) -> None:
    """Remove a file or a folder, here and in the store; what is not there need not be removed."""
    if mirrored(path):
        import obstore

        place = _place(path)
        # What is a file here is one there, and need not be listed.
        inside = [] if path.is_file() else files(path)
        keys = [_place(file).key for file in inside] or [place.key]
        with suppress(FileNotFoundError):  # S3 does not say so, GCS does.
            _ask(path, lambda: obstore.delete(place.store, keys), FileNotFoundError)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------- fetching


def fetch(path: Path, sha256: str | None = None) -> bool:
    """Have a file on this node; False if there is none.

    Args:
        sha256: what the file must be, compared when it comes in; what is here then is taken for
            it. None: the store is asked whether what is here is still what it has.

    Raises:
        UserError: the store's file has another sha256, or the store does not answer.
    """
    if not mirrored(path) or (sha256 and path.is_file()):
        return path.is_file()
    if sha256 is None:
        meta = _meta(path)
        if meta is None:
            path.unlink(missing_ok=True)
            return False
        if _is_fresh(path, meta):
            return True
    return _download(path, sha256)


def fetch_all(wanted: Iterable[Path] | Mapping[Path, str]) -> list[Path]:
    """The same with many at once, and their sha256 where it is known; returns those there are."""
    paths = list(wanted)
    known = wanted if isinstance(wanted, Mapping) else {}
    found = together(lambda path: fetch(path, known.get(path)), paths)
    return [path for path, there in zip(paths, found, strict=True) if there]


def read(path: Path) -> bytes | None:
    """A mirrored file's content as the store has it, past the mirror; None if there is none."""
    import obstore

    place = _place(path)
    try:
        return _ask(
            path, lambda: bytes(obstore.get(place.store, place.key).bytes()), FileNotFoundError
        )
    except FileNotFoundError:
        return None


def tail(path: Path, size: int) -> bytes:
    """The last bytes of a file that somebody may be writing, on whatever node: of a mirrored one
    what the store has, for the writer's own copy must not be replaced under his hands."""
    if not mirrored(path):
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - size))
            return file.read()
    meta = _meta(path)
    if not meta or not meta["size"]:
        return b""
    return _piece(path, max(0, meta["size"] - size), meta["size"], None)


def files(folder: Path) -> list[Path]:
    """All files below a folder, in order."""
    if mirrored(folder):
        return sorted(_listed(folder, below=True))
    return sorted(path for path in folder.rglob("*") if path.is_file())


def sizes(folder: Path) -> dict[Path, int]:
    """Bytes of all files below a mirrored folder, as the store has them."""
    return {path: meta["size"] for path, meta in _listed(folder, below=True).items()}


def entries(folder: Path) -> list[Path]:
    """Files and folders directly in a folder, in order."""
    if not mirrored(folder):
        return sorted(folder.iterdir()) if folder.is_dir() else []
    import obstore

    place = _place(folder)
    found = _ask(folder, lambda: obstore.list_with_delimiter(place.store, place.key))
    keys = [*found["common_prefixes"], *(meta["path"] for meta in found["objects"])]
    return sorted(folder / key.rpartition("/")[2] for key in keys)


def sync(folder: Path, *, below: bool = False) -> None:
    """Make a mirrored folder's own files (all below it) the same as the store's."""
    if not mirrored(folder):
        return
    # Before the store is asked: what is published meanwhile, by another process, was there first.
    here = [path for path in (folder.rglob("*") if below else folder.glob("*")) if path.is_file()]
    metas = _listed(folder, below=below)
    for path in here:
        if path not in metas and not path.name.startswith("."):
            path.unlink(missing_ok=True)
    stale = [path for path, meta in metas.items() if not _is_fresh(path, meta)]
    together(lambda path: _download(path, None), stale)


def _listed(folder: Path, *, below: bool) -> dict[Path, ObjectMeta]:
    import obstore

    place = _place(folder)

    def listed() -> list[ObjectMeta]:
        if below:
            return list(obstore.list(place.store, place.key).collect())
        return list(obstore.list_with_delimiter(place.store, place.key)["objects"])

    metas = _ask(folder, listed)
    strip = len(place.key) + 1 if place.key else 0
    return {folder / meta["path"][strip:]: meta for meta in metas}


def _meta(path: Path) -> ObjectMeta | None:
    import obstore

    place = _place(path)
    try:
        return _ask(path, lambda: obstore.head(place.store, place.key), FileNotFoundError)
    except FileNotFoundError:
        return None


_seen: dict[Path, str | None] = {}
"""Entity tags of the files this process has sent or fetched."""


def _is_fresh(path: Path, meta: ObjectMeta) -> bool:
    """Whether the copy here is what the store has: by tag, or, where another process brought it,
    by size and the store's own time, which a download leaves on the file."""
    if not path.is_file():
        return False
    if path in _seen:
        return _seen[path] == meta["e_tag"]
    here = path.stat()
    return (here.st_size, int(here.st_mtime)) == (meta["size"], _seconds(meta))


def _seconds(meta: ObjectMeta) -> int:
    return int(meta["last_modified"].timestamp())


def _download(path: Path, sha256: str | None) -> bool:
    """Under a name of its own, compared, then renamed. One process of a node does it."""
    with _alone(path) as file:
        if sha256 and path.is_file():  # Another was quicker.
            return True
        digest = hashlib.sha256()
        meta = _receive(path, file, digest.update)
        if meta is None:
            return False
        if sha256 and digest.hexdigest() != sha256:
            raise UserError(
                f"{shown(path)} differs from its manifest: expected sha256 {sha256}, found"
                f" {digest.hexdigest()}. Remove its stage's folder there to make it again."
            )
        file.flush()
        os.fsync(file.fileno())
        os.utime(file.fileno(), (_seconds(meta), _seconds(meta)))
        os.replace(file.name, path)
        _seen[path] = meta["e_tag"]
    return True


def _receive(path: Path, file: BinaryIO, update: Callable[[bytes], object]) -> ObjectMeta | None:
    """The store's file into this one: in one request, or several of one size where it is large."""
    import obstore

    place = _place(path)

    def begun() -> tuple[ObjectMeta, bytes]:
        got = obstore.get(place.store, place.key)
        return got.meta, bytes(got.bytes()) if got.meta["size"] <= PIECE else b""

    try:
        meta, content = _ask(path, begun, FileNotFoundError)
    except FileNotFoundError:
        return None
    pieces: Iterable[bytes] = [content]
    if meta["size"] > PIECE:
        starts = range(0, meta["size"], PIECE)
        pieces = (_piece(path, start, min(start + PIECE, meta["size"]), meta) for start in starts)
    for piece in pieces:
        update(piece)
        file.write(piece)
    return meta


def _piece(path: Path, start: int, end: int, of: ObjectMeta | None) -> bytes:
    """Bytes start..end-1 of a file; of this very one, so that halves of two are never joined."""
    import obstore

    place = _place(path)
    options: GetOptions = {"range": (start, end)}
    if of:
        options["if_match"] = of["e_tag"]
    return _ask(path, lambda: bytes(obstore.get(place.store, place.key, options=options).bytes()))


@contextmanager
def _alone(path: Path) -> Iterator[BinaryIO]:
    """A temporary file for a path, empty, that one process of this node has open at a time."""
    temporary = path.with_name(f".{path.name}.fetch")
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with temporary.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(file, temporary):  # It was renamed or removed while we waited.
                continue
            try:
                file.truncate(0)
                yield file
            finally:
                if _is_at(file, temporary):
                    temporary.unlink()
            return


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return path.stat().st_ino == os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return False


# ------------------------------------------------------------------------------ many, and in turn


def together(work: Callable[[Item], Answer], items: Iterable[Item]) -> list[Answer]:
    """`work` on every item, several at once; the first failure is raised."""
    todo = list(items)
    if len(todo) < 2:
        return [work(item) for item in todo]
    with ThreadPoolExecutor(min(AT_ONCE, len(todo))) as pool:
        return list(pool.map(work, todo))


_queue: list[Future[None]] = []


@cache
def _background() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="upload")


def later(work: Callable[[], None]) -> Future[None]:
    """Do it in the background, in turn. Waits only where too much is waiting.

    Raises:
        UserError: something that was to be done before has failed.
    """
    settle(WAITING)
    _queue.append(_background().submit(work))
    return _queue[-1]


def settle(waiting: int = 0) -> None:
    """Wait until no more than so much is left to do in the background; raise what failed there."""
    while _queue and (len(_queue) > waiting or _queue[0].done()):
        _queue.pop(0).result()


# ------------------------------------------------------------------------------------ the store


def check(path: Path) -> None:
    """Try a mirrored folder's store, before anything is computed: within seconds.

    Raises:
        UserError: no such bucket, no permission, no answer; or puts are not conditional there, so
            that two writers could not be told apart.
    """
    import obstore
    from obstore.exceptions import AlreadyExistsError, BaseError

    probe = _place(path / "writers" / f"probe-{uuid.uuid4().hex[:8]}")
    store = _store(probe.mirror, probe.scheme, probe.bucket, hasty=True)
    try:
        for _ in range(2):
            try:
                obstore.put(store, probe.key, b"", mode="create")
                is_exclusive = False
            except AlreadyExistsError:
                is_exclusive = True
        obstore.list_with_delimiter(store, _place(path).key)
        obstore.delete(store, probe.key)
    except (BaseError, FileNotFoundError) as error:
        raise _refused(path, error) from error
    if not is_exclusive:
        raise UserError(
            f"{shown(path)}: this store overwrites what it was asked to create only if absent"
            " (If-None-Match), so one writer could not be told from two. Use one that does not."
        )


@cache
def _store(mirror: Path, scheme: str, bucket: str, *, hasty: bool = False) -> S3Store | GCSStore:
    """A client; credentials and endpoint come from the environment.

    Args:
        hasty: gives up within seconds, where somebody waits for a first answer.
    """
    from obstore.store import GCSStore, S3Store

    _own(mirror)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
    options: dict[str, Any] = {
        "client_options": {
            "timeout": "5s" if hasty else "30s",
            "connect_timeout": "2s" if hasty else "5s",
            "allow_http": endpoint.startswith("http://"),
        },
        "retry_config": {
            "max_retries": 2 if hasty else 1000,  # The time decides.
            "retry_timeout": timedelta(seconds=5 if hasty else 280),
            "backoff": {
                "init_backoff": timedelta(milliseconds=100),
                "max_backoff": timedelta(seconds=15),
                "base": 4,  # Each pause is drawn from up to so many times the one before.
            },
        },
    }
    if scheme == "gs":
        return GCSStore(bucket, **options)
    if endpoint:
        options["endpoint"] = endpoint
    return S3Store(bucket, **options)


def _own(mirror: Path) -> None:
    """A mirror that somebody else could write would be read as if the store had said it."""
    try:
        mirror.mkdir(parents=True, exist_ok=True)
        owner = mirror.stat().st_uid
        if owner == os.geteuid():
            mirror.chmod(0o700)
    except OSError as error:
        raise UserError(
            f"{mirror} cannot be made ({error.strerror}): this node's copies of what is on object"
            " storage. Set ROCKETRAY_CACHE to a folder that can be written on all nodes."
        ) from error
    if owner != os.geteuid():
        raise UserError(
            f"{mirror} belongs to user {owner}. Set ROCKETRAY_CACHE to a folder of your own, on all"
            " nodes."
        )


def _ask(path: Path, request: Callable[[], Answer], *answers: type[Exception]) -> Answer:
    """The store's answer to a request about a path. What does not arrive, the library sends again;
    what is cut short in the middle of an answer is asked again here.

    Args:
        answers: exceptions that are answers, and raised as they are.

    Raises:
        UserError: it refuses, or there is no answer.
    """
    from obstore.exceptions import BaseError, GenericError

    pauses = iter(PAUSES)
    while True:
        start = time.monotonic()
        try:
            return request()
        except answers:
            raise
        except (BaseError, FileNotFoundError) as error:
            was_quick = time.monotonic() - start < PATIENCE
            pause = next(pauses, None) if isinstance(error, GenericError) and was_quick else None
            if pause is None:
                raise _refused(path, error) from error
            time.sleep(pause)


def _refused(path: Path, error: Exception) -> UserError:
    """A sentence that names the url and the cure."""
    return UserError(f"{shown(path)}: {_reason(path, error)}")


def _reason(path: Path, error: Exception) -> str:
    from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

    bucket = _place(path).bucket
    if isinstance(error, FileNotFoundError):
        return f"there is no bucket {bucket!r}. Create it, or mend the name."
    refused = isinstance(error, PermissionDeniedError | UnauthenticatedError)
    if refused or METADATA in str(error):
        return (
            f"no permission to use bucket {bucket!r}. Check the credentials (AWS_ACCESS_KEY_ID and"
            " AWS_SECRET_ACCESS_KEY, or the machine's role; GOOGLE_APPLICATION_CREDENTIALS) and"
            " that they may get, put, list and delete there."
        )
    said = " ".join(str(error).split("\n\n")[0].split())[:300]
    return (
        f"the store does not answer as it should ({said}). Check the network and, for S3,"
        " AWS_ENDPOINT_URL and AWS_REGION; the same command then goes on from here."
    )
