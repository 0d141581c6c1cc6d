"""What was decided and why, read again later; corrections and reversals of stored transactions."""
