"""Whether an instance is well: for probes, and for the operator who runs `soundpost doctor`."""
