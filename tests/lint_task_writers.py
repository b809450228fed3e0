"""
A lint: only `tasks/lifecycle.py` writes the columns of a task, and its `tasks/events.py` those that every event moves.

Run as `python -m tests.lint_task_writers`; prints each place as path:line and exits with 1 if there is one. It knows a
task by a column that no other table has, and for the others by its name: `task`, whatever ends in `task`, and what is
annotated as `Task`. `Claims(Task, …)` and `update(Task)` write too.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import inspect

from app.database.base import Base
from app.database.migrations import ROOT
from app.models import Task

WRITER = Path("app/tasks/lifecycle.py")
# The recorder that the writer holds: it counts the version up with each event, and keeps the ledger with each version,
# so that none is without the other.
RECORDER, RECORDED = (
    Path("app/tasks/events.py"),
    frozenset({"status", "version", "updated_at", "booked", "reserved_at"}),
)
COLUMNS = frozenset(attribute.key for attribute in inspect(Task).column_attrs)
# Whatever these are written to is a task.
OWN_COLUMNS = COLUMNS - {
    attribute.key for mapper in Base.registry.mappers if mapper.class_ is not Task for attribute in mapper.column_attrs
}


def find_writes(source: str, but: frozenset[str] = frozenset()) -> Iterator[tuple[int, str]]:
    """Each write of a task's column in a module, `but` for these columns: its line, and what is written."""
    tree = ast.parse(source)
    annotated = {
        node.arg for node in ast.walk(tree) if isinstance(node, ast.arg) and _names_task_class(node.annotation)
    }
    for node in ast.walk(tree):
        for target in _targets(node):
            if target.attr in COLUMNS - but and (target.attr in OWN_COLUMNS or _is_task(target.value, annotated)):
                yield target.lineno, ast.unparse(target)
        if isinstance(node, ast.Call) and _writes_tasks(node, annotated):
            yield node.lineno, ast.unparse(node.func)


def _targets(node: ast.AST) -> Iterator[ast.Attribute]:
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AugAssign | ast.AnnAssign):
        targets = [node.target]
    else:
        return
    for target in targets:
        yield from (part for part in ast.walk(target) if isinstance(part, ast.Attribute))


def _is_task(value: ast.expr, annotated: set[str]) -> bool:
    name = value.id if isinstance(value, ast.Name) else value.attr if isinstance(value, ast.Attribute) else ""
    return name.endswith("task") or name in annotated


def _writes_tasks(call: ast.Call, annotated: set[str]) -> bool:
    name = call.func.id if isinstance(call.func, ast.Name) else ""
    if name == "setattr":
        return bool(call.args) and _is_task(call.args[0], annotated)
    return name in ("Claims", "update") and any(isinstance(arg, ast.Name) and arg.id == "Task" for arg in call.args)


def _names_task_class(annotation: ast.expr | None) -> bool:
    names = ast.walk(annotation) if annotation is not None else ()
    return any(isinstance(node, ast.Name) and node.id == "Task" for node in names)


def main() -> int:
    """Print every write outside the writer; return the exit code."""
    found = [
        f"{path.relative_to(ROOT)}:{line}: {what} is written outside {WRITER}"
        for path in sorted((ROOT / "app").rglob("*.py"))
        if path.relative_to(ROOT) != WRITER and not path.is_relative_to(ROOT / "app" / "sandbox")
        for line, what in find_writes(path.read_text(), RECORDED if path == ROOT / RECORDER else frozenset())
    ]
    print("\n".join(found or ["Tasks are written in one module."]))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
