"""Stubs generated from protos/splitpoint/v1 by `make protos`. Never edited by hand."""
