"""The command by itself, which writes down what part of its work it is at: for runs of several processes.

    python benchmarks/told.py PLACES LOG UPDATES-OF-STAGE-1 run pipelines/quickstart.toml ...

Of the processes that torchrun starts the first tells.
"""

import os
import sys
from pathlib import Path

from kill_moments import tell

from score_cli import cli

if __name__ == "__main__":
    places, log, stage1, *arguments = sys.argv[1:]
    if os.environ.get("RANK", "0") == "0":
        tell(os.open(places, os.O_WRONLY | os.O_APPEND | os.O_CREAT), Path(log), int(stage1))
    sys.argv[1:] = arguments
    cli.main()
