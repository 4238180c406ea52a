"""docs/packet-path.md against the code: its functions exist, and a function said to be called is called there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.support import ROOT

TEXT = (ROOT / "docs" / "packet-path.md").read_text()
STEPS = re.findall(r"`([\w/]+\.py)`\s+`([\w.]+)`", TEXT)
CALLS = re.findall(r"`([\w/]+\.py)`\s+`([\w.]+)`, called by `([\w/]+\.py)`\s+`([\w.]+)`", TEXT)
WALKS = ("plain", "light", "coded", "sealed", "transit", "compat")


def names(path: Path) -> set[str]:
    """Functions, classes, methods and module constants of a file, methods with the name of their class.

    A class has the methods of its base classes in this file as well.
    """
    found: set[str] = set()
    methods: dict[str, set[str]] = {}
    for node in ast.parse(path.read_text()).body:
        match node:
            case ast.FunctionDef(name=name):
                found.add(name)
            case ast.ClassDef(name=name):
                bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
                methods[name] = {each.name for each in node.body if isinstance(each, ast.FunctionDef)}
                methods[name] |= {method for base in bases for method in methods.get(base, ())}
                found |= {name, *(f"{name}.{method}" for method in methods[name])}
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                found.add(name)
    return found


def test_there_is_a_walk_for_every_kind_of_packet() -> None:
    heads = re.findall(r"^## (.+)$", TEXT, re.MULTILINE)
    assert [walk for walk in WALKS if not any(walk.lower() in head.lower() for head in heads)] == []
    assert len(STEPS) > 40
    assert len(CALLS) >= 8


@pytest.mark.parametrize(("file", "function"), sorted(set(STEPS)))
def test_a_step_names_a_function_that_exists(file: str, function: str) -> None:
    assert function in names(ROOT / file)


def called(path: Path, function: str) -> set[str]:
    """The last names of everything that a method of a file calls or passes on."""
    class_name, _, method = function.rpartition(".")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            (body,) = (each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == method)
            attributes = {each.attr for each in ast.walk(body) if isinstance(each, ast.Attribute)}
            return attributes | {each.id for each in ast.walk(body) if isinstance(each, ast.Name)}
    raise AssertionError(f"{path}: no class {class_name}")


@pytest.mark.parametrize(("file", "function", "caller_file", "caller"), CALLS)
def test_a_caller_calls(file: str, function: str, caller_file: str, caller: str) -> None:
    assert function.rpartition(".")[2] in called(ROOT / caller_file, caller), f"{file} {function}"


@pytest.mark.parametrize(
    "duty", ["tun/reader", "tun/writer", "fec/encoder", "fec/decoder", "tcp/sender", "tcp/receiver"]
)
def test_each_duty_is_walked_through_and_its_head_has_its_own_part(duty: str) -> None:
    assert any(file == f"workers/{duty}.py" for file, _ in STEPS)
    head = ast.get_docstring(ast.parse((ROOT / "workers" / f"{duty}.py").read_text())) or ""
    assert re.search(r"^ *1\.? ", head, re.MULTILINE)
    assert re.search(r"^ *3\.? ", head, re.MULTILINE)
