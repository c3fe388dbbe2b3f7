"""Arguments that several commands share."""


def add_model_and_data(parser):
    """MODEL, DATA and --max-length, as `jobs.make_job` takes them."""
    parser.add_argument(
        "model", metavar="MODEL", help="mlp-digits, minilm, or a Hugging Face folder with a BERT encoder"
    )
    parser.add_argument("data", metavar="DATA", help="digits-rotated etc.; movie-reviews; a .csv, .tsv or .jsonl file")
    parser.add_argument("--max-length", type=int, default=128, metavar="T", help="tokens a text (default: %(default)s)")
