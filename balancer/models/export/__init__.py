"""Export of classifiers to file formats that run without this package: ONNX and ExecuTorch."""
