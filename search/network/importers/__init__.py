"""Importers: from a torch module or an ONNX file to the graph."""
