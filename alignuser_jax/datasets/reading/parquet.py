"""Read Parquet files a few rows at a time, with errors that name the file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from alignuser_jax.datasets.reading.delimited import InputError

_BATCH_ROWS = 64


def open_parquet(path: Path, columns: tuple[str, ...]) -> pq.ParquetFile:
    """Open a Parquet file that must have these columns.

    Raises:
        InputError: If it is no readable Parquet file or lacks a column.
    """
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is not a readable Parquet file: {error}") from error
    if missing := [name for name in columns if name not in file.schema_arrow.names]:
        raise InputError(
            f"{path} lacks the columns {missing}: it has {file.schema_arrow.names}"
        )
    return file


def parquet_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict]]:
    """Yield (row number from 1, row), with at most `_BATCH_ROWS` rows in memory at a time.

    Raises:
        InputError: If the file is not readable, lacks a column or is damaged.
    """
    file = open_parquet(path, columns)
    total, number = file.metadata.num_rows, 0
    try:
        with tqdm(total=total, unit="row", desc=path.name, leave=False, delay=1) as progress:
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(
                    _BATCH_ROWS, row_groups=[group], columns=list(columns), use_threads=False
                ):
                    batch.validate(full=True)  # refuses text that is no UTF-8
                    for row in batch.to_pylist():
                        number += 1
                        yield number, row
                    progress.update(batch.num_rows)
    except (pa.ArrowInvalid, OSError, OverflowError) as error:
        raise InputError(f"{path} is damaged near row {number}: {error}") from error
