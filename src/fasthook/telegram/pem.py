"""A look at the file that --certificate names, before Telegram gets it."""

from __future__ import annotations

import ssl
from pathlib import Path


def check_certificate(path: Path) -> None:
    """ValueError: it cannot be read, is no certificate in PEM, or holds a private key. The message is one line."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    if b"PRIVATE KEY-----" in data:
        raise ValueError(f"{path} holds a private key, and Telegram gets the public certificate only")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=data.decode("ascii", "ignore"))
    except (ssl.SSLError, ValueError):  # ValueError: it is empty
        raise ValueError(
            f"{path} is no certificate: it must be one in PEM, as fasthook webhook certificate makes it"
        ) from None
