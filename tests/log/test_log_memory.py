from pathlib import Path

from headwater.log.memory import MemoryLog
from headwater.testing.log_contract import LogContract


class TestMemoryLog(LogContract):
    def make_log(self, _: Path) -> MemoryLog:
        return MemoryLog()
