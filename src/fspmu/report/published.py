"""The published test accuracies of the method and of what it is compared with, in percent: read from the result pictures of its public repository.

The source does not state everything: the network (taken to be preactresnet18), the asymmetric rate (taken to be 0.4), whether a row with one figure
(`-` below) holds the last or the best epoch (taken to be the last), and how many seeds there were (taken to be one). `best` is picked on test data.
"""

COLUMNS = (*(f"sym {percent}" for percent in range(10, 100, 10)), "asym 40")
"""Kinds and shares of noise, in percent."""

_FIGURES = """
known | cifar10  | original          | -    | 89.04 83.13 76.46 67.51 57.83 47.93 35.91 25.57 16.41 77.50
known | cifar10  | scrub-reference   | last | 91.82 90.27 89.03 87.08 84.83 82.55 78.24 68.67 38.23 91.22
known | cifar10  | scrub-reference   | best | 91.92 90.35 89.08 87.14 85.15 82.65 78.48 69.14 48.62 91.29
known | cifar10  | FSPMU             | last | 92.36 91.85 91.10 90.52 89.01 88.22 86.05 83.30 74.67 91.86
known | cifar10  | FSPMU             | best | 92.50 92.09 91.36 90.53 89.42 88.22 86.16 83.30 74.67 91.93
known | cifar10  | DivideMix         | -    | 95.32 95.13 93.17 94.00 94.13 94.21 93.67 92.25 62.67 92.24
known | cifar10  | DivideMix + FSPMU | -    | 95.93 95.86 95.88 95.50 95.59 95.36 94.43 93.56 83.09 95.30
known | cifar10  | ProMix            | -    | 97.15 96.87 96.89 96.76 96.43 96.16 96.21 91.66 80.04 96.02
known | cifar10  | ProMix + FSPMU    | -    | 96.90 96.89 96.52 96.36 96.41 96.20 96.33 91.85 83.35 96.11
known | cifar10  | LongReMix         | -    | 95.59 95.34 93.37 94.14 94.33 94.33 93.99 92.68 77.58 91.71
known | cifar10  | LongReMix + FSPMU | -    | 95.96 95.80 95.27 95.67 95.47 95.49 94.39 93.54 86.93 95.14
known | cifar100 | original          | -    | 67.96 60.65 54.41 45.84 37.66 27.84 18.96 10.12  3.86 44.54
known | cifar100 | scrub-reference   | last | 71.67 68.63 65.18 61.90 58.32 52.65 42.64 28.30 12.18 53.24
known | cifar100 | scrub-reference   | best | 71.84 68.78 65.38 62.19 58.55 52.88 42.83 28.49 12.40 53.49
known | cifar100 | FSPMU             | last | 73.12 71.13 69.70 66.75 62.89 58.58 51.20 36.37 22.59 70.69
known | cifar100 | FSPMU             | best | 73.22 71.31 69.70 67.15 63.63 58.60 51.22 36.64 22.76 70.95
known | cifar100 | DivideMix         | -    | 74.45 74.89 72.72 72.64 72.18 69.88 65.86 56.34 27.11 51.07
known | cifar100 | DivideMix + FSPMU | -    | 79.10 78.10 77.92 76.90 75.01 72.68 69.38 61.21 38.74 75.00
known | cifar100 | ProMix            | -    | 80.41 79.83 79.01 78.18 76.41 73.57 60.37 43.02 20.66 74.09
known | cifar100 | ProMix + FSPMU    | -    | 81.06 80.37 79.15 78.23 76.45 73.76 61.58 43.70 30.09 77.69
known | cifar100 | LongReMix         | -    | 75.84 75.03 74.44 73.69 71.41 68.73 62.89 52.44 31.53 52.15
known | cifar100 | LongReMix + FSPMU | -    | 79.24 77.94 77.27 75.86 74.22 75.13 67.27 58.13 45.36 75.01
gmm   | cifar10  | scrub-reference   | last | 89.13 83.20 77.57 67.29 58.88 47.91 36.41 25.86 16.86 77.25
gmm   | cifar10  | scrub-reference   | best | 89.16 83.53 77.57 68.17 59.50 48.81 36.77 26.36 17.15 77.55
gmm   | cifar10  | FSPMU             | last | 92.54 91.34 89.84 87.94 83.58 75.34 62.85 46.81 33.67 77.85
gmm   | cifar10  | FSPMU             | best | 92.54 91.41 90.17 87.96 85.21 79.82 72.21 58.76 34.78 79.03
gmm   | cifar10  | DivideMix + FSPMU | -    | 95.55 95.57 94.04 94.69 94.78 94.80 94.13 92.99 62.40 92.16
gmm   | cifar10  | ProMix + FSPMU    | -    | 97.07 96.82 96.49 96.78 96.50 96.05 96.17 91.74 80.51 95.68
gmm   | cifar10  | LongReMix + FSPMU | -    | 95.86 95.45 93.87 94.81 94.61 95.14 94.56 93.06 77.60 92.29
gmm   | cifar100 | scrub-reference   | last | 67.97 60.79 54.54 45.92 37.64 28.18 18.95 10.02  4.08 44.22
gmm   | cifar100 | scrub-reference   | best | 67.97 60.79 54.52 46.22 37.92 28.42 19.27 10.27  4.21 44.66
gmm   | cifar100 | FSPMU             | last | 71.95 67.09 59.62 51.29 42.23 31.36 22.35 12.22  4.85 47.63
gmm   | cifar100 | FSPMU             | best | 72.00 67.59 61.26 52.83 43.99 34.24 23.87 12.40  4.85 48.22
gmm   | cifar100 | DivideMix + FSPMU | -    | 78.34 77.72 75.85 76.09 75.03 72.45 68.37 59.45 28.15 52.54
gmm   | cifar100 | ProMix + FSPMU    | -    | 81.69 80.09 80.51 79.22 77.85 74.62 61.58 43.70 22.05 74.81
gmm   | cifar100 | LongReMix + FSPMU | -    | 78.61 78.17 76.04 77.17 75.11 73.75 66.02 56.31 34.06 53.01
"""

PUBLISHED: dict[tuple[str, str, str, str], dict[str, float]] = {}
"""Figures by column, for each (forget set, data set, row, statistic): known or gmm, cifar10 or cifar100, a row's name, last or best."""

for _line in _FIGURES.strip().splitlines():
    _forget_set, _data, _row, _statistic, _numbers = (part.strip() for part in _line.split("|"))
    PUBLISHED[_forget_set, _data, _row, _statistic.replace("-", "last")] = dict(zip(COLUMNS, map(float, _numbers.split()), strict=True))

DOUBTED = {
    *((forget_set, "cifar100", "ProMix + FSPMU", "last", column) for forget_set in ("known", "gmm") for column in ("sym 70", "sym 80")),
    ("known", "cifar100", "LongReMix + FSPMU", "last", "sym 60"),
    ("gmm", "cifar100", "scrub-reference", "best", "sym 30"),
}
"""Cells to doubt: equal in both tables, above the cell with less noise, or a best below its last."""


def published_figure(forget_set: str, data: str, row: str, statistic: str, column: str) -> float | None:
    """Return the published percentage of a cell, or None; a row that knows no forget set has the same figure in both tables."""
    figures = PUBLISHED.get((forget_set, data, row, statistic)) or PUBLISHED.get(("known", data, row, statistic), {})
    return figures.get(column)
