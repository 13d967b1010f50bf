"""What cleanlab and our own detector find on the digits of docs/coming_from_cleanlab.md, and what a repair is worth by each; runs the code of that page.

    python benchmarks/beside_cleanlab.py

Prints one line of JSON: shares in percent, accuracy by the true labels of all 1,797 images.
"""

import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

PAGE = Path(__file__).resolve().parents[1] / "docs" / "coming_from_cleanlab.md"


def main() -> None:
    """Run the page, print what came out."""
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        print(json.dumps(measured()))


def measured() -> dict[str, Any]:
    """Return what the page's code comes to."""
    there: dict[str, Any] = {}
    train, by_list, by_itself = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    for code in (train, by_list):
        exec(code, there)  # the page is our own
    figures = {"wrong": int(there["wrong"].sum()), "before": _right(there["model"], there)}
    figures["cleanlab"] = _told(there["found"]["is_label_issue"].to_numpy(), there["result"].model, there)
    exec(by_itself, there)
    figures["fspmu"] = _told(there["issues"]["is_label_issue"].to_numpy(), there["repaired"].model, there)
    figures["learner"] = round(100 * float((there["learner"].predict(there["features"]) == there["truth"]).mean()), 1)
    return figures


def _told(flagged: Any, repaired: Any, there: dict[str, Any]) -> dict[str, float]:
    hits = int(np.sum(flagged & there["wrong"]))
    recall, precision = 100 * hits / int(there["wrong"].sum()), 100 * hits / max(1, int(flagged.sum()))
    return {"issues": int(flagged.sum()), "recall": round(recall, 1), "precision": round(precision, 1), "after": _right(repaired, there)}


@torch.no_grad()
def _right(model: Any, there: dict[str, Any]) -> float:
    return round(100 * float((model.eval()(there["pixels"].float()).argmax(dim=1).numpy() == there["truth"]).mean()), 1)


if __name__ == "__main__":
    main()
