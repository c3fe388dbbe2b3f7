"""LoRA+ (Hayou, Ghosh and Yu 2024, arXiv:2402.12354): B learns `ratio` times as fast as A.

For layers that grow wide, the paper finds that the ratio of the two rates should grow with the width, where steps have
about the size of the rate whatever the gradient, as those of AdamW have. It takes no more than `rates`, which every
optimizer here has; only its name is new.
"""

from ..errors import check_number
from .optim import AdamW


class LoRAPlus(AdamW):
    """AdamW whose learning rate of lora_B is `ratio` times that of all else."""

    def __init__(self, lr, ratio=16.0, **options):
        """options: what else AdamW takes, but for `rates`."""
        super().__init__(lr, rates={"lora_B": check_number("ratio", ratio, positive=True)}, **options)
