"""What the exercises of the chapters are checked with: one file a chapter, imported, so that a cell shows no answer."""

from functools import wraps


class NotYet(AssertionError):  # noqa: N818
    """What is wrong with an answer. A notebook shows the sentence, not the lines of the check, which give it away."""

    def _render_traceback_(self):
        return [f"not yet: {self}"]


def need(condition, hint):
    """Raise NotYet unless the condition holds. (Unlike an assert, it does so under `python -O` too.)"""
    if not condition:
        raise NotYet(hint)


def exercise(check):
    """check(answer, ...) raises NotYet with a hint; the exercise prints what became of the answer.

    None is an answer that nobody has given yet. What fails inside of the answer itself becomes a hint, too.
    """

    @wraps(check)
    def run(answer, *given):
        if answer is None:
            print("not answered yet")
            return
        try:
            check(answer, *given)
        except NotYet as error:
            raise NotYet(str(error)) from None
        except Exception as error:
            raise NotYet(f"your answer cannot be used: {type(error).__name__}: {error}") from None
        print("right")

    return run
