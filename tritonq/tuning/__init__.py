"""Floor 6. Which config is fastest: candidates pruned and ordered without a GPU, timed on one, recorded in ``autotune_configs``.

docs/tuning.md says how. ``problems`` lists what to tune, ``Planner`` gives each its candidates, ``tune`` times and records them with an
engine: ``GpuEngine``, or ``ModelEngine``, which predicts.
"""
from .candidates import Candidate, Planner, short
from .compiling import Compiler
from .engine import GpuEngine, ModelEngine, Outcome
from .problems import Problem, default_kernels, problems
from .store import Store
from .tune import Summary, tune

__all__ = [
    "Candidate", "Compiler", "GpuEngine", "ModelEngine", "Outcome", "Planner", "Problem", "Store", "Summary", "default_kernels", "problems",
    "short", "tune",
]  # fmt: skip
