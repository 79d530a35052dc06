"""Networks for other programs (ONNX, StableHLO), and weights that other programs have trained."""
