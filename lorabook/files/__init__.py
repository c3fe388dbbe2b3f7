"""Files, ours and others': each is written whole or not at all, and read with one clear error for what is wrong in it.

Writing: `atomic`, `locks`, `state_file`. Formats: `safetensors`, `weights` (in one or many parts), `gguf` with
`gguf_writer`, `configs`
(JSON), `tables` with `readers` (CSV, TSV, JSON lines), `archived` (files in a .zip or .tar.gz). Beside them what goes
into files: `environment`, `names`.
"""

from .archived import MALFORMED, files_in
from .atomic import prepare_folder, sweep_temporaries, temporaries, temporary_name, write_atomic, write_together
from .configs import Rule, check_values, integer, number, one_of, optional, parse_json, read_file, read_json, short
from .environment import blas, snapshot, version
from .extras import how_to_install, missing, require
from .gguf import GGUFTensor, checked_quantized, read_gguf
from .gguf_writer import GGUFArray, encode_ggml, write_gguf
from .locks import output_folder
from .names import CAUSAL_LMS, ENCODERS, REPOSITORIES, known_name, public_name
from .readers import numbered_lines, opened
from .records import DIGITS, RECORD, REMEMBERED, record, remembered, word_hash
from .safetensors import Tensor, as_safetensors, fingerprint, read_header, read_safetensors, write_safetensors
from .state_file import read_checkpoint, write_checkpoint
from .tables import (
    FORMATS,
    cut,
    format_table,
    free_name,
    is_table,
    median_by,
    number_in,
    parse_number,
    read_csv,
    read_numbers,
    read_table,
    stream_table,
    table_rows,
    write_csv,
)
from .weights import INDEX, SHARD_BYTES, WEIGHTS, FilesTogether, open_weights, read_weights, write_weights

__all__ = [
    "CAUSAL_LMS",
    "DIGITS",
    "ENCODERS",
    "FORMATS",
    "INDEX",
    "MALFORMED",
    "RECORD",
    "REMEMBERED",
    "REPOSITORIES",
    "SHARD_BYTES",
    "WEIGHTS",
    "FilesTogether",
    "GGUFArray",
    "GGUFTensor",
    "Rule",
    "Tensor",
    "as_safetensors",
    "blas",
    "check_values",
    "checked_quantized",
    "cut",
    "encode_ggml",
    "files_in",
    "fingerprint",
    "format_table",
    "free_name",
    "how_to_install",
    "integer",
    "is_table",
    "known_name",
    "median_by",
    "missing",
    "number",
    "number_in",
    "numbered_lines",
    "one_of",
    "open_weights",
    "opened",
    "optional",
    "output_folder",
    "parse_json",
    "parse_number",
    "prepare_folder",
    "public_name",
    "read_checkpoint",
    "read_csv",
    "read_file",
    "read_gguf",
    "read_header",
    "read_json",
    "read_numbers",
    "read_safetensors",
    "read_table",
    "read_weights",
    "record",
    "remembered",
    "require",
    "short",
    "snapshot",
    "stream_table",
    "sweep_temporaries",
    "table_rows",
    "temporaries",
    "temporary_name",
    "version",
    "word_hash",
    "write_atomic",
    "write_checkpoint",
    "write_csv",
    "write_gguf",
    "write_safetensors",
    "write_together",
    "write_weights",
]
