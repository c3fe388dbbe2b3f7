"""Time and peak memory of lorabook beside PEFT, beside full fine-tuning, and beside what the machine can do at all.

`turns` runs the sides, each in a process of its own, step by step in turn; `ours` and `theirs` are what they run.
`products` lists the matrix products that a step needs, and `gemm` times them: the ceiling. Only ratios of one run mean
anything.
"""

from .case import SIX, Case
from .products import products
from .turns import compare

__all__ = ["SIX", "Case", "compare", "products"]
