"""The network interface by which this host reaches another one (Linux)."""

from __future__ import annotations

import socket
import struct
import sys

SIOCGIFADDR = 0x8915


def interface_towards(host: str) -> str:
    """Its name, "" where the system does not tell (or ``host`` has no IPv4 address)."""
    if not sys.platform.startswith("linux"):
        return ""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # sends nothing: it only chooses a route
            own = probe.getsockname()[0]
    except OSError:
        return ""
    named = [name for _, name in socket.if_nameindex() if _address(name) == own]
    return named[0] if named else ""


def _address(interface: str) -> str:
    """IPv4 address of an interface, "" where it has none."""
    import fcntl

    asked = struct.pack("256s", interface.encode()[:15])
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            told = fcntl.ioctl(any_socket.fileno(), SIOCGIFADDR, asked)
    except OSError:
        return ""
    return socket.inet_ntoa(told[20:24])
