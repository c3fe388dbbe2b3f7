"""Where the factors of an update start, one start a file; `table` has them all, and what each needs.

`drawn` is random. `pissa` and `olora` take the first factors out of the base weight, which `residual` holds until
`unload`, and which `plain` writes as a LoRA of twice the rank; `orthogonal` and `mica` leave it alone.
"""

from .drawn import initial_factors, uniform
from .plain import as_plain
from .residual import Residual, original
from .table import INITIALISATIONS, STARTS, begin, check_initialisation, check_start, moves_base

__all__ = [
    "INITIALISATIONS",
    "STARTS",
    "Residual",
    "as_plain",
    "begin",
    "check_initialisation",
    "check_start",
    "initial_factors",
    "moves_base",
    "original",
    "uniform",
]
