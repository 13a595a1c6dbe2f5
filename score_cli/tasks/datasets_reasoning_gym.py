"""reasoning-gym's procedural data sets: problems made on the spot, and the entry that its own scoring goes by.

Its item number i of seed s is made from s + i, so that neighbouring seeds share nearly all problems. Here each split
has a range of seeds of its own, and takes only questions whose hash is the split's: train and test never share a
question, whatever their sizes, seeds and configurations.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import io
import json
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from score_cli.errors import UserError, guess
from score_cli.progress import SILENT, Progress
from score_cli.tables.problems import question_key
from score_cli.tables.records import Problem
from score_cli.tasks.readers import Loaded

TASK = "reasoning-gym"
# The first hexadecimal digit of a question's hash says which split may have it: a quarter of all are test questions.
_DIGITS = {"test": "0123", "validation": "45", "train": "6789abcdef"}
_SEEDS = {"train": (0, 2**30), "validation": (2**30, 3 * 2**29), "test": (3 * 2**29, 2**31)}
# Data sets are made in pieces of their own usual size: a few refuse to be larger.
_PIECE = 500
# A split that has given no new question in so many tries has no more of them.
_FRUITLESS = 2000


def package() -> ModuleType:
    """The package.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module("reasoning_gym")
    except ImportError as error:
        raise UserError(
            f"its problems need the package reasoning-gym ({error}): pip install 'score-cli[reasoning-gym]'"
        ) from None


def version() -> str:
    """The package's version, on which its problems depend."""
    return str(package().__version__)


def make(name: str, config: Mapping[str, Any], *, seed: int, size: int) -> Any:
    """One of the package's data sets.

    Raises:
        UserError: there is no such data set, or it does not take the configuration.
    """
    sets = package().factory.DATASETS
    if name not in sets:
        raise UserError(f"reasoning-gym has no data set {name}: {guess(name, sets)}it has {', '.join(sorted(sets))}")
    known = {field.name for field in dataclasses.fields(sets[name][1])} - {"seed", "size"}
    unknown = sorted(set(config) - known)
    if unknown:
        raise UserError(f"{name} has no setting {unknown[0]}: it has {', '.join(sorted(known)) or 'none'}")
    try:
        return package().create_dataset(name, seed=seed, size=size, **config)
    except (AssertionError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{name} does not take this configuration ({' '.join(str(error).split())}): change it"
        ) from None


def read_config(text: str | None) -> dict[str, Any]:
    """A data set's configuration from JSON.

    Raises:
        UserError: it is no JSON object.
    """
    try:
        config = json.loads(text or "{}")
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise UserError(f"the data set's configuration is {text}, expected JSON such as '{{\"min_terms\": 2}}'")
    return config


def make_problems(
    name: str, *, split: str, size: int, seed: int = 0, config: Mapping[str, Any] = {}, progress: Progress = SILENT
) -> list[Loaded]:
    """Different problems of one data set, each with its own answer as a response; the same for the same arguments.

    Raises:
        UserError: there is no such data set, configuration or split, or it has too few different questions.
    """
    if split not in _DIGITS:
        raise UserError(f"reasoning-gym has no split {split}: expected train, validation, test")
    loaded: list[Loaded] = []
    seen: set[str] = set()
    fruitless = 0
    with progress.phase(f"making {name}", size) as bar:
        for number, entry in _entries(name, config, _first_seed(name, split, seed)):
            key = question_key(entry["question"]) if entry else ""
            if not entry or key in seen or hashlib.sha256(key.encode()).hexdigest()[0] not in _DIGITS[split]:
                fruitless += 1
                if fruitless == _FRUITLESS:
                    raise UserError(
                        f"{name} has only {len(loaded)} different questions for split {split} in this configuration: "
                        "lower --size, or make it wider with --dataset-config"
                    )
                continue
            fruitless = 0
            seen.add(key)
            loaded.append(_problem(name, split, number, entry, config))
            bar.advance(1)
            if len(loaded) == size:
                break
    return loaded


def _first_seed(name: str, split: str, seed: int) -> int:
    """Where in the split's range of seeds its items begin."""
    low, high = _SEEDS[split]
    digest = hashlib.sha256(f"{name} {seed}".encode()).digest()
    return low + int.from_bytes(digest[:8], "big") % (high - low)


def _entries(name: str, config: Mapping[str, Any], first: int) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Items without end, each with the seed that it is made from; None where the package found none for a seed."""
    while True:
        piece = make(name, config, seed=first, size=_PIECE)
        for place in range(_PIECE):
            entry = None
            # A few print what they are about, and a few give up.
            with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(RuntimeError, ValueError):
                entry = piece[place]
            yield first + place, entry
        first += _PIECE


def _problem(name: str, split: str, number: int, entry: dict[str, Any], config: Mapping[str, Any]) -> Loaded:
    answer = entry["answer"]
    problem = Problem(
        problem_id=f"{name}/{split}/{number}",
        task=TASK,
        question=entry["question"],
        answer=answer,
        subject=name,
        source=f"reasoning-gym {name} {number}",
        # As the table gives it back: JSON, in which tuples are lists and fractions text.
        extra={"entry": json.loads(json.dumps(entry, default=str)), "config": dict(config)},
    )
    return Loaded(problem, None if answer is None else f"<answer>{answer}</answer>")
