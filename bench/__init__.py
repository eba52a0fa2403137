"""Benchmarks: `python -m bench.NAME`."""

import utils  # noqa: F401  (before any of them imports onnxruntime, which would report to Microsoft)
