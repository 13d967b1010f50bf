"""Step 2 as published: make the network of step 1 forget its wrong labels. Flags: python unlearning.py --help."""

import sys

try:
    from fspmu.experiments.published_doors import unlearn
except ModuleNotFoundError as missing:
    if missing.name != "fspmu":
        raise
    sys.exit("fspmu is not installed in this Python: run `make demo` once at the top of the clone, then `source ../.venv/bin/activate` here")

if __name__ == "__main__":
    unlearn()
