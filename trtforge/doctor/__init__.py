"""What this machine can build with, what is missing, and how to get it.

`examine` asks the machine, its GPUs, its container runtime, the toolchains of both backends, the
object storage and the Prefect server. It installs and pulls nothing, never waits for longer than
its patience, and tells no secrets.
"""

from trtforge.doctor.examine import examine
from trtforge.doctor.findings import Finding, Report

__all__ = ["Finding", "Report", "examine"]
