"""What an operator does with the database of a service: migrate, purge, back up, import, watch.

Every command can be stopped and started again: work is done in small transactions, each of which happens
completely or not at all.
"""
