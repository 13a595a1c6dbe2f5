"""A prediction as text for a terminal, and as plain values for `--json`."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from score_cli.doctor.cards import GIB
from score_cli.doctor.duration import learned_from_rewards, mean_lengths, planned
from score_cli.doctor.memory import PHASES, budget, peak, vllm_needs, vllm_share
from score_cli.doctor.predict import Prediction

_NAME, _NUMBER = 30, 16


def as_text(found: Prediction) -> str:
    """The whole prediction, section by section."""
    sections = [_model(found), _memory(found), _verdict(found), _time(found), _disk(found), _assumed(found)]
    return "\n\n".join("\n".join(lines) for lines in sections)


def _model(found: Prediction) -> list[str]:
    shape, card, job = found.job.shape, found.job.card, found.job
    return [
        f"{shape.name}: {shape.parameters / 1e9:.3g} billion parameters, {job.trained / 1e9:.3g} trained "
        f"({shape.layers} layers, width {shape.width}, vocabulary {shape.vocabulary:,})",
        f"on {card.name}, {card.memory / GIB:.3g} GiB; {job.traces} traces an update, the longest {job.longest:,} "
        "tokens. Predicted, not measured.",
    ]


def _memory(found: Prediction) -> list[str]:
    lines = [_row("memory, GiB", [*PHASES], "how")]
    for term in found.terms:
        cells = [_gib(term.bytes) if phase in term.phases else "" for phase in PHASES]
        lines.append(_row(term.name, cells, term.formula))
    how = "with CUDA's context and 5% for the allocator" if found.job.card.is_gpu else ""
    lines.append(_row("together", [_gib(found.phases[phase]) for phase in PHASES], how))
    return lines


def _verdict(found: Prediction) -> list[str]:
    job = found.job
    room = _gib(found.budget)
    if job.vllm:
        room += f" that vLLM leaves (gpu_memory_utilization {job.sample.gpu_memory_utilization:g})"
    taken = f"{found.peak.phase} takes {_gib(found.peak.bytes)} GiB of {room}"
    lines = [f"It fits: {taken}." if found.fits else f"It does not fit: {taken}."]
    if found.changes:
        lines.append("Change, one after the other:" if found.helps else "Not even all of these would make it fit:")
    for change in found.changes:
        lines.append(f"  {' '.join(f'--set {name}={value}' for name, value in change.settings.items())}")
        lines.append(f"    {change.cost}; then {_gib(peak(change.job).bytes)} GiB of {_gib(budget(change.job))}")
    if job.vllm:
        share = vllm_share(job)
        if not found.starts:
            least = vllm_needs(job)
            share_of_card = f"sample.gpu_memory_utilization={least / job.card.memory:.2f}"
            lines.append(f"vLLM would not start: give it {share_of_card}, {_gib(least)} GiB.")
        whole = share.weights + share.working + share.cache
        lines.append(
            f"vLLM has {_gib(whole)} GiB: weights {_gib(share.weights)}, working memory {_gib(share.working)}, keys "
            f"and values {_gib(max(0, share.cache))}, room for {max(0, share.traces):,.0f} of the longest "
            "traces at a time."
        )
    return lines


def _time(found: Prediction) -> list[str]:
    lines = [_row("an update, seconds", ["about"], "how")]
    lines += [_row(part.name, [f"{part.seconds:,.1f}"], part.formula) for part in found.parts]
    phases = planned(found.job, found.run)
    updates = sum(phase.last - phase.first for phase in learned_from_rewards(phases))
    if phases:
        hours = found.hours
        supervised = f", {hours.supervised:,.1f} of supervised rounds" if hours.supervised else ""
        lines += [
            "",
            f"{updates:,} updates: {hours.updates:,.1f} hours{supervised}, and {hours.evaluation:,.1f} of evaluation",
        ]
    return lines


def _disk(found: Prediction) -> list[str]:
    return ["on disk, GiB", *(_row(name, [_gib(count)], "") for name, count in found.disk)]


def _assumed(found: Prediction) -> list[str]:
    given = found.job.assumptions
    lengths = mean_lengths(found.job)
    return [
        f"Assumed: prompts of {given.prompt_tokens} tokens (the longest {given.prompt_tokens * 3 // 2}), attempts of "
        f"{lengths.attempt:.0f} ({given.attempt_share:.0%} of the most), {given.bridge_tokens} between two;",
        f"training at {given.mfu:.0%} of {found.job.card.rate / 1e12:,.3g} TFLOP/s, decoding at "
        f"{given.decode_share:.0%} of {found.job.card.bandwidth / 1e9:,.0f} GB/s, {given.step_seconds:g} s a "
        f"step besides,",
        f"{given.verify_seconds:g} s of one of {found.job.workers or given.cores} processes to grade an attempt, "
        f"digests at {given.hash_rate / 1e9:g} GB/s, copies at {given.copy_rate / 1e9:g} GB/s.",
    ]


def as_values(found: Prediction) -> dict[str, Any]:
    """The same for a program: bytes and seconds."""
    job = found.job
    values: dict[str, Any] = {
        "model": job.shape.name,
        "parameters": job.shape.parameters,
        "trained_parameters": job.trained,
        "card": {"name": job.card.name, "memory": job.card.memory},
        "longest_trace_tokens": job.longest,
        "terms": [{"name": t.name, "bytes": t.bytes, "phases": list(t.phases), "how": t.formula} for t in found.terms],
        "phases": found.phases,
        "peak": found.peak._asdict(),
        "budget": found.budget,
        "fits": found.fits,
        "changes": [
            {"settings": change.settings, "cost": change.cost, "peak": peak(change.job).bytes}
            for change in found.changes
        ],
        "seconds": {part.name: part.seconds for part in found.parts},
        "hours": found.hours._asdict(),
        "disk": dict(found.disk),
        "assumptions": asdict(job.assumptions),
    }
    if job.vllm:
        values["vllm"] = vllm_share(job)._asdict()
    return values


def _row(name: str, cells: Sequence[str], how: str) -> str:
    return f"{name:<{_NAME}}{''.join(f'{cell:>{_NUMBER}}' for cell in cells)}    {how}".rstrip()


def _gib(count: float) -> str:
    return f"{count / GIB:.2f}"
