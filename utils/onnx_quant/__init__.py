"""What onnx_quant.ipynb needs."""
