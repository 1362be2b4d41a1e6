"""Operators: one entry for each, in floating point, in integers and as ONNX."""
