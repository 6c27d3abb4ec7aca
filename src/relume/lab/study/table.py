"""`Table`: a study's results as tidy rows, one for each member that was run."""

from __future__ import annotations

import csv
import importlib
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from relume.errors import missing_extra
from relume.lab.study.settings import FIELDS
from relume.lab.tasks.task import PARTS

_COUNTS = ("units", "dead", "dormant", "born_dead", "died")


class Table(list[dict[str, Any]]):
    """Rows of a table, all with the same columns in the same order.

    Columns: `key`; every setting of `Member`; `status` ("done", "failed"); `error`, why there is no result;
    `score_train`, `score_validation`, `score_test` by the task's metric, `best_validation` of all windows; `units`,
    `dead` and `dormant` at the end, `born_dead` in the first window, `died` in training and dead in its last window;
    `dead_fraction`; `diverged`; `seconds`; `causes` (were they asked for?) and, for each code that was found,
    `cause:CODE`, units that it concerns. What a failed member has not is None.
    """

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(self[0]) if self else ()

    def to_pandas(self) -> Any:
        """As a data frame.

        Raises:
            MissingExtraError: pandas is not installed (extra "pandas").
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise missing_extra("pandas", "pandas", "to_pandas()") from error
        return pd.DataFrame(list(self))

    def to_parquet(self, path: str | Path) -> Path:
        """Write a Parquet file.

        Raises:
            MissingExtraError: pyarrow is not installed (extra "parquet").
        """
        try:
            pa, pq = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
        except ImportError as error:
            raise missing_extra("pyarrow", "parquet", "to_parquet()") from error
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(list(self)), path)
        return path

    def to_csv(self, path: str | Path) -> Path:
        """Write comma-separated values; None as nothing."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self)
        path.write_text(text.getvalue(), encoding="utf-8")
        return path


def table_of(order: Iterable[str], heads: Iterable[tuple[str, Mapping[str, Any]]]) -> Table:
    """From the keys of members, in the order of the rows, and what the store keeps of them, in any order."""
    places = {key: place for place, key in enumerate(order)}
    found: list[tuple[int, dict[str, Any], Mapping[str, int] | None]] = []
    for key, head in heads:
        if key in places:
            found.append((places[key], _row(key, head), head.get("causes")))
    found.sort(key=lambda row: row[0])
    codes = sorted({code for _, _, causes in found for code in causes or ()})
    for _, row, causes in found:
        row.update({f"cause:{code}": None if causes is None else causes.get(code, 0) for code in codes})
    return Table(row for _, row, _ in found)


def _row(key: str, head: Mapping[str, Any]) -> dict[str, Any]:
    scores, of = head.get("scores", {}), head["member"]
    return {
        "key": key,
        **{name: of[name] for name in FIELDS},
        "status": head["status"],
        "error": head.get("error", ""),
        **{f"score_{part}": scores.get(part) for part in PARTS},
        "best_validation": head.get("best"),
        **{name: head.get(name) for name in _COUNTS},
        "dead_fraction": head["dead"] / max(head["units"], 1) if "units" in head else None,
        "diverged": head.get("diverged"),
        "seconds": head.get("seconds"),
        "causes": head.get("causes") is not None,
    }
