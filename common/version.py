"""The version of this software, as users, bundles and measurements name it."""

__version__ = "0.1.0"
