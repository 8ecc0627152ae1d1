"""Object storage: urls as paths, a mirror on every node, and a store that fails now and then."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import obstore
import pytest
from obstore.store import S3Store

from rocketray import storage
from rocketray.artifacts import file_sha256
from rocketray.errors import UserError
from tests import s3
from tests.s3 import Node


def store(url: str, endpoint: str) -> S3Store:
    """The bucket itself, past rocketray."""
    name = url.removeprefix("s3://")
    return S3Store(name, endpoint=endpoint, client_options={"allow_http": True})


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def sent(path: Path, content: bytes) -> Path:
    storage.push(write(path, content))
    return path


def names(folder: Path) -> list[str]:
    found = folder.rglob("*")
    return sorted(path.relative_to(folder).as_posix() for path in found if path.is_file())


# ----------------------------------------------------------------------------------------- places


@pytest.mark.parametrize(
    ("url", "below"),
    [
        ("s3://lab/first", "s3/lab/first"),
        ("s3://lab/a/b/", "s3/lab/a/b"),
        ("s3://lab", "s3/lab"),
        ("gs://lab/first", "gs/lab/first"),
        (Path("s3://lab/first"), "s3/lab/first"),
    ],
)
def test_a_url_is_a_path_that_says_what_it_mirrors(
    url: str | Path, below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROCKETRAY_CACHE", str(tmp_path))
    path = storage.locate(url)
    assert path == tmp_path / "rocketray.mirror" / below
    assert storage.mirrored(path)
    assert storage.locate(path) == path
    scheme, _, rest = below.partition("/")
    assert storage.shown(path) == f"{scheme}://{rest}"
    assert storage.shown(path / "x.json") == f"{scheme}://{rest}/x.json"


def test_without_a_cache_of_ones_own_it_is_the_same_on_every_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("ROCKETRAY_CACHE", raising=False)
    assert str(storage.locate("s3://lab/x")) == "/var/tmp/rocketray/rocketray.mirror/s3/lab/x"


@pytest.mark.parametrize("path", ["runs/first", "/shared/s3", "s3", "a/s3:/b"])
def test_other_paths_are_what_they_are(path: str) -> None:
    assert storage.locate(path) == Path(path)
    assert not storage.mirrored(Path(path))
    assert storage.shown(Path(path)) == path


@pytest.mark.parametrize("url", ["s3://", "s3:///x", "s3://lab//x", "s3://lab/../x", "gs://."])
def test_urls_that_lead_elsewhere_are_refused(url: str) -> None:
    with pytest.raises(UserError, match=r"write it as (s3|gs)://BUCKET/PREFIX"):
        storage.locate(url)


# ---------------------------------------------------------------------------------- one file


@pytest.mark.parametrize("content", [b"", b"12345", os.urandom(20 << 20)], ids=len)
def test_what_one_node_sends_another_fetches(on: Node, content: bytes) -> None:
    sent(on("a") / "sub" / "x", content)
    path = on("b") / "sub" / "x"
    assert not path.exists()
    assert storage.fetch(path)
    assert path.read_bytes() == content
    assert names(path.parent) == ["x"]


def test_a_large_file_comes_in_pieces(on: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PIECE", 1000)
    content = os.urandom(2500)
    made = sent(on("a") / "x", content)
    assert storage.fetch(on("b") / "x", file_sha256(made))
    assert (on("b") / "x").read_bytes() == content


def test_a_folder_is_sent_whole(on: Node) -> None:
    folder = on("a")
    for name in ("model/query/config.json", "model/a", "model/b"):
        write(folder / name, name.encode())
    storage.push(folder / "model")
    assert storage.files(on("b") / "model") == [
        on("b") / "model" / name for name in ("a", "b", "query/config.json")
    ]


def test_a_file_that_is_not_there(on: Node) -> None:
    path = write(on("a") / "x", b"never sent")
    assert not storage.fetch(path)
    assert not path.exists()
    assert not storage.fetch(path, "0" * 64)
    assert storage.read(path) is None
    assert storage.tail(path, 10) == b""
    storage.remove(path)


def test_without_sha256_the_newest_is_fetched(on: Node) -> None:
    sent(on("a") / "x", b"old")
    path = on("b") / "x"
    assert storage.fetch(path)
    sent(on("a") / "x", b"new")
    assert path.read_bytes() == b"old"
    assert storage.fetch(on("b") / "x")
    assert path.read_bytes() == b"new"


def test_a_damaged_file_is_refused(on: Node, bucket: str, s3_server: str) -> None:
    made = sent(on("a") / "x", b"right")
    expected = file_sha256(made)
    obstore.put(store(bucket, s3_server), "run/x", b"wrong")
    path = on("b") / "x"
    with pytest.raises(UserError) as error:
        storage.fetch(path, expected)
    found = "8810ad581e59f2bc3928b261707a71308f7e139eb04820366dc4d5c18d980225"
    assert str(error.value) == (
        f"{bucket}/run/x differs from its manifest: expected sha256 {expected}, found {found}."
        " Remove its stage's folder there to make it again."
    )
    assert names(path.parent) == []


def test_what_is_here_is_not_asked_for_again(
    on: Node, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = sent(on("a") / "x", b"12345")
    sha256 = file_sha256(made)
    with s3.proxy(s3_server) as (endpoint, proxy):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        for _ in range(3):
            assert storage.fetch(on("b") / "x", sha256)
    assert proxy.seen == {"GET": 1}


def test_many_at_once_download_a_file_once(
    on: Node, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(1 << 20)
    sha256 = file_sha256(sent(on("a") / "x", content))
    path = on("b") / "x"
    with s3.proxy(s3_server) as (endpoint, proxy):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        threads = [threading.Thread(target=storage.fetch, args=(path, sha256)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert path.read_bytes() == content
    assert names(path.parent) == ["x"]
    assert proxy.seen == {"GET": 1}


def test_a_download_that_was_killed_is_begun_again(on: Node) -> None:
    sent(on("a") / "x", b"right")
    path = on("b") / "x"
    write(path.with_name(".x.fetch"), b"half of what ")
    assert storage.fetch(path)
    assert path.read_bytes() == b"right"
    assert names(path.parent) == ["x"]


@pytest.mark.parametrize("is_remote", [True, False])
def test_of_many_who_create_a_file_one_does(is_remote: bool, on: Node, tmp_path: Path) -> None:
    won = []

    def claim(number: int) -> None:
        folder = on(f"node-{number}") if is_remote else tmp_path
        if storage.create(folder / "epoch", f"writer {number}"):
            won.append(number)

    for number in range(2):
        claim(number)
    assert won == [0]
    path = on("other") / "epoch" if is_remote else tmp_path / "epoch"
    assert storage.fetch(path)
    assert path.read_text() == "writer 0"


def test_of_many_who_create_a_file_at_once_one_does(on: Node) -> None:
    path = on("a") / "epoch"
    won = storage.together(lambda number: storage.create(path, f"writer {number}"), range(8))
    assert sorted(won) == [False] * 7 + [True]
    assert storage.read(path) == f"writer {won.index(True)}".encode()


def test_copies_are_made_by_the_store(on: Node) -> None:
    sent(on("a") / "x", b"12345")
    folder = on("b")
    storage.copy(folder / "x", folder / "pairs" / "y")
    assert not folder.exists()
    assert storage.read(folder / "pairs" / "y") == b"12345"


def test_a_copy_may_lie_in_another_bucket(on: Node, bucket: str, s3_server: str) -> None:
    source = sent(on("a") / "x", b"12345")
    s3.make_bucket(s3_server, f"{bucket.removeprefix('s3://')}-other")
    target = storage.locate(f"{bucket}-other/pairs/y")
    storage.copy(source, target)
    assert storage.read(target) == b"12345"


@pytest.mark.parametrize("is_remote", [True, False])
def test_files_and_folders_are_removed(is_remote: bool, on: Node, tmp_path: Path) -> None:
    folder = on("a") if is_remote else tmp_path / "run"
    for name in ("x", "steps/1/a", "steps/1/b", "steps/2/a"):
        sent(folder / name, b"1")
    for name in ("x", "steps/1", "nothing"):
        storage.remove(folder / name)
    assert names(folder) == ["steps/2/a"]
    assert storage.files(folder) == [folder / "steps/2/a"]


# ------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize("is_remote", [True, False])
def test_listings(is_remote: bool, on: Node, tmp_path: Path) -> None:
    folder = on("a") if is_remote else tmp_path / "run"
    for name in ("b", "a/x", "a/y/z", "ab/x"):
        sent(folder / name, b"1")
    folder = on("b") if is_remote else folder
    assert storage.entries(folder) == [folder / "a", folder / "ab", folder / "b"]
    assert storage.entries(folder / "a") == [folder / "a/x", folder / "a/y"]
    assert storage.files(folder / "a") == [folder / "a/x", folder / "a/y/z"]
    assert storage.entries(folder / "c") == storage.files(folder / "c") == []


def test_a_folder_becomes_what_the_store_has(on: Node) -> None:
    there = on("a")
    for name in ("new", "changed", "below/x"):
        sent(there / name, name.encode())
    here = on("b")
    write(here / "changed", b"before")
    write(here / "gone", b"1")
    storage.sync(here)
    assert names(here) == ["changed", "new"]
    assert (here / "changed").read_bytes() == b"changed"
    storage.sync(here, below=True)
    assert names(here) == ["below/x", "changed", "new"]


def test_what_is_the_same_is_not_fetched_again(
    on: Node, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent(on("a") / "x", b"1")
    storage.sync(on("b"))
    storage._seen.clear()  # As in another process of the node.
    with s3.proxy(s3_server) as (endpoint, proxy):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        storage._store.cache_clear()
        storage.sync(on("b"))
    assert proxy.seen == {"GET": 1}  # The listing.
    assert (on("b") / "x").read_bytes() == b"1"


@pytest.mark.slow
def test_a_folder_of_many_files_is_listed_whole(on: Node) -> None:
    folder = on("a")
    storage.together(lambda number: sent(folder / f"{number:05d}", b""), range(1100))
    assert len(storage.files(folder)) == len(storage.entries(folder)) == 1100


@pytest.mark.parametrize("is_remote", [True, False])
def test_the_end_of_a_growing_file(is_remote: bool, on: Node, tmp_path: Path) -> None:
    path = on("a") / "log" if is_remote else tmp_path / "log"
    sent(path, b"")
    assert storage.tail(path, 4) == b""
    sent(path, b"12")
    assert storage.tail(path, 4) == b"12"
    sent(path, b"123456")
    assert storage.tail(path, 4) == b"3456"


# --------------------------------------------------------------------------------- in background


def test_uploads_in_the_background_keep_their_order() -> None:
    done: list[int] = []
    for number in range(20):
        storage.later(lambda number=number: done.append(number))
    storage.settle()
    assert done == list(range(20))


def test_what_failed_in_the_background_is_raised() -> None:
    def fail() -> None:
        raise UserError("the store is gone")

    storage.later(fail).exception()
    with pytest.raises(UserError, match="the store is gone"):
        storage.later(lambda: None)
    storage.settle()


# ------------------------------------------------------------------------------------ the store


def test_a_store_that_can_be_used_keeps_no_trace_of_the_trial(on: Node) -> None:
    storage.check(on("a"))
    assert storage.files(on("a")) == []


def test_a_bucket_that_is_not_there(bucket: str) -> None:
    path = storage.locate("s3://no-such-bucket/run")
    with pytest.raises(UserError) as error:
        storage.check(path)
    assert str(error.value) == (
        "s3://no-such-bucket/run: there is no bucket 'no-such-bucket'. Create it, or mend the name."
    )


def test_a_store_that_does_not_answer(on: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"^s3://.*/run: the store does not answer .*AWS_ENDPOINT"):
        storage.check(on("a"))


def test_a_store_that_refuses(on: Node, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3.proxy(s3_server, lambda method, path: "refuse") as (endpoint, _):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(UserError, match=r"/run: no permission to use bucket .* credentials"):
            storage.check(on("a"))


def test_a_store_without_conditional_puts(
    on: Node, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3.proxy(s3_server, lambda method, path: "deaf") as (endpoint, _):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(UserError, match="could not be told from two"):
            storage.check(on("a"))


def test_a_mirror_is_closed_to_others(on: Node) -> None:
    mirror = on("a").parents[2]
    mirror.mkdir(parents=True)
    mirror.chmod(0o777)
    storage.check(on("a"))
    assert mirror.stat().st_mode & 0o777 == 0o700


def test_a_mirror_of_somebody_else(on: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(UserError, match=r"rocketray\.mirror belongs to user \d+\. Set ROCKETRAY"):
        storage.check(on("a"))


def test_a_mirror_that_cannot_be_made(on: Node, tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(UserError, match=r"cannot be made \(Not a directory\)"):
        storage.check(on("a"))


@pytest.mark.parametrize("fault", ["busy", "cut", "lose", "stall"])
def test_what_fails_once_is_done_again(
    fault: str, on: Node, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every kind of request, its first attempt failing."""
    tried: set[tuple[str, str]] = set()

    def first(method: str, path: str) -> str:
        if (method, path) in tried:
            return ""
        tried.add((method, path))
        return fault

    content = os.urandom(1 << 20)
    with s3.proxy(s3_server, first, stall=0.1) as (endpoint, proxy):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        path = sent(on("a") / "x", content)
        assert storage.create(on("a") / "epoch", "writer")
        assert not storage.create(on("a") / "epoch", "another")
        sha256 = file_sha256(path)
        path = on("b") / "x"
        assert storage.fetch(path, sha256)
        assert storage.files(on("b")) == [on("b") / "epoch", path]
        storage.copy(path, on("b") / "y")
        storage.remove(path)
        assert storage.entries(on("b")) == [on("b") / "epoch", on("b") / "y"]
        assert storage.read(on("b") / "y") == content
    assert proxy.faults[fault] >= 6


def test_a_large_upload_over_a_bad_network(
    on: Node, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(17 << 20)
    with s3.proxy(s3_server, s3.some(seed=1, share=0.3)) as (endpoint, proxy):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        sha256 = file_sha256(sent(on("a") / "x", content))
        assert storage.fetch(on("b") / "x", sha256)
    assert sum(proxy.faults.values()) > proxy.faults[""]
