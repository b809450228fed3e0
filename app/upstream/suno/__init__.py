"""The Suno API and nothing but: the only place that knows its URLs, codes and quirks."""
