"""Tables of rows by their own measures, as `[study.tables.NAME]` asks for them. Pure functions.

A row has a line for every policy that its run measured, from the base on, so that before and after stand together.
"""

from collections.abc import Mapping
from typing import Any

from score_cli.evaluation.layout import COUNTED, TRIALS, TextTable, grid, percent
from score_cli.study.results import OWN, TRAINING, Results, Seeds

OWN_TABLES = "tables"  # key of the footer of study.parquet
OwnTables = Mapping[str, Mapping[str, Any]]

# Measures that are no shares: how each is written. A calibration error is small, so it is no percentage either.
PLAIN = {TRIALS: ".2f", "length": ".1f", "ece": ".3f", "brier": ".3f"}
SIGNED = ("delta", "judge_gap")


def rows_of(tables: OwnTables) -> set[str]:
    """The rows that have a table of their own."""
    return {row for table in tables.values() for row in table["rows"]}


def own_tables(results: Results, tables: OwnTables) -> dict[str, TextTable]:
    """Each table that the results have lines for, and, after it, what its rows logged in training."""
    found = {}
    for name, table in tables.items():
        words = f": {table['words']}" if table["words"] else ""
        caption = f"{name}{words}{_spread(results)}"
        found[name] = _lines(results, table, OWN, table["columns"], caption)
        caption = f"{name}, over training: what the first and the last updates logged, a mean of each"
        found[f"{name}, training"] = _lines(results, table, TRAINING, table["training"], caption)
    return {name: table for name, table in found.items() if table.lines}


def figure(name: str, seeds: Seeds) -> str:
    """`54.2 ±1.3`: a mean over seeds, in percent where it is a share; ` of 512` where what it is over may be few."""
    stem = name.split("@")[0]
    if stem in PLAIN:
        shown = f"{seeds.mean:{PLAIN[stem]}}"
        shown += "" if seeds.deviation is None else f" ±{seeds.deviation:{PLAIN[stem]}}"
    else:
        shown = percent(seeds.mean, seeds.deviation, signed=stem in SIGNED)
    counts = list(seeds.counts.values())
    return shown + (f" of {round(sum(counts) / len(counts))}" if name in COUNTED and counts else "")


def _lines(results: Results, table: Mapping[str, Any], condition: str, columns: list[str], caption: str) -> TextTable:
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for row in table["rows"]:
        for policy in results.policies_of(row, condition):
            for decoding in results.decodings(condition):
                found = {name: results.find(row, name, decoding, condition, policy) for name in columns}
                line = {name: figure(name, seeds) for name, seeds in found.items() if seeds}
                if line:
                    cells[row, policy, decoding] = line
    titles = ["row", "updates" if condition == TRAINING else "policy", "decoding"]
    return grid(caption, titles, {name: name for name in columns}, cells)


def _spread(results: Results) -> str:
    seeds = len(results.seeds)
    return f"; mean ± standard deviation over {seeds} seeds of base and training" if seeds > 1 else "; one seed"
