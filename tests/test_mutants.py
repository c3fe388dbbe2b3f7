import mutants
import pytest

pytestmark = pytest.mark.mutants

CASES = {
    f"{module.removeprefix('test_')}: {target.rpartition(':')[2]}: {name}": (module, target, fragment, replacement)
    for module, targets in mutants.MUTANTS.items()
    for target, slips in targets.items()
    for name, fragment, replacement in slips
}


def together(modules):
    """The same, each with the group of its module: one process runs that module's tests without slips, not all."""
    return [pytest.param(key, marks=pytest.mark.xdist_group(module)) for key, module in modules.items()]


@pytest.mark.parametrize("name", together({name: case[0] for name, case in CASES.items()}))
def test_mutant_is_caught(name):
    assert mutants.noticed(*CASES[name]), f"no test of {CASES[name][0]} notices"


@pytest.mark.parametrize("module", together({module: module for module in mutants.MUTANTS}))
def test_unmutated_code_passes(module):
    assert len(mutants.unmutated(module)) > 7  # and none of them raised anything


def test_original_comes_back_after_a_failure():
    scaling = mutants.function_at("adapters.lora:scaling_of")
    with (
        pytest.raises(ZeroDivisionError),
        mutants.applied("adapters.lora:scaling_of", "use_rslora else r", "True else r"),
    ):
        assert scaling(4, 8, False) == 4
        raise ZeroDivisionError
    assert scaling(4, 8, False) == 2


def test_there_are_many_mutants():
    counts = {module: sum(map(len, targets.values())) for module, targets in mutants.MUTANTS.items()}
    print(f"{len(CASES)} mutants, {counts['layers.test_gradients']} of them caught by the gradient check: {counts}")
    assert len(CASES) == sum(counts.values()), "two slips of a function have the same name"
    assert counts["layers.test_gradients"] >= 40
