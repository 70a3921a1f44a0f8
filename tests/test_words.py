"""Public names are documented in whole sentences that stand alone, and arrays have shapes."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "odvae_jax"
FILES = {
    str(path.relative_to(PACKAGE)): ast.parse(path.read_text())
    for path in sorted(PACKAGE.rglob("*.py"))
    if not re.match(r"_[^_]", path.name)
}
NUMERIC = ("layers/", "tiling/", "diffusion/", "metrics/", "lowering/__init__", "training/losses")
NUMERIC += ("autoencoder", "inference", "pixels", "posterior")

UNIT = r"(second|frame|clip|channel|video|step|device|call|model|file|iteration|batch|side)"
COUNTED = r"(frames|clips|operations|steps|calls|pixels|bytes|lines|samples|products|times|once)"
# What leans on a name, on a neighbour, or on a sense of "a" that a reader may not know.
PATTERNS = {
    "it points at a neighbour": r"\b(as above|see above|likewise|ditto)\b",
    "it begins as a fragment": r"\A((Of|For|As|Those|Like)\b|The same[,.])",
    "it begins with 'whether' and ends with 'is'": r"\AWhether [^.]* (is|are)\.",
    "an argument is a fragment": r"^ +(?!\w*Error)(\w+, )*\**\w+: (of|for|from|as|like)\b",
    "an argument has no noun": r"^ +\w+: (the|this|that) \w+'s?[,.;]",
    "'a' stands for 'per'": rf"\b{COUNTED} an? {UNIT}\b|\btaken an? {UNIT}\b|\bone an? {UNIT}\b",
}


def faults(docstring):
    """What is wrong with the docstring of something public."""
    if not docstring:
        return ["it is missing"]
    summary = docstring.split("\n\n")[0]
    found = [what for what, pattern in PATTERNS.items() if re.search(pattern, docstring, re.M)]
    if not docstring[0].isupper():
        found.append("it does not begin with a capital letter")
    if not (summary.endswith(".") and docstring.endswith(".")):
        found.append("it does not end with a full stop")
    if len(docstring.split()) < 3:
        found.append("it is too short")
    return found


def is_public(name):
    return name == "__call__" or not name.startswith("_")


def definitions(body, prefix=""):
    """The public classes, functions and methods below a module, by their dotted names."""
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and is_public(node.name):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from definitions(node.body, f"{prefix}{node.name}.")


BASES = {
    name: [base.id for base in node.bases if isinstance(base, ast.Name)]
    for tree in FILES.values()
    for name, node in definitions(tree.body)
    if isinstance(node, ast.ClassDef)
}
DOCUMENTED = {
    name: ast.get_docstring(node)
    for tree in FILES.values()
    for name, node in definitions(tree.body)
}


def docstring_of(name, node):
    """The docstring of a definition, or for a method without one that of what it overrides."""
    owner, dot, method = name.rpartition(".")
    return ast.get_docstring(node) or (inherited(owner, method) if dot else None)


def inherited(owner, method):
    """The docstring that a base class of this package has for a method."""
    for base in BASES.get(owner, ()):
        if found := DOCUMENTED.get(f"{base}.{method}") or inherited(base, method):
            return found
    return None


@pytest.mark.parametrize("file", FILES)
def test_everything_public_is_documented_in_sentences_that_stand_alone(file):
    tree = FILES[file]
    documented = {"the module": ast.get_docstring(tree)}
    documented |= {name: docstring_of(name, node) for name, node in definitions(tree.body)}
    wrong = {name: found for name, text in documented.items() if (found := faults(text))}
    assert not wrong


@pytest.mark.parametrize(
    "text",
    [
        None,
        "Clips.",
        "of the frames.",
        "Of the frames.",
        "Those of n vectors.",
        "The same, compiled, on the host.",
        "Whether a model's record is.",
        "The clips' frames a second",
        "A video's frames a second.",
        "Operations of the body, once an iteration.",
        "One vector a clip in [-1, 1]: one a clip.",
        "Sums, which are taken a channel.",
        "Checks a video.\n\nArgs:\n  uint8: as above.",
        "Square tiles.\n\nArgs:\n  overlap: pixels, likewise, less than `tile`.",
        "Decodes latents.\n\nArgs:\n  tiling: as of `encode`.",
        "Cuts clips.\n\nArgs:\n  first, rest: of a clip.",
        "Makes a layer.\n\nArgs:\n  config: the model's.",
    ],
)
def test_what_leans_on_something_else_is_found(text):
    assert faults(text)


@pytest.mark.parametrize(
    "text",
    [
        "The frames per second of a video.",
        "Whether the clip comes in chunks.",
        "Returns how often a frame is drawn, once for each clip.",
        "Checks a clip.\n\nArgs:\n  video: the clip, as it was read.\n\nRaises:\n  "
        "ValueError: for another shape.",
    ],
)
def test_sentences_that_stand_alone_pass(text):
    assert not faults(text)


def parameters(function):
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    every += filter(None, (arguments.vararg, arguments.kwarg))
    return [a for a in every if a.arg not in ("self", "cls")]


def names_outside_of_shapes(annotation):
    """The names in an annotation, but for those that jaxtyping gives a shape."""
    match annotation:
        case ast.Subscript(slice=ast.Tuple(elts=[_, ast.Constant(value=str())])):
            return
    if isinstance(annotation, ast.Name):
        yield annotation.id
    if isinstance(annotation, ast.Attribute):
        yield annotation.attr
    for child in ast.iter_child_nodes(annotation):
        yield from names_outside_of_shapes(child)


def untyped(function):
    """The parameters (and "return") that lack an annotation, or hold arrays without a shape."""
    annotations = {a.arg: a.annotation for a in parameters(function)}
    if function.name != "__init__":
        annotations["return"] = function.returns
    arrays = {"Array", "ndarray", "AnyArray", "ArrayLike"}
    return [
        name
        for name, annotation in annotations.items()
        if annotation is None or arrays & set(names_outside_of_shapes(annotation))
    ]


@pytest.mark.parametrize("file", [file for file in FILES if file.startswith(NUMERIC)])
def test_arrays_of_public_functions_have_a_dtype_and_a_shape(file):
    functions = dict(definitions(FILES[file].body))
    functions |= {
        f"{name}.__init__": init
        for name, node in functions.items()
        if isinstance(node, ast.ClassDef)
        for init in node.body
        if isinstance(init, ast.FunctionDef) and init.name == "__init__"
    }
    wrong = {
        name: found
        for name, node in functions.items()
        if isinstance(node, ast.FunctionDef) and (found := untyped(node))
    }
    assert not wrong


@pytest.mark.parametrize(
    ("annotation", "is_typed"),
    [
        ("x: Float[Array, 'b c']", True),
        ("x: Float[AnyArray, 'b c'] | None", True),
        ("x: dict[str, Float[np.ndarray, 'b c']]", True),
        ("x: jax.Array", False),
        ("x: np.ndarray | None", False),
        ("x: AnyArray", False),
        ("x", False),
    ],
)
def test_arrays_without_a_shape_are_found(annotation, is_typed):
    (function,) = ast.parse(f"def f({annotation}) -> None: ...").body
    assert untyped(function) == ([] if is_typed else ["x"])


@pytest.mark.parametrize("file", FILES)
def test_no_message_leaves_open_whether_there_are_several(file):
    """`odvae_jax.files.counted` writes "1 clip" and "2 clips"."""
    texts = [n.value for n in ast.walk(FILES[file]) if isinstance(n, ast.Constant)]
    assert not [text for text in texts if isinstance(text, str) and re.search(r"\w\(e?s\)", text)]
