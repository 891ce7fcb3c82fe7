"""Draw the 300 rows of `banking77.csv`: 20 classes at random, 15 rows of each, shuffled.

    CACHESVC_EVAL_DATA=… python tests/data/sample_banking77.py

Few classes with many rows each, so that a class holds paraphrases on both sides of a threshold.
The seed makes it the same file every time.
"""

from __future__ import annotations

import csv
import gzip
import os
import random
from pathlib import Path

SEED = 77
CLASSES = 20
ROWS_PER_CLASS = 15
HERE = Path(__file__).resolve().parent
COLUMNS = ("text", "cls", "split")


def read_stream() -> list[dict[str, str]]:
    folder = os.environ.get("CACHESVC_EVAL_DATA") or HERE.parents[2] / "shared" / "quality"
    path = Path(folder) / "stream_banking77.csv.gz"
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def draw(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    chance = random.Random(SEED)
    classes = chance.sample(sorted({row["cls"] for row in rows}), CLASSES)
    drawn = [
        row
        for cls in classes
        for row in chance.sample([row for row in rows if row["cls"] == cls], ROWS_PER_CLASS)
    ]
    chance.shuffle(drawn)
    return drawn


def main() -> None:
    with (HERE / "banking77.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(draw(read_stream()))


if __name__ == "__main__":
    main()
