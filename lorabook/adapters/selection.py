"""Which layers of a model the options of a `LoRAConfig` mean, by their dotted paths. The rules are PEFT's."""

import difflib

from ..errors import InputError
from ..files import short
from .patterns import matches

ALL = "all-linear"


def select(config, paths, others=(), head_modules=()):
    """Those of the linear layers' `paths` that get an adapter, in order.

    others: paths of layers with weights that can have no adapter (embeddings, norms). head_modules: names of the
    modules that "all-linear" leaves out. Raises InputError, with the closest names, where a name or everything matches
    nothing, and where one of the others is meant.
    """
    targets, paths, others = config.target_modules, list(paths), list(others)
    for option, names in (("modules_to_save", config.modules_to_save), ("target module", _listed(targets))):
        for name in names:
            matched = is_saved if option == "modules_to_save" else is_target
            if not any(matched(path, name) for path in [*paths, *others]):
                raise _matches_nothing(f"{option} {short(name)}", name, paths)
    if targets == ALL:
        meant = [path for path in paths if not _is_inside(path, head_modules)]
    else:
        meant = _targeted(config, [*paths, *others])
    excluded = _excluded(config, meant)
    chosen = [path for path in meant if path not in excluded]
    if unfit := [path for path in chosen if path in others]:
        raise InputError(
            f"target_modules={short(targets)} takes in {unfit[0]}, which is no linear layer; exclude or omit it"
        )
    if saved := [path for path in chosen if any(is_saved(path, module) for module in config.modules_to_save)]:
        whole = f"modules_to_save={short(config.modules_to_save)} ends in the middle of {saved[0]}"
        raise InputError(f"{whole}, which is a target; write the whole name of what to save")
    if not chosen and meant:
        raise InputError(
            f"target_modules={short(targets)}: exclude_modules or modules_to_save leaves none of {len(meant)} layers"
        )
    if not chosen:
        within = (
            ""
            if config.layers_to_transform is None
            else f" within layers_to_transform={short(config.layers_to_transform)}"
        )
        raise _matches_nothing(f"target_modules={short(targets)}{within}", str(targets), paths)
    return chosen


def doubts(config, paths):
    """What is set but does nothing, a line each."""
    lines = [
        f"target module {short(target)} is in modules_to_save too: it trains in full, without an adapter"
        for target in _listed(config.target_modules)
        if all(_is_inside(p, config.modules_to_save) for p in paths if is_target(p, target))
    ]
    if config.exclude_modules and not _excluded(config, paths, saved=False):
        lines.append(f"exclude_modules={short(config.exclude_modules)} matches no linear layer")
    return lines


def _listed(names):
    return () if isinstance(names, str) else names


def _targeted(config, paths):
    """What target_modules means, an expression or names, within layers_to_transform."""
    targets, blocks = config.target_modules, config.layers_to_transform
    if isinstance(targets, str):
        (found,) = matches([("target_modules", targets, targets, "fullmatch")], paths)
        return [path for path in paths if found[path]]
    found = [path for path in paths if any(is_target(path, target) for target in targets)]
    if blocks is None:
        return found
    wanted, block = {blocks} if isinstance(blocks, int) else set(blocks), _blocks(config.layers_pattern, found)
    return [
        path for path in found if path in targets or block[path] in wanted
    ]  # a full path is meant whatever its block


def _blocks(layers_pattern, paths):
    """{path: the number of its block, or None}: the first number in it that has two names, or a pattern, before it."""
    if not layers_pattern:
        parts = {path: path.split(".") for path in paths}
        return {p: next((int(n) for n in parts[p][2:-1] if n.isdecimal()), None) for p in paths}
    found = matches(layer_expressions(layers_pattern), paths)
    first = {path: next((f[path] for f in found if f[path]), None) for path in paths}
    return {path: int(index) if isinstance(index, str) else None for path, index in first.items()}


def layer_expressions(layers_pattern):
    """Of layers_pattern, for `patterns.matches`."""
    return [("layers_pattern", p, rf"(?:^|.*?\.){p}\.(?P<index>\d+)\.", "match") for p in layers_pattern]


def _excluded(config, paths, saved=True):
    """The paths that exclude_modules means, and those inside modules_to_save."""
    option = config.exclude_modules
    if isinstance(option, str):
        (found,) = matches([("exclude_modules", option, option, "fullmatch")], paths)
    else:
        found = {path: any(is_target(path, name) for name in option) for path in paths}
    return {path for path in paths if found[path] or (saved and _is_inside(path, config.modules_to_save))}


def is_saved(path, module):
    """Whether modules_to_save, by this end of a name, means the layer at `path` or one around it."""
    parts = path.split(".")
    return any(".".join(parts[:i]).endswith(module) for i in range(1, len(parts) + 1))


def _is_inside(path, modules):
    """Whether one of these is the layer at `path`, or one around it, by a whole name: such a layer gets no adapter."""
    return any(f".{module}." in f".{path}." for module in modules)


def is_target(path, target):
    """Whether a name in a list of targets is the layer at `path`: all of it, or an end of it from a dot on."""
    return path == target or path.endswith("." + target)


def _matches_nothing(what, target, paths):
    names = dict.fromkeys([*(p.rpartition(".")[2] for p in paths), *paths])
    close = difflib.get_close_matches(target[:200], names, n=5, cutoff=0.4) or list(names)[:5]
    return InputError(
        f"{what} matches no linear layer; closest: {', '.join(close) or 'none (the model has no linear layer)'}"
    )
