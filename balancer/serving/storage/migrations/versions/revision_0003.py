"""The scores that boosted trees gave to the earlier transactions of an entity."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; the scores of stored transactions are computed at the next one of their entity."""
    whole = sa.BigInteger().with_variant(sa.INTEGER(), "sqlite")
    for table in ("entities", "transactions"):
        op.add_column(table, sa.Column("sum_score", whole, server_default=sa.text("0"), nullable=False))
    op.add_column("entities", sa.Column("first_stage", sa.String(length=64), nullable=True))
    op.add_column("entities", sa.Column("last_logits", sa.LargeBinary(), nullable=True))
    op.add_column("transactions", sa.Column("scores", sa.LargeBinary(), nullable=True))


def downgrade() -> None:
    """Drop them."""
    op.drop_column("transactions", "scores")
    op.drop_column("entities", "last_logits")
    op.drop_column("entities", "first_stage")
    for table in ("transactions", "entities"):
        op.drop_column(table, "sum_score")
