"""Keeps secrets out of a text, and, if that is asked for, addresses and names.

The secrets themselves are read, so that they are found in every usual form, wherever they stand. All else that looks
like a secret is taken out as well.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipeline.config import Config
from pipeline.config.schema import SETTINGS
from pipeline.credentials.state_dir import PEERS, SERVER_KEY
from pipeline.secret_text import CONCEALED, conceal

SECRET_BYTES_MIN = 8  # shorter ones would be found by chance
SECRET_FILE_BYTES_MAX = 1 << 20
SECRET_NAMES = re.compile(r"(password|passwd|secret|token|private|(?:^|_)key)$", re.IGNORECASE)
"""Names of values that are secrets; those of files end in _file."""

_NAMED = re.compile(
    r"""(?ix) ( \b (?:bearer|basic) \s+ | (?:token|password|passwd|secret|api[_-]?key) ["']? \s* [=:] \s* ["']? )
    (?! \(a\ secret ) [^\s"'&,}]+"""
)
"""As in hooks, which may call another service: "Authorization: Bearer WORD", "--password=WORD", "?token=WORD"."""

_IN_URL = re.compile(r"(?<=://)[^\s/@]+@")
PUBLIC_FILES = ("tls_cert_file", "tls_ca_file", "proxy_ca_file")
"""Settings that name files without secrets. Every other file that a setting names is taken for a secret."""

_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
_PEM_LINE = re.compile(r"[A-Za-z0-9+/=]{24,}")


class Secrets:
    """Takes secrets out of texts and values. `known`: secrets as bytes or as the text of their files."""

    def __init__(self, known: Iterable[bytes]) -> None:
        forms = {form for secret in known for form in _forms(secret)}
        longest_first = sorted(forms, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, longest_first)), re.IGNORECASE) if forms else None

    def out_of(self, text: str) -> str:
        if self._known is not None:
            text = self._known.sub(CONCEALED, text)
        text = _NAMED.sub(rf"\1{CONCEALED}", _PRIVATE_KEY.sub(CONCEALED, text))
        return conceal(_IN_URL.sub(f"{CONCEALED}@", text))

    def out_of_value(self, value: Any, name: str = "") -> Any:
        """A value that JSON can hold, without secrets. `name`: its key."""
        match value:
            case str():
                return CONCEALED if value and SECRET_NAMES.search(name) else self.out_of(value)
            case dict():
                return {self.out_of(str(key)): self.out_of_value(each, str(key)) for key, each in value.items()}
            case list() | tuple():
                return [self.out_of_value(each, name) for each in value]
        return value


def _forms(secret: bytes) -> Iterator[str]:
    """The usual forms of a secret."""
    text = secret.decode("ascii", "replace").strip()
    for raw in (secret.strip(), *_decoded(text)):
        if len(raw) >= SECRET_BYTES_MIN:
            yield raw.hex()
            yield from _written(base64.b64encode(raw).decode())
            yield from _written(base64.urlsafe_b64encode(raw).decode())
    if len(text) >= SECRET_BYTES_MIN and text.isascii() and text.isprintable():
        yield from _written(text)
    yield from _PEM_LINE.findall(text)


def _written(text: str) -> Iterator[str]:
    """With and without the "=" at its end, also as a part of a URL."""
    for each in (text, text.rstrip("=")):
        yield from (each, quote(each), quote(each, safe=""))


def _decoded(text: str) -> Iterator[bytes]:
    try:
        yield base64.b64decode(text, validate=True)
    except ValueError:
        pass


def secrets_of(config: Config) -> list[bytes]:
    """All secrets of an instance that this user can read."""
    state = Path(config.state_dir)
    named = [getattr(config, name) for name in SETTINGS if name.endswith("_file") and name not in PUBLIC_FILES]
    files = [*named, *(peer.key_file for peer in config.peers), str(state / SERVER_KEY)]
    known = [data for file in files if file for data in _read(Path(file))]
    if config.proxy_login_file:
        known += [data.partition(b":")[2] for data in _read(Path(config.proxy_login_file))]
    try:
        invited = [state / PEERS / name for name in os.listdir(state / PEERS)]
    except OSError:
        invited = []
    for path in invited:
        for data in _read(path):
            known += [text.encode() for text in _strings_named_key(data)]
    return known


def _read(path: Path) -> list[bytes]:
    try:
        with path.open("rb") as file:
            return [file.read(SECRET_FILE_BYTES_MAX)]
    except OSError:
        return []


def _strings_named_key(data: bytes) -> list[str]:
    try:
        value = json.loads(data)
    except ValueError:
        return []
    return [each for name, each in value.items() if SECRET_NAMES.search(name)] if isinstance(value, dict) else []


# -- addresses and names

_MAC = re.compile(r"\b(?:[0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}\b")
_IPV4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.]\d)")
_IPV6 = re.compile(r"(?<![\w:])[0-9a-fA-F:]*:[0-9a-fA-F:]*:[0-9a-fA-F:.]*(?![\w:])")
NAME_LENGTH_MIN = 3


class Masks:
    """Puts the same word in place of the same address or name, each time. `names`: of hosts and of peers."""

    def __init__(self, names: Iterable[str]) -> None:
        self._words: dict[str, str] = {}
        listed = [name for name in dict.fromkeys(names) if len(name) >= NAME_LENGTH_MIN]
        for name in listed:
            self._word("name", name)
        by_length = sorted(listed, key=len, reverse=True)
        self._names = re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, by_length))})(?![\w-])") if listed else None

    def _word(self, kind: str, text: str) -> str:
        return self._words.setdefault(text, f"{kind}-{len(self._words) + 1}")

    def over(self, text: str) -> str:
        text = _MAC.sub(lambda found: self._word("mac", found[0].lower()), text)
        text = _IPV4.sub(lambda found: self._address(found[0], "ipv4"), text)
        text = _IPV6.sub(lambda found: self._address(found[0], "ipv6"), text)
        return self._names.sub(lambda found: self._words[found[0]], text) if self._names is not None else text

    def over_value(self, value: Any) -> Any:
        match value:
            case str():
                return self.over(value)
            case dict():
                return {key: self.over_value(each) for key, each in value.items()}
            case list():
                return [self.over_value(each) for each in value]
        return value

    def _address(self, text: str, kind: str) -> str:
        try:
            address = ip_address(text)
        except ValueError:
            return text
        return text if address.is_loopback or address.is_unspecified else self._word(kind, str(address))
