"""`score doctor`: what is installed, and what would run where."""

import importlib.metadata
import json
import os
import platform
import shutil

from score_cli import __version__

_PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "pyarrow",
    "polars",
    "numpy",
    "typer",
    "rich",
    "python-flint",
    "sympy",
)
# What only some need, and the extra that brings it.
_OPTIONAL = {"vllm": "vllm", "bitsandbytes": "adam8bit", "datasets": "hub", "jinja2": "report", "matplotlib": "report"}
_ABSENT = "not installed"


def as_text() -> str:
    """Lines of `name value`, and how to get what is missing."""
    return "\n".join(f"{name:<16}{value}" for name, value in report())


def as_json() -> str:
    """The same as one JSON object."""
    return json.dumps(dict(report()), indent=2)


def report() -> list[tuple[str, str]]:
    """What is here, by name."""
    import torch

    from score_cli.config import SampleConfig
    from score_cli.sampling.engine import engine_name

    cuda = torch.cuda.is_available()
    return [
        ("score", __version__),
        ("python", platform.python_version()),
        *((package, _version(package)) for package in _PACKAGES),
        *((package, _optional(package, why)) for package, why in _OPTIONAL.items()),
        ("cpu cores", str(os.cpu_count())),
        ("memory", f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"),
        ("gpu", _gpus() if cuda else _no_gpu(torch.version.cuda)),
        ("free disk here", f"{shutil.disk_usage('.').free / 2**30:.0f} GiB"),
        ("engine auto", engine_name(SampleConfig())),
        ("programs", _sandbox()),
        ("arithmetic", "bfloat16 over float32 weights" if cuda else "float32"),
    ]


def _gpus() -> str:
    import torch

    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return ", ".join(f"{each.name} with {each.total_memory / 2**30:.0f} GiB" for each in found)


def _no_gpu(built_for: str | None) -> str:
    if built_for is None:
        return "none that torch could use: it is built for the CPU; `pip install torch` with CUDA, from pytorch.org"
    return f"none found, though torch is built for CUDA {built_for}: see that `nvidia-smi` lists one"


def _sandbox() -> str:
    """The isolation that programs would run in."""
    from score_cli.errors import UserError
    from score_cli.verification.programs.grader import ProgramGrader

    try:
        grader = ProgramGrader()
    except UserError as error:
        return f"refused: {error}"
    grader.close()
    return grader.level


def _optional(package: str, extra: str) -> str:
    found = _version(package)
    return f"{found}: pip install 'score-cli[{extra}]'" if found == _ABSENT else found


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return _ABSENT
