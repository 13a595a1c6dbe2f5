"""`score show`: traces as a person reads them; and tables on the terminal."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from score_cli.errors import UserError
from score_cli.evaluation.layout import TextTable
from score_cli.metrics import letters
from score_cli.phases import CONFIG_FILE
from score_cli.tables.problems import read_problems
from score_cli.tables.records import JUDGES, Problem, Trace, Verdict, turn_title
from score_cli.tables.schemas import LENGTH
from score_cli.tables.traces import iterate_graded, iterate_traces, rewards_beside
from score_cli.tables.updates import opened_beside

if TYPE_CHECKING:
    from score_cli.training.token_credit import TokenCredit

_COLOURS = {"c": "green", "i": "red", "u": "yellow"}


def print_table(text: TextTable) -> None:
    """Print a table to standard output under its caption, aligned on the right but for names."""
    table = Table(*text.titles, box=None, pad_edge=False)
    for index, column in enumerate(table.columns):
        column.justify = "left" if index < text.names else "right"
        column.no_wrap = True
    for line in text.lines:
        table.add_row(*line)
    if text.caption:
        print(f"\n{text.caption}")
    # Wider than most terminals rather than cut: a figure that lost its last digits is worse than a folded line.
    Console(highlight=False, width=max(Console().width, 160)).print(table)


def print_credits(credits: "Sequence[TokenCredit]", model: Path) -> None:
    """Print what an update credits each sampled token of a trace with."""
    spell = _speller(model)
    lines = [
        [
            str(each.position),
            str(each.attempt),
            escape(repr(spell(each.token))),
            f"{each.advantage:+.4f}",
            f"{each.weight:.4f}",
            f"{each.sampler:.4f}",
            f"{each.trainer:.4f}",
            f"{each.reference:.4f}",
        ]
        for each in credits
    ]
    titles = ["position", "attempt", "token", "advantage", "weight", "sampler", "trainer", "reference"]
    print_table(TextTable("Sampled tokens; logprobs in nats", titles, lines, names=3))


def show_traces(
    traces: Path,
    *,
    rewards: Path | None = None,
    problems: Path | None = None,
    problem: str | None = None,
    only: str | None = None,
    limit: int = 10,
    tokens: bool = False,
    model: Path | None = None,
) -> None:
    """Print traces with their verdicts, at most `limit` that pass the filters.

    Raises:
        UserError: an input does not fit, no trace is of the problem, or a filter needs rewards that are not there.
    """
    problems = problems or own_problems(traces)
    chain = None if only is None else _parse_chain(only)
    known = {} if problems is None else {p.problem_id: p for p in read_problems(problems)}
    spell = _speller(model) if tokens else None
    console = Console(highlight=False)
    shown = matching = asked = held = 0
    first = ""
    for trace, reward in _rows(traces, rewards, needed=chain is not None):
        held += 1
        first = first or trace.problem_id
        if problem is not None and trace.problem_id != problem:
            continue
        asked += 1
        if chain is not None and (reward is None or letters(reward.verdicts) != chain):
            continue
        matching += 1
        if shown < limit:
            shown += 1
            _print_trace(console, trace, reward, known.get(trace.problem_id))
            if spell is not None:
                _print_tokens(console, trace, spell)
    if not asked:
        raise UserError(f"{traces} holds no trace of problem {problem}: give a problem_id of its own, such as {first}")
    if not matching:
        of = str(traces) if problem is None else f"problem {problem}"
        console.print(Text(f"none of the {asked} traces of {of} has the verdicts {only}", style="dim"), soft_wrap=True)
    elif matching == held:
        console.print(f"{shown} of {held} traces", style="dim")
    else:
        console.print(f"{shown} of {matching} matching traces, of {held} that the file holds", style="dim")


def own_problems(traces: Path) -> Path | None:
    """The problems beside the traces; in the folder of a run those that its updates or its evaluation asked."""
    folder = traces.absolute().parent
    places = [folder / "problems.parquet"]
    for run, is_its, split in (
        (folder.parent, folder.name == "eval", "test"),
        (folder.parent.parent, folder.parent.name == "iterations", "train"),
    ):
        if is_its and (run / CONFIG_FILE).exists():
            places.append(run / f"{split}.parquet")
    return next((path for path in places if path.exists()), None)


def _parse_chain(only: str) -> str:
    chain = only.replace("-", "").replace(">", "")
    if not chain or set(chain) - set(_COLOURS):
        raise UserError(f"--only is {only}, expected letters like i-c: c correct, i incorrect, u unscored")
    return chain


def _rows(traces: Path, rewards: Path | None, *, needed: bool) -> Iterator[tuple[Trace, Verdict | None]]:
    with opened_beside(traces) as path:
        own = rewards_beside(path)
        rewards = rewards or (own if own.exists() else None)
        if rewards is None and needed:
            raise UserError(f"--only needs verdicts, and {rewards_beside(traces)} is not there: pass --rewards")
        if rewards is None:
            for part in iterate_traces(path):
                yield from ((trace, None) for trace in part)
            return
        for piece in iterate_graded(path, rewards):
            yield from piece.records()


def _print_trace(console: Console, trace: Trace, reward: Verdict | None, problem: Problem | None) -> None:
    console.rule(Text(f"{trace.problem_id} #{trace.sample_index}"), align="left", style="dim")
    if problem is not None:
        answer = "" if problem.answer is None else f"   [answer {problem.answer}]"
        console.print(Text(problem.question.strip() + answer), soft_wrap=True)
    for index, (role, text) in enumerate(zip(trace.turn_roles, trace.attempts, strict=True)):
        verdict = reward.verdicts[index] if reward else ""
        letter = letters(reward.verdicts)[index] if reward else "u"
        head = Text(f"{turn_title(trace, index)} ", style="bold")
        head.append(verdict, style=_COLOURS[letter])
        if reward and role in JUDGES:
            head.append(f" (claims {reward.answers[index] or 'nothing that can be read'})", style="dim")
        if trace.finish_reasons[index] == LENGTH:
            head.append(" (cut at the token limit)", style="yellow")
        if index < trace.offline_attempts:
            head.append(" (given, not sampled)", style="yellow")
        console.print(head)
        console.print(Text(text), soft_wrap=True)


def _print_tokens(console: Console, trace: Trace, spell: Callable[[int], str]) -> None:
    """Sampled tokens underlined, with the mean logprob of each attempt; context dim."""
    line = Text()
    for token, owner in zip(trace.token_ids.tolist(), trace.attempt_ids.tolist(), strict=True):
        line.append(spell(token), style="underline" if owner else "dim")
        line.append("|", style="dim")
    console.print(line, soft_wrap=True)
    for attempt in range(1, len(trace.attempts) + 1):
        own = trace.logprobs[trace.attempt_ids == attempt]
        console.print(
            f"{turn_title(trace, attempt - 1)}: {len(own)} sampled tokens, logprob {own.sum():.2f} nats", style="dim"
        )


def _speller(model: Path | None) -> Callable[[int], str]:
    if model is None:
        return str
    from score_cli.tables.checkpoints import load_tokenizer

    tokenizer = load_tokenizer(model)
    return lambda token: str(tokenizer.decode([token], skip_special_tokens=False))
