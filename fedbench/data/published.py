"""Splits as files for publication: CSV or Parquet with a row per sample, which reads back to the same partition hash."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedbench.base.files import check_regular
from fedbench.data.partition import Dealt, too_few
from fedbench.data.samples import DataError, Ints, Samples
from fedbench.data.split import Split

if TYPE_CHECKING:  # slow to import, so only the functions that need it import it
    import pandas as pd

ROLES = ("train", "validation", "test")
REQUIRED, OPTIONAL = ("image", "client", "split"), ("held_out", "label")
SUFFIXES = (".csv", ".csv.gz", ".parquet")


def table(split: Split, samples: Samples) -> pd.DataFrame:
    """A row for every sample that a client holds, ordered by `image`, its number in the dataset."""
    import pandas as pd

    parts = (split.train, split.validation, split.test)
    index = np.concatenate([part.indices for part in parts])
    owner = np.concatenate([part.owners for part in parts])
    columns = {
        "image": index,
        "label": samples.labels[index],
        "client": owner,
        "split": pd.Categorical.from_codes(
            np.repeat(np.arange(len(ROLES)), [len(part.indices) for part in parts]), pd.Index(ROLES)
        ),
        "held_out": split.held_out[owner],
    }
    return pd.DataFrame(columns).sort_values("image", ignore_index=True)


def write(path: Path, split: Split, samples: Samples) -> None:
    """Write a split to `path`, whose suffix names the format. Raises DataError if it cannot be written."""
    if not path.name.endswith(SUFFIXES):
        raise DataError(f"{path}: a split is written as one of {', '.join(SUFFIXES)}")
    rows = table(split, samples)
    aside = path.with_name(f".{os.getpid()}.{path.name}")  # the suffix stays: it names the compression
    try:
        if path.suffix == ".parquet":
            rows.to_parquet(aside, index=False)
        else:
            rows.assign(held_out=rows["held_out"].astype(int)).to_csv(aside, index=False)
        os.replace(aside, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        aside.unlink(missing_ok=True)


def read(path: Path, samples: Samples, clients: int, need: int) -> Dealt:
    """The split in a file, compared with the dataset and the number of `clients`.

    Images that the file does not name are not used. Raises DataError, which names the mistake and its place.
    """
    rows = _read(path)
    count = len(samples.labels)
    image, client = _numbers(path, rows, "image", count), _numbers(path, rows, "client")
    _check_images(path, image)
    if "label" in rows.columns:
        label = _numbers(path, rows, "label")
        for at in np.flatnonzero(label != samples.labels[image])[:1]:
            raise DataError(
                f"{path}: image {image[at]} has label {label[at]}, in the dataset it is {samples.labels[image[at]]}: "
                "the file is of another dataset, or of another version or order of it"
            )
    role = rows["split"].astype(str).to_numpy()
    for wrong in sorted(set(role) - set(ROLES))[:1]:
        raise DataError(f"{path}: expected {', '.join(ROLES)} in column split, found {wrong!r}")
    if client.max() + 1 != clients:
        raise DataError(
            f"{path} has clients 0..{client.max()}; set clients.number to {client.max() + 1}, not {clients}"
        )
    owner, is_test, aside = np.full(count, -1, dtype=np.int64), np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
    owner[image], is_test[image], aside[image] = client, role == "test", role == "validation"
    has_validation = bool(aside.any())
    short, problem = too_few(np.where(aside, -1, owner), is_test, clients, 1 if has_validation else need)
    if short:
        raise DataError(f"{path}: {problem}")
    return Dealt(owner, is_test, aside if has_validation else None, _held_out(path, rows, client, clients))


def _read(path: Path) -> pd.DataFrame:
    import pandas as pd

    if not path.name.endswith(SUFFIXES):
        raise DataError(f"{path}: expected a split as one of {', '.join(SUFFIXES)}")
    try:
        check_regular(path)
        rows = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, EOFError) as error:  # raised by pandas and pyarrow for a wrong or incomplete file
        raise DataError(f"{path}: not a whole {''.join(path.suffixes[-2:])} file: {error}") from error
    missing = [name for name in REQUIRED if name not in rows.columns]
    extra = [str(name) for name in rows.columns if name not in REQUIRED + OPTIONAL]
    if missing or extra:
        raise DataError(
            f"{path}: expected the columns {', '.join(REQUIRED)} and at most {', '.join(OPTIONAL)}, "
            f"found {', '.join(map(str, rows.columns))}"
        )
    if rows.empty:
        raise DataError(f"{path}: no rows")
    return rows


def _numbers(path: Path, rows: pd.DataFrame, name: str, below: int | None = None) -> Ints:
    """A column of whole numbers from 0 on."""
    import pandas as pd

    column: Any = rows[name]
    if not pd.api.types.is_integer_dtype(column.dtype) or column.isna().any():
        raise DataError(f"{path}: expected whole numbers in column {name}, found {_oddest(column)}")
    values: Ints = column.to_numpy(dtype=np.int64)
    wrong = (values < 0) | (values >= (below if below is not None else np.iinfo(np.int64).max))
    for at in np.flatnonzero(wrong)[:1]:
        legal = f"0..{below - 1}, as the dataset has {below} images" if below is not None else "0 or more"
        raise DataError(f"{path}: expected {legal} in column {name}, found {values[at]} in row {at + 1}")
    return values


def _oddest(column: Any) -> Any:
    """The first value of a column that is not a whole number."""
    import pandas as pd

    numbers = pd.to_numeric(column, errors="coerce")
    odd = column[numbers.isna() | (numbers % 1 != 0)]
    return odd.iloc[0] if len(odd) else str(column.dtype)


def _check_images(path: Path, image: Ints) -> None:
    order = np.argsort(image, kind="stable")
    for at in np.flatnonzero(np.diff(image[order]) == 0)[:1]:
        first, second = order[at] + 1, order[at + 1] + 1
        raise DataError(f"{path}: image {image[order[at]]} occurs twice, in rows {first} and {second}")


def _held_out(path: Path, rows: pd.DataFrame, client: Ints, clients: int) -> Any:
    """Which clients are held out, [clients], or None if the file does not say."""
    if "held_out" not in rows.columns:
        return None
    values = rows["held_out"]
    if values.isna().any() or not values.isin([0, 1]).all():
        odd = values[~values.isin([0, 1])].iloc[0]
        raise DataError(f"{path}: expected 0 or 1 in column held_out, found {odd}")
    out = values.to_numpy(dtype=bool)
    held, trained = (np.bincount(client[out == value], minlength=clients) > 0 for value in (True, False))
    for k in np.flatnonzero(held & trained)[:1]:
        raise DataError(f"{path}: client {k} is held out in some rows and not in others")
    return held
