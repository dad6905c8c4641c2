"""Lines as upstream's logger prints them."""

import time


class _Logger:
    _LEVELS = ("error", "warning", "info")

    def __init__(self):
        self.level = "info"

    def _print(self, level, text):
        if self._LEVELS.index(level) <= self._LEVELS.index(self.level):
            now = time.strftime("%m/%d/%Y-%H:%M:%S")
            print(f"[{now}] [TRT-LLM] [{level[0].upper()}] {text}", flush=True)

    def info(self, text):
        self._print("info", text)

    def warning(self, text):
        self._print("warning", text)

    def error(self, text):
        self._print("error", text)

    def set_level(self, level):
        # The levels beyond these only add lines that nobody reads.
        self.level = {"internal_error": "error"}.get(level, level)
        if self.level not in self._LEVELS:
            self.level = "info"


logger = _Logger()
