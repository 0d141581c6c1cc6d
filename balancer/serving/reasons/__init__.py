"""Why a transaction got its score, in words."""
