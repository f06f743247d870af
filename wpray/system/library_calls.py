"""Calls that a shared library makes of its own exported functions, which can be sent elsewhere in this process.

A library reaches such a function through a table of addresses, which the linker fills when it loads the library (ELF's
procedure linkage). No file changes, other processes keep their own tables, and Python still gets the library's own
functions.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import struct
from collections.abc import Iterator
from typing import ClassVar

_TABLE, _RELRO = 2, 0x6474E552  # program headers: the dynamic section, and what is read-only once it is filled
_STRINGS, _SYMBOLS, _SIZE, _CALLS = 5, 6, 2, 23  # entries of the dynamic section
_READ, _WRITE = 1, 2
_WORD = 8


class _Found(ctypes.Structure):
    """`Dl_info` of dladdr."""

    _fields_: ClassVar = [
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    ]


class LibraryCalls:
    """Table of the functions that one library calls by their names."""

    def __init__(self, routine: int) -> None:
        """Read the table of the library that holds the code at address `routine`. Raise OSError if there is none."""
        if platform.system() != "Linux" or struct.calcsize("P") != _WORD:
            raise OSError("calls inside a library can be redirected on 64-bit Linux only")
        found, libc = _Found(), ctypes.CDLL(None, use_errno=True)
        if not libc.dladdr(ctypes.c_void_p(routine), ctypes.byref(found)) or not found.base:
            raise OSError(f"no library holds address {routine:#x}")
        self._base: int = found.base
        self._fixed: list[range] = []  # addresses that are read-only
        self._slots = dict(self._read())

    def __contains__(self, name: str) -> bool:
        """Return True if the library calls the function through its table."""
        return name in self._slots

    def __getitem__(self, name: str) -> int:
        """Return the address that the library calls for a function. Raise KeyError if it calls none by that name."""
        return ctypes.c_uint64.from_address(self._slots[name]).value

    def __setitem__(self, name: str, address: int) -> None:
        """Let the library call `address` instead. Raise KeyError as above, OSError if the system refuses."""
        slot = self._slots[name]
        fixed = any(slot in addresses for addresses in self._fixed)
        if fixed:
            _protect(slot, _READ | _WRITE)
        ctypes.c_uint64.from_address(slot).value = address
        if fixed:
            _protect(slot, _READ)

    def _read(self) -> Iterator[tuple[str, int]]:
        """Yield each function's name and the address of its entry."""
        entries: dict[int, int] = {}
        for kind, place, size in self._segments():
            if kind == _TABLE:
                entries = dict(struct.iter_unpack("<qQ", ctypes.string_at(place, size - size % 16)))
            elif kind == _RELRO:  # the C library leaves a last page as it is that is not all of this kind
                self._fixed.append(range(place, place + size - (place + size) % mmap.PAGESIZE))
        if not entries.keys() >= {_STRINGS, _SYMBOLS, _SIZE, _CALLS}:
            raise OSError("the library calls its functions directly")
        strings, symbols, calls = (self._absolute(entries[kind]) for kind in (_STRINGS, _SYMBOLS, _CALLS))
        for slot, symbol, _ in struct.iter_unpack("<QQq", ctypes.string_at(calls, entries[_SIZE])):
            (name,) = struct.unpack("<I", ctypes.string_at(symbols + 24 * (symbol >> 32), 4))
            yield ctypes.string_at(strings + name).decode(), self._base + slot

    def _segments(self) -> Iterator[tuple[int, int, int]]:
        """Yield kind, address and size of the library's segments."""
        header = ctypes.string_at(self._base, 64)
        if header[:6] != b"\x7fELF\x02\x01":
            raise OSError("the library is no 64-bit ELF file")
        (start,), (size, count) = struct.unpack_from("<Q", header, 32), struct.unpack_from("<HH", header, 54)
        for number in range(count):
            kind, _, _, place, _, _, length, _ = struct.unpack(
                "<IIQQQQQQ", ctypes.string_at(self._base + start + number * size, 56)
            )
            yield kind, self._base + place, length

    def _absolute(self, value: int) -> int:
        """Return an address of the dynamic section, which some C libraries make absolute and others leave relative."""
        return value if value >= self._base else value + self._base


def _protect(address: int, access: int) -> None:
    """Change the access to the page of a word."""
    page = address - address % mmap.PAGESIZE
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), access):
        raise OSError(ctypes.get_errno(), "the system does not let a library's table of calls be changed")
