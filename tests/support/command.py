"""What a process that was forked for one command of `soundpost` does."""

import os
import resource
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


def run_command(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], output: Path, errors: Path, max_files: int
) -> None:
    """Run the command as a shell would, with its output in files; ends the process. `max_files` may be open at once."""
    from app.cli.main import run

    resource.setrlimit(resource.RLIMIT_NOFILE, (max_files, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, file in enumerate((Path(os.devnull), output, errors)):
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode) for number, mode in enumerate(("r", "w", "w")))
    sys.argv = ["soundpost", *command]
    # What a shell starts in the background ignores it, and so do the processes that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run()
