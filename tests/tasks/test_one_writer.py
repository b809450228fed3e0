"""The lint for the one writer of tasks finds every way to write."""

import pytest

from tests.lint_task_writers import find_writes, main


@pytest.mark.parametrize(
    "source",
    [
        "task.status = 1",
        "self.task.posts -= 1",
        "held.task.fence, other = None, 1",
        "locked_task.due_at: int = 1",
        "def f(row: Task) -> None:\n    row.charge = 1",
        "def f(row: Task | None) -> None:\n    setattr(row, name, 1)",
        "row.upstream_task_id = 1",
        "Claims(Task, is_queued)",
        "update(Task).values(due_at=None)",
    ],
)
def test_write_of_a_task_is_found(source: str) -> None:
    assert len(list(find_writes(source))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "clip.due_at = 1",
        "task.clips.append(clip)",
        "task = find(Task)",
        "Claims(Clip, is_queued)",
        "task.x = 1",
    ],
)
def test_other_code_is_let_pass(source: str) -> None:
    assert list(find_writes(source)) == []


def test_tasks_are_written_in_one_module() -> None:
    assert main() == 0
