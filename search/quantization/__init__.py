"""Post-training quantization: how a trained network's layers are rounded to a few bits."""
