"""Every setting of the service, read once from the environment and refused where it cannot work."""

from app.config.derived import Settings
from app.config.settings import CALLBACKS_PATH
from app.config.sources import PREFIX, SECRETS, unknown_settings
from app.config.values import Rate, fits_header, parse_rate

__all__ = ["CALLBACKS_PATH", "PREFIX", "SECRETS", "Rate", "Settings", "fits_header", "parse_rate", "unknown_settings"]
