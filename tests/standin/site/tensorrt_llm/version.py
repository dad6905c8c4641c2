"""Upstream keeps its version in a module of this name too."""

import os

STANDIN = True
__version__ = os.environ.get("TRTFORGE_STANDIN_VERSION", "1.2.1")
