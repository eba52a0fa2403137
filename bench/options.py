"""The options that benchmarks of a run share."""

import argparse
from pathlib import Path
from typing import NamedTuple

from utils.config import project_path, run_folder


class Options(NamedTuple):
    """Which run is measured: its network, its folder in checkpoints/, its images."""

    arch: str
    run: Path
    data: Path


def parse_options(documentation: str) -> Options:
    """Read --arch, --name and --data; without them, it is the run on the embedded images."""
    parser = argparse.ArgumentParser(description=documentation.splitlines()[0])
    parser.add_argument("--arch", default="conv_net")
    parser.add_argument("--name", default="")
    parser.add_argument("--data", default="data/train")
    given = parser.parse_args()
    return Options(given.arch, run_folder(given.name), project_path(given.data))
