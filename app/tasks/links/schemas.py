"""The shapes of signed links, and of a task as they show it."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, Field, create_model
from pydantic.json_schema import SkipJsonSchema

from app.enums import ErrorCode
from app.tasks.schemas import TaskRead
from app.web.fields import EXAMPLE_TASK_ID

_URL = f"https://sounds.example/v1/tasks/{EXAMPLE_TASK_ID}"
_SIGNED = "expires=1769932800&scope=task.events.audio&signature=kq3vB1fGZt8"


class LinksRead(BaseModel):
    """Signed links to one task, which need no key."""

    task_url: str | None = Field(
        description="A link to the task's document; null if `scope` has no `task`.", examples=[f"{_URL}?{_SIGNED}"]
    )
    events_url: str | None = Field(
        description="A link to the task's events, as a list or for an `EventSource`; null if `scope` has no `events`.",
        examples=[f"{_URL}/events?{_SIGNED}"],
    )
    audio_urls: list[str] | None = Field(
        description="A link to the audio of each clip that there is by now; null if `scope` has no `audio`. The links"
        " of later clips are in the document behind `task_url`.",
        examples=[[f"{_URL}/clips/0/audio?{_SIGNED}"]],
    )
    expires_at: datetime = Field(description="When the links stop working.", examples=["2026-02-01T08:00:00Z"])


class OrderedTask(TaskRead):
    """A task that was ordered."""

    links: LinksRead | SkipJsonSchema[None] = Field(
        default=None, description="The signed links that the order asked for; absent if it did not."
    )


class LinkedError(BaseModel):
    """Why a task failed, without the upstream's words."""

    code: ErrorCode = Field(description="Why the task failed.", examples=["content_rejected"])
    upstream_code: int | None = Field(
        description="The upstream's own error code; null where the failure did not come from the upstream.",
        examples=[400],
    )


# A field of one of these shapes is a field of the other: only what is named here is kept from those who have a link.
_KEPT_BACK = frozenset({"metadata", "webhook_url", "error"})
_SAME = {name: (field.annotation, field) for name, field in TaskRead.model_fields.items() if name not in _KEPT_BACK}
LinkedTask: type[BaseModel] = create_model(  # type: ignore[call-overload]
    "LinkedTask",
    __doc__="""A task as a signed link shows it: without `metadata`, `webhook_url` and the upstream's words.

    In its clips, `audio_url` and `image_url` are links to this service's copies that expire with the link that was
    followed, and are null where its scope has no `audio`; `upstream_audio_url`, which could outlive them, is null.""",
    error=(LinkedError | None, Field(description="Why the task failed; null unless `status` is `failed`.")),
    **_SAME,
)
