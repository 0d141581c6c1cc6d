"""Labels by days, and the transactions of a context value."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables, and count the labels by days."""
    whole = sa.BigInteger().with_variant(sa.INTEGER(), "sqlite")

    def context() -> list[sa.Column[str]]:
        return [
            sa.Column("tenant", sa.String(length=100), nullable=False),
            sa.Column("column", sa.String(length=200), nullable=False),
            sa.Column("value", sa.Text(), nullable=False),
        ]

    op.create_table(
        "labelled_days",
        *context(),
        sa.Column("day", whole, nullable=False),
        sa.Column("known", whole, nullable=False),
        sa.Column("frauds", whole, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "column", "value", "day"),
    )
    # Both databases divide whole numbers towards zero; days before 1970 are rounded down as well.
    day = "(CASE WHEN hour >= 0 THEN hour ELSE hour - 23 END) / 24"
    op.execute(
        'INSERT INTO labelled_days (tenant, "column", value, day, known, frauds) '
        f'SELECT tenant, "column", value, {day}, SUM(known), SUM(frauds) FROM labelled_hours GROUP BY tenant, "column", value, {day}'
    )
    op.create_index("labelled_in_order", "labelled", ["tenant", "column", "value", "time", "fraud"], unique=False)
    op.create_index("labelled_frauds", "labelled", ["tenant", "column", "value", "fraud", "time"], unique=False)
    op.create_table(
        "context_rows",
        *context(),
        sa.Column("time", sa.Double(), nullable=False),
        sa.Column("entity", whole, nullable=False),
        sa.Column("position", whole, nullable=False),
        sa.Column("level", whole, nullable=False),
        sa.Column("square", whole, nullable=False),
        sa.ForeignKeyConstraint(["entity"], ["entities.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("tenant", "column", "value", "time", "entity", "position"),
    )
    op.create_index("context_rows_of_entity", "context_rows", ["entity"], unique=False)
    op.create_table(
        "context_spans",
        *context(),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("number", whole, nullable=False),
        sa.Column("rows", whole, nullable=False),
        sa.Column("sum_level", whole, nullable=False),
        sa.Column("sum_square", whole, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "column", "value", "width", "number"),
    )


def downgrade() -> None:
    """Drop them, and what they hold."""
    op.drop_table("context_spans")
    op.drop_index("context_rows_of_entity", table_name="context_rows")
    op.drop_table("context_rows")
    op.drop_index("labelled_frauds", table_name="labelled")
    op.drop_index("labelled_in_order", table_name="labelled")
    op.drop_table("labelled_days")
