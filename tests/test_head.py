"""The head by itself, chunk by chunk, against the model's own forward pass and autograd, for every kind of head."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from score_cli.errors import UserError
from score_cli.tables import device
from score_cli.tables.records import Trace
from score_cli.training import logprobs
from score_cli.training.batching import MicroBatch, micro_batches
from score_cli.training.gradients import Gradients
from score_cli.training.head import Head
from score_cli.training.logprobs import Scores, TokenLoss, add_gradient

VOCABULARY, TEMPERATURE = 61, 0.7
SMALL = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
# Name, settings, and what stands behind the head: a factor, a cap.
HEADS = {
    "gpt2": ("GPT2", {"n_embd": 24, "n_layer": 2, "n_head": 4}, (1.0, None)),
    "llama": ("Llama", SMALL, (1.0, None)),
    "llama-tied": ("Llama", SMALL | {"tie_word_embeddings": True}, (1.0, None)),
    "qwen2": ("Qwen2", SMALL, (1.0, None)),
    "qwen3": ("Qwen3", SMALL, (1.0, None)),
    "phi-bias": ("Phi", SMALL, (1.0, None)),
    "phi3": ("Phi3", SMALL, (1.0, None)),
    "gemma2": ("Gemma2", SMALL | {"final_logit_softcapping": 5.0}, (1.0, 5.0)),
    "gemma3": ("Gemma3", SMALL | {"final_logit_softcapping": 3.0}, (1.0, 3.0)),
    "gemma3-uncapped": ("Gemma3", SMALL, (1.0, None)),
    "cohere": ("Cohere", SMALL | {"logit_scale": 0.25}, (0.25, None)),
    "opt": ("OPT", SMALL | {"ffn_dim": 40, "word_embed_proj_dim": 24}, (1.0, None)),
    "bloom": ("Bloom", {"hidden_size": 24, "n_layer": 2, "n_head": 4}, (1.0, None)),
    "mistral-sliding": ("Mistral", SMALL | {"sliding_window": 4}, (1.0, None)),
    "granite": ("Granite", SMALL | {"logits_scaling": 7.0}, (1 / 7, None)),
}


def make(kind: str, seed: int = 0) -> PreTrainedModel:
    """A model of random weights, large enough for its distributions not to be flat."""
    name, settings, _ = HEADS[kind]
    torch.manual_seed(seed)
    base = f"{name}Text" if name == "Gemma3" else name
    config = getattr(transformers, f"{base}Config")(vocab_size=VOCABULARY, attn_implementation="eager", **settings)
    model: PreTrainedModel = getattr(transformers, f"{name}ForCausalLM" if name != "GPT2" else "GPT2LMHeadModel")(
        config
    )
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * (0.3 if parameter.dim() > 1 else 0.2) + (parameter.dim() == 1)
    return model.double().eval()


def make_batch(vocabulary: int = VOCABULARY, repeats: int = 1) -> MicroBatch:
    """Traces of three lengths, their attempts too: 19 sampled tokens and as many more for each repetition."""
    numbers = np.random.default_rng(0)
    traces = []
    for first, second in ((3, 5), (6, 1), (2, 2)) * repeats:
        owners = [0] * 4 + [1] * first + [0] * 2 + [2] * second
        tokens = numbers.integers(1, vocabulary, len(owners)).astype(np.int32)
        logs = np.zeros(len(owners), dtype=np.float32)
        traces.append(Trace("p", 0, ["", ""], ["stop"] * 2, tokens, np.array(owners, dtype=np.int8), logs, 0))
    return next(micro_batches(traces, 10_000))


def naive(model: PreTrainedModel, batch: MicroBatch) -> Tensor:
    """[B, P, V] log-probabilities by the model's own forward pass over each trace by itself; flat after its end."""
    found = []
    for tokens in batch.token_ids:
        alone = tokens[tokens > 0][None]
        logits = model(input_ids=alone, attention_mask=torch.ones_like(alone), use_cache=False).logits[0]
        missing = len(tokens) - len(logits)
        found.append(torch.cat([logits, logits.new_zeros(missing, VOCABULARY)])[batch.positions - 1])
    return (torch.stack(found) / TEMPERATURE).log_softmax(-1)


def weights_of(batch: MicroBatch) -> tuple[Tensor, Tensor]:
    """What each token's logprob and divergence count for, [B, P]; 0 where none was sampled."""
    torch.manual_seed(5)
    shape = batch.sampled_attempt_ids.shape
    taken = batch.sampled_attempt_ids > 0
    return torch.randn(shape).double() * taken, torch.rand(shape).double() * taken


def loss_of(batch: MicroBatch) -> Callable[[TokenLoss], Tensor]:
    """By attempt: sum of weighted logprobs, of weighted squares of them, and of weighted divergences."""
    pulls, charges = (weights.flatten() for weights in weights_of(batch))
    owners = batch.sampled_attempt_ids.flatten()

    def loss(tokens: TokenLoss) -> Tensor:
        values = pulls[tokens.places] * (tokens.logprobs + 0.1 * tokens.logprobs**2)
        if tokens.divergence is not None:
            values = values + charges[tokens.places] * tokens.divergence
        return torch.stack([(values * (owners[tokens.places] == attempt)).sum() for attempt in (1, 2)])

    return loss


def exact(model: PreTrainedModel, reference: PreTrainedModel, batch: MicroBatch) -> tuple[Scores, list[Tensor]]:
    """The same scores, and the loss of each attempt, by whole distributions."""
    own, other = naive(model, batch), naive(reference, batch).detach()
    tokens = batch.token_ids[:, batch.positions][..., None]
    scores = Scores(
        own.gather(-1, tokens)[..., 0],
        -(own.exp() * own).sum(-1),
        (own.exp() * (own - other)).sum(-1),
        other.gather(-1, tokens)[..., 0],
    )
    pulls, charges = weights_of(batch)
    values = pulls * (scores.logprobs + 0.1 * scores.logprobs**2) + charges * scores.divergence
    return scores, [values[batch.sampled_attempt_ids == attempt].sum() for attempt in (1, 2)]


def gradients(model: PreTrainedModel) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


def check(model: PreTrainedModel, reference: PreTrainedModel, parts: int) -> None:
    """Scores, gradient and the norms of its parts are those of the naive way."""
    batch = make_batch()
    added = Gradients(model, parts)
    found = add_gradient(Head(model), batch, TEMPERATURE, loss_of(batch), added, reference=Head(reference))
    norms = added.finish()
    ours = gradients(model)
    model.zero_grad()
    scores, by_attempt = exact(model, reference, batch)
    expected_norms = []
    for loss in by_attempt:
        each = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True, materialize_grads=True)
        expected_norms.append(torch.nn.utils.get_total_norm(each).item())
    sum(by_attempt).backward()  # type: ignore[union-attr]
    taken = batch.sampled_attempt_ids > 0
    for own, other in zip(found, scores, strict=True):
        assert own is not None and other is not None
        assert (own - other)[taken].abs().max() < 1e-12
        assert (own[~taken] == 0).all() and not taken.all()
    assert scores.divergence is not None and scores.divergence[taken].mean() > 0.05
    theirs = gradients(model)
    largest = max(each.abs().max().item() for each in theirs)
    assert largest > 0.1
    # Norms compute in float32 whatever they are given, and another shape is rounded otherwise there.
    assert max((a - b).abs().max() for a, b in zip(ours, theirs, strict=True)) < 1e-6 * largest
    if parts > 1:
        assert norms == pytest.approx(expected_norms, rel=1e-8)


@pytest.fixture(autouse=True)
def chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of five tokens, gone through two at a time."""
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", {"cpu": 5 * VOCABULARY})
    monkeypatch.setattr(logprobs, "BLOCK_ELEMENTS", {"cpu": 2 * VOCABULARY})


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("kind", HEADS)
def test_a_head_in_chunks_is_the_models_own(kind: str, parts: int) -> None:
    model = make(kind)
    layer, scale, cap = Head(model)._kind  # type: ignore[misc]
    assert (layer, scale, cap) == (model.get_output_embeddings(), pytest.approx(HEADS[kind][2][0]), HEADS[kind][2][1])
    check(model, make(kind, seed=1), parts)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_head_that_is_not_known_is_left_to_the_model(monkeypatch: pytest.MonkeyPatch, parts: int) -> None:
    """Logits that the model bends after its head, and a head that is a layer of another kind."""

    def bent(model: PreTrainedModel) -> PreTrainedModel:
        real = model.forward

        def forward(**given: object) -> SimpleNamespace:
            logits = real(**given).logits
            return SimpleNamespace(logits=logits + 0.1 * logits.abs())

        monkeypatch.setattr(model, "forward", forward)
        return model

    class Other(torch.nn.Linear):
        def forward(self, hidden: Tensor) -> Tensor:
            return super().forward(hidden).sin()

    model, reference = make("llama"), bent(make("llama", seed=1))
    model.lm_head = Other(24, VOCABULARY).double()
    assert Head(model)._kind is None and Head(reference)._kind is None
    check(model, reference, parts)
    check(reference, model, parts)


def test_a_frozen_head_and_a_frozen_body_get_no_gradient() -> None:
    for frozen in ("lm_head.weight", "model."):
        model = make("llama")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(frozen))
        batch = make_batch()
        add_gradient(Head(model), batch, TEMPERATURE, loss_of(batch), Gradients(model))
        for name, parameter in model.named_parameters():
            assert (parameter.grad is None) == name.startswith(frozen)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3", "gemma2"])
def test_checkpointing_gives_the_same_gradient_to_the_bit_from_less_memory(kind: str, parts: int) -> None:
    batch, found, kept = make_batch(), [], []
    for checkpointing in (False, True):
        model, held = make(kind), {}

        def keep(tensor: Tensor, held: dict[int, int] = held) -> Tensor:
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        added = Gradients(model, parts)
        head = Head(model, checkpointing=checkpointing)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            add_gradient(head, batch, TEMPERATURE, loss_of(batch), added)
        found.append([*added.finish(), *gradients(model)])
        kept.append(sum(size for place, size in held.items() if place not in weights))
        assert not any("forward" in vars(module) for module in model.modules())
    assert max(each.abs().max() for each in found[0][-3:]) > 0.1
    assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(*found, strict=True))
    assert kept[1] < 0.5 * kept[0]


def test_checkpointing_is_refused_where_a_model_has_no_layers_that_it_knows() -> None:
    with pytest.raises(UserError, match="gradient checkpointing knows no layers of Linear"):
        Head(torch.nn.Linear(2, 2), checkpointing=True)  # type: ignore[arg-type]


class Largest(TorchDispatchMode):
    """The most numbers that a tensor made within the block holds, of those of some width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.numbers = width, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else [result]:
            if isinstance(each, Tensor) and self.width in each.shape:
                self.numbers = max(self.numbers, each.numel())
        return result


@pytest.mark.parametrize("in_bfloat16", [False, True])
def test_no_tensor_of_tokens_times_vocabulary_is_ever_made(monkeypatch: pytest.MonkeyPatch, in_bfloat16: bool) -> None:
    """Neither in training with exact KL nor in scoring; there are fewer weights than logits here."""
    if in_bfloat16:
        monkeypatch.setattr(device, "BFLOAT16_DEVICES", {"cpu"})
    vocabulary, model = 5003, make("llama", seed=0).float()
    model.resize_token_embeddings(vocabulary)
    model.lm_head.weight.data.normal_()
    batch = make_batch(vocabulary, repeats=3)
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", {"cpu": 3 * vocabulary})
    head = Head(model)
    weights = model.lm_head.weight.numel()
    with Largest(vocabulary) as seen:
        add_gradient(head, batch, TEMPERATURE, loss_of(batch), Gradients(model), reference=Head(model))
        logprobs.batch_logprobs(head, batch, TEMPERATURE)
    assert seen.numbers <= max(3 * vocabulary, weights) < len(batch.places) * vocabulary
