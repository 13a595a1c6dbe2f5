r"""When to ask math-verify about an answer that the project's own grammar does not decide.

math-verify reads whatever it can find in a text and drops the rest, which is how `\csname 5\endcsname6` becomes 5.
So it is asked only where the text is mathematics of a kind it knows and the grammar here does not (sums, integrals,
limits, ...), or where both texts were understood and their values could not be computed.
"""

import re

from score_cli.verification.math.quick import readings
from score_cli.verification.math.tokens import canonical_characters, strip_wrapping, word_set

MAX_ALGEBRA_CHARS = 600
_BEYOND = word_set(
    "int iint sum prod lim det cdots ldots dots to rightarrow partial nabla cap bigcap subset subseteq notin forall "
    "exists equiv bmod pmod cases aligned Re Im arg gcd lcm deg perp parallel implies Rightarrow iff leftrightarrow "
    "max min sup inf cong sim circ neg"
)
_PLAIN = word_set(
    "frac dfrac tfrac sqrt cdot times div pm mp le leq ge geq lt gt ne neq in infty pi left right text mathrm mbox "
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp binom alpha beta gamma delta epsilon "
    "theta lambda mu nu xi rho sigma tau phi varphi psi omega Delta Omega cup setminus mid begin end emptyset "
    "varnothing quad qquad overline lfloor rfloor lceil rceil operatorname mathbb mathbf lvert rvert degree"
)
_COMMAND = re.compile(r"\\([a-zA-Z]+)")
_FORBIDDEN = re.compile(r"[$?@#\"`\x00-\x08\x0e-\x1f\ud800-\udfff]|__|\\\\\\|\d_|\w{4,}\(")
_TEXT_GROUP = re.compile(r"\\(?:text|mathrm|mbox|operatorname|begin|end)\s*\{[^{}]*\}")
_LONG_RUN = re.compile(r"(?<!\\)(?<![A-Za-z])[A-Za-z]{4,}")


def may_ask_math_verify(answer: str, gold: str) -> bool:
    """Whether math-verify's word that these agree can be believed."""
    understood = bool(readings(answer)), bool(readings(gold))
    beyond = [_beyond_grammar(text) for text in (answer, gold)]
    if None in beyond:
        return False
    if all(understood):
        return True
    # A text that is neither understood nor of a known further kind is junk or prose, whatever it contains.
    return all(known or further for known, further in zip(understood, beyond, strict=True))


def _beyond_grammar(text: str) -> bool | None:
    """Whether a text uses mathematics beyond the grammar; None where it holds anything that is not mathematics."""
    text = canonical_characters(strip_wrapping(text))
    if len(text) > MAX_ALGEBRA_CHARS or _FORBIDDEN.search(text):
        return None
    commands = set(_COMMAND.findall(text))
    if commands - _PLAIN - _BEYOND or _LONG_RUN.search(_TEXT_GROUP.sub(" ", text)):
        return None
    return bool(commands & _BEYOND) or "{vmatrix}" in text or "{cases}" in text
