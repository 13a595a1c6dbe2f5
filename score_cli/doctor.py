"""`score doctor`: what is installed, and what would run where."""

import importlib.metadata
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
    "vllm",
    "typer",
    "rich",
    "python-flint",
    "sympy",
)


def report() -> str:
    """Lines of `name value`."""
    import torch

    from score_cli.config import SampleConfig
    from score_cli.sampling.engine import engine_name

    cuda = torch.cuda.is_available()
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] if cuda else []
    lines = [
        ("score", __version__),
        ("python", platform.python_version()),
        *((package, _version(package)) for package in _PACKAGES),
        ("cpu cores", str(os.cpu_count())),
        ("cuda", ", ".join(devices) if devices else "none"),
        ("free disk here", f"{shutil.disk_usage('.').free / 2**30:.0f} GiB"),
        ("engine auto", engine_name(SampleConfig())),
        ("programs", _sandbox()),
        ("arithmetic", "bfloat16 over float32 weights" if cuda else "float32"),
    ]
    return "\n".join(f"{name:<16}{value}" for name, value in lines)


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


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
