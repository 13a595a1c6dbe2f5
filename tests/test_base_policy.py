"""Training of the built-in base: which tokens are lessons, which optimiser moves what, same seed same weights."""

import random
from pathlib import Path

import pytest
import torch

from score_cli.config import BaseConfig
from score_cli.tasks import division
from score_cli.tasks.division_tokenizer import make_tokenizer
from score_cli.training.base_policy import (
    IGNORED,
    make_model,
    make_optimizers,
    train_base,
    transcript_tensors,
)
from score_cli.training.muon import Muon, orthogonal
from tests.conftest import ARCHITECTURES

TOKENIZER = make_tokenizer()

WRONG_FIRST = division.Transcript(
    "Divide 264 by 5. ",
    ("\\boxed{53}: product 265, remainder -01", "\\boxed{52}: product 260, remainder +04"),
    ("<fix>",),
    right_first=False,
)


def encode(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False))


def learned(transcript: division.Transcript, *, learn_wrong_guesses: bool) -> str:
    """The text of the tokens that have a label."""
    tokens, labels = transcript_tensors([transcript], encode, 0, learn_wrong_guesses=learn_wrong_guesses)
    kept = labels[0] != IGNORED
    assert (labels[0][kept] == tokens[0][kept]).all()
    return str(TOKENIZER.decode(tokens[0][kept]))


def test_attempts_are_learned_and_what_the_user_says_is_not() -> None:
    assert learned(WRONG_FIRST, learn_wrong_guesses=True) == (
        "\\boxed{53}: product 265, remainder -01<eos>\\boxed{52}: product 260, remainder +04<eos>"
    )


def test_a_careful_lesson_leaves_out_the_wrong_first_quotient_alone() -> None:
    assert learned(WRONG_FIRST, learn_wrong_guesses=False) == (
        "\\boxed{}: product 265, remainder -01<eos>\\boxed{52}: product 260, remainder +04<eos>"
    )
    right = WRONG_FIRST._replace(right_first=True)
    assert learned(right, learn_wrong_guesses=False) == learned(right, learn_wrong_guesses=True)


def test_labels_of_a_shorter_transcript_are_padded_and_ignored() -> None:
    rng = random.Random(0)
    problem = division.split_problems("train")[0]
    drawn = [division.draw_transcript(problem, rng, division.Corpus(), attempts) for attempts in (2, 3)]
    tokens, labels = transcript_tensors(drawn, encode, TOKENIZER.pad_token_id)
    assert tokens.shape == labels.shape == (2, 7 + 12 + 13 + 13)
    assert (tokens[0, 32:] == TOKENIZER.pad_token_id).all() and (labels[0, 32:] == IGNORED).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_parameter_is_moved_by_one_optimiser_and_embeddings_by_adamw(architecture: str) -> None:
    config = BaseConfig(architecture=architecture, width=32)  # type: ignore[arg-type]
    model = make_model(config, TOKENIZER)
    muon, adam = make_optimizers(model, config)
    by_adam = {id(p) for group in adam.param_groups for p in group["params"]}
    by_muon = {id(p) for p, _ in muon._matrices}
    assert not by_adam & by_muon
    for name, parameter in model.named_parameters():
        layer_matrix = parameter.ndim == 2 and (".h." in name or ".layers." in name)
        assert (id(parameter) in by_muon) == layer_matrix, name
        assert (id(parameter) in by_adam) != layer_matrix, name


def test_orthogonal_keeps_singular_vectors_and_brings_singular_values_near_one() -> None:
    matrices = (
        torch.randn(5, 16, 48, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 5)[:, None, None]
    )
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    turned = left.mT @ orthogonal(matrices) @ right.mT
    values = turned.diagonal(dim1=1, dim2=2)
    assert values.min() > 0.65 and values.max() < 1.25
    assert (turned - torch.diag_embed(values)).abs().max() < 1e-4


def test_muon_moves_a_tall_matrix_as_torch_does() -> None:
    """Torch iterates in bfloat16, so the two agree to about a hundredth of a step."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(48, 16, generator=generator)
    ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    muon = Muon([(ours, 1)])
    reference = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.0, momentum=0.95)
    for _ in range(3):
        ours.grad = torch.randn(48, 16, generator=generator)
        theirs.grad = ours.grad.clone()
        muon.step(0.1)
        reference.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.02 * moved


def test_a_wide_matrix_moves_as_its_transpose() -> None:
    gradient = torch.randn(16, 48, generator=torch.Generator().manual_seed(0))
    wide, tall = torch.zeros(16, 48, requires_grad=True), torch.zeros(48, 16, requires_grad=True)
    wide.grad, tall.grad = gradient, gradient.T.clone()
    Muon([(wide, 1), (tall, 1)]).step(0.1)
    torch.testing.assert_close(wide, tall.T)


def test_matrices_side_by_side_are_made_orthogonal_one_by_one() -> None:
    gradient = torch.randn(16, 48, generator=torch.Generator().manual_seed(0))
    # One of the three is far larger than the others; as one matrix it would drown them.
    gradient[:, :16] *= 1000
    together = torch.zeros(16, 48, requires_grad=True)
    together.grad = gradient
    Muon([(together, 3)]).step(1.0)
    for part, own in zip(together.detach().chunk(3, 1), gradient.chunk(3, 1), strict=True):
        alone = torch.zeros(16, 16, requires_grad=True)
        alone.grad = own.clone()
        Muon([(alone, 1)]).step(1.0)
        torch.testing.assert_close(part, alone.detach())


def test_the_same_seed_gives_the_same_base_and_another_seed_another(tmp_path: Path) -> None:
    bases = [
        train_base(BaseConfig(width=16, heads=2, steps=4, batch_size=8, threads=1, seed=seed), out=tmp_path / name)
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    ]
    first, again, other = (base.state.fingerprint for base in bases)
    assert first == again != other
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
