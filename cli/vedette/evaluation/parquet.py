"""Columns of Parquet files. Their reader is in the extra ``evaluate``: no gateway has it, and no other command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vedette.evaluation.labelled_tables import ROWS_MAX
from vedette_schemas.errors import ConfigError, PeerError

BYTES_MAX: Final = 512 << 20
"""Most bytes of a file's columns once they are unpacked: a few kilobytes can claim to be terabytes."""


def read_parquet(path: Path, columns: Sequence[str], *, rows_max: int = ROWS_MAX) -> dict[str, npt.NDArray[Any]]:
    """Columns of a Parquet file, in the order that was asked for: numbers as they are stored, texts as objects.

    Args:
        path: the file.
        columns: names that are wanted; others are not read.
        rows_max: most rows of the file.

    Raises:
        ConfigError: the reader is not installed, or there is no such file.
        PeerError: no Parquet file, a column is missing or has an empty cell, or it is larger than the limits.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as fault:
        raise ConfigError(
            f"{path.name}: found no reader of Parquet files, expected pyarrow: pip install 'vedette[evaluate]'"
        ) from fault
    if not path.is_file():
        raise ConfigError(f"{path}: found no file, expected the developer pack's layout; see --data")
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _check_size(path, file.metadata, rows_max)
            missing = [name for name in columns if name not in file.schema_arrow.names]
            if missing:
                raise PeerError(
                    f"{path.name}: found columns {', '.join(file.schema_arrow.names[:8])}, "
                    f"expected {', '.join(missing)} among them"
                )
            table = file.read(columns=list(columns), use_threads=False)
            return {name: _plain(path, name, table[name]) for name in columns}
    except (pyarrow.ArrowException, OSError) as fault:
        raise PeerError(f"{path.name}: found {str(fault).splitlines()[0]}, expected a Parquet file") from fault


def _check_size(path: Path, metadata: Any, rows_max: int) -> None:
    size = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    if metadata.num_rows > rows_max:
        raise PeerError(f"{path.name}: found {metadata.num_rows} rows, expected at most {rows_max}")
    if size > BYTES_MAX:
        raise PeerError(f"{path.name}: found {size} bytes of columns, expected at most {BYTES_MAX}")


def _plain(path: Path, name: str, column: Any) -> npt.NDArray[Any]:
    if column.null_count:
        raise PeerError(f"{path.name}: found {column.null_count} empty cells in {name}, expected none")
    return np.asarray(column.to_numpy())
