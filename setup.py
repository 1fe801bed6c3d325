"""The entry that older tools expect; everything stands in pyproject.toml."""

from setuptools import setup

setup()
