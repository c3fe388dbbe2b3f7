import mutants
import pytest

CASES = {
    f"{module.removeprefix('test_')}: {target.rpartition(':')[2]}: {name}": (module, target, fragment, replacement)
    for module, targets in mutants.MUTANTS.items()
    for target, slips in targets.items()
    for name, fragment, replacement in slips
}


@pytest.mark.parametrize("name", CASES)
def test_mutant_is_caught(name):
    assert mutants.noticed(*CASES[name]), f"no test of {CASES[name][0]} notices"


@pytest.mark.parametrize("module", mutants.MUTANTS)
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
    print(f"{len(CASES)} mutants, {counts['test_gradients']} of them caught by the gradient check: {counts}")
    assert len(CASES) == sum(counts.values()), "two slips of a function have the same name"
    assert counts["test_gradients"] >= 40
