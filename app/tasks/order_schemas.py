"""The shape of an order: a request for one sound."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints

from app.enums import LinkScope, Priority
from app.web import WHOLE, StrictModel, Text

SoundKey = Literal[
    "Any",
    "Cm", "C#m", "Dm", "D#m", "Em", "Fm", "F#m", "Gm", "G#m", "Am", "A#m", "Bm",
    "C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B",
]  # fmt: skip

Prompt = Annotated[Text, StringConstraints(min_length=1, max_length=500)]

WebhookUrl = Annotated[str, StringConstraints(max_length=2048), Field(json_schema_extra={"format": "uri"})]

Label = Annotated[Text, StringConstraints(min_length=1, max_length=64)]

LabelValue = Annotated[Text, StringConstraints(max_length=512)]

MAX_LABELS = 16
# What an order says and its task does not keep.
NOT_STORED = frozenset({"hold", "links"})

# Of signed links for browsers, in seconds.
MAX_TTL = 7 * 24 * 60 * 60


def _bound_names(schema: dict[str, Any]) -> None:
    """Refuse other keys in the schema too: pydantic's `patternProperties` admits them, with values of any kind."""
    schema["propertyNames"]["pattern"], schema["additionalProperties"] = schema.pop("patternProperties").popitem()


class LinksCreate(StrictModel):
    """A request for signed links to one task, for a page in a browser."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"scope": ["task", "events", "audio"], "ttl": 900}]})

    scope: Annotated[list[Annotated[LinkScope, Field(strict=False)]], Field(min_length=1, max_length=3)] = Field(
        default=list(LinkScope),
        description="What the links may read, 1 to 3 of `task`, `events` and `audio`, which includes covers.",
        examples=[["events", "audio"]],
    )
    ttl: Annotated[int, Field(ge=1, le=MAX_TTL), WHOLE] = Field(
        default=900, description="For how many seconds the links work, 1 to 604800 (7 days).", examples=[900]
    )


class TaskCreate(StrictModel):
    """A request for one sound."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "soft rain on a tin roof", "sound_tempo": 90, "sound_key": "Am"}]}
    )

    prompt: Prompt = Field(
        description="What the sound should be, in words: 1 to 500 characters.", examples=["soft rain on a tin roof"]
    )
    model: Annotated[Text, StringConstraints(min_length=1, max_length=64)] | None = Field(
        default=None,
        description="The upstream's model to use; null means the service's default model.",
        examples=["V5"],
    )
    sound_loop: bool = Field(
        default=False, description="Whether the sound should loop without a seam.", examples=[True]
    )
    sound_tempo: Annotated[int, Field(ge=1, le=300), WHOLE] | None = Field(
        default=None, description="The tempo in BPM, 1 to 300; null lets the upstream choose.", examples=[90]
    )
    sound_key: SoundKey = Field(
        default="Any", description="The musical key; `Any` lets the upstream choose.", examples=["Am"]
    )
    grab_lyrics: bool = Field(
        default=False,
        description="Whether to fetch the sung words with their times once the sound is ready.",
        examples=[True],
    )
    priority: Annotated[Priority, Field(strict=False)] = Field(
        default=Priority.normal,
        description="Which of your own queued tasks goes first: `high` before `normal` before `low`. It gives you no"
        " larger share than other keys have.",
        examples=["normal"],
    )
    hold: bool = Field(
        default=False,
        description="Whether a task that your budget has no room for is stored all the same, and waits `queued` until"
        " there is; otherwise the order is refused with 402.",
        examples=[True],
    )
    webhook_url: WebhookUrl | None = Field(
        default=None,
        description="An HTTP or HTTPS URL, at most 2048 characters, that receives this task's final event as a webhook;"
        " null for none. It must not lead to a private address.",
        examples=["https://example.com/hooks/sounds"],
    )
    metadata: Annotated[
        dict[Label, LabelValue],
        Field(
            max_length=MAX_LABELS,
            default_factory=dict,
            description="Your own labels, at most 16: keys of 1 to 64 characters, values of at most 512. They are"
            " stored and returned with the task, can filter lists, and are not sent to the upstream.",
            examples=[{"scene": "attic"}],
            json_schema_extra=_bound_names,
        ),
    ]
    links: LinksCreate | None = Field(
        default=None,
        description="Whether the response has signed links to the task, for a page in a browser, and which; null for"
        " none. It is no part of the order: with the same `Idempotency-Key` other links may be asked for. The key"
        " needs the scope `read` too.",
        examples=[{"ttl": 900}],
    )
