"""One command a file: HELP, EXAMPLE, SHARED (options of `cli.SHARED` that it heeds), add_arguments(parser), and
`run(args)`, which returns a JSON-able dict and the text for people."""

from .arguments import integer

__all__ = ["integer"]
