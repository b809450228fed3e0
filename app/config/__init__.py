"""Every setting of the service, read once from the environment and refused where it cannot work."""

from app.config.settings import CALLBACKS_PATH, PREFIX, SECRETS, Settings
from app.config.values import Rate, parse_rate

__all__ = ["CALLBACKS_PATH", "PREFIX", "SECRETS", "Rate", "Settings", "parse_rate"]
