"""Fixtures for data sets: no test in this folder reaches the network."""

from tfds_builders import no_download, offline, prepared  # noqa: F401
