"""Imports point one way: a room takes from those below it, never from those above, and no two files take from each other."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import manualgrad


PACKAGE = Path(manualgrad.__file__).parent
FROM_TOP = (
    "__main__ cli bench __init__ lightning tracing train_step conversion conformance distributed optim layers comparison "
    "explain factored equations matrix_products losses activation autograd dry_run extras"
).split()


def imports(file: Path) -> Iterator[Path]:
    """The files of the package that this one imports: at the top, in a function, or for the type checker alone."""
    for node in ast.walk(ast.parse(file.read_text())):
        for alias in node.names if isinstance(node, ast.Import | ast.ImportFrom) else []:
            module = node.module if isinstance(node, ast.ImportFrom) else alias.name
            yield from file_of(f"{module}.{alias.name}") or file_of(str(module))


def file_of(name: str) -> list[Path]:
    path = PACKAGE.parent / name.replace(".", "/")
    inside = name.partition(".")[0] == "manualgrad"
    return [p for p in (path.with_suffix(".py"), path / "__init__.py") if inside and p.is_file()]


def room(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = [file for file in PACKAGE.rglob("*.py")]


def test_every_room_has_its_place() -> None:
    assert {room(file) for file in FILES} <= {*FROM_TOP}


def test_no_arrow_points_up() -> None:
    up = [
        f"{file.relative_to(PACKAGE)} -> {taken.relative_to(PACKAGE)}"
        for file in FILES
        for taken in imports(file)
        if FROM_TOP.index(room(taken)) < FROM_TOP.index(room(file))
    ]
    assert up == []


def test_no_file_imports_itself_by_way_of_others() -> None:
    assert list(TopologicalSorter({file: set(imports(file)) - {file} for file in FILES}).static_order())
