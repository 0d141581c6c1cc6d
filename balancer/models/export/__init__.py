"""File formats that run without this package: ONNX and ExecuTorch."""
