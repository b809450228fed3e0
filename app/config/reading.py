"""Reads the settings, at a start and again at SIGHUP, and says of each that is invalid what is wrong with it."""

from __future__ import annotations

from pydantic import ValidationError

from app.config.derived import Settings
from app.config.sources import PREFIX


class SettingsUnusable(Exception):
    """One sentence for each invalid setting."""


def read_settings() -> Settings:
    """Read the settings. Raises SettingsUnusable."""
    try:
        return Settings()
    except ValidationError as error:
        lines = [f"{PREFIX}{'_'.join(map(str, e['loc'][:1])).upper()} {e['msg']}" for e in error.errors()]
        message = "\n".join(line.replace("Value error, ", "").replace(f"{PREFIX} ", "") for line in lines)
        raise SettingsUnusable(message) from error
    except OSError as error:
        raise SettingsUnusable(f"{error.filename} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsUnusable(".env cannot be read: it is not UTF-8") from error
    except ValueError as error:
        raise SettingsUnusable(str(error)) from error
