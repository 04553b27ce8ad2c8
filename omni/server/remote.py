"""Pictures from remote addresses, for servers that were told to fetch them: never from a private address, never more than asked for."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from urllib.parse import urlsplit

from omni.server.errors import ApiError

TIMEOUT_S = 10.0
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


def fetch(url: str, param: str, *, max_bytes: int) -> bytes:
    """What an http(s) URL holds. It connects to the very address that was checked and follows no redirection. Raises ApiError."""
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
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    begun_s = time.monotonic()
    patience = threading.Timer(TIMEOUT_S, lambda: _end(stream))  # for all of it: a server may send a byte now and then for ever
    patience.daemon = True
    try:
        stream = socket.create_connection((address, port), timeout=TIMEOUT_S)
        if parts.scheme == "https":
            stream = ssl.create_default_context().wrap_socket(stream, server_hostname=host)
        connection.sock = stream
        patience.start()
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", target, headers={"Accept": "image/*", "User-Agent": "muomni"})
        response = connection.getresponse()
        if response.status != 200:
            raise refused
        data = b""
        while piece := response.read1(1 << 16):
            data += piece
            if len(data) > max_bytes:
                raise refused
        if time.monotonic() - begun_s > TIMEOUT_S:
            raise refused  # what is there may be a part
        return data
    except (OSError, http.client.HTTPException, ValueError):
        raise refused from None
    finally:
        patience.cancel()
        connection.close()


def _end(stream: socket.socket) -> None:
    with contextlib.suppress(OSError):
        stream.shutdown(socket.SHUT_RDWR)
