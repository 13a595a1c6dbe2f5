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
from score_cli.sampling.control_tokens import ControlTokens
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


class TaskRenderer:
    """Turns problems of one task into prompt tokens, and knows the task's bridge and stop tokens.

    The first user turn never holds control tokens, whatever it spells; the system prompt and the
    correction are the recipe's own words and are encoded as they stand.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, prompts: Prompts) -> None:
        self._tokenizer = tokenizer
        self._prompts = prompts
        between, at_the_end = self._text_after_attempts()
        stops = _stop_tokens(tokenizer, model)
        # Some templates put a space between an attempt and the token that ends its turn; the policy never writes it.
        unspaced = self._encode(between.lstrip())
        if unspaced and (unspaced[0] in stops or unspaced[0] in self._turn_ends(at_the_end)):
            stops.add(unspaced[0])
            self.bridge = Bridge(unspaced[:1], unspaced[1:])
        elif tokenizer.eos_token_id is not None:
            self.bridge = Bridge([tokenizer.eos_token_id], self._encode(between))
        else:
            raise UserError("the tokenizer has no end-of-sequence token, so no attempt could end: set eos_token")
        self.stop_ids = frozenset(stops)
        self._control = ControlTokens(tokenizer, stops)
        # The control tokens of every prompt: those that the template writes around any question.
        self._frame = self._control.among(self._encode_turn("x"))

    def prompt(self, first_turn: str) -> list[int]:
        """Tokens of the first user turn, up to where the model starts to write.

        Raises:
            UserError: the turn spells a control token, and the tokenizer has no other way to write it.
        """
        tokens = self._encode_turn(first_turn)
        if self._control.among(tokens) == self._frame:
            return tokens
        mark = self._control.mark_for(first_turn + self._first_turn("x"))
        if self._tokenizer.is_fast:
            text = self._first_turn(self._control.hide(first_turn, mark))
            whole = self._tokenizer.chat_template is None
            tokens = self._control.encode_hidden(text, mark, add_special_tokens=whole)
        if self._control.among(tokens) != self._frame:
            raise UserError(
                "the question spells a control token, which this tokenizer cannot write as plain text: "
                "leave the problem out, or spell the token otherwise"
            )
        return tokens

    def text(self, token_ids: list[int]) -> str:
        """The text of sampled tokens, without the stop token that may end them."""
        if token_ids and token_ids[-1] in self.stop_ids:
            token_ids = token_ids[:-1]
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _opening(self) -> list[dict[str, str]]:
        system = self._prompts.system
        return [] if system is None else [{"role": "system", "content": system}]

    def _first_turn(self, content: str) -> str:
        """The prompt's text around a user's words."""
        if self._tokenizer.chat_template is None:
            return content
        return self._render([*self._opening(), _user(content)])

    def _encode_turn(self, content: str) -> list[int]:
        if self._tokenizer.chat_template is None:
            return list(self._tokenizer.encode(content, add_special_tokens=True))
        return self._encode(self._first_turn(content))

    def _render(self, messages: list[dict[str, str]], *, ask: bool = True) -> str:
        """The template's text of some messages; with `ask`, up to where the model starts to write."""
        try:
            return self._apply_template(messages, ask)
        except jinja2.TemplateError as error:
            raise UserError(
                f"the chat template cannot be rendered ({error}): use a tokenizer whose template can"
            ) from None

    def _apply_template(self, messages: list[dict[str, str]], ask: bool) -> str:
        rendered = self._tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=ask,
            # Templates that tell the date would put the clock into the traces.
            strftime_now=lambda form: TEMPLATE_DATE.strftime(form),
        )
        return str(rendered)

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _text_after_attempts(self) -> tuple[str, str]:
        """What the template writes after an attempt: before the next one, and where nothing follows."""
        if self._tokenizer.chat_template is None:
            return f"\n\n{self._prompts.correction}\n\n", ""
        self._check_system()
        words = f"{self._prompts.system}{self._prompts.correction}{self._tokenizer.chat_template}"
        sentinel = _SENTINEL
        while sentinel in words:
            sentinel += _SENTINEL[-1]
        turns = [*self._opening(), _user("question"), {"role": "assistant", "content": sentinel}]
        rendered = self._render([*turns, _user(self._prompts.correction)])
        if rendered.count(sentinel) != 1:
            raise UserError(
                "the chat template does not repeat an assistant turn exactly once, so no second attempt can follow it: "
                "use a tokenizer whose template shows earlier turns"
            )
        return rendered.split(sentinel)[1], self._render(turns, ask=False).split(sentinel)[-1]

    def _check_system(self) -> None:
        """See that the template takes the system prompt, where the prompts have one.

        Raises:
            UserError: it refuses system turns, or leaves them out.
        """
        system = self._prompts.system
        if system is None:
            return
        advice = "leave the system prompt out, and put its words before {question} in `first`"
        plain = self._render([_user("question")])
        try:
            rendered = self._apply_template([*self._opening(), _user("question")], True)
        except jinja2.TemplateError as error:
            raise UserError(f"the chat template takes no system prompt ({error}): {advice}") from None
        if system.strip() not in rendered or rendered == plain:
            raise UserError(f"the chat template leaves the system prompt out of the conversation: {advice}")

    def _turn_ends(self, at_the_end: str) -> set[int]:
        """The token that ends an assistant's turn though nothing names it as a stop, such as <|im_end|>.

        A token that only opens the next user's turn does not follow the last turn of a conversation.
        """
        special = {index for index, token in self._tokenizer.added_tokens_decoder.items() if token.special}
        special |= set(self._tokenizer.all_special_ids)
        special -= {self._tokenizer.unk_token_id, self._tokenizer.bos_token_id}
        return special & set(self._encode(at_the_end.lstrip())[:1])


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def _stop_tokens(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> set[int]:
    """Every end-of-sequence id that the model or its tokenizer names."""
    found: set[int] = set()
    for source in (getattr(model, "generation_config", None), model.config, tokenizer):
        ids = getattr(source, "eos_token_id", None)
        found.update(ids if isinstance(ids, list) else [] if ids is None else [ids])
    return found
