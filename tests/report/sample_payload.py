"""Made-up data of the report page: any size, deterministic, hostile where asked."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "=cmd|' /C calc'!A0",
    "line\u2028para\u2029end",
    "🐈\u200d⬛ cat",
    "\u05db\u05dc\u05d1 \u202eevil",
    "</style><b>&amp;{{ 7 * 7 }}",
    "__proto__",
    "'; alert(3); //",
    "very " * 24 + "long",
)
PLAIN = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
REASONS = ("high loss", "neighbours disagree", "model sure of another class", "low agreement")


def sample_payload(
    suspects: int = 60,
    others: int = 20,
    points: int = 400,
    *,
    classes: tuple[str, ...] = PLAIN,
    hostile: bool = False,
    known: bool = True,
    pictures: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """Return a payload with so many suspects, further samples and map points."""
    rng = np.random.default_rng(seed)
    names = HOSTILE if hostile else classes
    k, n = len(names), suspects + others
    truth = rng.integers(0, k, n)
    given = truth.copy()
    wrong = np.where(np.arange(n) < suspects, rng.random(n) < 0.82, rng.random(n) < 0.04)
    given[wrong] = (truth[wrong] + 1 + rng.integers(0, 2, wrong.sum()) * (k > 3)) % k
    suggested = np.where(wrong | (np.arange(n) >= suspects), truth, (given + 1) % k)
    noise = np.round(np.where(np.arange(n) < suspects, np.sort(rng.beta(6, 1.4, n))[::-1], rng.beta(1, 8, n)), 4)
    noise[:suspects] = np.sort(noise[:suspects])[::-1]
    total, bins = 10 * n, 40
    edges = np.round(np.linspace(0, 1, bins + 1), 4)
    middle = (edges[1:] + edges[:-1]) / 2
    clean_part, wrong_part = 0.72 * np.exp(-0.5 * ((middle - 0.12) / 0.08) ** 2) / 0.08, 0.28 * np.exp(-0.5 * ((middle - 0.62) / 0.15) ** 2) / 0.15
    counts = np.round(total * (clean_part + wrong_part) / np.sum(clean_part + wrong_part)).astype(int)
    chance = wrong_part / (clean_part + wrong_part)
    wrongs = np.round(counts * np.clip(chance * 0.96 + 0.01, 0, 1)).astype(int)
    pairs: dict[tuple[int, int], int] = {}
    for a, b in zip(given[:suspects].tolist(), suggested[:suspects].tolist(), strict=True):
        pairs[a, b] = pairs.get((a, b), 0) + 1
    ids = [f"{HOSTILE[i % len(HOSTILE)]}-{i}" if hostile else f"train/{i:06d}" for i in range(n)]
    map_ = _map(rng, points, given, suggested, noise, wrong, k, suspects) if points else None
    in_map = min(n, points)
    before = [_top(rng, int(given[i] if rng.random() < 0.6 else suggested[i]), k) for i in range(n)]
    after = [_top(rng, int(truth[i]), k) for i in range(n)]
    evaluation, aside = {i for i in range(suspects, n) if i % 2}, {i for i in range(suspects, n) if i % 10 == 0}
    return {
        "schema": 1,
        "key": "0123456789ab",
        "run": {
            "title": names[0] if hostile else "cifar10, 20 % symmetric noise",
            "command": "fspmu repair runs/cifar10 --dataset 'my data' --seed 1",
            "facts": [
                ["Data", "cifar10 (train)"],
                ["Images", f"{total:,}"],
                ["Classes", str(k)],
                ["Model", "preact-resnet18, 11.2 M weights"],
                ["Method", "feature-preserving"],
                ["Detector", "loss mixture"],
                ["Seed", "1"],
                ["Device", "1 × H200"],
                ["Precision", "bf16"],
                ["Versions", "fspmu 0.4, torch 2.14"],
                ["Fingerprint", "9f3a51c2"],
            ],
        },
        "verdict": {
            "sentence": "Better: 91.8 % of the evaluation images are classified rightly, up from 84.2 %, in a twelfth of the time of training anew.",
            "kind": "better",
            "numbers": [
                {"label": "Suspects", "value": f"{suspects:,}", "note": f"of {total:,} images"},
                {"label": "Estimated noise", "value": "19.6 %", "note": "95 %: 18.9 to 20.4"},
                {"label": "Forgotten", "value": f"{suspects * 3 // 4:,}", "note": "labels"},
                {"label": "Accuracy", "value": "84.2 → 91.8 %", "note": "on 2,000 evaluation images, labels not checked"},
                {"label": "Time", "value": "3 min 12 s", "note": "training anew: 38 min"},
            ],
        },
        "warnings": [
            {"level": "warn", "text": "The two fitted components overlap: between 0.3 and 0.45 the detector is guessing.", "panel": "scores"},
            {"level": "info", "text": "The evaluation images carry given labels, which may be wrong too.", "panel": None},
        ],
        "classes": list(names),
        "known": known,
        "by_class": [_class_row(rng, c, given, pairs, suspects) for c in range(k)],
        "matrix": [[a, b, m] for (a, b), m in sorted(pairs.items())],
        "scores": {
            "polarity": "noise_probability, high = bad",
            "axis": "scaled loss",
            "edges": edges.tolist(),
            "counts": counts.tolist(),
            "wrong": wrongs.tolist() if known else None,
            "curves": [{"label": "clean", "weight": 0.72, "mean": 0.12, "sd": 0.08}, {"label": "wrong", "weight": 0.28, "mean": 0.62, "sd": 0.15}],
            "threshold": 0.387123,
            "noise_at": np.round(chance, 4).tolist(),
            "total": int(counts.sum()),
        },
        "items": {
            "suspects": suspects,
            "suspects_total": suspects + 17,
            "id": ids,
            "path": [(f"{names[given[i]]}/{ids[i]}.png" if hostile else f"data/{names[given[i]]}/{i:06d}.png") if i % 11 else "" for i in range(n)],
            "given": given.tolist(),
            "predicted": [row[0][0] for row in before],
            "suggested": suggested.tolist(),
            "confidence": [row[0][1] for row in before],
            "noise": noise.tolist(),
            "score": np.round(0.1 + 0.85 * noise, 4).tolist(),
            "action": ["" if i in evaluation else "retain" if i >= suspects and i not in aside else "forget" if noise[i] > 0.7 else "review" for i in range(n)],
            "true": truth.tolist() if known else None,
            "reasons": [[REASONS[j] for j in range(4) if (i + j) % 3 == 0] if i < suspects else [] for i in range(n)],
            "before": before,
            "after": after,
            "near": [[int(j) for j in rng.integers(0, n, 8)] for _ in range(n)],
            "near_same": [round(float(x), 4) if i % 7 else None for i, x in enumerate(rng.random(n))],
            "tile": _tiles(n)[1] if pictures else [None] * n,
            "map": [i if i < in_map else -1 for i in range(n)],
            "evaluation": [i in evaluation for i in range(n)],
            "aside": [i in aside for i in range(n)],
        },
        "sheets": _sheets(truth, seed) if pictures else [],
        "large": {str(i): _picture(truth[i], i, 96) for i in range(min(6, suspects))} if pictures else {},
        "map": map_,
        "flips": {
            "fixed": [i for i in sorted(evaluation) if i % 3],
            "broken": [i for i in sorted(evaluation) if i % 3 == 0][:3],
            "fixed_total": 171,
            "broken_total": 12,
            "on": "evaluation images",
        },
        "curves": [
            {
                "panel": "loss",
                "title": "Loss of the repair",
                "unit": "nats",
                "series": [
                    {"label": s, "x": list(range(1, 11)), "y": np.round(a * np.exp(-np.arange(10) / 4) + b, 4).tolist()}
                    for s, a, b in (("forget", 1.2, 0.4), ("retain", 0.5, 0.1), ("features", 0.2, 0.02))
                ],
            },
            {
                "panel": "accuracy",
                "title": "Accuracy by epoch",
                "unit": "%",
                "series": [{"label": "evaluation", "x": list(range(1, 11)), "y": np.round(91.8 - 8 * np.exp(-np.arange(10) / 2), 2).tolist()}],
            },
        ],
        "audit": [
            {"label": "Agreement with the labels to forget", "before": 0.62, "after": 0.05, "hope": "falls"},
            {"label": "Agreement with the suggested labels", "before": 0.31, "after": 0.88, "hope": "rises"},
            {"label": "Agreement with the retained labels", "before": 0.97, "after": 0.962, "hope": "stays"},
            {"label": "Membership score", "before": 0.71, "after": None, "hope": "falls"},
        ],
        "settings": [
            ["lr", "0.02", "step size of the repair"],
            ["forget_epochs", "3", "passes over the labels to forget"],
            ["penalty", "0.5", "pull towards the class centroids"],
        ],
        "glossary": [
            ["noise probability", "How likely a label is wrong; high is bad."],
            ["label score", "Quality of a label from 0 to 1; low is bad."],
            ["suspect", "A sample whose label is called into question."],
        ],
        "files": [
            ["label_issues.csv", "a row for each image", "label_issues.csv"],
            ["model.safetensors", "the repaired model", "../run%231/model.safetensors"],
            ["a b&c?.json", "the record", "a%20b%26c%3F.json"],
        ],
        "compare": [
            {"title": "this run", "numbers": [["accuracy after", "91.8 %"], ["time", "192 s"]]},
            {"title": "scrub", "numbers": [["accuracy after", "90.1 %"], ["forgotten", "44"]]},
        ],
        "reviewable": True,
        "review": None,
    }


def _top(rng: np.random.Generator, first: int, k: int) -> list[list[float]]:
    shares = np.sort(rng.dirichlet(np.full(min(5, k), 0.5)))[::-1]
    others = [c for c in rng.permutation(k).tolist() if c != first][: len(shares) - 1]
    return [[c, round(float(p), 4)] for c, p in zip([first, *others], shares, strict=True)]


def _class_row(rng: np.random.Generator, c: int, given: Any, pairs: dict[tuple[int, int], int], suspects: int) -> dict[str, Any]:
    out = sorted(([b, m] for (a, b), m in pairs.items() if a == c), key=lambda pair: -pair[1])
    into = sorted(([a, m] for (a, b), m in pairs.items() if b == c), key=lambda pair: -pair[1])
    before = round(float(rng.uniform(0.7, 0.95)), 4)
    return {
        "count": int(10 * (given == c).sum()),
        "issues": sum(m for _, m in out),
        "out": out[:3],
        "in": into[:3],
        "before": before,
        "after": round(min(1.0, before + float(rng.normal(0.05, 0.04))), 4),
    }


def _map(rng: np.random.Generator, points: int, given: Any, suggested: Any, noise: Any, wrong: Any, k: int, suspects: int) -> dict[str, Any]:
    n = len(given)

    def fill(column: Any, other: Any) -> Any:
        return np.concatenate([column, other])[:points] if points > n else column[:points]

    extra = rng.integers(0, k, max(0, points - n))
    g, s, p = fill(given, extra), fill(suggested, extra), fill(noise, rng.beta(1, 9, len(extra)))
    angle = 2 * np.pi * np.arange(k) / k
    centres = np.stack([np.cos(angle), np.sin(angle)], 1)
    before = centres[g] * 0.55 + 0.25 * centres[s] + rng.normal(0, 0.16, (points, 2))
    after = centres[s] * 0.85 + rng.normal(0, 0.1, (points, 2))

    def pack(array: Any, kind: str) -> str:
        return base64.b64encode(np.ascontiguousarray(array).astype(kind).tobytes()).decode()

    def place(xy: Any) -> str:
        return pack(np.clip((xy + 1.35) / 2.7 * 65535, 0, 65535), "<u2")

    issue = np.arange(points) < suspects
    forget = issue & (p > 0.7)
    unjudged = ~issue & (np.arange(points) % 20 == 0)
    flags = issue * 1 + forget * 2 + (~issue & ~unjudged) * 4 + fill(wrong, rng.random(len(extra)) < 0.03) * 8 + unjudged * 16
    item = np.where(np.arange(points) < n, np.arange(points), -1)
    return {
        "n": points,
        "method": f"{points:,} of {10 * n:,} images, placed by the first two principal components of their features, both models on the same axes.",
        "before": place(before),
        "after": place(after),
        "item": pack(item, "<i4"),
        "given": pack(g, "<u2"),
        "suggested": pack(s, "<u2"),
        "flags": pack(flags, "u1"),
        "noise": pack(p * 255, "u1"),
    }


def _tiles(n: int, columns: int = 45, tile: int = 32) -> tuple[int, list[list[int]]]:
    per = columns * columns
    return per, [[i // per, tile * (i % per % columns), tile * (i % per // columns)] for i in range(n)]


def _drawn(label: int, number: int, side: int) -> Any:
    y, x = np.mgrid[0:side, 0:side] / side
    rng = np.random.default_rng(number)
    cx, cy, r = rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7), rng.uniform(0.18, 0.34)
    shape = (np.abs(x - cx) ** (1 + label % 3) + np.abs(y - cy) ** (1 + label % 3)) < r ** (1 + label % 3)
    hue = np.array([np.sin(label * 1.1), np.sin(label * 1.1 + 2.1), np.sin(label * 1.1 + 4.2)]) * 90 + 130
    sky = np.stack([120 + 90 * y, 140 + 60 * y, 190 - 70 * y], -1) * rng.uniform(0.6, 1.1)
    return np.clip(np.where(shape[..., None], hue * (0.7 + 0.5 * (1 - y[..., None])), sky) + rng.normal(0, 7, (side, side, 3)), 0, 255).astype(np.uint8)


def _encoded(pixels: Any) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", quality=70)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _picture(label: int, number: int, side: int) -> str:
    return _encoded(_drawn(int(label), number, side))


def _sheets(truth: Any, seed: int, columns: int = 45, tile: int = 32) -> list[dict[str, Any]]:
    per, _ = _tiles(0)
    sheets = []
    for start in range(0, len(truth), per):
        rows = -(-min(per, len(truth) - start) // columns)
        sheet = np.zeros((rows * tile, columns * tile, 3), np.uint8)
        for at, label in enumerate(truth[start : start + per]):
            sheet[at // columns * tile :][:tile, at % columns * tile :][:, :tile] = _drawn(int(label), start + at, tile)
        sheets.append({"src": _encoded(sheet), "width": columns * tile, "height": rows * tile, "tile": tile, "columns": columns})
    return sheets
