"""The tables that conversations are built from: `score sample --script critique`, `--script revise`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from score_cli.config import SampleConfig
from score_cli.errors import UserError
from score_cli.sampling.given import (
    CRITIQUE_PART,
    PARTS,
    REVISE_PART,
    Given,
    Part,
    starts_of_critiques,
    starts_of_revisions,
    still_judged,
)
from score_cli.tables.checkpoints import Policy, renderer_digest
from score_cli.tables.parquet import TRACES, read_footer
from score_cli.tables.provenance import CRITIQUES, SOLVES, Footer, file_sha256
from score_cli.tables.records import CRITIQUE, Problem, Trace
from score_cli.tables.traces import read_traces
from score_cli.tasks.script import Script

SOLVE_PART = "solve"
# Keys of a footer's `config`: which pass, and which round.
PASS, ROUND = "pass", "round"


class Sources(NamedTuple):
    """Which pass is to be sampled, and from which tables.

    Attributes:
        critiques: what revisions answer; before a critique, those of the round before, which end some dialogues.
    """

    part: Part
    solves: Path
    critiques: Path | None = None


def choose_pass(
    config: SampleConfig, part: str | None, solves: Path | None, critiques: Path | None
) -> tuple[SampleConfig, Sources | None]:
    """The settings and the tables of one pass of a script that begins with a critique.

    Args:
        part: `solve`, `critique` or `revise`; None for every other way to sample.
    Raises:
        UserError: the pass lacks a table, or has one that it cannot use.
    """
    if part not in (None, SOLVE_PART, *PARTS):
        raise UserError(f"--script is {part}, expected one of {', '.join((SOLVE_PART, *PARTS))}")
    needs_solves = config.script is not None and config.script.needs_solves
    if part is not None and not needs_solves:
        raise UserError(
            f"--script {part} is a pass of a [script] that begins with critique: name the recipe that has it with "
            "--config"
        )
    if part in (None, SOLVE_PART):
        if solves is not None or critiques is not None:
            raise UserError("--from and --critiques are for --script critique and --script revise: leave them out")
        return (config if part is None else replace(config, script=None, attempts=1)), None
    if solves is None:
        raise UserError(f"--script {part} is built from solves, and none are given: name their traces with --from")
    if part == REVISE_PART and critiques is None:
        raise UserError("--script revise answers critiques, and none are given: name them with --critiques")
    return config, Sources(CRITIQUE_PART if part == CRITIQUE_PART else REVISE_PART, solves, critiques)


def read_given(
    sources: Sources, script: Script | None, problems: Sequence[Problem], policy: Policy
) -> tuple[Given, int | None]:
    """The conversations of a pass, and the iteration of the critiques that revisions answer.

    Raises:
        UserError: the tables do not belong together, or are not what the pass is built from.
    """
    assert script is not None
    known = {problem.problem_id: problem for problem in problems}
    solves, origin = _read_solves(sources.solves), read_footer(sources.solves, TRACES)
    inputs = {SOLVES: file_sha256(sources.solves)}
    if sources.critiques is None:
        return Given(CRITIQUE_PART, script, starts_of_critiques(known, solves), _round(origin) + 1, inputs), None
    critiques, judged = read_traces(sources.critiques), read_footer(sources.critiques, TRACES)
    if any(trace.turn_roles != [CRITIQUE] for trace in critiques):
        raise UserError(f"{sources.critiques} holds other turns than critiques: name traces of --script critique")
    inputs[CRITIQUES] = file_sha256(sources.critiques)
    if sources.part == CRITIQUE_PART:
        _check_made_from(sources.solves, origin, CRITIQUES, sources.critiques)
        solves = still_judged(script, solves, critiques)
        return Given(CRITIQUE_PART, script, starts_of_critiques(known, solves), _round(origin) + 1, inputs), None
    _check_made_from(sources.critiques, judged, SOLVES, sources.solves)
    if origin is not None and origin.inputs.get("renderer") not in (None, renderer_digest(policy)):
        raise UserError(
            f"{sources.solves} was sampled with another tokenizer, chat template or stop token than this policy has: "
            "let the policy that made the solves revise them"
        )
    critiques = [trace for trace in critiques if trace.problem_id in known]
    starts = starts_of_revisions(known, solves, critiques)
    iteration = None if judged is None else judged.config.get("iteration")
    return Given(REVISE_PART, script, starts, max(1, _round(judged)), inputs), iteration


def _read_solves(path: Path) -> Sequence[Trace]:
    traces = read_traces(path)
    if any(trace.roles is not None for trace in traces):
        raise UserError(f"{path} holds turns that are no solves: name traces of solves alone with --from")
    names = {(trace.problem_id, trace.sample_index) for trace in traces}
    if len(names) < len(traces):
        raise UserError(f"{path} holds two traces of one sample: keep one of them")
    return traces


def _check_made_from(path: Path, footer: Footer | None, role: str, source: Path) -> None:
    """Refuse a table that another table than the one given went into."""
    if footer is not None and footer.inputs.get(role) != file_sha256(source):
        raise UserError(f"{path} was not made from {source}: name the {role} that it was made from")


def _round(footer: Footer | None) -> int:
    return 0 if footer is None else int(footer.config.get(ROUND, 0))
