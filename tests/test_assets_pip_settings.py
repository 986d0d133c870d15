"""pip's settings, read as pip itself reads them."""

import os
import ssl
import sys
from pathlib import Path

import pytest
from unearth import PackageFinder

from llm_neo.assets.pip_settings import (
    IndexSettings,
    open_index_client,
    parse_pip_config,
    read_index_settings,
)
from llm_neo.errors import InputError


def settings_of(tmp_path: Path, file: str = "", **variables: str) -> IndexSettings:
    """What is read with these variables only and this configuration file, which wins over the machine's."""
    (tmp_path / "pip.conf").write_text(file)
    # pip reads no file at all where the null device is named.
    configuration = str(tmp_path / "pip.conf") if file else os.devnull
    return read_index_settings({"PIP_CONFIG_FILE": configuration, **variables})


def test_without_settings_there_is_only_the_default_index(tmp_path: Path) -> None:
    assert settings_of(tmp_path) == IndexSettings(
        index_urls=(PackageFinder().sources[0]["url"],),
        find_links=(),
        trusted_hosts=(),
        certificate=None,
        client_certificate=None,
        proxy=None,
        timeout_seconds=15.0,
    )


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("")
    (tmp_path / "me.pem").write_text("")
    file = f"""
[global]
index-url = https://user:secret@one.example/simple
extra-index-url =
    https://two.example/simple
    https://three.example/simple
find-links = /a /b
trusted-host = one.example
cert = {tmp_path / "ca.pem"}
timeout = 30
[install]
timeout = 40
client-cert = {tmp_path / "me.pem"}
[download]
proxy = http://proxy.example:3128
[list]
timeout = 50
"""
    assert settings_of(tmp_path, file) == IndexSettings(
        index_urls=(
            "https://user:secret@one.example/simple",
            "https://two.example/simple",
            "https://three.example/simple",
        ),
        find_links=("/a", "/b"),
        trusted_hosts=("one.example",),
        certificate=tmp_path / "ca.pem",
        client_certificate=tmp_path / "me.pem",
        proxy="http://proxy.example:3128",
        timeout_seconds=40.0,
    )


def test_variables_win_over_files(tmp_path: Path) -> None:
    file = "[global]\nindex-url = https://one.example/simple\nfind-links = /a\n[download]\ntimeout = 7\n"
    found = settings_of(
        tmp_path,
        file,
        PIP_INDEX_URL="https://two.example/simple",
        PIP_EXTRA_INDEX_URL="https://three.example/simple\nhttps://two.example/simple",
        PIP_FIND_LINKS="",
        PIP_TRUSTED_HOST="a b",
        PIP_DEFAULT_TIMEOUT="9",
    )
    assert found.index_urls == ("https://two.example/simple", "https://three.example/simple")
    # An empty variable counts as not set.
    assert found.find_links == ("/a",)
    assert found.trusted_hosts == ("a", "b")
    assert found.timeout_seconds == 7.0


@pytest.mark.parametrize(
    ("name", "value"),
    [("PIP_CERT", "1"), ("REQUESTS_CA_BUNDLE", "2"), ("SSL_CERT_FILE", "4"), ("CURL_CA_BUNDLE", "3")],
)
def test_certificates_come_from_pip_then_from_the_usual_variables(tmp_path: Path, name: str, value: str) -> None:
    variables = {"PIP_CERT": "1", "REQUESTS_CA_BUNDLE": "2", "CURL_CA_BUNDLE": "3", "SSL_CERT_FILE": "4"}
    for file in variables.values():
        (tmp_path / file).write_text("")
    later = {key: str(tmp_path / file) for key, file in variables.items() if file >= value}
    assert settings_of(tmp_path, **later).certificate == tmp_path / value


def test_no_index_leaves_find_links_only(tmp_path: Path) -> None:
    found = settings_of(tmp_path, "[global]\nno-index = yes\n", PIP_FIND_LINKS="/a", PIP_INDEX_URL="https://x/simple")
    assert (found.index_urls, found.find_links) == ((), ("/a",))
    assert settings_of(tmp_path, PIP_NO_INDEX="0", PIP_INDEX_URL="https://x/simple").index_urls == ("https://x/simple",)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"PIP_NO_INDEX": "perhaps"}, "no-index is 'perhaps', which is neither yes nor no"),
        ({"PIP_TIMEOUT": "soon"}, "timeout is 'soon', which is no number of seconds"),
        ({"PIP_TIMEOUT": "-1"}, "timeout is '-1', which is no number of seconds above 0"),
        ({"PIP_CERT": "/not/there"}, "the certificate /not/there .* is not there; correct PIP_CERT"),
        ({"PIP_CLIENT_CERT": "/not/there"}, "the client certificate /not/there .* is not there"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, variables: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        settings_of(tmp_path, **variables)


def test_lines_that_are_no_option_are_passed_over() -> None:
    lines = [
        "WARNING: hello",
        "global.index-url='a'",
        "global.broken=[",
        ":env:.timeout='1'",
        "freeze.timeout='2'",
    ]
    listing = "\n".join([*lines, "global.no_index='1'"])
    assert parse_pip_config(listing) == {"index-url": "a", "no-index": "1"}


def test_without_pip_in_this_python_the_pip_on_the_path_is_asked_and_else_the_variables_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    python = sys.executable
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    assert settings_of(tmp_path, "[global]\nfind-links = /a\n", PIP_INDEX_URL="https://x/simple").find_links == ()
    pip = tmp_path / "pip"
    pip.write_text(f'#!/bin/sh\nexec {python} -m pip "$@"\n')
    pip.chmod(0o755)
    assert settings_of(tmp_path, "[global]\nfind-links = /a\n", PATH=f"{tmp_path}").find_links == ("/a",)


def test_a_folder_called_pip_in_the_working_directory_is_not_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__init__.py").write_text("")
    (tmp_path / "pip" / "__main__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    assert settings_of(tmp_path, "[global]\nfind-links = /a\n").find_links == ("/a",)
    assert not (tmp_path / "ran").exists()


def settings_with(certificate: Path | None = None, client_certificate: Path | None = None) -> IndexSettings:
    return IndexSettings((), (), (), certificate, client_certificate, None, 1.0)


def test_a_certificate_file_or_folder_is_used_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    default = ssl.get_default_verify_paths()
    bundle = Path(default.cafile or default.openssl_cafile)
    if not bundle.is_file():
        pytest.skip(f"this machine has no certificates at {bundle}")
    for certificate in (bundle, tmp_path, None):
        with open_index_client(settings_with(certificate)) as client:
            assert client.follow_redirects
    (tmp_path / "wrong.pem").write_text("no certificate")
    for settings in (settings_with(tmp_path / "wrong.pem"), settings_with(None, tmp_path / "wrong.pem")):
        with (
            pytest.raises(InputError, match=r"the certificate in .*wrong.pem cannot be used .* correct PIP_CERT"),
            open_index_client(settings),
        ):
            pass
