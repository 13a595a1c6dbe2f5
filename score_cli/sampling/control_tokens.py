"""Keeping text that only looks like a control token from becoming one.

A question may spell `<|im_end|>`: encoded carelessly it would end the user's turn, and what follows
would speak as somebody else. Control tokens are the template's to write.
"""

import json
import re
from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

# Private use, the last one of all: text holds it about never, and another is taken where it does.
_LAST_PRIVATE = 0x10FFFD


class ControlTokens:
    """The tokens that structure a conversation, and a way to encode text that spells them as mere text.

    They are the tokenizer's special tokens (but for the unknown token), the stop tokens, and the
    added tokens that the chat template speaks of, such as `<think>`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_ids: Iterable[int]) -> None:
        stops, template = set(stop_ids), str(tokenizer.chat_template or "")
        self._ids: dict[str, int] = {
            token.content: index
            for index, token in tokenizer.added_tokens_decoder.items()
            # Some tokenizers add runs of spaces, which any template holds: those are text.
            if token.special or index in stops or (token.content.strip() and token.content in template)
        }
        self._ids.pop(str(tokenizer.unk_token), None)
        self._known = frozenset(self._ids.values())
        self._tokenizer = tokenizer
        # Longest first, as the tokenizer reads them.
        self._names = sorted(self._ids, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, self._names)) or "(?!)")
        self._copies: dict[str, Tokenizer] = {}

    def among(self, tokens: Iterable[int]) -> list[int]:
        """The control tokens among some tokens, in order."""
        return [token for token in tokens if token in self._known]

    def mark_for(self, text: str) -> str:
        """A character that the text does not hold, to hide control tokens behind."""
        return next(mark for mark in map(chr, range(_LAST_PRIVATE, 0, -1)) if mark not in text)

    def hide(self, text: str, mark: str) -> str:
        """The text with numbers in place of the control tokens it spells; a template can be put around it."""
        return self._pattern.sub(lambda found: f"{mark}{self._names.index(found[0])}{mark}", text)

    def without(self, text: str) -> str:
        """The text without the control tokens it spells, nor any that their neighbours would then spell."""
        while (shorter := self._pattern.sub("", text)) != text:
            text = shorter
        return text

    def encode_hidden(self, text: str, mark: str, *, add_special_tokens: bool = False) -> list[int]:
        """Encode text of which parts went through `hide`: these as they were, as text; the rest as ever.

        Only a fast tokenizer can.
        """
        if mark not in self._copies:
            self._copies[mark] = self._copy(mark)
        copy = self._copies[mark]
        # One pass from the left, in which marks come in pairs.
        either = re.compile(f"{mark}([0-9]+){mark}|{self._pattern.pattern}")
        renamed = either.sub(
            lambda found: self._names[int(found[1])] if found[1] else _live(self._names.index(found[0]), mark), text
        )
        encoded = copy.encode(renamed, add_special_tokens=add_special_tokens).ids
        back = {copy.token_to_id(_live(index, mark)): self._ids[name] for index, name in enumerate(self._names)}
        return [back.get(token, token) for token in encoded]

    def _copy(self, mark: str) -> Tokenizer:
        """The tokenizer, with the control tokens' own names dead and new names alive in their stead."""
        content = json.loads(self._tokenizer.backend_tokenizer.to_str())
        flags = {token["content"]: token for token in content["added_tokens"]}
        for token in content["added_tokens"]:
            token["special"] = token["special"] or token["content"] in self._ids
        copy = Tokenizer.from_str(json.dumps(content))
        copy.no_truncation()
        copy.no_padding()
        copy.encode_special_tokens = True  # special tokens found in text are text
        copy.add_tokens(
            [
                AddedToken(
                    _live(index, mark),
                    special=False,
                    normalized=False,
                    **{key: flags[name][key] for key in ("single_word", "lstrip", "rstrip")},
                )
                for index, name in enumerate(self._names)
            ]
        )
        return copy


def _live(index: int, mark: str) -> str:
    """The new name of a control token."""
    return f"{mark}t{index}{mark}"
