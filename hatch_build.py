"""Compile the feature kernel while the wheel is built, with the C compiler that the `ziglang` wheel carries."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

TARGETS = {
    ("Linux", "x86_64"): ("x86_64-linux-gnu.2.17", "manylinux_2_17_x86_64"),
    ("Linux", "aarch64"): ("aarch64-linux-gnu.2.17", "manylinux_2_17_aarch64"),
    ("Darwin", "arm64"): ("aarch64-macos.11.0", "macosx_11_0_arm64"),
    ("Darwin", "x86_64"): ("x86_64-macos.11.0", "macosx_11_0_x86_64"),
}


class KernelBuild(BuildHookInterface[Any]):
    """Build `features/kernel.c` into one shared library that serves every Python of the platform."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile for a baseline CPU (an explicit target) and without contraction: the same bits on every host."""
        host = (platform.system(), platform.machine())
        if host not in TARGETS:
            raise SystemExit(f"headrace has no kernel target for {host}; add one to TARGETS in hatch_build.py")
        target, tag = TARGETS[host]
        folder = Path(self.root) / "src" / "headrace" / "features"
        command = [sys.executable, "-m", "ziglang", "cc", "-target", target, "-O2", "-ffp-contract=off"]
        command += ["-std=c11", "-Wall", "-Werror", "-shared", "-fPIC", "-s"]
        command += ["-o", str(folder / "_kernel.so"), str(folder / "kernel.c"), "-lm"]
        subprocess.run(command, check=True)
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{tag}"
