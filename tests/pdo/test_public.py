"""What `import pdo` offers is documented: what it is, of which shapes, and what it raises."""

import inspect
import re
import runpy
from functools import partial
from pathlib import Path

import pytest
from torch import nn

import pdo

ROOT = Path(__file__).parents[2]
OBJECTS = {name: getattr(pdo, name) for name in pdo.__all__}
DOCUMENTED = {
    name: thing
    for name, thing in OBJECTS.items()
    if inspect.isclass(thing) or inspect.isfunction(thing)
}


def methods(thing: type) -> dict[str, object]:
    """Its own public methods and properties; `forward` is described by the class."""
    found = {}
    for name, member in vars(thing).items():
        member = member.fget if isinstance(member, property) else member
        member = getattr(member, "func", member)  # cached_property
        if inspect.isfunction(member) and not name.startswith("_") and name != "forward":
            found[name] = member
    return found


def test_everything_exported_exists_and_nothing_is_listed_twice():
    assert len(set(pdo.__all__)) == len(pdo.__all__) == len(OBJECTS)
    constants = set(OBJECTS) - set(DOCUMENTED)
    assert all(isinstance(OBJECTS[name], pdo.StencilSpec | partial) for name in constants)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_docstring_says_what_is_raised_and_of_which_shape(name):
    thing = DOCUMENTED[name]
    text = thing.__dict__.get("__doc__") if inspect.isclass(thing) else thing.__doc__
    assert text and len(text.split()) > 5 and not text.startswith(f"{name}(")
    parts = methods(thing) if inspect.isclass(thing) else {}
    for method, function in parts.items():
        assert function.__doc__, f"{name}.{method}"
        text += function.__doc__
    source = inspect.getsource(thing)
    for error in set(re.findall(r"raise (\w+)\(", source)):
        assert re.search(rf"Raises:\n\s+{error}: if ", text), f"{name} raises {error}"
    if inspect.isclass(thing) and issubclass(thing, nn.Module):
        assert re.search(r"Shapes: \(.+\) -> \(.+\)|Shapes: \(.+\), kept", text)
        arguments = list(inspect.signature(thing.__init__).parameters)[1:]
        if len(arguments) > 1:
            assert [a for a in arguments if not re.search(rf"^\s+{a}: ", text, re.M)] == []
    elif "ndarray" in source:
        assert re.search(r"\((V|E)[,)]|\(60", text)


def test_api_page_is_current():
    page = runpy.run_path(str(ROOT / "docs" / "make_api.py"))["page"]
    assert page() == (ROOT / "docs" / "api.md").read_text()
