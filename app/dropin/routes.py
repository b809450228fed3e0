"""The vendor's routes over our tasks; middleware puts errors below them into the vendor's envelope."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any

from fastapi import Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import AfterValidator, ValidationError
from pydantic.alias_generators import to_camel
from pydantic.json_schema import SkipJsonSchema

from app.auth.callers import ReadCaller, SubmitCaller
from app.config import Settings
from app.dropin.schemas import (
    MAX_PROMPT_LENGTH,
    CreditAnswer,
    RecordAnswer,
    RecordInfo,
    SoundsAnswer,
    SoundsRequest,
    TaskId,
    record_info,
)
from app.errors import ContentTooLarge, InvalidRequest
from app.observability.tracing import trace_context_of
from app.signed_urls import SignedUrls
from app.tasks.order_schemas import TaskCreate
from app.tasks.orders.service import OrderService
from app.tasks.schemas import read_task
from app.tasks.service import TaskService
from app.upstream.credits import CreditsCache
from app.web.fields import EXAMPLE_TASK_ID, canonical_id
from app.web.openapi import response_headers
from app.web.provided import provided
from app.web.routing import Router
from app.webhooks.lifecycle import check_receiver

UNAUTHENTICATED: dict[int | str, dict[str, Any]] = {
    401: {
        "description": "A valid key is needed.",
        "content": {"application/json": {"example": {"code": 401, "msg": "A valid key is needed.", "data": None}}},
    }
}
PLACED: dict[int | str, dict[str, Any]] = {
    200: {"headers": response_headers("Cache-Control", "RateLimit", "RateLimit-Policy")}
}
VendorTaskId = Annotated[
    str | SkipJsonSchema[None],
    Query(
        alias="taskId",
        description="The `taskId` of one of your tasks; without it the response is `code` 400.",
        examples=[EXAMPLE_TASK_ID],
    ),
    AfterValidator(canonical_id),
]
SettingsDep = Annotated[Settings, provided(Settings)]
OrdersDep = Annotated[OrderService, provided(OrderService)]
TasksDep = Annotated[TaskService, provided(TaskService)]
router = Router(prefix="/api/v1/generate", tags=["drop-in"], responses=UNAUTHENTICATED)


@router.post(
    "/sounds", operation_id="dropinGenerateSounds", summary="Request a sound as from the vendor", responses=PLACED
)
async def generate_sounds(
    request: Request,
    response: Response,
    orders: OrdersDep,
    settings: SettingsDep,
    caller: SubmitCaller,
    body: SoundsRequest,
) -> SoundsAnswer:
    """Create a task in the vendor's shapes. The `taskId` in the response is this service's task id."""
    task = _to_task(body, settings.models)
    if body.callback_url:
        check_receiver(body.callback_url, settings.egress_allow, "#/callBackUrl")
    trace_context = trace_context_of(request.scope)
    placed = await orders.place(caller, task, callback_url=body.callback_url or None, trace_context=trace_context)
    response.headers.update({**placed.quota, "Cache-Control": "no-store"})
    return SoundsAnswer(data=TaskId(taskId=placed.task.id))


@router.get("/record-info", operation_id="dropinGetRecordInfo", summary="Get a task as from the vendor")
async def get_record_info(
    tasks: TasksDep,
    signed_urls: Annotated[SignedUrls, provided(SignedUrls)],
    caller: ReadCaller,
    task_id: VendorTaskId = None,
) -> RecordAnswer:
    """Get a task in the vendor's shapes. A missing or foreign task is `code` 404 in HTTP 200."""
    if not task_id:
        raise _invalid("taskId", "is missing")
    task = await tasks.get_row(caller, task_id)
    return RecordAnswer(data=RecordInfo.model_validate(record_info(task, read_task(task, {}, signed_urls))))


@router.get("/credit", operation_id="dropinGetCredit", summary="Get the remaining credits as from the vendor")
async def get_credit(cache: Annotated[CreditsCache, provided(CreditsCache)], caller: ReadCaller) -> CreditAnswer:
    """Get the credits left on the upstream account, in the vendor's shapes."""
    return CreditAnswer(data=float((await cache.credits()).credits))


def _to_task(body: SoundsRequest, models: Collection[str]) -> TaskCreate:
    if len(body.prompt) > MAX_PROMPT_LENGTH:
        raise ContentTooLarge(detail=f"prompt must be at most {MAX_PROMPT_LENGTH} characters")
    if body.model not in models:
        raise _invalid("model", f"must be one of {', '.join(models)}")
    try:
        return TaskCreate.model_validate(body.model_dump(exclude={"callback_url"}, exclude_none=True))
    except ValidationError as error:
        fields = [{**wrong, "loc": ("body", *map(to_camel, map(str, wrong["loc"])))} for wrong in error.errors()]
        raise RequestValidationError(fields) from None


def _invalid(field: str, detail: str) -> InvalidRequest:
    return InvalidRequest(errors=[{"pointer": f"#/{field}", "detail": detail}])
