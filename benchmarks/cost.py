"""What the paper's MATH run would take in hours and dollars: the tables of docs/cost.md, computed by doctor's model.

    python benchmarks/cost.py

Nothing here is measured. The rates are those that `score doctor` assumes; what comes to them is named in the page.
"""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from transformers import Qwen2Config

from score_cli.doctor.cards import CARDS, GIB, Assumptions
from score_cli.doctor.duration import iteration, mean_lengths, recipe_hours, sampling_seconds
from score_cli.doctor.memory import Job, budget, peak
from score_cli.doctor.predict import make_job, predict
from score_cli.recipe import Recipe, read_recipe
from score_cli.run_config import RunConfig

RECIPE = Path(__file__).parents[1] / "pipelines" / "math.toml"
# The sizes that the configurations of Qwen2.5-1.5B and Qwen2.5-7B give.
MODELS = {
    "1.5B": Qwen2Config(
        vocab_size=151_936,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
    ),
    "7B": Qwen2Config(
        vocab_size=152_064,
        hidden_size=3584,
        intermediate_size=18_944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        max_position_embeddings=32_768,
        tie_word_embeddings=False,
    ),
}
# Dollars of a card's hour: assumed, not looked up.
PRICES = {"h100": 2.5, "h200": 3.5}
# Of a card's rate in training, what is left on several: they wait for weights, and for the longest traces.
TOGETHER = 0.85
# Weights, reference, gradient and Adam's moments, in bytes a parameter: what several cards share among them.
SHARED_BYTES = 20


def parts(job: Job, cards: int) -> dict[str, float]:
    """Seconds of an update by part: each card samples and learns from its share of the traces."""
    found = {part.name: part.seconds for part in iteration(job)}
    if cards > 1:
        found["sample"] = sampling_seconds(job, mean_lengths(job), job.traces // cards, job.sample.samples)
        found["verify"] /= cards
        found["train"] /= cards * TOGETHER
    return found


def hours(job: Job, run: RunConfig, cards: int) -> tuple[float, float]:
    """Hours of all updates, and of the evaluation, which is sampled by all cards."""
    updates = run.stage1_iterations + run.stage2_iterations
    return updates * sum(parts(job, cards).values()) / 3600, recipe_hours(job, run).evaluation / cards


def needed(job: Job, cards: int) -> float:
    """Bytes of one card at the peak."""
    return peak(job).bytes - (1 - 1 / cards) * SHARED_BYTES * job.shape.parameters


def settled(job: Job, run: RunConfig, cards: int) -> tuple[Job, str]:
    """The job with doctor's changes until it fits, and these in words."""
    if needed(job, cards) <= budget(job):
        return job, "as it stands"
    words = []
    for change in predict(job, run).changes:
        words += [f"{name}={value}" for name, value in change.settings.items()]
        if needed(change.job, cards) <= budget(change.job):
            return change.job, ", ".join(dict.fromkeys(words))
    return job, "does not fit"


def jobs(recipe: Recipe, given: Assumptions) -> Iterator[tuple[str, str, Job]]:
    """Every model on every card."""
    for name, config in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            config.save_pretrained(folder)
            for card in PRICES:
                yield name, card, make_job(Path(folder), recipe, CARDS[card], given)


def cost_table(recipe: Recipe) -> Iterator[str]:
    """Hours and dollars of the whole run."""
    run = recipe.settings("run", RunConfig)
    yield "| model | cards | settings changed to fit | GiB of a card, of what it has | seconds of an update: sample, "
    yield "verify, train, refresh | hours of updates | minutes of evaluation | dollars |"
    yield "|---|---|---|---|---|---|---|---|"
    for model, card, plain in jobs(recipe, Assumptions()):
        for cards in (1, 8):
            job, changed = settled(plain, run, cards)
            head = f"| {model} | {cards} {card.upper()} | {changed}"
            room = f"{needed(job, cards) / GIB:.0f} of {budget(job) / GIB:.0f}"
            if changed == "does not fit":
                yield f"{head} | {room} | | | | |"
                continue
            seconds = ", ".join(f"{value:.1f}" for value in parts(job, cards).values())
            training, evaluation = hours(job, run, cards)
            dollars = (training + evaluation) * cards * PRICES[card]
            yield f"{head} | {room} | {seconds} | {training:.0f} | {60 * evaluation:.1f} | {dollars:,.0f} |"


def sensitivity_table(recipe: Recipe) -> Iterator[str]:
    """How the hours of 1.5B on one H100 depend on each assumption."""
    run = recipe.settings("run", RunConfig)
    name, card, job = next(jobs(recipe, Assumptions()))
    yield f"| assumption, {name} on one {card.upper()} | taken | hours | if | hours | if | hours |"
    yield "|---|---|---|---|---|---|---|"
    usual = hours(job, run, 1)[0]
    for key, low, high in (
        ("attempt_share", 0.2, 0.8),
        ("mfu", 0.2, 0.5),
        ("decode_share", 0.3, 0.7),
        ("step_seconds", 0.003, 0.012),
        ("prompt_tokens", 100, 300),
        ("verify_seconds", 0.005, 0.1),
    ):
        cells = [f"{getattr(job.assumptions, key):g} | {usual:.0f}"]
        for value in (low, high):
            other = replace(job, assumptions=replace(job.assumptions, **{key: value}))
            cells.append(f"{value:g} | {hours(other, run, 1)[0]:.0f}")
        yield f"| `{key}` | " + " | ".join(cells) + " |"


def tables() -> str:
    """Both tables as the page has them."""
    recipe = read_recipe(RECIPE)
    first, second, *rest = cost_table(recipe)
    return "\n".join([first + second, *rest, "", *sensitivity_table(recipe)]) + "\n"


if __name__ == "__main__":
    argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0]).parse_args()
    print(tables(), end="")
