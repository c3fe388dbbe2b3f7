"""One command a file: HELP, EXAMPLE, add_arguments(parser), run(args) -> (JSON-able dict, text for people)."""
