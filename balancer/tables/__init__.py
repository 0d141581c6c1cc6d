"""Tables as files hold them: formats, dialects of CSV, numbers, times, and one normal form of values."""
