import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from fspmu.engine.device import tune
tune(torch.device("cpu"))
for step in range(30):
    if step == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    large, last = torch.ones(6_000_000), torch.ones(6_000_000)  # 24 MB each
    del large, last
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_a_cpu_keeps_freed_memory_unless_a_user_says_otherwise():
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    faults = [
        int(subprocess.run([sys.executable, "-c", FAULTS], env=clean | own, check=True, capture_output=True, text=True).stdout)
        for own in ({}, {"MALLOC_TRIM_THRESHOLD_": "0"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=0"})
    ]
    pages = 20 * 2 * 24e6 / os.sysconf("SC_PAGESIZE")
    assert faults[0] < pages / 10 and min(faults[1:]) > pages / 4, faults
