"""The README's two figures, from a run's own files: the loop on one real trace, and accuracy over the updates.

Each is written twice, for a light and a dark page: loop.svg and loop-dark.svg, curve.svg and curve-dark.svg.
"""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import torch

from score_cli.errors import UserError
from score_cli.report.plots import COLOURS, lines_figure, style, svg_file
from score_cli.report.run import curve_lines, read_config, read_curve, stage_line, stage_rules, stage_starts
from score_cli.tables.atomic import check_output
from score_cli.tables.checkpoints import load_tokenizer
from score_cli.tables.records import Trace, Verdict
from score_cli.tables.schemas import CORRECT
from score_cli.tables.traces import read_traces, read_verdicts
from score_cli.tables.updates import Updates
from score_cli.training import credit
from score_cli.training.pay import Paid, shaped_rewards, stage2_pay

# What the colours of COLOURS become on a dark page, and the ground that tokens stand on.
DARK = {
    "ink": "#e6e9ee",
    "muted": "#a3abb9",
    "line": "#363c47",
    "blue": "#5ab4ec",
    "orange": "#ff9650",
    "green": "#3fcb9f",
    "purple": "#e3a0cd",
    "gold": "#e0b93f",
}
WIDTH, HEIGHT = 960, 392
MARGIN = 16
LETTER = 8.0  # width of a letter of a token
OWNERS = ("muted", "blue", "orange")  # of context, first attempt, second attempt
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, monospace"
SANS = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"


class Example(NamedTuple):
    """One trace that was put right, with what the trainer made of it."""

    update: int
    trace: Trace
    verdict: Verdict
    shaped: Sequence[float]
    returns: Sequence[float]
    advantages: Sequence[float]
    config: Mapping[str, Any]  # of Stage II


def readme_figures(run: Path, folder: Path, *, overwrite: bool) -> dict[Path, str]:
    """The figures' files and what goes into them.

    Raises:
        UserError: the run has no update of Stage II that put a trace right, or a file is in the way.
    """
    names = ("loop.svg", "loop-dark.svg", "curve.svg", "curve-dark.svg")
    for name in names:
        check_output(folder / name, overwrite=overwrite)
    example = find_example(run)
    tokenizer = load_tokenizer(next(run / name for name in ("stage2", "stage1", "base") if (run / name).exists()))
    words = [tokenizer.decode([token], skip_special_tokens=False) for token in example.trace.token_ids.tolist()]
    loop, curve = loop_svg(example, words), curve_svg(read_curve(run))
    return dict(zip((folder / name for name in names), (loop, dark(loop), curve, dark(curve)), strict=True))


def find_example(run: Path) -> Example:
    """The shortest trace of two attempts that was put right in the last update of Stage II that has one.

    Where that can be, the baselines of both attempts say something: a sibling's attempt was right too.
    """
    config = read_config(run / "config.json").get("stage2", {})
    stages, updates = {row["iteration"]: row["stage"] for row in read_curve(run)}, Updates(run / "iterations")
    for update in sorted((number for number, stage in stages.items() if stage == "stage2"), reverse=True):
        if not updates.has(update):
            continue
        with updates.opened(update) as place:
            rows = list(
                zip(read_traces(place / "traces.parquet"), read_verdicts(place / "rewards.parquet"), strict=True)
            )
        if any(len(trace.attempts) != 2 for trace, _ in rows):
            continue
        shaped, returns, advantages = _credit(rows, config)
        names = [trace.problem_id for trace, _ in rows]
        right = [
            (_untold(returns[row], advantages[row]), len(trace.token_ids), names[row], trace.sample_index, row)
            for row, (trace, verdict) in enumerate(rows)
            if verdict.rewards == [0.0, 1.0] and trace.offline_attempts == 0
        ]
        if right:
            row = min(right)[-1]
            return Example(update, *rows[row], shaped[row], returns[row], advantages[row], config)
    raise UserError(
        f"{run} has no update of Stage II, of two attempts, in which a wrong first attempt was put right: "
        "run more updates"
    )


def _untold(returns: Sequence[float], advantages: Sequence[float]) -> int:
    return sum(value == advantage for value, advantage in zip(returns, advantages, strict=True))


def _credit(rows: Sequence[tuple[Trace, Verdict]], config: Mapping[str, Any]) -> list[list[list[float]]]:
    """Shaped rewards, returns and advantages of a batch before KL, as the trainer takes them."""
    nan = float("nan")
    rewards = torch.tensor([[nan if r is None else r for r in verdict.rewards] for _, verdict in rows])
    names = list(dict.fromkeys(trace.problem_id for trace, _ in rows))
    groups = torch.tensor([names.index(trace.problem_id) for trace, _ in rows])
    offline = torch.tensor([[trace.offline_attempts > attempt for attempt in (0, 1)] for trace, _ in rows])
    paid = Paid(rewards, [trace.turn_roles for trace, _ in rows])
    shaped = shaped_rewards(stage2_pay(config["alpha"], config["stagnation_penalty"]), paid)
    returns = credit.returns(shaped, config["discount"]).masked_fill(offline, nan)
    advantages = credit.advantages(returns, groups, rewards, config["baseline"])
    return [shaped.tolist(), returns.tolist(), advantages.tolist()]


def curve_svg(curve: Sequence[dict[str, Any]]) -> str:
    """Accuracy of both attempts over the updates, the border between the stages marked."""
    stages = curve_lines([row for row in curve if row["name"] == "accuracy" and row["attempt"] in (1, 2)])
    lines = [stage_line(f"acc@t{label[-1]}", points) for panel in stages.values() for label, points in panel.items()]
    rules = stage_rules(curve)
    up = "correct (% of the batch)"
    with style():
        figure = lines_figure(lines, across="update", up=up, rules=rules, size=(7.6, 2.9))
        axes = figure.axes[0]
        for stage, start in stage_starts(curve).items():
            title = {"stage1": " Stage I", "stage2": " Stage II"}.get(stage, f" {stage}")
            axes.text(start, 0.03, title, transform=axes.get_xaxis_transform(), color=COLOURS["muted"], va="bottom")
        return svg_file(figure, "curve")


def loop_svg(example: Example, words: Sequence[str]) -> str:
    """The loop: problem, two attempts with the mask under their tokens, verdicts, bonus, advantages, gradient."""
    owners, verdicts = example.trace.attempt_ids.tolist(), example.verdict.verdicts
    second = next(place for place in range(owners.index(1), len(owners)) if owners[place] != 1)
    title = "One trace of SCoRe: problem, first attempt, request, second attempt, verdicts, bonus and gradient"
    mask = "attempt_ids under each token: 0 is context and never trained, 1 and 2 are the tokens of y1 and y2"
    tip = f'<path d="M0 0L8 4L0 8z" fill="{COLOURS["muted"]}"/>'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">',
        f"<style>.mono{{font:13px {MONO}}} .sans{{font:14px {SANS}}} .bold{{font:600 14px {SANS}}}</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        f"{tip}</marker></defs>",
        *_turn(24, ("problem", "first attempt y1"), words[:second], owners[:second], verdicts[0]),
        _text(MARGIN, 100, mask, "muted"),
        *_turn(
            128,
            ("request", "second attempt y2, which sees all of the above"),
            words[second:],
            owners[second:],
            verdicts[1],
        ),
        *_chain(example),
    ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _turn(y: float, titles: Sequence[str], words: Sequence[str], owners: Sequence[int], verdict: str) -> Iterator[str]:
    """One row: the context's tokens, then the attempt's, their mask below, the verdict behind."""
    first = next(place for place, owner in enumerate(owners) if owner)
    badge = f"{'✓' if verdict == CORRECT else '✗'} {verdict.replace('_', ' ')}"
    room = WIDTH - 2 * MARGIN - (len(titles[0]) + len(badge)) * LETTER - 20
    context = _fitted(words[:first], room / 3)
    attempt = _fitted(words[first:], room - sum(map(_token_width, context)))
    x = float(MARGIN)
    for title, part, owner in ((titles[0], context, 0), (titles[1], attempt, owners[first])):
        colour, start = OWNERS[owner], x
        yield _text(x, y, title, colour, bold=True)
        for word in part:
            width = _token_width(word)
            look = f'fill="{COLOURS[colour]}" fill-opacity="{0.2 if owner else 0.08}"'
            yield f'<rect x="{x:.1f}" y="{y + 9:g}" width="{width - 3:.1f}" height="26" rx="4" {look}/>'
            yield _text(x + 4, y + 27, word, "ink", mono=True)
            yield _text(x + width / 2 - 1.5, y + 51, str(owner), colour, mono=True, anchor="middle")
            x += width
        x = max(x, start + len(title) * LETTER + 14) if not owner else x
    yield _text(x + 10, y + 27, badge, "green" if verdict == CORRECT else "orange", bold=True)


def _chain(example: Example) -> Iterator[str]:
    """Four boxes in a row, and the way back to the sampler."""
    (r1, r2), (s1, s2), (a1, a2) = example.verdict.rewards, example.shaped, example.advantages
    learned = [
        f"y{number}: {s:g} − {s - a:.2f} = {_signed(a)}"
        for number, s, a in zip((1, 2), example.returns, (a1, a2), strict=True)
    ]
    alpha, baseline = example.config["alpha"], example.config["baseline"]
    note = "siblings' mean" + " (same r1)" * (baseline == "conditional")
    boxes = [
        ("rewards", f"r1 = {r1:g}", f"r2 = {r2:g}", "1 where correct"),
        (
            "with the bonus",
            f"y1: {s1:g}",
            f"y2: {r2:g} + {alpha:g}·({r2:g} − {r1:g}) = {s2:g}",
            "α·(r2 − r1), to y2 alone",
        ),
        ("minus the baseline", *learned, note),
        ("gradient of a token", f"1: {_signed(a1)} · ∇log π", f"2: {_signed(a2)} · ∇log π", "0: none"),
    ]
    y, height, gap = 220, 114, 28
    width = (WIDTH - 2 * MARGIN - 3 * gap) / 4
    path = f'stroke="{COLOURS["muted"]}" stroke-width="1.5" fill="none" marker-end="url(#tip)"'
    frame = f'width="{width:.1f}" height="{height}" rx="8" fill="none" stroke="{COLOURS["line"]}" stroke-width="1.5"'
    for index, (title, first, second, note) in enumerate(boxes):
        x = MARGIN + index * (width + gap)
        yield f'<rect x="{x:.1f}" y="{y}" {frame}/>'
        for row, (words, colour) in enumerate(((title, "ink"), (first, "blue"), (second, "orange"), (note, "muted"))):
            yield _text(x + 12, y + 25 + 25 * row, words, colour, bold=row < 3)
        if index:
            yield f'<path d="M{x - gap + 3:.1f} {y + height / 2:g}H{x - 4:.1f}" {path}/>'
    end, low = WIDTH - MARGIN - width / 2, y + height
    yield f'<path d="M{end:.1f} {low + 4}V{low + 24}H6V48H{MARGIN - 3}" {path}/>'
    again = "the new policy answers the next problems: on policy, so no ratio and no clip"
    yield _text(MARGIN, low + 46, again, "muted")
    source = f"update {example.update}, {example.trace.problem_id}, sample {example.trace.sample_index}; before KL"
    yield _text(WIDTH - MARGIN, low + 46, source, "muted", anchor="end")


def _fitted(words: Sequence[str], room: float) -> list[str]:
    """Tokens as shown, from both ends inwards as long as there is room; `…` stands for the others."""
    shown = ["".join(c if c.isprintable() else "↵" for c in word) for word in words]
    if sum(map(_token_width, shown)) <= room:
        return shown
    ends: tuple[list[str], list[str]] = ([], [])
    room -= _token_width("…")
    for turn in range(len(shown)):
        word = shown[-1 - turn // 2] if turn % 2 else shown[turn // 2]
        room -= _token_width(word)
        if room < 0:
            break
        ends[turn % 2].append(word)
    return [*ends[0], "…", *reversed(ends[1])]


def _token_width(word: str) -> float:
    return len(word) * LETTER + 11


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _text(
    x: float, y: float, text: str, colour: str, *, bold: bool = False, mono: bool = False, anchor: str = "start"
) -> str:
    # A token keeps its spaces, and its width whatever the font.
    exact = f' xml:space="preserve" textLength="{len(text) * LETTER:g}" lengthAdjust="spacingAndGlyphs"' if mono else ""
    look = f'class="{"mono" if mono else "bold" if bold else "sans"}" fill="{COLOURS[colour]}" text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:g}" {look}{exact}>{escape(text)}</text>'


def dark(svg: str) -> str:
    """The same drawing for a dark page."""
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, DARK[name])
    return svg
