"""Compiled programs kept on disk, for those who own the process.  (Chapter 10)"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import jax


def keep_compiled_programs() -> None:
    """From here on JAX keeps what it compiles: the first process on a machine waits for the
    compiler, the next ones do not.

    Changes JAX's configuration, so a program calls it and a library does not.  The folder is
    `refinemath` in the user's cache, one for each machine.  Nothing changes where a place was
    chosen already (`JAX_COMPILATION_CACHE_DIR`), the cache is switched off
    (`JAX_ENABLE_COMPILATION_CACHE=0`), or the folder cannot be written.
    """
    config: Any = jax.config
    if config.jax_compilation_cache_dir or not config.jax_enable_compilation_cache:
        return
    try:
        base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
        folder = Path(base or Path.home() / ".cache") / "refinemath"
        folder /= f"{platform.node()}-{platform.machine()}"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # there may be no home folder
        return
    config.update("jax_compilation_cache_dir", str(folder))
