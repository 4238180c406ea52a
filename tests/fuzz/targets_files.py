"""Files that an administrator has written, or that became damaged: any bytes are content or one clear error."""

from __future__ import annotations

import base64
import functools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.config import parse
from pipeline.credentials import certificates, tls_settings
from pipeline.credentials.keys import SECRET_MODE
from pipeline.errors import ConfigError
from pipeline.system import small_file
from pipeline.transport.tls_context import context_of
from tests.fuzz.fuzzer import Feed

SEPARATOR = b"\n--------\n"


def text(data: bytes) -> None:
    """Text is what an editor would show, without what it would not."""
    try:
        decoded = small_file.decode(data)
    except ValueError as expected:
        assert "found" in str(expected)
        return
    bare = small_file.bare(decoded)
    assert not any(char.isspace() for char in bare) and small_file.bare(bare) == bare


def text_seeds() -> list[bytes]:
    words = ('"tunnel1.abc"', " a b\r\n", "\ufeffx", "\u201cquoted\u201d", "caf\xe9")
    return [word.encode(code) for word in words for code in ("utf-8", "utf-8-sig", "utf-16")] + [b"\0", b"\xff"]


@contextmanager
def tls_files() -> Iterator[Feed]:
    """A worker can load all that the supervisor takes. The files are parted by a line of dashes."""
    with tempfile.TemporaryDirectory() as name:
        paths = [Path(name) / part for part in ("own.crt", "own.key", "ca.crt")]
        for path in paths:
            path.touch(SECRET_MODE)
        certificate, key, ca = map(str, paths)
        settings = {"tls_cert_file": certificate, "tls_key_file": key, "tls_ca_file": ca, "state_dir": name}
        configs = [
            parse({"mode": "server", "tunnel_addr": "10.0.0.1/24", **settings}),
            parse({"mode": "client", "remote_addr": "h:1", **settings}),
        ]

        def take(data: bytes) -> None:
            parts = (data + SEPARATOR * 2).split(SEPARATOR)
            for path, content in zip(paths, parts, strict=False):
                path.write_bytes(content)
            for config in configs:
                try:
                    loaded = tls_settings.load(config)
                except ConfigError as error:
                    assert name in str(error)
                    continue
                assert loaded.tls is not None
                context_of(loaded.tls, server=config.mode == "server")

        yield take


@functools.cache
def _pair() -> certificates.CertificatePair:
    return certificates.make_self_signed("fuzz.test")


def tls_files_seeds() -> list[bytes]:
    pair = _pair()
    cut, other = pair.certificate[:300], certificates.make_self_signed("other").key
    der = base64.b64decode(b"".join(pair.certificate.splitlines()[1:-1]))
    return [
        SEPARATOR.join(each)
        for each in (
            (pair.certificate, pair.key, pair.certificate),
            (pair.certificate + pair.certificate, pair.key, b""),
            (pair.certificate + cut, pair.key, cut),
            (pair.certificate, other, pair.certificate),
            (
                b"\xef\xbb\xbf# caf\xe9\r\n" + pair.certificate.replace(b"\n", b"\r\n"),
                pair.key,
                b"# " + pair.certificate,
            ),
            (pair.key, pair.certificate, pair.key),
            (der, pair.key, der),
        )
    ]
