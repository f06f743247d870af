"""Table in a safetensors file, whose rows are read when they are needed."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class TableAdapter:
    """An adapter's part of the scores of N ids: ((h B^T) A^T) s, float32."""

    low: Tensor  # A (N, rank)
    high: Tensor  # B (rank, width)
    scale: float

    def to(self, device: torch.device) -> TableAdapter:
        """Return it on a device."""
        return TableAdapter(self.low.to(device), self.high.to(device), self.scale)


class Table(Protocol):
    """Embedding table, in memory or in a file."""

    dtype: torch.dtype
    shape: torch.Size

    def __len__(self) -> int: ...

    def take(self, ids: Sequence[int]) -> Tensor:
        """Return rows (N, width) on the host. Raise ValueError for a row that does not exist."""

    def scoring(self, ids: Sequence[int]) -> tuple[Tensor, TableAdapter | None]:
        """Return the rows that score these ids, and an active adapter's part of the scores."""


class StoredTable:
    """Two-dimensional tensor that stays in its file, which may be deleted or replaced, but not overwritten."""

    def __init__(self, path: Path, name: str, dtype: torch.dtype) -> None:
        """Open the tensor `name` of the file; rows are returned in `dtype`."""
        self._path, self.dtype = path, dtype
        self._file = path.open("rb", buffering=0)
        (length,) = struct.unpack("<Q", self._file.read(8))
        entry = json.loads(self._file.read(length))[name]
        self._stored, self.shape = _DTYPES[entry["dtype"]], torch.Size(entry["shape"])
        self._first = 8 + length + entry["data_offsets"][0]
        self._state = self._now()

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, ids: Sequence[int]) -> Tensor:
        """Return rows (N, width) on the host. Raise ValueError if a row does not exist or the file has changed."""
        odd = [row for row in ids if not 0 <= row < len(self)]
        if odd:
            raise ValueError(f"token {odd[0]} is not of this vocabulary of {len(self)}")
        size = self.shape[1] * self._stored.itemsize
        data = bytearray().join(os.pread(self._file.fileno(), size, self._first + row * size) for row in ids)
        if self._now() != self._state:
            raise ValueError(f"{self._path} was overwritten while it is in use; start again with a file that stays")
        return torch.frombuffer(data, dtype=self._stored).view(len(ids), -1).to(self.dtype)

    def scoring(self, ids: Sequence[int]) -> tuple[Tensor, TableAdapter | None]:
        """Return the rows that score these ids; a plain table has no adapter."""
        return self.take(ids), None

    def _now(self) -> tuple[int, int]:
        found = os.fstat(self._file.fileno())
        return found.st_size, found.st_mtime_ns
