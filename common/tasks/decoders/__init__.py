"""Decoders of detectors: from the outputs of a family of networks to boxes, one file per family."""
