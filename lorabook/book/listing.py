"""Library code as a chapter shows it: the lines that run, without the docstring, which the chapter's text replaces."""

import ast
import inspect
import textwrap


def code(*functions):
    """Source text of functions, one below the other, dedented and without docstrings."""
    return "\n\n".join(_without_docstring(textwrap.dedent(inspect.getsource(f))) for f in functions)


def _without_docstring(source):
    (node,) = ast.parse(source).body
    lines = source.rstrip("\n").split("\n")
    if ast.get_docstring(node) is not None and len(node.body) > 1:
        first = node.body[0]
        rest = lines[first.end_lineno :]
        while rest and not rest[0].strip():
            rest = rest[1:]
        lines = lines[: first.lineno - 1] + rest
    return "\n".join(lines)
