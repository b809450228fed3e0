"""Every setting of the service, read once from the environment and refused where it cannot work."""

from app.config.derived import Settings
from app.config.reading import SettingsUnusable, read_settings
from app.config.settings import CALLBACKS_PATH
from app.config.sources import PREFIX, SECRETS, unknown_settings
from app.config.values import Rate, parse_api_keys, parse_rate

__all__ = [
    "CALLBACKS_PATH",
    "PREFIX",
    "SECRETS",
    "Rate",
    "Settings",
    "SettingsUnusable",
    "parse_api_keys",
    "parse_rate",
    "read_settings",
    "unknown_settings",
]
