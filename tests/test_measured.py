"""Measures by sums of each problem, over pieces of tables, against every trace counted by hand."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from score_cli.evaluation import measured
from score_cli.evaluation.evaluate import metric_rows
from score_cli.evaluation.measured import Measured, add_up, count_ballots, measure_tables
from score_cli.evaluation.votes import vote_rows
from score_cli.tables.parquet import REWARDS, TRACES, traces_with, writing_table
from score_cli.tables.provenance import Footer
from score_cli.tables.traces import GradedPiece, iterate_graded

Row = dict[str, Any]
WORDS = {"c": "correct", "i": "incorrect", "u": "unscored"}


def write_tables(folder: Path, rows: list[Row], *, group: int, roles: bool = False) -> tuple[Path, Path]:
    """Traces and rewards, `group` rows a row group."""
    paths = folder / "x.traces.parquet", folder / "x.rewards.parquet"
    names = (set(TRACES.schema.names) | ({"roles"} if roles else set()), set(REWARDS.schema.names))
    tables = (traces_with("roles") if roles else TRACES, REWARDS)
    for path, table, own in zip(paths, tables, names, strict=True):
        with writing_table(path, table, Footer(table=table.name, stage="by hand")) as writer:
            for start in range(0, len(rows), group):
                writer.write_rows([{name: row[name] for name in own} for row in rows[start : start + group]])
    return paths


def random_rows(problems: int, samples: int) -> list[Row]:
    """Samples outermost, so that every problem stands in every part of the table; one to three attempts."""
    draw = np.random.default_rng(0)
    rows = []
    for sample in range(samples):
        for problem in range(problems):
            turns = int(draw.integers(1, 4))
            letters = draw.choice(list("ccciiu"), turns).tolist()
            owners = np.repeat(np.arange(turns + 1), draw.integers(1, 5, turns + 1))
            rows.append(
                {
                    "problem_id": f"p{problem}",
                    "sample_index": sample,
                    "attempts": ["".join(draw.choice(list("ab"), draw.integers(0, 5))) for _ in letters],
                    "finish_reasons": draw.choice(["stop", "length"], turns).tolist(),
                    "token_ids": owners.tolist(),
                    "attempt_ids": owners.tolist(),
                    "logprobs": [0.0] * len(owners),
                    "offline_attempts": int(draw.integers(0, 2)),
                    "answers": [None if draw.random() < 0.2 else str(draw.integers(3)) for _ in letters],
                    "verdicts": [WORDS[letter] for letter in letters],
                    "rewards": [None if letter == "u" else float(letter == "c") for letter in letters],
                }
            )
    return rows


def distance(before: str, now: str) -> int:
    """Edit distance, by its definition."""
    if not before or not now:
        return len(before) + len(now)
    if before[0] == now[0]:
        return distance(before[1:], now[1:])
    return 1 + min(distance(before[1:], now), distance(before, now[1:]), distance(before[1:], now[1:]))


def values_by_hand(row: Row) -> dict[str, float]:
    """Every measure of one trace."""
    right = [
        None if value is None else word == "correct"
        for word, value in zip(row["verdicts"], row["rewards"], strict=True)
    ]
    found: dict[str, float] = {}
    for turn in range(len(right)):
        name = f"t{turn + 1}"
        if right[turn] is not None:
            found[f"acc@{name}"] = float(right[turn])  # type: ignore[arg-type]
        if turn >= row["offline_attempts"]:
            found[f"truncated@{name}"] = float(row["finish_reasons"][turn] == "length")
            found[f"length@{name}"] = float(row["attempt_ids"].count(turn + 1))
        if turn == 0:
            continue
        if None not in right[turn - 1 : turn + 1]:
            before, now = right[turn - 1], right[turn]
            found[f"delta@{name}"] = float(now) - float(before)  # type: ignore[arg-type]
            found[f"i_to_c@{name}"] = float(now and not before)  # type: ignore[arg-type]
            found[f"c_to_i@{name}"] = float(before and not now)  # type: ignore[arg-type]
        texts = row["attempts"][turn - 1 : turn + 1]
        total = len(texts[0]) + len(texts[1])
        found[f"edit_ratio@{name}"] = distance(*texts) / total if total else 0.0
        answers = [
            None if word in ("no_answer", "truncated") else text if answer is None else answer
            for answer, word, text in zip(row["answers"], row["verdicts"], row["attempts"], strict=True)
        ]
        found[f"changed@{name}"] = float(answers[turn - 1] != answers[turn])
    return found


def measure_in_pieces(tables: tuple[Path, Path], rows: int, monkeypatch: pytest.MonkeyPatch) -> Measured:
    monkeypatch.setattr(measured, "iterate_graded", lambda *paths, **_: iterate_graded(*paths, rows=rows))
    return measure_tables(*tables)


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_the_metrics_are_those_of_every_trace_by_hand(
    rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured, "_MOST_ROWS", 20)
    written = random_rows(problems=6, samples=9)
    tables = write_tables(tmp_path, written, group=5)
    by_hand: dict[str, list[tuple[str, float]]] = {}
    for row in written:
        for name, value in values_by_hand(row).items():
            by_hand.setdefault(name, []).append((row["problem_id"], value))
    found = {
        row["name"]: row
        for row in metric_rows(measure_in_pieces(tables, rows, monkeypatch), policy="x", decoding="sampled")
    }
    assert {name for name in found if "hist" not in name} == set(by_hand)
    for name, pairs in by_hand.items():
        values = [value for _, value in pairs]
        mean = math.fsum(values) / len(values)
        pulls = [math.fsum(v - mean for own, v in pairs if own == problem) for problem in {own for own, _ in pairs}]
        spread = math.sqrt(sum(p**2 for p in pulls) * len(pulls) / (len(pulls) - 1)) / len(values)
        # Sums of whole numbers are exact; of ratios, the order of additions may show in the last bit.
        assert found[name]["value"] == (pytest.approx(mean, rel=1e-14) if "ratio" in name else mean), name
        assert found[name]["stderr"] == pytest.approx(spread, rel=1e-12) and found[name]["count"] == len(values)
        if "ratio" in name:
            shares = [
                found[f"edit_ratio_hist@t{name[-1]}[{b / 20:.2f},{(b + 1) / 20:.2f}{')]'[b == 19]}"] for b in range(20)
            ]
            expected = [sum(min(math.floor(20 * v), 19) == b for v in values) / len(values) for b in range(20)]
            assert [share["value"] for share in shares] == expected


def test_solves_of_a_script_are_counted_whatever_stands_between_them(tmp_path: Path) -> None:
    row = {
        "problem_id": "p",
        "sample_index": 0,
        "attempts": ["abcd", "wrong", "abxd"],
        "finish_reasons": ["stop", "stop", "length"],
        "token_ids": [0, 1, 1, 2, 3, 3, 3],
        "attempt_ids": [0, 1, 1, 2, 3, 3, 3],
        "logprobs": [0.0] * 7,
        "offline_attempts": 1,
        "roles": ["solve", "verify", "solve"],
        "answers": ["1", "wrong", "2"],
        "verdicts": ["incorrect", "correct", "correct"],
        "rewards": [0.0, 1.0, 1.0],
    }
    other = row | {"problem_id": "q", "roles": ["solve", "solve", "verify"], "offline_attempts": 0}
    found = {
        entry["name"]: (entry["value"], entry["count"])
        for entry in metric_rows(
            measure_tables(*write_tables(tmp_path, [row, other], group=1, roles=True)), policy="x", decoding="sampled"
        )
    }
    assert found["acc@t1"] == (0.0, 2) and found["acc@t2"] == (1.0, 2) and found["i_to_c@t2"] == (1.0, 2)
    # The first solve of p was given; its second is the third turn, of three tokens. q's are of two tokens and of one.
    assert found["length@t1"] == (2.0, 1) and found["length@t2"] == (2.0, 2) and found["truncated@t2"] == (0.5, 2)
    assert found["edit_ratio@t2"] == (pytest.approx((1 / 8 + 5 / 9) / 2), 2)
    assert found["verify_acc"] == (1.0, 2) and found["mean_trials"] == (2.0, 2)


def test_votes_are_those_of_every_ballot_whichever_piece_it_stands_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of p, 7 7 8 and a blank at first, all 7 after; a vote of two elects one or ties."""
    rows = random_rows(problems=1, samples=4)
    given = [("7", "7"), ("8", "7"), ("7", "7"), (None, "7")]
    for row, answers in zip(rows, given, strict=True):
        verdicts = ["no_answer" if a is None else "correct" if a == "7" else "incorrect" for a in answers]
        row |= {"answers": answers, "verdicts": verdicts, "rewards": [float(v == "correct") for v in verdicts]}
        row |= {"attempts": ["", ""], "finish_reasons": ["stop"] * 2, "offline_attempts": 0}
        row |= {name: [0, 1, 2] for name in ("token_ids", "attempt_ids")} | {"logprobs": [0.0] * 3}
    tables = write_tables(tmp_path, rows, group=1)
    monkeypatch.setattr(measured, "iterate_graded", lambda *paths, **_: iterate_graded(*paths, rows=1))
    ballots = count_ballots(*tables)
    assert ballots.filter(pl.col("attempt") == 2).select("answer", "right", "count").rows() == [("7", 1.0, 4)]
    found = {row["name"]: row["value"] for row in vote_rows(ballots, policy="x", decoding="sampled", corrected=[1])}
    # Pairs: 77 wins; 78 twice is a tie; 7 with the blank twice wins; 8 with the blank loses.
    assert (
        found["majority@parallel[2]"] == pytest.approx((1 + 2 / 2 + 2) / 6) and found["majority@sequential[2]"] == 1.0
    )


def test_no_more_rows_are_held_than_the_sums_so_far_and_a_few_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "_MOST_ROWS", 50)
    held, real = [], measured._added

    def added(frames: list[pl.DataFrame], key: list[str]) -> pl.DataFrame:
        held.append(sum(frame.height for frame in frames))
        return real(frames, key)

    monkeypatch.setattr(measured, "_added", added)
    part = pl.DataFrame({"problem_id": [f"p{n}" for n in range(10)], "count": [1] * 10})
    sums = add_up((part for _ in range(1000)), ["problem_id"])
    assert sums["count"].to_list() == [1000] * 10
    # Twice ten sums, fifty rows, and the part that was one too many.
    assert max(held) <= 2 * 10 + 50 + 10


def test_pieces_that_have_been_measured_are_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts and tokens of one piece alone are alive when the next is asked for."""
    tables = write_tables(tmp_path, random_rows(problems=3, samples=10), group=4)
    alive: set[int] = set()
    most = 0

    class Counted(GradedPiece):
        def __del__(self) -> None:
            alive.discard(id(self))

    def counted(*paths: Path, **_: int) -> Any:
        nonlocal most
        for piece in iterate_graded(*paths, rows=4):
            own = Counted(*piece)
            del piece
            alive.add(id(own))
            most = max(most, len(alive))
            yield own

    monkeypatch.setattr(measured, "iterate_graded", counted)
    assert measure_tables(*tables)["changed@t2"]["count"].sum() > 10
    assert most <= 2
