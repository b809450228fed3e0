"""What a sandbox is started with."""

from dataclasses import dataclass, field

from app.sandbox.faults import parse_terms

MODELS = frozenset({"V5", "V5_5", "V6", "V6_WILD", "V6_MINI"})


@dataclass(frozen=True)
class SandboxOptions:
    """Every knob; all spans are seconds. Raises FaultRefused when `fault` names an unknown fault."""

    api_key: str = field(default="sandbox", repr=False)
    delay: float = 3.0
    """From submit to complete; the stages between are spread inside."""
    rate: int = 20
    period: float = 10.0
    """At most `rate` submits and polls in any `period`."""
    credits: float = 1000.0
    fault: str | None = None
    """Applied to each task whose prompt has no tag of its own, e.g. `drop-callbacks:0.2,http-500:0.1`."""
    seed: int = 0
    """Decides which tasks a fault with a probability meets, in the order of their arrival."""
    callback_retry_delays: tuple[float, ...] = (60.0, 300.0, 900.0)
    callback_timeout: float = 15.0
    callback_hmac_key: str | None = field(default=None, repr=False)
    """Signs callbacks when set."""

    def __post_init__(self) -> None:
        parse_terms(self.fault or "")
