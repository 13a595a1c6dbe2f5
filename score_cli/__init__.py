"""Teach a language model to correct itself: SCoRe as staged batch jobs over Parquet files, or as a library.

    from score_cli import Grader, Loop, Sampler, Trainer, load_policy, read_problems, run_updates

Names are imported when they are first asked for, so that the command line's help needs no torch.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Problem": "tables.records",
    "Trace": "tables.records",
    "Verdict": "tables.records",
    "SampleConfig": "config",
    "VerifyConfig": "config",
    "Stage1Config": "config",
    "Stage2Config": "config",
    "Policy": "tables.checkpoints",
    "load_policy": "tables.checkpoints",
    "read_problems": "tables.problems",
    "read_graded": "tables.traces",
    "Sampler": "sampling.sampler",
    "Grader": "verification.grader",
    "Trainer": "training.trainer",
    "Loop": "loop",
    "run_updates": "loop",
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
