"""
A stand-in for the upstream, for demos, for tests, and for callers' own development.

It imitates the known behaviour of the upstream's sounds API: submit, record-info, credits and
timestamped lyrics in their envelope (errors are HTTP 200, the rate limit is code 405, an empty
account is code 429), the check of the key, a price of 2.5 credits per task, a limit of 20 submits
and polls in any 10 s, the callbacks `text`, `first` and `complete` with their retries, two clips per
task, and links to audio and covers. A tag in a prompt or an option adds faults, see FAULTS.

It differs in these points: a clip is a pulse at the tempo over a chord in the key, synthesised from
the request alone, so that equal requests give equal bytes. Audio is WAV, where the upstream sends
MP3. Links expire only by a fault. The waveform is a placeholder. All state is lost when the process
ends. `GET /journal`, `GET /tasks`, `GET /control` and `POST /control` do not exist upstream. They
require no key and show callback URLs in full, so run a sandbox on a private machine or network.
"""

from app.sandbox.faults import FAULTS, Fault, InvalidFault, list_faults
from app.sandbox.inspection import ROUTES_HELP
from app.sandbox.server import SandboxServer, create_sandbox, run_sandbox
from app.sandbox.state import SandboxOptions

__all__ = [
    "FAULTS",
    "ROUTES_HELP",
    "Fault",
    "InvalidFault",
    "SandboxOptions",
    "SandboxServer",
    "create_sandbox",
    "list_faults",
    "run_sandbox",
]
