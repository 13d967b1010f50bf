"""A data set of the Hugging Face Hub's kind under corrected labels: parquet files with the same columns and features."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fspmu.data.hub import is_plain
from fspmu.data.listing import some
from fspmu.errors import InputError
from fspmu.results.store import replacing

ROWS = 100  # in a row group: readers of images take one at a time


def label_column(split: Any, labels: Sequence[str], wanted: str | None) -> str:
    """Return the column of `split` that holds `labels` (N,), class names: the one `wanted`, else `label` or `labels`, else the only one.

    Raises InputError when none or several do.
    """
    names = [wanted] if wanted is not None else [name for name in split.column_names if is_plain(split.features[name])]
    found = [name for name in names if name in split.column_names and class_names_in(split, name) == list(labels)]
    usual = [name for name in found if name in ("label", "labels")]
    if len(usual or found) != 1:
        raise InputError(f"the column that holds the labels is not clear ({some(found) or 'none'}); name it with --label-column")
    return (usual or found)[0]


def class_names_in(split: Any, column: str) -> list[str]:
    """Return a label column (N,) by class name."""
    import datasets

    feature, values = split.features[column], split.select_columns([column])[:][column]
    return [feature.int2str(value) for value in values] if isinstance(feature, datasets.ClassLabel) else [str(value) for value in values]


def values_by_name(splits: Sequence[Any], column: str) -> dict[str, Any]:
    """Return what the label column of these splits stores for each class name."""
    import datasets

    feature = splits[0].features[column]
    if isinstance(feature, datasets.ClassLabel):
        return {name: place for place, name in enumerate(feature.names)}
    return {name: value for split in splits for name, value in zip(class_names_in(split, column), split.select_columns([column])[:][column], strict=True)}


def with_labels(split: Any, column: str, labels: Sequence[str | None], values: Mapping[str, Any]) -> Any:
    """Return `split` with class names `labels` (N,) in `column`, stored as `values` says, and without the rows where they are None; all else stays."""
    before = split.select_columns([column])[:][column]
    stored = [old if label is None else values[label] for label, old in zip(labels, before, strict=True)]
    feature, order = split.features[column], split.column_names
    relabelled = split.remove_columns(column).add_column(column, stored, feature=feature).select_columns(order)
    kept = [row for row, label in enumerate(labels) if label is not None]
    return relabelled if len(kept) == len(labels) else relabelled.select(kept)


def write_split(split: Any, path: Path, home: Path | None) -> None:
    """Write a split as one parquet file, images inside, whole or not at all.

    Raises InputError for an image file outside of `home`, the data set's own folder (None: the cache of the Hub): a table from elsewhere
    must not carry other files along.
    """
    import datasets
    import pyarrow.parquet as pq
    from datasets.table import embed_table_storage

    schema = split.features.arrow_schema
    pictures = [column for column, feature in split.features.items() if isinstance(feature, datasets.Image)]
    allowed = Path(home or datasets.config.HF_CACHE_HOME).resolve()
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for rows in split.with_format("arrow").iter(batch_size=ROWS):
            for column in pictures:
                _check_files(rows[column].to_pylist(), allowed)
            writer.write_table(embed_table_storage(rows.cast(schema)), row_group_size=ROWS)


def _check_files(cells: Sequence[Any], allowed: Path) -> None:
    for cell in cells:
        if cell and cell["bytes"] is None and cell["path"] and not Path(cell["path"]).resolve().is_relative_to(allowed):
            raise InputError(f"the image {cell['path']!r:.200} lies outside of {allowed} and was not carried along; put it there")
