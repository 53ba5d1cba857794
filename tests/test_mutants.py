"""tests/mutants.py: its pieces of source are there, its tests too, its page is up to date; and what
counts as caught."""

import mutants
import pytest


def test_there_are_30_and_no_two_alike():
    assert len({m.what for m in mutants.MUTATIONS}) == len(mutants.MUTATIONS) == 30


@pytest.mark.parametrize("mutation", mutants.MUTATIONS, ids=lambda m: m.what.replace(" ", "-"))
def test_each_changes_what_stands_there_once_and_names_a_test(mutation, tmp_path):
    source, copy = mutants.ROOT / mutation.file, tmp_path / mutation.file
    copy.parent.mkdir(exist_ok=True)
    copy.write_text(source.read_text())
    mutants.mutate(mutation, tmp_path)
    assert copy.read_text() != source.read_text()
    compile(copy.read_text(), mutation.file, "exec")
    file, _, name = mutation.test.partition("::")
    assert f"\ndef {name}(" in (mutants.ROOT / "tests" / file).read_text()


@pytest.mark.parametrize(("source", "times"), [("y = 1\n", 0), ("x = 1\nx = 1\n", 2)])
def test_a_piece_that_does_not_stand_there_once_is_a_sentence(source, times, tmp_path):
    (tmp_path / "a.py").write_text(source)
    mutation = mutants.Mutation("x is wrong", "a.py", "x = 1", "x = 2", "test_a.py::test_b")
    with pytest.raises(ValueError, match=f"'x = 1' stands in a.py {times} times and must stand th"):
        mutants.mutate(mutation, tmp_path)
    assert (tmp_path / "a.py").read_text() == source


def test_the_page_lists_exactly_these():
    page = (mutants.ROOT / mutants.PAGE).read_text()
    assert mutants.with_table(page) == page and mutants.table() in page


OUTPUT = """F
/somewhere/tests/test_a.py:12: {why}
FAILED tests/test_a.py::{name}[1-2] - {why}
"""


@pytest.mark.parametrize(
    ("code", "name", "why", "caught"),
    [
        (1, "test_b", "assert 1 == 2", True),
        (1, "test_b", "AssertionError: Tensor-likes are not close!", True),
        (1, "test_b", "Failed: DID NOT RAISE <class 'ValueError'>", True),
        (1, "test_b", "NameError: name 'x' is not defined", False),
        (1, "test_b_too", "assert 1 == 2", False),  # another test
        (2, "test_b", "assert 1 == 2", False),  # interrupted, or not collected
        (None, "test_b", "assert 1 == 2", False),  # without an end
    ],
)
def test_only_an_assertion_of_the_named_test_counts(code, name, why, caught):
    mutation = mutants.MUTATIONS[0]._replace(test="test_a.py::test_b")
    assert mutants.is_caught(code, OUTPUT.format(name=name, why=why), mutation) == caught
