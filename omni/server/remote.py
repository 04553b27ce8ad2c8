"""Pictures from remote addresses, for servers that were told to fetch them: never from a private address, never more than asked for."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

from omni.server.errors import ApiError

TIMEOUT_S = 10.0  # for all pictures of a request
TRANSLATED = tuple(
    map(ipaddress.IPv6Network, ("::/96", "64:ff9b::/96", "2002::/16", "2001::/32"))
)  # NAT64, 6to4, Teredo …: an IPv4 address is within


def public_address(host: str, port: int, param: str) -> str:
    """An address of `host`. Raises ApiError unless all it has are public: a name may point anywhere, this machine included."""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        raise ApiError(400, f"{param}: the host has no address", param, "invalid_image_url") from None
    for address in found:
        ip = ipaddress.ip_address(address.partition("%")[0])
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        if not ip.is_global or ip.is_multicast or any(ip in network for network in TRANSLATED):
            raise ApiError(400, f"{param}: the host is not public", param, "remote_url_refused")
    return min(found)


def fetch_all(urls: Mapping[str, str], *, max_bytes: int) -> dict[str, bytes]:
    """What URLs hold, by parameter: all of it within TIMEOUT_S and no more than `max_bytes`. Raises ApiError."""
    until_s, found = time.monotonic() + TIMEOUT_S, dict[str, bytes]()
    for param, url in urls.items():
        found[param] = fetch(url, param, max_bytes=max_bytes, until_s=until_s)
        max_bytes -= len(found[param])
    return found


def fetch(url: str, param: str, *, max_bytes: int, until_s: float) -> bytes:
    """What an http(s) URL holds, if it is there before `until_s` on the monotonic clock. It connects to the very address that was checked and
    follows no redirection. Raises ApiError."""
    refused = ApiError(
        400, f"{param}: cannot be fetched; use a public http or https address of a picture, or a data URI", param, "invalid_image_url"
    )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or {"http": 80, "https": 443}[parts.scheme]
    except (ValueError, KeyError):
        raise refused from None
    if not host or parts.username is not None:
        raise refused
    address = public_address(host, port, param)
    left_s = until_s - time.monotonic()
    if left_s <= 0:
        raise refused
    connection = http.client.HTTPConnection(host, port)
    patience = threading.Timer(left_s, lambda: _end(stream))  # a server may send a byte now and then for ever
    patience.daemon = True
    try:
        stream = socket.create_connection((address, port), timeout=left_s)
        if parts.scheme == "https":
            stream = ssl.create_default_context().wrap_socket(stream, server_hostname=host, do_handshake_on_connect=False)
        connection.sock = stream
        patience.start()
        if isinstance(stream, ssl.SSLSocket):
            stream.do_handshake()
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", target, headers={"Accept": "image/*", "User-Agent": "muomni"})
        response = connection.getresponse()
        if response.status != 200:
            raise refused
        pieces: list[bytes] = []
        while piece := response.read1(1 << 16):
            pieces.append(piece)
            max_bytes -= len(piece)
            if max_bytes < 0:
                raise refused
        if time.monotonic() > until_s:
            raise refused  # what is there may be a part
        return b"".join(pieces)
    except (OSError, http.client.HTTPException, ValueError):
        raise refused from None
    finally:
        patience.cancel()
        connection.close()


def _end(stream: socket.socket) -> None:
    with contextlib.suppress(OSError):
        stream.shutdown(socket.SHUT_RDWR)
