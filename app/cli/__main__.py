"""`python -m app.cli` runs `soundpost` without installing the package."""

from app.cli.main import run

run()
