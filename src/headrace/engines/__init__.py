"""Run functions over buckets of Arrow tables where the work belongs: here, in processes, on Ray, on Spark."""

from __future__ import annotations

from headrace.engines.find import check_engine, open_engine
from headrace.engines.protocol import Buckets, Capabilities, Engine, Function, Progress, Tables

__all__ = ["Buckets", "Capabilities", "Engine", "Function", "Progress", "Tables", "check_engine", "open_engine"]
