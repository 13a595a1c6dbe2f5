"""What the paper reports on MATH with Gemini 1.5 Flash, decoded greedily; fractions.

Source: Kumar et al., ICLR 2025, arXiv 2409.12917; each row names its table.
"""

from typing import NamedTuple


class PaperRow(NamedTuple):
    """One line of a table; None where the table has no such column."""

    table: int
    acc_t1: float
    acc_t2: float
    delta: float
    i_to_c: float | None = None
    c_to_i: float | None = None

    def figures(self) -> dict[str, float]:
        """Names of the metrics table -> fractions."""
        named = {"acc@t1": self.acc_t1, "acc@t2": self.acc_t2, "delta@t2": self.delta}
        pairs = {"i_to_c@t2": self.i_to_c, "c_to_i@t2": self.c_to_i}
        return named | {name: value for name, value in pairs.items() if value is not None}


PAPER: dict[str, PaperRow] = {
    "base": PaperRow(2, 0.526, 0.414, -0.112, 0.046, 0.158),
    "self-refine": PaperRow(2, 0.528, 0.518, -0.010, 0.032, 0.042),
    "star": PaperRow(1, 0.554, 0.412, -0.142, 0.054, 0.196),
    "star-plus": PaperRow(1, 0.536, 0.540, 0.004, 0.026, 0.022),
    "pair-sft": PaperRow(1, 0.524, 0.542, 0.018, 0.054, 0.036),
    "pair-sft-plus": PaperRow(1, 0.550, 0.550, 0.0, 0.0, 0.0),
    "score": PaperRow(2, 0.600, 0.644, 0.044, 0.058, 0.014),
    "single-turn": PaperRow(4, 0.618, 0.594, -0.024),
    "no-stage1": PaperRow(4, 0.592, 0.614, 0.022),
    "no-shaping": PaperRow(4, 0.600, 0.626, 0.026),
    "star-for-stage2": PaperRow(4, 0.562, 0.584, 0.022),
    "no-online-first-attempts": PaperRow(4, 0.604, 0.606, 0.002),
}
