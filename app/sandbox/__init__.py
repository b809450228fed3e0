"""
A stand-in for the upstream, for demos, for tests, and for callers' own development.

It imitates what is known of the upstream's sounds API: submit, record-info, credits and timestamped
lyrics with their envelope (errors come as HTTP 200, a rate limit as code 405, an empty account as
code 429), the check of the key, 2.5 credits a task, 20 submits and polls in any 10 s, the callbacks
`text`, `first` and `complete` with their repeats, two clips a task, and links to audio and covers.
Faults are played when asked for, by a tag in the prompt or for all tasks: see FAULTS.

It does not imitate the music: a clip is a pulse at the tempo over a chord in the key, made from the
request alone, so that the same request sounds the same. Its files are WAV where the upstream's are
MP3, its links never expire unless a fault says so, the only waveform it knows is a placeholder, and
it forgets everything when it ends. What the upstream does not have: `GET /journal`, `GET /tasks`,
and `GET` and `POST /control`. They need no key and show callback URLs whole, so the place for a
sandbox is a machine or a network of one's own.
"""

from app.sandbox.faults import FAULTS, Fault, InvalidFault, list_faults
from app.sandbox.server import SandboxServer, create_sandbox, run_sandbox
from app.sandbox.state import SandboxOptions

__all__ = [
    "FAULTS",
    "Fault",
    "InvalidFault",
    "SandboxOptions",
    "SandboxServer",
    "create_sandbox",
    "list_faults",
    "run_sandbox",
]
