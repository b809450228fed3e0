"""The database's URL: libpq's parameters, read once and in one way for every command and both drivers."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from urllib.parse import unquote

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

DRIVERS: Mapping[str, str] = {
    "postgres": "asyncpg",
    "postgresql": "asyncpg",
    "postgresql+asyncpg": "asyncpg",
    "postgresql+psycopg": "psycopg",
}
SCHEMES = ("sqlite+aiosqlite", *DRIVERS)
UNREADABLE = (
    "must be a database URL such as postgresql+asyncpg://user@host/name; percent-encode each of @ : / ? # [ ] % in its"
    " user and password"
)
# Parameters of other drivers and tools, in libpq's words.
_ALIASES = {"ssl": "sslmode", "database": "dbname"}
_SSL_FLAGS = {"true": "require", "1": "require", "false": "disable", "0": "disable"}
# Each of these says that a pooler stands between, whose connections change servers from one transaction to the next.
_POOLER_FLAGS = {
    "pgbouncer": ("true", "1", "yes", "on"),
    "prepared_statement_cache_size": ("0",),
    "statement_cache_size": ("0",),
}
_CHOICES = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "channel_binding": ("disable", "prefer", "require"),
    "target_session_attrs": ("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
}
_SECRET_PARAMETERS = frozenset({"password", "sslpassword"})
# What asyncpg understands; `options`, `application_name` and `connect_timeout` are translated for it.
ASYNCPG_TLS = frozenset(
    {
        *("sslmode", "sslcert", "sslkey", "sslrootcert", "sslcrl", "sslpassword", "sslnegotiation"),
        *("ssl_min_protocol_version", "ssl_max_protocol_version", "krbsrvname", "gsslib", "service"),
    }
)
_ASYNCPG = ASYNCPG_TLS | {
    *("host", "port", "user", "password", "dbname", "passfile", "target_session_attrs"),
    *("options", "application_name", "connect_timeout"),
}
# What stands before the question mark, with any number of hosts between commas.
_ADDRESS = re.compile(
    r"(?:(?P<user>[^:@/]*)(?::(?P<password>[^@/]*))?@)?(?P<hosts>[^/]*)(?:/(?P<dbname>.*))?", re.DOTALL
)
_HOST = re.compile(r"(?:\[(?P<address>[^\]]+)\]|(?!\[)(?P<name>[^:]*))(?::(?P<port>.*))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class PostgresUrl:
    """
    A PostgreSQL URL: the driver, libpq's parameters, and the names of those that have no effect.

    `has_pooler`: the URL says that a pooler stands between, which changes servers from one
    transaction to the next.
    """

    driver: str
    parameters: Mapping[str, str]
    ignored: Sequence[str]
    has_pooler: bool

    @property
    def is_pooled(self) -> bool:
        """Whether there may be a pooler: neither prepared statements nor settings may be meant for a session."""
        return self.has_pooler or self.driver == "psycopg"


@dataclass(frozen=True, slots=True)
class DatabaseLimits:
    """How many connections a process opens on PostgreSQL, and how long a statement and a wait for a lock may take."""

    pool_size: int = 10
    max_overflow: int = 5
    statement_timeout: timedelta = timedelta(seconds=15)
    lock_timeout: timedelta = timedelta(seconds=5)

    @property
    def orders(self) -> int:
        """How many new tasks are stored at once; the other connections are for everything else."""
        return max(1, (self.pool_size + self.max_overflow) // 2)


def is_sqlite(url: str) -> bool:
    """Whether this is the URL of an SQLite file."""
    return url.startswith("sqlite")


def check_database_url(url: str) -> str:
    """Return the URL if it can be used. Raises ValueError with a sentence that quotes nothing of it."""
    scheme = url.partition("://")[0]
    if "://" not in url:
        raise ValueError(UNREADABLE)
    if scheme not in SCHEMES:
        raise ValueError(f"must begin with one of {', '.join(f'{name}://' for name in SCHEMES)}")
    if not is_sqlite(url):
        read_postgres_url(url)
        return url
    try:
        database = make_url(url).database
    except (ArgumentError, ValueError):
        raise ValueError(
            "must be sqlite+aiosqlite:/// and a file, such as sqlite+aiosqlite:///var/soundpost.db"
        ) from None
    if database in (None, "", ":memory:"):
        raise ValueError("must name a file: what is kept in memory is lost with the process")
    return url


@lru_cache(maxsize=8)
def read_postgres_url(url: str) -> PostgresUrl:
    """Read a PostgreSQL URL. Raises ValueError with a sentence that quotes nothing of it."""
    scheme, _, rest = url.partition("://")
    address, _, query = rest.partition("?")
    driver = DRIVERS[scheme]
    parameters = _read_address(address)
    if "@" in parameters.get("host", "") or "@" in address.partition("@")[2] or "@" in address.partition("/")[2]:
        raise ValueError(UNREADABLE)
    known = _ASYNCPG if driver == "asyncpg" else _known_to_libpq()
    has_pooler, ignored = False, []
    for name, value in _pairs(query):
        if name in _POOLER_FLAGS:
            has_pooler = has_pooler or value.lower() in _POOLER_FLAGS[name]
        elif name == "hostaddr" and driver == "asyncpg" and "host" not in parameters:
            parameters["host"] = value
        elif name in known:
            parameters[name] = value
        else:
            ignored.append(name)
    _split_hosts(query, parameters)
    _check(parameters)
    return PostgresUrl(driver, parameters, tuple(dict.fromkeys(ignored)), has_pooler)


def ignored_parameters(url: str) -> Sequence[str]:
    """The names of the parameters of a URL that have no effect with its driver."""
    return () if is_sqlite(url) else read_postgres_url(url).ignored


def masked_url(url: str) -> str:
    """The URL with its password masked."""
    if is_sqlite(url):
        return url
    address, mark, query = url.partition("?")
    address = re.sub(r"(://[^:@/]*):[^@]*@", r"\1:***@", address)
    pairs = [pair.partition("=") for pair in query.split("&")]
    shown = (
        f"{name}=***" if unquote(name) in _SECRET_PARAMETERS else f"{name}{sign}{value}" for name, sign, value in pairs
    )
    return f"{address}{mark}{'&'.join(shown)}"


def without_password(text: str, url: str) -> str:
    """The text of a library, without what may be the password of this URL, however it was read."""
    address = url.partition("://")[2]
    userinfo, at, _ = address.rpartition("@")
    named = userinfo.partition(":")[2] if at else ""
    candidates = {named, named.partition("@")[0], named.rpartition("@")[2], *re.split(r"[/@:?#\[\]]", named)}
    candidates.update(re.findall(r"password=([^&]*)", url))
    words = {form for word in candidates for form in (word, unquote(word)) if len(form) > 2}
    for word in sorted(words, key=len, reverse=True):
        text = text.replace(word, "***")
    return text


def _read_address(address: str) -> dict[str, str]:
    """
    The user, password, hosts, ports and database of a URL, as libpq reads them. Raises ValueError.

    Not by libpq itself: psycopg takes 10 MiB, and only migrations and its own scheme need it.
    """
    found = _ADDRESS.fullmatch(address)
    hosts = [_HOST.fullmatch(host) for host in found["hosts"].split(",")] if found else []
    if found is None or not all(hosts):
        raise ValueError(UNREADABLE)
    named = [(host["address"] or host["name"], host["port"] or "") for host in hosts if host]
    parts = {name: found[name] or "" for name in ("user", "password", "dbname")}
    parts["host"], parts["port"] = (",".join(each) for each in zip(*named, strict=True))
    try:
        # A percent sign that begins no escape stands for itself.
        parameters = {name: unquote(value, errors="strict") for name, value in parts.items() if value}
    except UnicodeDecodeError:
        raise ValueError(UNREADABLE) from None
    if any("\0" in value for value in parameters.values()):
        raise ValueError(UNREADABLE)
    return parameters


def _known_to_libpq() -> Collection[str]:
    """The names of libpq's parameters."""
    from psycopg.pq import Conninfo

    # Text is UTF-8, whatever the URL says.
    return {option.keyword.decode() for option in Conninfo.get_defaults()} - {"client_encoding"}


def _pairs(query: str) -> Iterator[tuple[str, str]]:
    for pair in query.split("&"):
        if pair:
            # As in libpq a plus is a plus; a value may have an equals sign, as in options=-csearch_path=sound.
            name, _, value = pair.partition("=")
            name, value = unquote(name), unquote(value)
            if not re.fullmatch(r"\w{1,40}", name, re.ASCII):
                # The end of a password with a question mark, most likely.
                raise ValueError(UNREADABLE)
            name = _ALIASES.get(name, name)
            yield name, _SSL_FLAGS.get(value.lower(), value) if name == "sslmode" else value


def _split_hosts(query: str, parameters: dict[str, str]) -> None:
    """Several hosts are also written as host=one:5432&host=two:5432."""
    named = [value for name, value in _pairs(query) if name == "host"]
    if len(named) > 1 or re.fullmatch(r"[^/:,]+:\d+", "".join(named)):
        both = [re.fullmatch(r"(.*?)(?::(\d+))?", host) for host in named]
        parameters["host"] = ",".join(found[1] for found in both if found)
        if any(found and found[2] for found in both):
            parameters["port"] = ",".join(found[2] or "" for found in both if found)


def _check(parameters: Mapping[str, str]) -> None:
    ports = parameters.get("port", "").split(",")
    if not all(re.fullmatch(r"[0-9]{0,5}", port, re.ASCII) and 0 < int(port or 1) < 65_536 for port in ports):
        raise ValueError(UNREADABLE)
    if len(ports) > 1 and len(ports) != len(parameters.get("host", "").split(",")):
        raise ValueError("must have one port, or one for each host")
    for name, choices in _CHOICES.items():
        if parameters.get(name, choices[0]) not in choices:
            raise ValueError(f"has a `{name}` that is none of {', '.join(choices)}")
    if not re.fullmatch(r"-?\d{1,9}", parameters.get("connect_timeout", "0"), re.ASCII):
        raise ValueError("has a `connect_timeout` that is not a whole number of seconds")
