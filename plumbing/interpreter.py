"""A small part of Python, in which every program ends and none does harm: f(text) -> value.

    call("def f(s): return s.lower()", "A B")           # "a b"

Expressions of texts, numbers and lists, assignments and one function; a program is evaluated node
by node, and never handed to Python. What it takes is limited, and so is each value; what is not in
the language is refused wherever it stands. All of Python, which needs a process, runs in jail.py.
"""
import ast
import operator
import warnings

LONGEST, STEPS = 1000, 20_000   # characters or items of a value; nodes and items that are made
NODES = (ast.Module, ast.FunctionDef, ast.arguments, ast.arg, ast.Return, ast.Assign, ast.Expr,
         ast.Constant, ast.Name, ast.UnaryOp, ast.BinOp, ast.Compare, ast.IfExp, ast.Subscript,
         ast.Slice, ast.Call, ast.Attribute, ast.ListComp, ast.GeneratorExp, ast.comprehension,
         ast.Tuple, ast.operator, ast.unaryop, ast.cmpop, ast.expr_context)
METHODS = ("lower", "upper", "replace", "split", "join", "strip")
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.FloorDiv: operator.floordiv,
             ast.Mod: operator.mod, ast.Eq: operator.eq, ast.NotEq: operator.ne,
             ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b}
SIGNS = {ast.USub: operator.neg, ast.Not: operator.not_}


def checked(value):
    """The value. Raises ValueError if it is long."""
    if hasattr(value, "__len__") and len(value) > LONGEST:
        raise ValueError(f"a value is longer than {LONGEST}")
    return value


FUNCTIONS = {
    "len": len,
    "range": lambda *ends: checked(range(*ends)),
    "reversed": lambda x: [*reversed(x)],
    "enumerate": lambda x: [*enumerate(x)],
}
ITERATORS = ("reversed", "enumerate")


class Interpreter:
    """Evaluates expressions; each ends, whatever they are."""

    def __init__(self):
        self.left = STEPS

    def value(self, node, names):
        """The value of a node of the syntax tree; names {variable: value}. Raises what Python
        would, and ValueError for what is not in the language or takes too much."""
        self.left -= 1
        find = getattr(self, type(node).__name__, None)
        if find is None or self.left < 0:
            raise ValueError(f"{type(node).__name__} is not in the language, or takes too long")
        return checked(find(node, names))

    def Constant(self, node, names):
        return node.value

    def Name(self, node, names):
        return names[node.id]

    def UnaryOp(self, node, names):
        return SIGNS[type(node.op)](self.value(node.operand, names))

    def BinOp(self, node, names):
        a, b = self.value(node.left, names), self.value(node.right, names)
        if type(a) is not type(b) or (type(a) is not int and not isinstance(node.op, ast.Add)):
            raise TypeError("numbers are added to numbers, texts to texts")
        return OPERATORS[type(node.op)](a, b)

    def Compare(self, node, names):
        [op], [right] = node.ops, node.comparators
        a, b = self.value(node.left, names), self.value(right, names)
        # lists may lie so deep in one another that to compare them takes hours
        if not {type(a), type(b)} <= {str, int}:
            raise TypeError("texts and numbers are compared")
        return OPERATORS[type(op)](a, b)

    def IfExp(self, node, names):
        return self.value(node.body if self.value(node.test, names) else node.orelse, names)

    def Subscript(self, node, names):
        return self.value(node.value, names)[self.value(node.slice, names)]

    def Slice(self, node, names):
        ends = (node.lower, node.upper, node.step)
        return slice(*(None if end is None else self.value(end, names) for end in ends))

    def Call(self, node, names):
        args = [self.value(arg, names) for arg in node.args]
        if isinstance(node.func, ast.Name) and node.func.id not in names:
            found = FUNCTIONS[node.func.id](*args)
            self.left -= len(found) if isinstance(found, (range, list)) else 0
            return iter(found) if node.func.id in ITERATORS else found
        text = self.value(node.func.value, names)
        if type(text) is not str or node.func.attr not in METHODS:
            raise AttributeError(f"{node.func.attr} is not in the language")
        # to strip looks for each character in all of its argument
        characters = sum(len(arg) for arg in args if type(arg) is str)
        self.left -= len(text) * characters // 50
        found = getattr(text, node.func.attr)(*args)
        self.left -= len(found) if type(found) is list else 0
        return found

    def ListComp(self, node, names):
        [loop], found = node.generators, []
        for item in self.value(loop.iter, names):
            inner = names | bound(loop.target, item)
            if all(self.value(test, inner) for test in loop.ifs):
                found.append(self.value(node.elt, inner))
        return found

    def GeneratorExp(self, node, names):
        return iter(self.ListComp(node, names))


def bound(target, value):
    """The names that an assignment binds. Raises ValueError."""
    if isinstance(target, ast.Name):
        return {target.id: value}
    if not isinstance(target, ast.Tuple) or len(target.elts) != len(value):
        raise ValueError("only names are assigned to")
    return {name.id: x for name, x in zip(target.elts, value)}


def is_iterator(node):
    """Whether a node makes an iterator, which Python's would do its work later."""
    of_function = isinstance(node, ast.Call) and getattr(node.func, "id", "") in ITERATORS
    return of_function or isinstance(node, ast.GeneratorExp)


def parsed(program):
    """A program -> its syntax tree, of f. Raises SyntaxError, and ValueError for what is not in the
    language, wherever it stands."""
    if len(program) > LONGEST:
        raise ValueError("a program is shorter")
    with warnings.catch_warnings(action="ignore"):
        tree = ast.parse(program)
    [f], nodes = tree.body, [*ast.walk(tree)]
    for node in nodes:
        if not isinstance(node, NODES) or getattr(node, "is_async", False):
            raise ValueError(f"{type(node).__name__} is not in the language")
        stored = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        name = node.id if stored else getattr(node, "arg", "")
        if name in FUNCTIONS or name.startswith("__"):
            raise ValueError(f"{name} is not assigned to")
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    if functions != [f] or f.name != "f" or f.decorator_list or f.returns:
        raise ValueError("a program is a function f")
    if ast.unparse(f.args) not in [arg.arg for arg in f.args.args]:
        raise ValueError("f has one argument")
    # elsewhere it would be seen when an iterator does its work
    args = [arg for node in nodes if isinstance(node, ast.Call) for arg in node.args]
    used = args + [node.iter for node in nodes if isinstance(node, ast.comprehension)]
    if any(is_iterator(node) and node not in used for node in nodes):
        raise ValueError("an iterator is used where it is made")
    return f


def run(f, text):
    """What f, the syntax tree of a program, returns for a text. Raises what Python would, and
    ValueError."""
    interpreter, names = Interpreter(), {f.args.args[0].arg: text}
    for statement in f.body:
        if isinstance(statement, ast.Return):
            return interpreter.value(statement.value, names)
        if isinstance(statement, ast.Assign):
            [target] = statement.targets
            names |= bound(target, interpreter.value(statement.value, names))
        else:
            interpreter.value(statement.value, names)
    return None


def call(program, text):
    """What f of a program returns for a text. Raises what Python would, and ValueError."""
    return run(parsed(program), text)


def right(program, examples):
    """Whether a program maps each text to the other, examples [(text, text), ...]."""
    try:
        f = parsed(program)
        return all(run(f, text) == wanted for text, wanted in examples)
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, SyntaxError,
            TypeError, ValueError):
        return False
