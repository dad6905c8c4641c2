"""Backends. Nothing is imported here: drivers run in interpreters that have only a toolchain."""
