"""Measure whether a second run finds the same ratios of latency: python -m bench.comparison [--arch A --name RUN].

Needs the files that run.py makes with the same options. Each run starts all processes anew, as compare_models does.
"""

from bench.options import parse_options
from utils.compare_models.latency import PHOTO, latency_ratio, measure_latency
from utils.compare_models.models import model_paths
from utils.split import load_index

RUNS = 2


def main() -> None:
    """Print, for each run, the ratio with its interval: of one image, of a batch of 16, and from photo to answer."""
    arch, run, data = parse_options(__doc__)
    paths = model_paths(run, arch, {})
    photos = [data / path for path in load_index(run / "split.csv", data)["path"][:8]]
    print(f"{'INT8 / fp32':12}{'one image':>26}{'16 images':>26}{'photo to answer':>26}")
    for number in range(RUNS):
        timing = measure_latency(paths, photos, (1, 16), rounds=32)
        ratios = [latency_ratio(timing.calls, "onnx", "int8", task) for task in (1, 16, PHOTO)]
        columns = "".join(f"{ratio:10.3f} ({low:.3f}, {high:.3f})" for ratio, low, high in ratios)
        print(f"run {number + 1:<8}{columns}", flush=True)


if __name__ == "__main__":
    main()
