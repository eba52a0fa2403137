"""What the four notebooks share; ``from utils.datasets import ImageDataset`` shows where a thing lives."""

import os
import sys

# nothing reports to Microsoft, Hugging Face or Intel; each is asked for it before it is imported
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
sys.modules.setdefault("openvino_telemetry", None)  # OpenVINO, which has no such setting, goes without
