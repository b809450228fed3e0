"""The Suno API: its URLs, codes, spellings and signature. Only the composition root imports this package."""
