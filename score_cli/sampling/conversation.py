"""The tokens of a conversation that are not sampled: the prompt, and the bridge between attempts.

    prompt, y1, bridge, y2, bridge, y3 ...      one strictly growing sequence, never re-encoded

The bridge is whatever the chat template puts between an attempt and the next generation prompt.
It is found once, by rendering a conversation around a sentinel and keeping what follows it, so a
template that trims or strips earlier turns cannot change tokens that were already sampled.
"""

import datetime
from typing import NamedTuple

import jinja2
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from score_cli.errors import UserError
from score_cli.tables.schemas import STOP
from score_cli.tasks.prompts import Prompts

_SENTINEL = "ATTEMPTTEXT"
# The day that Llama 3's own template names where it is told none.
TEMPLATE_DATE = datetime.date(2024, 7, 26)


class Bridge(NamedTuple):
    """What stands between an attempt and the next generation prompt.

    `end_of_turn` closes the attempt's turn; a model that stopped has sampled it, a truncated one
    has not. `rest` is the correction request and the opening of the next turn.
    """

    end_of_turn: list[int]
    rest: list[int]

    def after(self, finish_reason: str) -> list[int]:
        """The context tokens that follow an attempt, so that its turn ends exactly once."""
        return self.rest if finish_reason == STOP else self.end_of_turn + self.rest


class ConversationTokens:
    """Turns problems of one task into prompt tokens, and knows the task's bridge and stop tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, prompts: Prompts) -> None:
        self._tokenizer = tokenizer
        self._prompts = prompts
        text = self._text_between_attempts()
        tail = self._encode(text)
        stops = _stop_tokens(tokenizer, model)
        # Some templates put a space between an attempt and the token that ends its turn; the policy never writes it.
        unspaced = self._encode(text.lstrip())
        if unspaced and unspaced[0] in stops | _template_ends(tokenizer):
            stops.add(unspaced[0])
            self.bridge = Bridge(unspaced[:1], unspaced[1:])
        elif tokenizer.eos_token_id is not None:
            self.bridge = Bridge([tokenizer.eos_token_id], tail)
        else:
            raise UserError("the tokenizer has no end-of-sequence token, so no attempt could end: set eos_token")
        self.stop_ids = frozenset(stops)

    def prompt(self, first_turn: str) -> list[int]:
        """Tokens of the first user turn, up to where the model starts to write."""
        if self._tokenizer.chat_template is None:
            return list(self._tokenizer.encode(first_turn, add_special_tokens=True))
        return self._encode(self._render([*self._opening(), _user(first_turn)]))

    def text(self, token_ids: list[int]) -> str:
        """The text of sampled tokens, without the stop token that may end them."""
        if token_ids and token_ids[-1] in self.stop_ids:
            token_ids = token_ids[:-1]
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _opening(self) -> list[dict[str, str]]:
        system = self._prompts.system
        return [] if system is None else [{"role": "system", "content": system}]

    def _render(self, messages: list[dict[str, str]]) -> str:
        try:
            rendered = self._tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=True,
                # Templates that tell the date would put the clock into the traces.
                strftime_now=lambda form: TEMPLATE_DATE.strftime(form),
            )
        except jinja2.TemplateError as error:
            raise UserError(
                f"the chat template cannot be rendered ({error}): use a tokenizer whose template can"
            ) from None
        return str(rendered)

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _text_between_attempts(self) -> str:
        if self._tokenizer.chat_template is None:
            return f"\n\n{self._prompts.correction}\n\n"
        turns = [_user("question"), {"role": "assistant", "content": _SENTINEL}, _user(self._prompts.correction)]
        rendered = self._render([*self._opening(), *turns])
        if rendered.count(_SENTINEL) != 1:
            raise UserError(
                "the chat template does not repeat an assistant turn exactly once, so no second attempt can follow it: "
                "use a tokenizer whose template shows earlier turns"
            )
        return rendered.split(_SENTINEL)[1]


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def _template_ends(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Special tokens with which a chat template could end a turn, such as <|im_end|>, listed as a stop or not."""
    if tokenizer.chat_template is None:
        return set()
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return (added | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id, tokenizer.bos_token_id}


def _stop_tokens(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> set[int]:
    """Every end-of-sequence id that the model or its tokenizer names."""
    found: set[int] = set()
    for source in (getattr(model, "generation_config", None), model.config, tokenizer):
        ids = getattr(source, "eos_token_id", None)
        found.update(ids if isinstance(ids, list) else [] if ids is None else [ids])
    return found
