"""The toolbox's version: in the package's metadata, on every page and in every score file."""

__version__ = "0.2.0"
