"""Step 1 as published: train a network on noisy labels until it has memorised them. Flags: python main.py --help."""

import sys

try:
    from fspmu.experiments.published_doors import train
except ModuleNotFoundError as missing:
    if missing.name != "fspmu":
        raise
    sys.exit("fspmu is not installed in this Python: run `make demo` once at the top of the clone, then `source ../.venv/bin/activate` here")

if __name__ == "__main__":
    train()
