"""What a CPU gains by keeping freed memory for the next batch (`engine/device.py`): the same work by processes that do and that do not, in turn.

    python benchmarks/freed_memory.py --rounds 3 --width 16

Prints, for an epoch of training and for a pass without training over made-up images, the ratio of processor seconds, returning to keeping; and the peak memory.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace

WORK = ("training", "passes without training")


def work(width: int, samples: int) -> dict[str, float]:
    """Return the processor's seconds of each kind of work in this process, and its peak memory in MiB."""
    import torch

    from discriminants import peak_bytes
    from fspmu.data.images import Images
    from fspmu.engine.inference import predict
    from fspmu.engine.run import Run
    from fspmu.models import preactresnet18
    from fspmu.pretraining import METHODS

    torch.set_num_threads(1)
    run = Run.create(device="cpu", precision="fp32", progress=False)
    draw = torch.Generator().manual_seed(0)
    pixels, labels = torch.randint(0, 256, (samples, 3, 32, 32), generator=draw).to(torch.uint8), torch.arange(samples) % 10
    images = Images(pixels, labels, tuple("abcdefghij"), [str(row) for row in range(samples)])
    method = METHODS["ce"]
    started = time.process_time()
    trained = method.pretrain(images, lambda _: preactresnet18(10, width=width), replace(method.settings, epochs=1), run)
    between = time.process_time()
    for _ in range(3):
        predict(trained.models[0], images, run)
    return dict(zip((*WORK, "peak"), (between - started, time.process_time() - between, peak_bytes() / 2**20), strict=True))


def main() -> None:
    """Run the processes in turn, and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often both are run")
    parser.add_argument("--width", type=int, default=16, help="channels of the first block of PreActResNet18")
    parser.add_argument("--samples", type=int, default=2560, help="images")
    parser.add_argument("--one", action="store_true", help="be one of the processes")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(work(options.width, options.samples)))
        return
    command = [sys.executable, __file__, "--one", "--width", str(options.width), "--samples", str(options.samples)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    roles = {"returning": {"MALLOC_PERTURB_": "0"}, "keeping": {}}  # a user's own setting, here that of glibc itself, is left to rule
    rounds: list[dict[str, dict[str, float]]] = []
    for _ in range(options.rounds):
        runs = {role: subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=clean | own) for role, own in roles.items()}
        rounds.append({role: json.loads(done.stdout) for role, done in runs.items()})
    for name in WORK:
        ratios = [each["returning"][name] / each["keeping"][name] for each in rounds]
        print(f"{name}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    for role in roles:
        print(f"peak memory, {role}: {statistics.median(each[role]['peak'] for each in rounds):,.0f} MiB")


if __name__ == "__main__":
    main()
