"""PostgreSQL's URLs are read as libpq reads them, without loading it."""

import re
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict

from app.config.database_url import UNREADABLE, read_postgres_url

PARTS = ("a", "é", ":", "@", "/", "[", "]", ",", ".", "%", "%41", "%00", "%ff", "%3A", "5432", "#", " ", "+", "[::1]")
# libpq takes these for parts of an address between brackets, which no address has.
NO_ADDRESS = re.compile(r"\[[^\]]*[,/]")


@given(st.lists(st.sampled_from(PARTS), max_size=12).map("".join))
@example("user:p%40ss:word@one:5432,[::1],two:/name")
@example("@:/")
@example("u@h/a/b")
@example("%2Fvar%2Frun/name")
def test_address_is_read_as_libpq_reads_it(address: str) -> None:
    if NO_ADDRESS.search(address):
        return
    read = _by_libpq(address)
    # What is refused beyond that: rather than to connect elsewhere with a part of a password.
    is_odd = read is None or "@" in read.get("host", "") or "@" in address.partition("@")[2]
    is_odd = is_odd or "@" in address.partition("/")[2] or not _has_ports(read or {})

    if is_odd:
        with pytest.raises(ValueError, match=r"must (be a database URL|have one port)") as refused:
            read_postgres_url(f"postgresql://{address}")
        assert UNREADABLE in str(refused.value) or "port" in str(refused.value)
    else:
        assert read_postgres_url(f"postgresql://{address}").parameters == read


def _by_libpq(address: str) -> dict[str, str] | None:
    """The parameters; None where it takes this for no URL."""
    # It refuses some characters that others take as they are.
    escaped = re.sub(r"%(?![0-9A-Fa-f]{2})", "%25", quote(address, safe="%/:@[],!$&'()*+;=~#"))
    try:
        return {name: str(value) for name, value in conninfo_to_dict(f"postgresql://{escaped}").items()}
    except (ProgrammingError, UnicodeDecodeError):
        return None


def _has_ports(parameters: dict[str, str]) -> bool:
    ports = parameters.get("port", "").split(",")
    is_each = all(re.fullmatch("[0-9]{0,5}", port) and 0 < int(port or 1) < 65_536 for port in ports)
    return is_each and len(ports) in (1, len(parameters.get("host", "").split(",")))
