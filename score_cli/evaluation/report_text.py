"""The report's words and tables: numbers to cells. Pure functions."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from score_cli.evaluation.report_stats import FLOWS
from score_cli.metrics import Estimate

# Logged name -> (title, unit, shown in percent). Names of one title share a figure; unknown names get one each.
CURVES: dict[str, tuple[str, str, bool]] = {
    "accuracy": ("Accuracy", "correct (%)", True),
    "reward": ("Shaped reward", "mean reward", False),
    "delta": ("Progress between the attempts", "traces (%)", True),
    "i_to_c": ("Progress between the attempts", "traces (%)", True),
    "c_to_i": ("Progress between the attempts", "traces (%)", True),
    "changed": ("Answers changed", "traces (%)", True),
    "edit_ratio": ("Edit ratio", "mean ratio", False),
    "kl": ("KL from the reference, sampled", "nats an attempt", False),
    "full_kl": ("KL from the reference, full vocabulary", "nats an attempt", False),
    "k3": ("KL from the reference, k3", "nats an attempt", False),
    "grad_norm": ("Gradient norm", "before clipping", False),
    "entropy": ("Entropy", "nats a token", False),
    "length": ("Length", "tokens an attempt", False),
    "truncated": ("Cut at the token limit", "attempts (%)", True),
    "advantage_sd": ("Spread of the advantages", "standard deviation", False),
    "frac_zero_advantage": ("Problems without a signal", "problems (%)", True),
    "unscored": ("Unscored by the verifier", "attempts (%)", True),
    "logprob_diff_abs": ("Trainer to sampler, absolute", "nats a token", False),
    "logprob_diff": ("Trainer to sampler, signed", "nats a token", False),
}
_WORDS = {"delta": "delta", "i_to_c": "wrong to right", "c_to_i": "right to wrong"}

Curve = dict[str, list[tuple[int, float]]]  # stage -> (iteration, value), in order


def curve_lines(curve: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str, bool], dict[str, Curve]]:
    """Rows of the curve table as figures: (title, unit, percent) -> label of a line -> its points by stage."""
    known = list(CURVES)
    found: dict[tuple[str, str, bool], dict[str, Curve]] = {}
    rows = [(_split(row["name"]), row) for row in curve]
    for (name, pair), row in sorted(
        rows,
        key=lambda item: (
            known.index(item[0][0]) if item[0][0] in known else len(known),
            item[0],
            item[1]["attempt"] or 0,
            item[1]["iteration"],
        ),
    ):
        panel = CURVES.get(name, (name, "", False))
        label = "all attempts" if name == "grad_norm" and row["attempt"] is None else _WORDS.get(name, "all")
        if row["attempt"] is not None:
            label = f"attempt {row['attempt']}"
        elif pair not in ("", "t2"):
            label = f"{label} at {pair}" if name in _WORDS else f"at {pair}"
        line = found.setdefault(panel, {}).setdefault(label, {})
        line.setdefault(row["stage"], []).append((row["iteration"], row["value"]))
    return found


def headline(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """One sentence a decoding: what the first and last attempt and their difference were, first policy to last."""
    sentences = []
    for decoding in dict.fromkeys(row["decoding"] for row in metrics):
        values = {(row["policy"], row["name"]): row["value"] for row in metrics if row["decoding"] == decoding}
        policies = list(dict.fromkeys(policy for policy, _ in values))
        last = attempts_of(metrics)
        if len(policies) < 2 or last < 2:
            continue
        ends = (policies[0], policies[-1])
        parts = []
        for name, words, sign in (
            ("acc@t1", "the first attempt", ""),
            (f"acc@t{last}", "the last", ""),
            (f"delta@t{last}", "their difference" if last == 2 else "the last step", "+"),
        ):
            if all((policy, name) in values for policy in ends):
                unit = " points" if sign else "%"
                before, after = (f"{100 * values[policy, name]:{sign}.1f}{unit}" for policy in ends)
                parts.append(f"{words} went from {before} to {after}")
        if parts:
            sentences.append(f"From {ends[0]} to {ends[1]}, {decoding}: {', '.join(parts)}.")
    return sentences


def attempts_of(metrics: Iterable[Mapping[str, Any]]) -> int:
    """The most attempts that the metrics speak of; 0 without accuracies."""
    numbers = [row["name"].removeprefix("acc@t") for row in metrics if row["name"].startswith("acc@t")]
    return max((int(number) for number in numbers if number.isdecimal()), default=0)


def every_metric(metrics: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """All metrics but histograms: a line for each name, a column for each policy and decoding; fractions."""
    metrics = [row for row in metrics if not row["name"].startswith("edit_ratio_hist@")]
    columns = list(dict.fromkeys((row["policy"], row["decoding"]) for row in metrics))
    cells = {
        (row["name"], row["policy"], row["decoding"]): f"{row['value']:.4f}"
        + ("" if row["stderr"] is None else f" ±{row['stderr']:.4f}")
        + f" ({row['count']})"
        for row in metrics
    }
    names = list(dict.fromkeys(row["name"] for row in metrics))
    lines = [[name, *(cells.get((name, *column), "") for column in columns)] for name in names]
    return ["metric", *(f"{policy}, {decoding}" for policy, decoding in columns)], lines


def percent(estimate: Estimate | None) -> str:
    """`12.5% ±1.1`; empty where nothing was measured."""
    if estimate is None:
        return ""
    spread = "" if estimate.stderr is None else f" ±{100 * estimate.stderr:.1f}"
    return f"{100 * estimate.value:.1f}%{spread}"


def flow_line(title: str, key: str, flow: Mapping[str, Estimate], *, linked: bool) -> dict[str, Any]:
    """One policy's line in the table of flows; a share leads to its traces where the page shows any."""
    cells = [
        {"text": percent(flow[name]), "link": f"#source={key}&chain={name}" if linked and flow[name].value else ""}
        for name in FLOWS
    ]
    return {"title": title, "cells": cells, "count": flow[FLOWS[0]].count}


def setting_lines(settings: Mapping[str, Any]) -> list[list[str]]:
    """The settings of every stage, as (stage, setting, value)."""
    lines = []
    for stage, values in settings.items():
        for name, value in values.items() if isinstance(values, dict) else [("", values)]:
            lines.append([stage, name, "" if value is None else str(value)])
    return lines


def _split(name: str) -> tuple[str, str]:
    """`delta@t3` is delta, t3."""
    head, _, pair = name.partition("@")
    return head, pair
