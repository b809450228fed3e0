"""The audio: ours as soon as there is any."""
