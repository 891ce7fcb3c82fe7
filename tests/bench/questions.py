"""Real questions, each asked once."""

from __future__ import annotations

import csv
from pathlib import Path

QUESTIONS = Path(__file__).parent.parent / "data" / "banking77.csv"


def texts() -> list[str]:
    with QUESTIONS.open(encoding="utf-8") as file:
        return [row["text"] for row in csv.DictReader(file)]
