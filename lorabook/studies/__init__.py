"""The experiments behind the figures: rows out, nothing drawn.

`sweep` is rank against error, of an MLP (`mlp_sweep`) or an encoder (`encoder_sweep`), with rates from `tuning` and
what a stop leaves in `unfinished`; `choices` varies the headline's settings, `bounds` plants an update whose best
is known, `quantized` trains over a base in few bits, `reviews` and `review_directions` are the runs of MiniLM,
`domains` those of SmolLM2.
"""

from .. import lazily

FILES = ("domains", "quantized", "review_directions", "reviews")  # that others use as they are
HOMES = {
    "bounds": ("best_losses", "bound_sweep", "trained_loss"),
    "choices": ("choice_rows", "split_gaps"),
    "encoder_sweep": ("Encoder", "RECIPES"),
    "mlp_sweep": ("digits_title", "setting_for"),
    "rank_rows": ("trained", "update_of"),
    "reviews": ("PEFT",),
    "sweep": ("Kept", "Recipe", "Setting", "TUNED", "against_full", "mean_and_error", "rank_sweep"),
    "sweep_time": ("guess",),
    "tuning": ("best_recipes", "candidates", "described", "learning_rate_sweep", "override", "tune"),
    "unfinished": ("Unfinished",),
}
__all__ = sorted([*FILES, *(name for names in HOMES.values() for name in names)])
__getattr__ = lazily(__name__, HOMES)
