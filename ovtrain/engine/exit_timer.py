"""Ends the process with a chosen status, even while a hung call in C holds Python's lock.

faulthandler can only end with status 1, and a Python thread cannot run. A POSIX timer of the kind
SIGEV_THREAD calls a C function with one argument on a thread of its own (timer_create(2)): here
``_exit`` with the status. Linux with glibc 2.34 or newer, or musl.
"""

from __future__ import annotations

import ctypes
import logging
import os
import time

SIGEV_THREAD = 2
log = logging.getLogger(__name__)


class _SigEvent(ctypes.Structure):
    """``struct sigevent`` of 64 bytes on 64-bit Linux; ``value`` is what the function is given."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signo", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("function", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("padding", ctypes.c_char * 32),
    )


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _TimeSpec), ("value", _TimeSpec))


class ExitTimer:
    """``arm`` starts the time anew, ``disarm`` stops it; warns where the system has no such
    timers, and then does nothing."""

    def __init__(self, status: int) -> None:
        self._timer = ctypes.c_void_p()
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.works = hasattr(self._libc, "timer_create")
        if not self.works:
            log.warning("this system has no timers that end a hung process")
            return
        end = ctypes.cast(self._libc._exit, ctypes.c_void_p).value
        event = _SigEvent(value=status, notify=SIGEV_THREAD, function=end)
        made = ctypes.byref(self._timer)
        self._call("timer_create", time.CLOCK_MONOTONIC, ctypes.byref(event), made)

    def arm(self, seconds: float) -> None:
        whole = int(seconds)
        self._set(_TimeSpec(whole, int(1e9 * (seconds - whole))))

    def disarm(self) -> None:
        self._set(_TimeSpec(0, 0))

    def close(self) -> None:
        if self.works:
            self._call("timer_delete", self._timer)
            self.works = False

    def _set(self, value: _TimeSpec) -> None:
        if self.works:
            spec = _TimerSpec(value=value)
            self._call("timer_settime", self._timer, 0, ctypes.byref(spec), None)

    def _call(self, name: str, *arguments: object) -> None:
        if getattr(self._libc, name)(*arguments):
            number = ctypes.get_errno()
            raise OSError(number, f"{name}: {os.strerror(number)}")
