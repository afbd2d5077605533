"""Syntax elements, written (ITU-T H.265, 9.2)."""

from __future__ import annotations


class Bits:
    """u(n), ue(v), se(v), written."""

    def __init__(self) -> None:
        self.text = ""

    def u(self, count: int, value: int) -> None:
        assert 0 <= value < 1 << count, (count, value)
        self.text += f"{value:0{count}b}" if count else ""

    def flag(self, value: object) -> bool:
        self.text += "1" if value else "0"
        return bool(value)

    def ue(self, value: int) -> None:
        assert value >= 0, value
        code = f"{value + 1:b}"
        self.text += "0" * (len(code) - 1) + code

    def se(self, value: int) -> None:
        self.ue(2 * value - 1 if value > 0 else -2 * value)

    def stop(self) -> bytes:
        """With the stop bit and its alignment."""
        text = self.text + "1"
        text += "0" * (-len(text) % 8)
        return int(text, 2).to_bytes(len(text) // 8, "big")
