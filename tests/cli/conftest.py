"""The commands are tested as on most machines: Python writes bytecode."""

import sys

import pytest


@pytest.fixture(autouse=True)
def bytecode_is_written(monkeypatch):
    """So a test sees whether a command leaves __pycache__ beside a user's file."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
