"""Experiments: one small script for each question.  Commands and records: results/README.md."""

import os
import sys

if "--quick" in sys.argv:  # compiling costs more than running there
    os.environ.setdefault(
        "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    )
