"""Predictions: what every candidate would cost on given devices and a given link."""
