"""Pages from Jinja2 templates: everything in them is escaped, and every response has the headers of a page."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, unquote, urlencode

from fastapi import Request
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.responses import Response

from app.config import Settings
from app.console.assets import asset_path
from app.console.mount import PATH
from app.web.prefix import prefix_of
from app.web.provided import provided

NOTICE_COOKIE, NOTICE_SECONDS = "soundpost_notice", 30
# Of every page. `same-origin` tells other sites nothing, as `no-referrer` does, but does not make the origin of our own
# forms "null", by which we know them.
HEADERS = {"Cache-Control": "no-store", "Referrer-Policy": "same-origin"}


class Pages:
    """Renders the pages of one process, whose links begin with the path under which a proxy serves us."""

    def __init__(self, settings: Settings) -> None:
        self.prefix = prefix_of(settings.link_base)
        self._environment = Environment(
            loader=FileSystemLoader(Path(__file__).with_name("templates")),
            autoescape=True,
            auto_reload=False,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.globals |= {"url": self.url, "asset": self._asset, "link_with": link_with}
        self._environment.filters |= {
            "moment": moment,
            "ago": ago,
            "span": span,
            "credits": as_credits,
            "for_form": for_form,
        }

    def url(self, path: str) -> str:
        """A path of the console as browsers must ask for it."""
        return f"{self.prefix}{PATH}{path}"

    def render(self, request: Request, template: str, status: int = 200, **values: Any) -> Response:
        """The page of this template; the notice that a redirect left is shown once."""
        notice = unquote(request.cookies.get(NOTICE_COOKIE, ""))
        response = HTMLResponse(self.text(request, template, notice=notice, **values), status, HEADERS)
        if notice:
            response.delete_cookie(NOTICE_COOKIE, self.url(""), httponly=True, samesite="strict")
        return response

    def text(self, request: Request, template: str, **values: Any) -> str:
        """A template as text: a page, or a part of one that a stream sends."""
        visitor = getattr(request.state, "visitor", None)

        def csrf() -> Markup:
            """The hidden field that every form with method="post" needs."""
            token = visitor.csrf_token if visitor else ""
            return Markup('<input type="hidden" name="csrf_token" value="{}">').format(token)

        known: dict[str, Any] = {"visitor": visitor, "csrf": csrf, "path": request.url.path, "now": datetime.now(UTC)}
        return self._environment.get_template(template).render(known | values)

    def redirect(self, path: str, notice: str = "") -> Response:
        """Go to a path of the service, after a form was handled, and show this notice there."""
        # The prefix is put before it on the way out, as before every `Location`.
        response = RedirectResponse(path, 303, HEADERS)
        if notice:
            response.set_cookie(
                NOTICE_COOKIE,
                quote(notice),
                max_age=NOTICE_SECONDS,
                path=self.url(""),
                httponly=True,
                samesite="strict",
            )
        return response

    def _asset(self, name: str) -> str:
        return self.url(f"/static/{asset_path(name)}")


PagesDep = Annotated[Pages, provided(Pages)]


def moment(value: datetime) -> str:
    """A time to the second, in UTC."""
    return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def ago(value: datetime, now: datetime) -> str:
    """How long ago something was, or in how long it will be."""
    passed = now - value
    if abs(passed) < timedelta(seconds=1):
        return "now"
    rough = span(abs(passed), units=1)
    return f"{rough} ago" if passed > timedelta() else f"in {rough}"


def span(value: timedelta, units: int = 2) -> str:
    """A span of time in its one or two largest units: 840 ms, 4.2 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    seconds = value.total_seconds()
    if seconds < 1:
        return f"{round(seconds * 1000)} ms"
    if seconds < 10 and units > 1:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, smaller, small_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit}" + (f" {rest} {small_unit}" if rest and units > 1 else "")
    return f"{whole} s"


def as_credits(value: float) -> str:
    """Credits with at most three decimals: 2.5, 1,200, −2.5."""
    text = f"{abs(value):,.3f}".rstrip("0").rstrip(".")
    return f"\N{MINUS SIGN}{text}" if value < 0 else text


def with_zone(value: str) -> str:
    """A moment that a form has sent, without zone and seconds, as RFC 3339 has it; anything else as it is."""
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return value
    return value if moment.tzinfo else moment.replace(tzinfo=UTC).isoformat(timespec="seconds")


def for_form(value: str) -> str:
    """A moment as a form's field for moments takes it."""
    try:
        return datetime.fromisoformat(with_zone(value)).astimezone(UTC).strftime("%Y-%m-%dT%H:%M")
    except (ValueError, OverflowError):
        return ""


def link_with(given: Mapping[str, str], **changes: str) -> str:
    """The query of a URL with these parameters, but for these changes; what is empty is left out."""
    query = urlencode({name: value for name, value in {**given, **changes}.items() if value})
    return f"?{query}" if query else ""
