"""The gradient of an adapter's weights, in expectation over every batch, against the exact one.

The policy of `enumeration.py` as a linear layer with an adapter of peft's: states are rows of W + s B A, and go through
its head. The exact gradient of the table is brute force, and the chain rule by hand carries it to A and B.
"""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from score_cli.tables.adapters import adapter_parameters, lora_config, with_adapter
from tests import enumeration as tiny
from tests.conftest import take_gradient
from tests.test_objectives import ALPHA, CASES, config_of, kl_of

RANK, LORA_ALPHA = 1, 3.0
A, B = "rows.lora_A.default.weight", "rows.lora_B.default.weight"


class LinearPolicy(nn.Module):
    """A table of states as a linear layer over prefixes, and its head; called as a transformers model is."""

    def __init__(self, policy: tiny.TablePolicy) -> None:
        super().__init__()
        assert policy.head is not None
        self.rows = nn.Linear(*policy.table.shape, bias=False, dtype=torch.float64)
        self.rows.weight.data.copy_(policy.table.detach().t())
        self.head = policy.head
        self.device = torch.device("cpu")

    def get_output_embeddings(self) -> nn.Linear:
        return self.head

    def forward(self, *, input_ids: Tensor, logits_to_keep: Tensor, **_: object) -> SimpleNamespace:
        codes = torch.ones_like(input_ids[:, 0])
        columns = []
        for position in range(input_ids.shape[1]):
            codes = codes * 2 + input_ids[:, position]
            columns.append(codes % self.rows.in_features)
        prefixes = torch.stack(columns, 1)[:, logits_to_keep]
        states = self.rows(nn.functional.one_hot(prefixes, self.rows.in_features).double())
        return SimpleNamespace(logits=self.head(states))


def adapted(moved: bool) -> tuple[LinearPolicy, LinearPolicy, tiny.TablePolicy, tiny.TablePolicy]:
    """A model with an adapter and its base; and the tables of states that the two amount to, by hand.

    Args:
        moved: whether training has moved the adapter; a fresh one has B = 0.
    """
    before = tiny.TablePolicy(2)
    base = LinearPolicy(before)
    model = with_adapter(base, lora_config(base, rank=RANK, alpha=LORA_ALPHA, targets="all-linear"), seed=1)  # type: ignore[arg-type]
    weights = adapter_parameters(model)
    assert set(weights) == {A, B} and not weights[B].any()
    weights[A].data.mul_(20)
    if moved:
        weights[B].data.copy_(torch.tensor([[0.7], [-0.4], [0.2]], dtype=torch.float64))
    after = copy.deepcopy(before)
    after.table.data = before.table.data + LORA_ALPHA / RANK * (weights[B] @ weights[A]).detach().t()
    return model, base, after, before  # type: ignore[return-value]


MOVED = [pytest.param(case, True, id="-".join(map(str, case))) for case in CASES]
FRESH = [pytest.param(case, False, id="-".join(map(str, ("fresh", *case)))) for case in CASES if case[1] == 0.5]


@pytest.mark.parametrize(("case", "moved"), [*MOVED, *FRESH])
def test_an_adapters_expected_gradient_is_the_exact_gradient(case: tuple[str, float, str, str], moved: bool) -> None:
    stage, discount, _, kl = case
    model, base, after, before = adapted(moved)
    weights = adapter_parameters(model)
    found = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for probability, drawn in tiny.batches(after, {"p": 2}):
        attempts = [tiny.trajectories()[number] for _, number in drawn]
        traces = [tiny.make_trace(after, "p", index, *pair) for index, pair in enumerate(attempts)]
        rewards = [[tiny.is_right("p", y) for y in pair] for pair in attempts]
        model.zero_grad()
        take_gradient(model, base, traces, torch.tensor(rewards, dtype=torch.float64), config_of(*case))
        for name, weight in weights.items():
            found[name] += probability * weight.grad
    exact_gradient = tiny.exact_gradient(
        after, before, stage=stage, alpha=ALPHA, kl_coefficients=kl_of(stage), discount=discount, kl=kl
    )
    table = exact_gradient[: after.table.numel()].view_as(after.table)
    scale = LORA_ALPHA / RANK
    exact = {A: scale * weights[B].t() @ table.t(), B: scale * table.t() @ weights[A].t()}
    assert exact[B].abs().max() > 1e-3 and bool(exact[A].any()) == moved
    for name in (A, B):
        assert (found[name] - exact[name]).abs().max() < 1e-8
    assert base.rows.weight.grad is None and base.head.weight.grad is None
