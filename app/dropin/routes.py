"""The vendor's paths; what goes wrong below them is put into its envelope on the way out."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from pydantic.json_schema import SkipJsonSchema

from app.auth.api_keys import CallerDep
from app.config import Settings
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
from app.signed_urls import SignedUrls
from app.tasks.routes import TasksDep
from app.tasks.schemas import TaskCreate, read_task
from app.upstream.routes import CreditsDep, read_credits
from app.web.provided import provided
from app.web.routing import Router

UNAUTHENTICATED: dict[int | str, dict[str, Any]] = {
    401: {
        "description": "A valid key is needed.",
        "content": {"application/json": {"example": {"code": 401, "msg": "A valid key is needed.", "data": None}}},
    }
}
SettingsDep = Annotated[Settings, provided(Settings)]
router = Router(prefix="/api/v1/generate", tags=["drop-in"], responses=UNAUTHENTICATED)


@router.post("/sounds", operation_id="dropinGenerateSounds")
async def generate_sounds(
    response: Response, tasks: TasksDep, settings: SettingsDep, caller: CallerDep, body: SoundsRequest
) -> SoundsAnswer:
    """Order a sound as from the vendor; `taskId` is ours."""
    data = _read_order(body, settings.models)
    if body.callback_url:
        try:
            check_url(body.callback_url, settings.egress_allow)
        except UrlRefused as refusal:
            raise _bad("callBackUrl", str(refusal)) from None
    placed = await tasks.place(caller, data, callback_url=body.callback_url or None)
    response.headers.update({**placed.quota, "Cache-Control": "no-store"})
    return SoundsAnswer(data=TaskId(taskId=placed.task.id))


@router.get("/record-info", operation_id="dropinGetRecordInfo")
async def get_record_info(
    tasks: TasksDep,
    signed_urls: Annotated[SignedUrls, provided(SignedUrls)],
    caller: CallerDep,
    task_id: Annotated[str | SkipJsonSchema[None], Query(alias="taskId")] = None,
) -> RecordAnswer:
    """A task in the vendor's shape."""
    if not task_id:
        raise _bad("taskId", "is missing")
    task = await tasks.get_row(caller, task_id)
    return RecordAnswer(data=record_info(task, read_task(task, {}, signed_urls)))


@router.get("/credit", operation_id="dropinGetCredit")
async def get_credit(cache: CreditsDep, caller: CallerDep) -> CreditAnswer:
    """The credits that are left on the account."""
    return CreditAnswer(data=float((await read_credits(cache)).credits))


def _read_order(body: SoundsRequest, models: tuple[str, ...]) -> TaskCreate:
    if len(body.prompt) > MAX_PROMPT_LENGTH:
        raise ContentTooLarge(detail=f"prompt must be at most {MAX_PROMPT_LENGTH} characters")
    if body.model not in models:
        raise _bad("model", f"must be one of {', '.join(models)}")
    try:
        return TaskCreate.model_validate(body.model_dump(exclude={"callback_url"}, exclude_none=True))
    except ValidationError as error:
        fields = [{**wrong, "loc": ("body", *map(camel, map(str, wrong["loc"])))} for wrong in error.errors()]
        raise RequestValidationError(fields) from None


def _bad(field: str, detail: str) -> InvalidRequest:
    return InvalidRequest(errors=[{"pointer": f"#/{field}", "detail": detail}])
