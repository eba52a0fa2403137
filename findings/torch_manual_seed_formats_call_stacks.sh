#!/usr/bin/env bash
# torch 2.14.1, Linux x86-64, Python 3.11, no GPU.
#
# torch.manual_seed(n) passes the seed on to accelerators. Where one has not been used yet, torch keeps the seed for later,
# and with it the text of the present call stack (traceback.format_stack), so that an error may one day name the line. It
# does so whether or not the machine has such a device. A seed for every image, as for augmentation that is to be the same
# in every fold, thus costs 0.2 ms from a short script and 1 ms below 60 calls, as in a notebook, where drawing the numbers
# costs some microseconds. torch.default_generator.manual_seed(n), which seeds the CPU alone, formats nothing, takes less
# than 5 microseconds at any depth, and gives the same numbers on the CPU. The script counts the formatted stacks by the
# profiler, draws after both, and prints times, on which nothing depends.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6
cat > "$folder/look.py" <<'PYTHON'
import cProfile
import pstats
import time

import torch


def stacks(call) -> int:
    """Count how many call stacks a call formats."""
    with cProfile.Profile() as profile:
        call()
    found = pstats.Stats(profile).stats
    return sum(counts[0] for (_, _, name), counts in found.items() if name == "format_stack")


def below(depth: int, call):
    return call() if depth == 0 else below(depth - 1, call)


def microseconds(call, times: int = 200) -> float:
    begin = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - begin) / times * 1e6


ways = {"torch.manual_seed": torch.manual_seed, "torch.default_generator.manual_seed": torch.default_generator.manual_seed}
numbers, formatted = {}, {}
for name, seed in ways.items():
    formatted[name] = stacks(lambda: seed(7))
    seed(7)
    numbers[name] = torch.rand(1000)
    times = [below(depth, lambda: microseconds(lambda: seed(7))) for depth in (0, 60)]
    print(f"{name}: {formatted[name]} stacks, {times[0]:.0f} and, below 60 calls, {times[1]:.0f} microseconds")
assert not torch.cuda.is_initialized()
assert formatted["torch.manual_seed"] >= 1, "it formats no stack any more"
assert formatted["torch.default_generator.manual_seed"] == 0
assert torch.equal(*numbers.values()), "they draw different numbers"
print("as described")
PYTHON
"$folder/venv/bin/python" "$folder/look.py"
