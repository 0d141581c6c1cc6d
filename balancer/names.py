"""Names that users type and that several packages share; importing them loads nothing else."""

from __future__ import annotations

PARTS = ("embedding", "attention", "head", "adapter", "tasks")
"""Parts of a classifier that can be trained alone; all other weights belong to the trunk."""
AUXILIARY_TASKS = ("next_category", "next_amount", "next_time", "next_fields", "masked_fields")
"""Self-supervised tasks that can be trained together with the classifier.

* ``next_category``: the first categorical column of the entity's next transaction.
* ``next_amount``, ``next_time``: the bucket of its amount, and of the time until it.
* ``next_fields``: the bin or code of each of its fields.
* ``masked_fields``: the bin or code of fields of this transaction that were hidden.
"""
