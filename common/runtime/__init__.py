"""Runtimes: what runs an ONNX model."""
