"""The optimiser: steps of torch's own Adam, rates of torch's own schedulers, moments that come back bit for bit."""

import math
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from score_cli.config import Schedule, SftConfig, Stage2Config
from score_cli.errors import UserError
from score_cli.training import optimizer as optimizers
from score_cli.training.optimizer import Optimizer, check_packages, check_schedule, learning_rate, make_adam

needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
KINDS = ["adam", pytest.param("adam8bit", marks=needs_bitsandbytes)]
ADAM = Stage2Config(learning_rate=1e-2)


def some_weights(seed: int = 0) -> dict[str, Tensor]:
    """One matrix large enough for moments of 8 bits, one whose last block is not full, one vector too small."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {"large": (64, 96), "odd": (61, 71), "small": (50,)}
    return {name: torch.randn(*shape, generator=draw).requires_grad_() for name, shape in shapes.items()}


def gradients(steps: int, seed: int = 7) -> Iterator[dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield {name: torch.randn(w.shape, generator=draw) * 10**-3 for name, w in some_weights().items()}


def walk(optimizer: Optimizer, weights: dict[str, Tensor], moves: Iterator[dict[str, Tensor]]) -> list[float]:
    rates = []
    for found in moves:
        for name, weight in weights.items():
            weight.grad = found[name]
        rates.append(optimizer.step())
    return rates


def test_steps_are_those_of_torchs_adam_to_the_bit() -> None:
    ours, theirs = some_weights(), some_weights()
    adam = torch.optim.Adam(theirs.values(), lr=1e-2, betas=(0.9, 0.95))
    assert walk(Optimizer(ADAM, ours), ours, gradients(4)) == [1e-2] * 4
    for found in gradients(4):
        for name, weight in theirs.items():
            weight.grad = found[name]
        adam.step()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_from_saved_moments_is_the_step_that_would_have_come_next(kind: str, tmp_path: Path) -> None:
    config = replace(ADAM, optimizer=kind, warmup_updates=2, schedule="linear", schedule_updates=9)  # type: ignore[arg-type]
    weights = some_weights()
    first = Optimizer(config, weights)
    moves = list(gradients(5))
    walk(first, weights, iter(moves[:3]))
    save_file(first.moments(), tmp_path / "moments.safetensors")
    copies = {name: weight.detach().clone().requires_grad_() for name, weight in weights.items()}
    second = Optimizer(config, copies)
    second.load(load_file(tmp_path / "moments.safetensors"))
    assert all(torch.equal(tensor, second.moments()[key]) for key, tensor in first.moments().items())
    assert walk(first, weights, iter(moves[3:])) == walk(second, copies, iter(moves[3:])) == [6e-2 / 7, 5e-2 / 7]
    assert all(torch.equal(weights[name], copies[name]) for name in weights)
    assert all(torch.equal(tensor, second.moments()[key]) for key, tensor in first.moments().items())


@needs_bitsandbytes
def test_moments_of_eight_bits_take_a_byte_and_a_scale_of_each_256() -> None:
    weights = some_weights()
    optimizer = Optimizer(replace(ADAM, optimizer="adam8bit"), weights)
    walk(optimizer, weights, gradients(1))
    bytes_of = {key: tensor.nbytes for key, tensor in optimizer.moments().items()}
    # 6,144 and 4,331 numbers in blocks of 256; 50 numbers in 32 bits.
    assert [bytes_of[f"{key}.large"] for key in ("state1", "absmax1", "step")] == [6144, 4 * 24, 4]
    assert [bytes_of[f"{key}.odd"] for key in ("state2", "absmax2")] == [4331, 4 * 17]
    assert bytes_of["state1.small"] == 4 * 50 and "absmax1.small" not in bytes_of


@needs_bitsandbytes
def test_steps_with_moments_of_eight_bits_stay_near_adams() -> None:
    """The first has no moments to round: lr * g / (|g| + eps). Later ones are off by what eight bits hold."""
    config = replace(ADAM, optimizer="adam8bit")
    before, ours, theirs = some_weights(), some_weights(), some_weights()
    optimizer, exact = Optimizer(config, ours), Optimizer(ADAM, theirs)
    moves = list(gradients(12))
    walk(optimizer, ours, iter(moves[:1]))
    for name, gradient in moves[0].items():
        expected = before[name] - 1e-2 * gradient / (gradient.abs() + 1e-8)
        assert torch.allclose(ours[name], expected, atol=2e-6), name
    walk(optimizer, ours, iter(moves[1:]))
    walk(exact, theirs, iter(moves))
    for name in before:
        moved, should = ours[name] - before[name], theirs[name] - before[name]
        error = ((moved - should).norm() / should.norm()).item()
        assert error < (1e-5 if name == "small" else 0.05), (name, error)
        assert name == "small" or error > 1e-4  # so eight bits are at work


@needs_bitsandbytes
def test_rows_without_gradient_stay_where_they_are_but_for_rounding() -> None:
    """An embedding's unseen rows, beside seen ones. On CPU a moment of 0 becomes 2e-5 of its block."""
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(1)).requires_grad_()
    start, optimizer = weight.detach().clone(), Optimizer(replace(ADAM, optimizer="adam8bit"), {"rows": weight})
    for found in gradients(3):
        weight.grad = found["large"].clone()
        weight.grad[1::2] = 0
        optimizer.step()
    moved = (weight.detach() - start).abs() / 1e-2
    assert moved[1::2].max() < 0.03 < 0.3 < moved[::2].median()


@pytest.mark.parametrize("kind", KINDS)
def test_moments_of_other_weights_or_of_another_kind_are_refused(kind: str) -> None:
    weights = some_weights()
    optimizer = Optimizer(replace(ADAM, optimizer=kind), weights)  # type: ignore[arg-type]
    walk(optimizer, weights, gradients(1))
    saved = optimizer.moments()
    fresh = Optimizer(replace(ADAM, optimizer=kind), some_weights())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="of no weight that is trained"):
        fresh.load({**saved, "step.other": torch.tensor(1.0)})
    key = next(key for key in saved if key.endswith("odd"))
    with pytest.raises(ValueError, match=f"no {key.split('.')[0]} of odd"):
        fresh.load({name: tensor for name, tensor in saved.items() if name != key})
    if find_spec("bitsandbytes") is not None:
        other = Optimizer(replace(ADAM, optimizer="adam8bit" if kind == "adam" else "adam"), some_weights())
        with pytest.raises(ValueError, match="of large, of shape"):
            other.load(saved)


def schedulers(adam: torch.optim.Optimizer, kind: Schedule, warm: int, total: int) -> LRScheduler:
    """What torch offers for it."""
    fall: LRScheduler = LinearLR(adam, start_factor=1.0, end_factor=1.0, total_iters=1)
    if kind == "linear":
        fall = LinearLR(adam, start_factor=1.0, end_factor=0.0, total_iters=total - warm)
    if kind == "cosine":
        fall = CosineAnnealingLR(adam, T_max=total - warm)
    rise = LinearLR(adam, start_factor=1 / warm, end_factor=1.0, total_iters=max(warm - 1, 1))
    return SequentialLR(adam, [rise, fall], [warm])


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
@pytest.mark.parametrize(("warm", "total"), [(1, 12), (4, 12), (11, 12)])
def test_rates_are_those_of_torchs_schedulers(kind: Schedule, warm: int, total: int) -> None:
    end = None if kind == "constant" else total
    config = Stage2Config(learning_rate=3e-4, warmup_updates=warm, schedule=kind, schedule_updates=end)
    adam = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=3e-4)
    scheduler = schedulers(adam, kind, warm, total)
    for update in range(total):
        assert learning_rate(config, update) == pytest.approx(adam.param_groups[0]["lr"], rel=1e-9), update
        adam.step()
        scheduler.step()


def test_rates_by_hand() -> None:
    linear = Stage2Config(learning_rate=1.0, warmup_updates=2, schedule="linear", schedule_updates=6)
    assert [learning_rate(linear, update) for update in range(6)] == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    cosine = Stage2Config(learning_rate=1.0, schedule="cosine", schedule_updates=3)
    assert [learning_rate(cosine, update) for update in range(3)] == pytest.approx([1.0, 0.75, 0.25])
    plain = Stage2Config(learning_rate=5e-6)
    assert {learning_rate(plain, update) for update in range(99)} == {5e-6}


def test_an_update_after_the_schedules_end_is_refused() -> None:
    config = Stage2Config(learning_rate=1.0, schedule="linear", schedule_updates=2)
    weights = some_weights()
    optimizer = Optimizer(config, weights)
    walk(optimizer, weights, gradients(2))
    with pytest.raises(UserError, match="ended after 2 updates, and this is update 3 .*--schedule-updates"):
        _ = optimizer.learning_rate


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "linear"}, "say how many there are .--schedule-updates"),
        ({"schedule_updates": 5}, "constant, which has no end"),
        ({"schedule": "cosine", "schedule_updates": 5, "warmup_updates": 5}, "expected more than the 5 of warmup"),
    ],
)
def test_a_schedule_that_is_not_whole_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_schedule(Stage2Config(**settings))  # type: ignore[arg-type]


def test_eight_bits_without_their_library_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="bitsandbytes is not installed: .pip install 'score-cli.adam8bit.'"):
        make_adam(SftConfig(optimizer="adam8bit"), [torch.zeros(1)])


def test_an_adapter_without_its_library_is_refused_before_anything_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="lora_rank is 8, but peft is not installed: .pip install 'score-cli.lora.'"):
        check_packages(Stage2Config(lora_rank=8))
    check_packages(Stage2Config())


@pytest.mark.parametrize("kind", KINDS)
def test_weight_decay_shrinks_weights_beside_the_step(kind: str) -> None:
    """Decoupled, as in AdamW: w - lr * decay * w - lr * g / |g|."""
    weight = torch.full((64, 64), 2.0, requires_grad=True)
    adam = make_adam(SftConfig(optimizer=kind, learning_rate=0.1), [weight], weight_decay=0.5)  # type: ignore[arg-type]
    weight.grad = torch.full((64, 64), 0.25)
    adam.step()
    assert weight.detach().flatten().tolist() == pytest.approx([2.0 - 0.1 * 0.5 * 2.0 - 0.1] * 4096, abs=1e-6)
    assert math.isclose(float(weight.detach().std()), 0.0, abs_tol=1e-6)
