"""The allocator keeps what activations leave: measured in page faults, in a process of its own."""

import platform
import subprocess
import sys

import pytest

FILL_AGAIN_AND_AGAIN = """
import resource, sys, torch
from normscope.runtime.allocator import keep_large_blocks
kept = keep_large_blocks() if sys.argv[1] == "keep" else False
def fill():
    torch.full((2**24,), 1.0)  # 64 MiB, 16,384 pages: always a mapping of its own by default
for _ in range(30):
    fill()  # until small blocks among the large ones have found their places
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    fill()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> tuple[bool, int]:
    done = subprocess.run([sys.executable, "-c", FILL_AGAIN_AND_AGAIN, how], capture_output=True, text=True, check=True)
    kept, number = done.stdout.split()
    return kept == "True", int(number)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_blocks_are_kept_where_the_library_can_be_told() -> None:
    kept, few = faults("keep")
    _, many = faults("leave")
    assert kept
    assert few < many / 2
