"""`score doctor`: what is installed, and what would run where."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil

from score_cli import __version__

_PACKAGES = ("torch", "transformers", "tokenizers", "pyarrow", "polars", "numpy", "typer", "rich", "vllm")


def report() -> str:
    """Lines of `name value`."""
    import torch

    cuda = torch.cuda.is_available()
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] if cuda else []
    vllm = importlib.util.find_spec("vllm") is not None
    lines = [
        ("score", __version__),
        ("python", platform.python_version()),
        *((package, _version(package)) for package in _PACKAGES),
        ("cpu cores", str(os.cpu_count())),
        ("cuda", ", ".join(devices) if devices else "none"),
        ("free disk here", f"{shutil.disk_usage('.').free / 2**30:.0f} GiB"),
        ("engine auto", "vllm" if vllm and cuda else "transformers"),
        ("arithmetic", "bfloat16 over float32 weights" if cuda else "float32"),
    ]
    return "\n".join(f"{name:<16}{value}" for name, value in lines)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
