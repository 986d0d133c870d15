"""The user's own package index, as pip is configured to use it: addresses, certificates, proxy, patience.

A company's mirror, its certificate and its credentials are set up once, for pip; a second place to set them
would be one too many. Files are read through `pip config list`, so that each place pip knows of counts;
`PIP_*` variables are read here and win, as they do in pip.
"""

import ast
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llm_neo.errors import InputError

if TYPE_CHECKING:
    from unearth.fetchers import PyPIClient

_DEFAULT_TIMEOUT_SECONDS = 15.0
_PIP_SECONDS = 60.0
# What is done here is a download, which pip regards as closest to `download`, then `install`.
_SECTIONS = ("download", "install", "global")
_TRUE, _FALSE = ("1", "true", "yes", "on", "y", "t"), ("0", "false", "no", "off", "n", "f", "")


@dataclass(frozen=True)
class IndexSettings:
    """Where packages are looked for, and how they are reached.

    Attributes:
        index_urls: simple indexes in the order to ask; may hold credentials, so never to be printed.
        find_links: folders, pages and files with packages.
        trusted_hosts: hosts whose certificate is not checked.
        certificate: a file or folder with certificate authorities, None for the default ones.
        client_certificate: a PEM file that identifies the user, None for no such file.
        proxy: the address of a proxy, None for what the environment says.
        timeout_seconds: how long a silent connection is kept.
    """

    index_urls: tuple[str, ...]
    find_links: tuple[str, ...]
    trusted_hosts: tuple[str, ...]
    certificate: Path | None
    client_certificate: Path | None
    proxy: str | None
    timeout_seconds: float


def read_index_settings(environment: Mapping[str, str] | None = None) -> IndexSettings:
    """Read pip's settings.

    Args:
        environment: the variables to go by; None for those of this process.

    Returns:
        What pip would use here; its own default index where nothing is configured.

    Raises:
        InputError: a setting cannot be understood or names a file that is not there.
    """
    environment = os.environ if environment is None else environment
    options = {**_options_in_files(environment), **_options_in_environment(environment)}
    index_urls: list[str] = []
    if not _flag(options, "no-index"):
        index_urls = [
            options.get("index-url") or _default_index(),
            *options.get("extra-index-url", "").split(),
        ]
    authorities = (
        options.get("cert")
        or environment.get("REQUESTS_CA_BUNDLE")
        or environment.get("CURL_CA_BUNDLE")
        or environment.get("SSL_CERT_FILE")
    )
    return IndexSettings(
        index_urls=tuple(dict.fromkeys(index_urls)),
        find_links=tuple(dict.fromkeys(options.get("find-links", "").split())),
        trusted_hosts=tuple(dict.fromkeys(options.get("trusted-host", "").split())),
        certificate=_existing_file(authorities, "certificate"),
        client_certificate=_existing_file(options.get("client-cert"), "client certificate"),
        proxy=options.get("proxy") or None,
        timeout_seconds=_seconds(options.get("timeout", options.get("default-timeout"))),
    )


@contextmanager
def open_index_client(settings: IndexSettings) -> Iterator["PyPIClient"]:
    """A connection that trusts and authenticates as pip would, and never asks for a password.

    Args:
        settings: certificates, proxy and the addresses that may hold credentials.

    Raises:
        InputError: a certificate cannot be used.
    """
    from unearth.auth import MultiDomainBasicAuth
    from unearth.fetchers import PyPIClient

    verify: ssl.SSLContext | bool = True
    if settings.certificate is not None or settings.client_certificate is not None:
        authorities = settings.certificate
        try:
            verify = ssl.create_default_context(
                cafile=str(authorities) if authorities is not None and authorities.is_file() else None,
                capath=str(authorities) if authorities is not None and authorities.is_dir() else None,
            )
            if settings.client_certificate is not None:
                verify.load_cert_chain(settings.client_certificate)
        except (ssl.SSLError, OSError) as error:
            raise InputError(
                f"the certificate in {authorities or settings.client_certificate} cannot be used ({error});"
                " correct PIP_CERT, PIP_CLIENT_CERT or pip's configuration"
            ) from error
    with PyPIClient(
        trusted_hosts=settings.trusted_hosts,
        verify=verify,
        timeout=settings.timeout_seconds,
        follow_redirects=True,
        proxy=settings.proxy,
    ) as client:
        client.auth = MultiDomainBasicAuth(prompting=False, index_urls=settings.index_urls)
        yield client


def _options_in_files(environment: Mapping[str, str]) -> dict[str, str]:
    """The options of pip's configuration files; none where there is no pip."""
    installed = shutil.which("pip", path=environment.get("PATH", ""))
    # -P: a folder called pip in the working directory must not be run in pip's place.
    commands = [[sys.executable, "-P", "-m", "pip"], *([[installed]] if installed else [])]
    for command in commands:
        try:
            listed = subprocess.run(  # noqa: S603 - the words are fixed, and no shell reads them
                [*command, "config", "list", "--disable-pip-version-check"],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_PIP_SECONDS,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            continue
        return parse_pip_config(listed.stdout)
    return {}


def parse_pip_config(listing: str) -> dict[str, str]:
    """Read what `pip config list` prints.

    Args:
        listing: lines such as `global.index-url='...'`.

    Returns:
        Value by option name; `download.` wins over `install.`, which wins over `global.`. Entries of the
        environment (`:env:`) and of pip's other commands are left out.
    """
    by_section: dict[str, dict[str, str]] = {section: {} for section in _SECTIONS}
    for line in listing.splitlines():
        key, separator, text = line.partition("=")
        section, _, option = key.strip().partition(".")
        if not separator or section not in by_section:
            continue
        try:
            value = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError):
            continue
        by_section[section][option.replace("_", "-").lower()] = str(value)
    merged: dict[str, str] = {}
    for section in reversed(_SECTIONS):
        merged.update(by_section[section])
    return merged


def _options_in_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The `PIP_*` variables under the names of the options; empty ones count as not set, as in pip."""
    return {
        name.removeprefix("PIP_").lower().replace("_", "-"): value
        for name, value in environment.items()
        if name.startswith("PIP_") and value.strip()
    }


def _default_index() -> str:
    """The index that unearth, like pip, asks where none is configured."""
    from unearth import PackageFinder

    return str(PackageFinder().sources[0]["url"])


def _flag(options: Mapping[str, str], name: str) -> bool:
    value = options.get(name, "").strip().lower()
    if value not in (*_TRUE, *_FALSE):
        raise InputError(f"pip's setting {name} is {value!r}, which is neither yes nor no; correct it")
    return value in _TRUE


def _seconds(value: str | None) -> float:
    if value is None:
        return _DEFAULT_TIMEOUT_SECONDS
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise InputError(f"pip's setting timeout is {value!r}, which is no number of seconds above 0; correct it")
    return seconds


def _existing_file(value: str | None, what: str) -> Path | None:
    if not value:
        return None
    path = Path(value).expanduser()
    if not path.exists():
        raise InputError(
            f"the {what} {value} that pip's settings or the environment name is not there; correct PIP_CERT"
            " or pip's configuration"
        )
    return path
