"""Which values a field of a config may have: that stands behind the last semicolon of its comment.

    lr: float = 1e-3            # peak learning rate; > 0
    beta2: float = 0.95         # AdamW's second beta; [0, 1)
    schedule: str = "cosine"    # of the learning rate; cosine | restarts | constant

Beside what is said there, numbers must be finite, and strings must be text.
"""
import dataclasses
import inspect
import math
import re

NUMBER = r"-?\d[\d_.]*(?:e-?\d+)?"
ABOVE = re.compile(rf"(>=?) ({NUMBER})")
BETWEEN = re.compile(rf"([\[(])({NUMBER}), ({NUMBER})([\])])")
WORDS = re.compile(r"[\w.-]+(?: \| [\w.-]+)+")
LARGEST = 2**63 - 1                 # what PyTorch can hold


def field_comments(Config):
    """{field: the comment behind it, and in lines of comment below it}, base classes included."""
    comments = {}
    for cls in reversed(Config.__mro__[:-1]):
        field = None
        for line in inspect.getsource(cls).splitlines():
            declared = re.match(r"    (\w+)\s*:[^#]*(?:#\s*(.*))?$", line)
            continued = re.match(r"\s+#\s*(.*)", line)
            if declared:
                field = declared[1]
                comments[field] = declared[2] or ""
            elif field and continued:
                comments[field] += " " + continued[1]
            else:
                field = None
    return comments


def is_within(value, range):
    """Whether a value lies in a range as the comments of fields write it: "> 0", ">= 1", "[0, 1)",
    "cosine | constant". What is none of these allows everything."""
    above, between = ABOVE.fullmatch(range), BETWEEN.fullmatch(range)
    if above:
        bound = float(above[2])
        return value > bound or (value == bound and above[1] == ">=")
    if between:
        low, high = float(between[2]), float(between[3])
        if value in (low, high):
            return between[1] == "[" if value == low else between[4] == "]"
        return low < value < high
    if WORDS.fullmatch(range):
        return value in range.split(" | ")
    return True


def problem(value, range):
    """What is wrong with one value of a field, or ""."""
    if isinstance(value, str):
        if any(c == "\0" or 0xD800 <= ord(c) < 0xE000 for c in value):
            return "must be text, in UTF-8"
    elif abs(value) > LARGEST or not math.isfinite(value):
        return "must be a finite number, below 2^63"
    if is_within(value, range):
        return ""
    if WORDS.fullmatch(range):
        return f"must be {' or '.join(range.split(' | '))}"
    return f"must be {range}" if ABOVE.fullmatch(range) else f"must lie in {range}"


def check(cfg):
    """Raise ValueError for a value outside the range of its field."""
    comments = field_comments(type(cfg))
    for field in dataclasses.fields(cfg):
        value, range = getattr(cfg, field.name), comments[field.name].rpartition("; ")[2]
        for item in value if isinstance(value, tuple) else (value,):
            wrong = "" if item is None or isinstance(item, bool) else problem(item, range)
            if wrong:
                flag = field.name.replace("_", "-")
                raise ValueError(f"--{flag} {wrong}, got {item}")
