"""The house: imports go down the list of rooms, in no circle, and other rooms are entered by their doors.

A room is a folder of lorabook/ with an `__init__.py`, its door, which says what lives there and what others may use.
"""

import ast
import graphlib
import re
from pathlib import Path

import pytest

import lorabook

HOUSE = Path(lorabook.__file__).parent
ROOMS = (
    *("errors", "backend", "functional", "linalg", "quantization", "files", "layers", "adapters", "models", "data"),
    *("hub", "parallel", "training", "tasks", "studies", "bench", "book", "commands", "cli", "__main__"),
)  # each may import from those before it
TOP = {"__init__.py", "__main__.py", "cli.py", "errors.py"}


def trees(house):
    """{file's path inside the house, without .py: its syntax tree}."""
    return {p.relative_to(house).with_suffix("").parts: ast.parse(p.read_text()) for p in sorted(house.rglob("*.py"))}


def arrows(house):
    """[(importing file, imported file, line, name)]: name is None where the file is taken as a whole."""
    files, found = trees(house), []
    for file, tree in files.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = (*file[: len(file) - node.level], *(node.module.split(".") if node.module else ()))
                for alias in node.names:
                    inner = (*base, alias.name)
                    if inner in files or (*inner, "__init__") in files:  # a file, or a room, as a whole
                        found.append((file, inner if inner in files else (*inner, "__init__"), node.lineno, None))
                    else:
                        found.append((file, base if base in files else (*base, "__init__"), node.lineno, alias.name))
    return found


def behind(door):
    """{name: the file in the room that it comes from} of what the tree of an `__init__.py` hands out."""
    names = {}
    for node in door.body:
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            names |= {alias.asname or alias.name: node.module or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in ("HOMES", "FILES"):
            value = ast.literal_eval(node.value)
            names |= (
                {n: n for n in value} if isinstance(value, tuple) else {n: f for f, ns in value.items() for n in ns}
            )
    return names


def through(files, target, name):
    """The file that a name really comes from: doors only hand it on."""
    if target[-1] != "__init__" or name is None or name not in (handed := behind(files[target])):
        return target
    inner = (*target[:-1], *handed[name].split("."))
    return inner if inner in files else (*inner, "__init__")


def uphill(house):
    """Imports from a room that stands later in the list."""
    return [
        f"{'/'.join(file)}:{line} takes {name or 'all'} of {'/'.join(target)}"
        for file, target, line, name in arrows(house)
        if len(target) > 1 or target != ("__init__",)
        if file != ("__init__",) and ROOMS.index(target[0]) > ROOMS.index(file[0])
    ]


def circle(house):
    """The files of a circle of imports, or []; those inside a function count too."""
    files, needs = trees(house), {}
    for file, target, _, name in arrows(house):
        if file[-1] != "__init__":
            needs.setdefault(file, set()).add(through(files, target, name))
    try:
        graphlib.TopologicalSorter(needs).prepare()
    except graphlib.CycleError as error:
        return ["/".join(file) for file in error.args[1]]
    return []


def past_the_door(house):
    """Imports from another room that are not of what its `__init__.py` hands out."""
    files, wrong = trees(house), []
    for file, target, line, name in arrows(house):
        if len(target) == 1 or (len(file) > 1 and file[0] == target[0]):
            continue  # errors and the like; the same room
        if name is None and target[-1] == "__init__" and len(target) == 2:
            continue  # the room as a whole
        door = (*target[:-1], "__init__") if name is None and target[-1] != "__init__" else target
        what = name or target[-1 if target[-1] != "__init__" else -2]
        door = (*door[:-2], "__init__") if name is None and target[-1] == "__init__" else door
        if door[-1] != "__init__" or what not in behind(files[door]):
            wrong.append(f"{'/'.join(file)}:{line} takes {what} of {'/'.join(target)}")
    return wrong


def silent(house):
    """Rooms whose door does not say what lives there."""
    return [
        "/".join(file)
        for file, tree in trees(house).items()
        if file[-1] == "__init__" and len(ast.get_docstring(tree) or "") < 60
    ]


def test_no_file_stands_outside_of_a_room():
    assert {path.name for path in HOUSE.glob("*.py")} == TOP
    assert {path.parent.name for path in HOUSE.glob("*/*.py")} <= {*ROOMS}


def test_imports_go_down_the_list():
    assert uphill(HOUSE) == []


def test_no_circle():
    assert circle(HOUSE) == []


def test_other_rooms_are_entered_by_the_door():
    assert past_the_door(HOUSE) == []


def test_every_room_says_what_lives_there():
    assert silent(HOUSE) == []


@pytest.mark.parametrize("room", sorted({path.parent.name for path in HOUSE.glob("*/__init__.py")}))
def test_a_room_has_what_it_hands_out(room):
    door = getattr(__import__(f"lorabook.{room}"), room)
    handed = behind(ast.parse((HOUSE / room / "__init__.py").read_text()))
    assert set(getattr(door, "__all__", ())) == set(handed) - {"lazily"}
    assert list(getattr(door, "__all__", ())) == sorted(getattr(door, "__all__", ()), key=door.__all__.index)
    for name, file in handed.items():
        if name != file:
            assert getattr(door, name) is not None


def test_tests_stand_in_the_same_rooms():
    tests = Path(__file__).parent
    folders = {path.parent.name for path in tests.glob("*/test_*.py")} - {"oracle"}
    assert folders <= {path.parent.name for path in HOUSE.glob("*/__init__.py")} and len(folders) > 10


# ---- would they notice? ----------------------------------------------------------------------------------------------


@pytest.fixture
def house(tmp_path):
    """Write a house of {path: text}; a room that is not mentioned has an empty door."""

    def build(files):
        for name, text in ({"__init__.py": "", "errors.py": "", "cli.py": ""} | files).items():
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            if path.parent != tmp_path and not (path.parent / "__init__.py").exists():
                (path.parent / "__init__.py").write_text("")
        return tmp_path

    return build


def test_an_import_up_the_list_is_seen(house):
    built = house(
        {"files/atomic.py": "from ..layers import Layer", "layers/base.py": "def f():\n    from ..files import x"}
    )
    assert uphill(built) == ["files/atomic:1 takes Layer of layers/__init__"]


def test_a_circle_is_seen(house):
    first, second = "from .loop import train", "def f():\n    from .steps import Steps"
    assert circle(house({"training/steps.py": first, "training/loop.py": "x = 1"})) == []
    assert len(circle(house({"training/steps.py": first, "training/loop.py": second}))) == 3


def test_a_circle_through_a_door_is_seen(house):
    """One that goes down the list is none; what a door hands on comes from its file, not from the door."""
    files = {
        "files/__init__.py": "from .tables import rows",
        "files/tables.py": "from ..data import text",
        "data/__init__.py": "from .text import text\nfrom .batches import Batches",
        "data/text.py": "from ..files import rows",
        "data/batches.py": "",
    }
    assert len(circle(house(files))) == 3
    assert circle(house(files | {"files/tables.py": "from ..data import Batches"})) == []


def test_an_import_past_the_door_is_seen(house):
    door = "from .base import Layer"
    good = house({"layers/__init__.py": door, "layers/base.py": "", "models/mlp.py": "from ..layers import Layer"})
    assert past_the_door(good) == []
    for wrong in ("from ..layers.base import Layer", "from ..layers import base", "from ..layers import Hidden"):
        built = house({"layers/__init__.py": door, "layers/base.py": "", "models/mlp.py": wrong})
        assert len(past_the_door(built)) == 1, wrong


def test_a_door_without_a_word_is_seen(house):
    said = f'"""{"What lives there. " * 5}"""'
    built = house({"__init__.py": said, "files/__init__.py": said, "files/x.py": "", "data/x.py": ""})
    assert silent(built) == ["data/__init__"]


# ---- no model's name outside the tables ------------------------------------------------------------------------------

NAMED = {  # what may name one, and why
    "models": "its own file, the base of its heads, the table, the door",
    "hub/catalogue": "the table of what can be fetched",
    "files/names": "the table of short names",
    "adapters/formats": "what PEFT calls heads in its files, before any model is known",
    "bench/case": "a config.json of random weights",
    "bench/selftest_models": "heads that the table of encoders does not list, each run once",
    "studies/reviews": "an experiment about this model: its default, and a method by the head's part",
    "book": "what chapters and figures tell of this model",
}
ONLY = {"models": {"__init__", "bert", "distilbert", "roberta", "encoder", "table"}}  # of that room
A_NAME = r"(minilm|(distil)?bert|roberta|(pre_)?classifier)(\.[\w.]+)?|.*\bminilm\b.*|(Distil)?(Bert|Roberta)\w+"


def named_models(house):
    """{file: names of models, or of their layers, in its code}: a string or a class; no docstring, no example."""
    found = {}
    for file, tree in trees(house).items():
        prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "EXAMPLE":
                prose |= {id(part) for part in ast.walk(node)}
        for node in ast.walk(tree):
            text = getattr(node, "value", None) if isinstance(node, ast.Constant) else getattr(node, "id", None)
            text = node.name if isinstance(node, ast.alias) else text
            if isinstance(text, str) and id(node) not in prose and re.fullmatch(A_NAME, text, re.DOTALL):
                found.setdefault("/".join(file), set()).add(text)
    return found


def allowed(file):
    room, _, rest = file.partition("/")
    return (file in NAMED or room in NAMED) and rest in ONLY.get(room, {rest})


def test_no_code_outside_the_tables_goes_by_the_name_of_a_model():
    found = named_models(HOUSE)
    assert {file: names for file, names in found.items() if not allowed(file)} == {}
    for place in NAMED:
        assert any(f"{file}/".startswith(f"{place}/") for file in found), f"{place} names none: take it off the list"


def test_the_name_of_a_model_is_found(tmp_path):
    """In a branch, a message, a default, an import; a docstring or an example may have it, prose says classifier."""
    (tmp_path / "tasks").mkdir()
    lines = {
        "branch": 'if model == "minilm": pass',
        "message": 'raise ValueError(f"{model}: expected minilm or a folder")',
        "default": 'def f(model="bert"): pass',
        "layer": 'weight = params["bert.pooler.dense.weight"]',
        "head": 'head = ("classifier",)',
        "class_": "from ..models import BertForSequenceClassification",
        "fine": '"""Of minilm."""\nEXAMPLE = "lorabook train minilm"\nhelp = "with a trained classifier"',
    }
    for name, line in lines.items():
        (tmp_path / "tasks" / f"{name}.py").write_text(line)
    assert named_models(tmp_path).keys() == {f"tasks/{name}" for name in lines if name != "fine"}
