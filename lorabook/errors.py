"""The three ways in which lorabook says no. The command line turns them into exit codes."""


class InputError(ValueError):
    """What the caller gave cannot be used (exit code 2). The message says what came, what was expected, what to do."""


class FormatError(InputError):
    """A file is malformed, truncated, altered, or belongs to something else (exit code 2)."""


class NonFiniteError(RuntimeError):
    """A loss or a gradient became NaN or Inf (exit code 1). Weights and optimizer state are as before the step."""
