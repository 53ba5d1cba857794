"""plumbing/ranges.py: the values that a field may have, as the comment beside it writes them."""

import math
from dataclasses import dataclass, replace

import pytest

from plumbing import ranges


@dataclass(frozen=True)
class Base:
    lr: float = 1e-3  # peak learning rate; > 0
    steps: int = 10  # how many; not few; >= 1
    name: str = "x"  # anything; whatever it is


@dataclass(frozen=True)
class Config(Base):
    beta: float = 0.95  # second beta; [0, 1)
    share: float = 0.5  # of the prompts, which is a long story,
    # told in two lines; (0, 1]
    seed: int = 0  # no range
    schedule: str = "cosine"  # to 10 %; cosine | constant
    temperatures: tuple[float, ...] = (1.0, 1.3)  # one or more; >= 0
    files: tuple[str, ...] = ()  # names
    limit: float | None = None  # at most; > 0
    fast: bool = False  # no number; > 0
    lr: float = 2e-3  # of this class; [1e-6, 1_000]


CFG = Config()


def test_the_comments_of_fields_are_those_beside_them():
    comments = ranges.field_comments(Config)
    assert comments["steps"] == "how many; not few; >= 1"
    story = "of the prompts, which is a long story, told in two lines; (0, 1]"
    assert comments["share"] == story and comments["lr"] == "of this class; [1e-6, 1_000]"
    assert ranges.field_comments(Base)["lr"] == "peak learning rate; > 0"
    assert list(comments) == [*ranges.field_comments(Base), *list(comments)[3:]]


@pytest.mark.parametrize(
    ("range", "inside", "outside"),
    [
        ("> 0", (1e-300, 1, 1e18), (0, 0.0, -1e-300)),
        (">= 0", (0, 0.0, 3), (-1, -1e-300)),
        ("> -1.5", (-1.4, 0), (-1.5, -2)),
        (">= 1e-3", (0.001, 1), (0.000_999, 0)),
        ("[0, 1]", (0, 1, 0.5), (-1e-9, 1 + 1e-9)),
        ("[0, 1)", (0, 0.999), (1, -1e-9)),
        ("(0, 1]", (1e-9, 1), (0, 1.001)),
        ("(0, 1)", (1e-9, 0.999), (0, 1, 2, -1)),
        ("[-2, -1]", (-2, -1.5, -1), (-2.1, 0)),
        ("[1, 10_000_000]", (1, 10_000_000), (0, 10_000_001)),
        ("cosine | constant", ("cosine", "constant"), ("", "cosine |", "Cosine", "cos")),
        ("fp32 | bf16 | auto-2.5", ("bf16", "auto-2.5"), ("fp16",)),
        ("steps", (-1, 0, 1e9), ()),
        ("", (-1, 0, 1e9), ()),
        ("[Z19]", (-1, 0), ()),
        ("0: none", (-1, 0), ()),
    ],
)
def test_a_range_has_values_inside_and_outside(range, inside, outside):
    assert [ranges.is_within(x, range) for x in inside] == [True] * len(inside)
    assert [ranges.is_within(x, range) for x in outside] == [False] * len(outside)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"lr": -1}, r"--lr must lie in \[1e-6, 1_000\], got -1"),
        ({"steps": 0}, "--steps must be >= 1, got 0"),
        ({"beta": 1.0}, r"--beta must lie in \[0, 1\), got 1.0"),
        ({"share": 0}, r"--share must lie in \(0, 1\], got 0"),
        ({"schedule": "linear"}, "--schedule must be cosine or constant, got linear"),
        ({"temperatures": (1.0, -0.5)}, "--temperatures must be >= 0, got -0.5"),
        ({"limit": 0.0}, "--limit must be > 0, got 0.0"),
        ({"seed": 2**63}, "--seed must be a finite number, below 2.63, got 9223372036854775808"),
        ({"seed": -(10**400)}, "--seed must be a finite number, below 2.63"),
        ({"beta": math.nan}, "--beta must be a finite number, below 2.63, got nan"),
        ({"limit": math.inf}, "--limit must be a finite number"),
        ({"temperatures": (math.nan,)}, "--temperatures must be a finite number"),
        ({"name": "a\0b"}, "--name must be text, in UTF-8"),
        ({"files": ("a", "caf\udce9")}, "--files must be text, in UTF-8"),
    ],
)
def test_a_value_outside_its_range_is_named_by_its_flag(change, says):
    with pytest.raises(ValueError, match=f"^{says}"):
        ranges.check(replace(CFG, **change))


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"seed": 2**63 - 1},
        {"seed": -5},
        {"limit": 1e-9},
        {"temperatures": ()},
        {"temperatures": (0.0, 3.0)},
        {"name": "naïve | \x1b"},
        {"lr": 1000},
        {"fast": True},
    ],
)
def test_a_value_inside_its_range_is_allowed(change):
    ranges.check(replace(CFG, **change))


def test_a_field_of_a_base_class_is_checked_by_its_own_comment():
    ranges.check(Base(lr=5000.0))
    with pytest.raises(ValueError, match="--lr must be > 0, got -1.0"):
        ranges.check(Base(lr=-1.0))
