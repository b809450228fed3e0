"""Typed dependencies: routes name the class of a long-lived object and get the one of their process."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Request

from app.database.engine import Database

T = TypeVar("T")


def provide(app: FastAPI, *services: object) -> None:
    """Let the application's routes take these objects by their classes, of which each occurs once."""
    by_class = {type(service): service for service in services}
    if len(by_class) != len(services):
        raise TypeError("two services of one class cannot be told apart")
    app.state.provided = by_class


def provided(kind: type[T]) -> Any:
    """The dependency on the application's object of this class, as in `Annotated[Storage, provided(Storage)]`."""

    # Asynchronous, because FastAPI runs other dependencies in a thread.
    async def find(request: Request) -> T:
        service: T = request.app.state.provided[kind]
        return service

    return Depends(find)


DatabaseDep = Annotated[Database, provided(Database)]
