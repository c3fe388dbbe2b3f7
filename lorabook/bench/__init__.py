"""Time and peak memory of lorabook beside PEFT, beside full fine-tuning, and beside what the machine can do at all.

`turns` runs the sides, each in a process of its own, step by step in turn; `ours` and `theirs` are what they run.
`step_products` lists the matrix products that a step needs, and `gemm` times them: the ceiling. Only ratios of one run
mean anything.
"""

from .. import lazily

FILES = ("series",)  # that others use as they are
HOMES = {
    "answers": ("AnswersCase", "answer_rows", "compare_answers"),
    "case": ("BLOCK_1024", "Case", "SIX"),
    "decoder": ("SEVEN", "SMOLLM2"),
    "gemm": ("Gemm",),
    "hardware": ("machine", "versions"),
    "ours": ("lora",),
    "selftest_cases": ("FUNCTIONS",),
    "selftest_models": ("MODELS",),
    "selftests": ("selftest", "summary"),
    "series": ("scaling", "sweep_jobs"),
    "step_products": ("KINDS", "products"),
    "turns": ("ceiling", "compare", "rows"),
}
__all__ = sorted([*FILES, *(name for names in HOMES.values() for name in names)])
__getattr__ = lazily(__name__, HOMES)
