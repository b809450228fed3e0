"""The vendor's paths, with every answer in the vendor's envelope, the errors too."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import ValidationError

from app.auth import CallerDep
from app.db import DatabaseDep, ReaderDep
from app.dropin.schemas import LONGEST_PROMPT, OK, Envelope, SoundsRequest, envelope, record_info
from app.errors import AppError, ContentTooLarge, InvalidRequest, NotFound
from app.tasks import repository
from app.tasks.endpoints import LifeDep, owned
from app.tasks.schemas import TaskCreate, read_task
from app.upstream.endpoints import get_credits

# The vendor's code for each of our statuses; what is missing here is a failure of ours.
CODES: Mapping[int, int] = {400: 400, 401: 401, 404: 404, 413: 413, 415: 400, 422: 400, 429: 405, 503: 455}


class EnvelopeRoute(APIRoute):
    """Answers errors as the vendor does: HTTP 200 with the code in the body; a bad key is 401 in both."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap what FastAPI made of the endpoint."""
        handle = super().get_route_handler()

        async def handle_in_envelope(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                return _refuse(InvalidRequest(detail=_first_complaint(error)))
            except AppError as error:
                return _refuse(error)

        return handle_in_envelope


router = APIRouter(prefix="/api/v1/generate", tags=["drop-in"], route_class=EnvelopeRoute)


@router.post("/sounds", operation_id="dropinGenerateSounds")
async def generate_sounds(
    request: Request, database: DatabaseDep, life: LifeDep, caller: CallerDep, order: SoundsRequest
) -> Envelope:
    """Order a sound as from the vendor; `taskId` is ours."""
    if len(order.prompt) > LONGEST_PROMPT:
        raise ContentTooLarge(detail=f"prompt must be at most {LONGEST_PROMPT} characters")
    if order.model not in request.app.state.settings.models:
        raise InvalidRequest(detail=f"model must be one of {', '.join(request.app.state.settings.models)}")
    try:
        data = TaskCreate.model_validate(order.model_dump(exclude={"callback_url"}))
    except ValidationError as error:
        raise InvalidRequest(detail=_first_complaint(error)) from None
    async with database.writes.begin() as session:
        task = life.create(session, caller.api_key_id, data, await database.now(session))
    return envelope(OK, "success", {"taskId": task.id})


@router.get("/record-info", operation_id="dropinGetRecordInfo")
async def get_record_info(
    session: ReaderDep, caller: CallerDep, task_id: Annotated[str | None, Query(alias="taskId")] = None
) -> Envelope:
    """A task as the vendor tells it."""
    if not task_id:
        raise InvalidRequest(detail="taskId is missing")
    task = owned(await repository.find_task(session, task_id), caller)
    return envelope(OK, "success", record_info(task, read_task(task, {})))


@router.get("/credit", operation_id="dropinGetCredit")
async def get_credit(request: Request, caller: CallerDep) -> Envelope:
    """What is left on the account."""
    return envelope(OK, "success", (await get_credits(request, caller)).credits)


def _refuse(error: AppError) -> Response:
    code = CODES.get(error.status, 500)
    body = envelope(code, error.detail or error.title)
    if isinstance(error, NotFound):
        body["msg"] = "The task does not exist."
    return JSONResponse(body, status_code=401 if code == 401 else 200)


def _first_complaint(error: RequestValidationError | ValidationError) -> str:
    """The first field that is wrong, and why; never what was sent."""
    first = (
        error.errors(include_url=False, include_input=False, include_context=False)[0]
        if isinstance(error, ValidationError)
        else error.errors()[0]
    )
    field = ".".join(str(part) for part in first["loc"] if part != "body")
    return f"{field}: {first['msg']}"
