"""`python -m app.cli` is `soundpost`, where the package is not installed."""

from app.cli.main import run

run()
