"""The vendor's paths; what goes wrong below them is put into its envelope on the way out."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from pydantic.json_schema import SkipJsonSchema

from app.auth.api_keys import CallerDep
from app.auth.rate_limit import spend
from app.database.engine import DatabaseDep, ReaderDep
from app.dropin.schemas import (
    MAX_PROMPT_LENGTH,
    CreditAnswer,
    RecordAnswer,
    SoundsAnswer,
    SoundsRequest,
    TaskId,
    camel,
    record_info,
)
from app.egress import UrlRefused, check_url
from app.errors import ContentTooLarge, InvalidRequest
from app.tasks import repository
from app.tasks.routes import LifecycleDep, readable
from app.tasks.schemas import TaskCreate, read_task
from app.upstream.routes import get_credits
from app.web import RetryOnSerializationFailure

UNAUTHENTICATED: dict[int | str, dict[str, Any]] = {
    401: {
        "description": "A valid key is needed.",
        "content": {"application/json": {"example": {"code": 401, "msg": "A valid key is needed.", "data": None}}},
    }
}
router = APIRouter(
    prefix="/api/v1/generate", route_class=RetryOnSerializationFailure, tags=["drop-in"], responses=UNAUTHENTICATED
)


@router.post("/sounds", operation_id="dropinGenerateSounds")
async def generate_sounds(
    request: Request,
    response: Response,
    database: DatabaseDep,
    lifecycle: LifecycleDep,
    caller: CallerDep,
    order: SoundsRequest,
) -> SoundsAnswer:
    """Order a sound as from the vendor; `taskId` is ours."""
    settings = request.app.state.settings
    data = _read_order(order, settings.models)
    if order.callback_url:
        try:
            check_url(order.callback_url, settings.egress_allow)
        except UrlRefused as refusal:
            raise _bad("callBackUrl", str(refusal)) from None
    async with database.writes.begin() as session:
        now = await database.now(session)
        response.headers.update(await spend(session, caller.api_key_id, settings.key_rate, now))
        task = lifecycle.create(session, caller.api_key_id, data, now, order.callback_url or None)
    response.headers["Cache-Control"] = "no-store"
    return SoundsAnswer(data=TaskId(taskId=task.id))


@router.get("/record-info", operation_id="dropinGetRecordInfo")
async def get_record_info(
    request: Request,
    session: ReaderDep,
    caller: CallerDep,
    task_id: Annotated[str | SkipJsonSchema[None], Query(alias="taskId")] = None,
) -> RecordAnswer:
    """A task as the vendor tells it."""
    if not task_id:
        raise _bad("taskId", "is missing")
    task = readable(await repository.find_task(session, task_id), caller)
    return RecordAnswer(data=record_info(task, read_task(task, {}, request.app.state.signed_urls)))


@router.get("/credit", operation_id="dropinGetCredit")
async def get_credit(request: Request, database: DatabaseDep, caller: CallerDep) -> CreditAnswer:
    """What is left on the account."""
    return CreditAnswer(data=(await get_credits(request, database, caller)).credits)


def _read_order(order: SoundsRequest, models: tuple[str, ...]) -> TaskCreate:
    if len(order.prompt) > MAX_PROMPT_LENGTH:
        raise ContentTooLarge(detail=f"prompt must be at most {MAX_PROMPT_LENGTH} characters")
    if order.model not in models:
        raise _bad("model", f"must be one of {', '.join(models)}")
    try:
        return TaskCreate.model_validate(order.model_dump(exclude={"callback_url"}, exclude_none=True))
    except ValidationError as error:
        fields = [{**wrong, "loc": ("body", *map(camel, map(str, wrong["loc"])))} for wrong in error.errors()]
        raise RequestValidationError(fields) from None


def _bad(field: str, detail: str) -> InvalidRequest:
    return InvalidRequest(errors=[{"pointer": f"#/{field}", "detail": detail}])
