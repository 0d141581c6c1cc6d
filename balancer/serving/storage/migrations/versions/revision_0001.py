"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    whole = sa.BigInteger().with_variant(sa.INTEGER(), "sqlite")
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(length=16), nullable=False),
        sa.Column("tenant", sa.String(length=100), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("scopes", sa.String(length=100), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("revoked", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "entities",
        sa.Column("id", whole, autoincrement=True, nullable=False),
        sa.Column("tenant", sa.String(length=100), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("rows", whole, nullable=False),
        sa.Column("first_time", sa.Double(), nullable=True),
        sa.Column("last_time", sa.Double(), nullable=True),
        sa.Column("last_gap", sa.Double(), nullable=True),
        sa.Column("last_level", sa.Double(), nullable=True),
        sa.Column("top_level", sa.Double(), nullable=True),
        sa.Column("last_fields", sa.LargeBinary(), nullable=True),
        sa.Column("sum_cos", whole, nullable=False),
        sa.Column("sum_sin", whole, nullable=False),
        sa.Column("sum_level", whole, nullable=False),
        sa.Column("sum_square", whole, nullable=False),
        sa.Column("sum_amount", sa.Double(), nullable=False),
        sa.Column("model", sa.String(length=64), nullable=True),
        sa.Column("state", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    if op.get_bind().dialect.name == "postgresql":  # floats hardly compress, and trying costs time in every transaction
        op.execute("ALTER TABLE entities ALTER COLUMN state SET STORAGE EXTERNAL")
    op.create_index("entities_by_name", "entities", ["tenant", "name"], unique=True)
    op.create_table(
        "labelled_hours",
        sa.Column("tenant", sa.String(length=100), nullable=False),
        sa.Column("column", sa.String(length=200), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("hour", whole, nullable=False),
        sa.Column("known", whole, nullable=False),
        sa.Column("frauds", whole, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "column", "value", "hour"),
    )
    op.create_table(
        "models",
        sa.Column("generation", whole, nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("activated", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("generation"),
    )
    op.create_table(
        "sessions",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("number", whole, nullable=False),
        sa.Column("tenant", sa.String(length=100), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("first", sa.JSON(), nullable=False),
        sa.Column("state", sa.JSON(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("number"),
    )
    op.create_index("sessions_of_tenant", "sessions", ["tenant", "number"], unique=False)
    op.create_table(
        "labelled",
        sa.Column("tenant", sa.String(length=100), nullable=False),
        sa.Column("column", sa.String(length=200), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("time", sa.Double(), nullable=False),
        sa.Column("entity", whole, nullable=False),
        sa.Column("position", whole, nullable=False),
        sa.Column("fraud", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["entity"], ["entities.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("tenant", "column", "value", "time", "entity", "position"),
    )
    op.create_table(
        "session_epochs",
        sa.Column("session", sa.String(length=32), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("answer", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["session"], ["sessions.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("session", "epoch"),
    )
    op.create_table(
        "transactions",
        sa.Column("entity", whole, nullable=False),
        sa.Column("position", whole, nullable=False),
        sa.Column("tenant", sa.String(length=100), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("time", sa.Double(), nullable=False),
        sa.Column("sent_time", sa.Double(), nullable=False),
        sa.Column("sum_cos", whole, nullable=False),
        sa.Column("sum_sin", whole, nullable=False),
        sa.Column("sum_level", whole, nullable=False),
        sa.Column("sum_square", whole, nullable=False),
        sa.Column("sum_amount", sa.Double(), nullable=False),
        sa.Column("fields", sa.LargeBinary(), nullable=False),
        sa.Column("texts", sa.JSON(), nullable=False),
        sa.Column("answer", sa.JSON(), nullable=False),
        sa.Column("label", sa.Text(), nullable=True),
        sa.Column("labelled", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["entity"], ["entities.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("entity", "position"),
    )
    op.create_index("transactions_by_id", "transactions", ["tenant", "id"], unique=True)
    op.create_index("transactions_by_time", "transactions", ["entity", "time", "position"], unique=False)
    op.create_table(
        "used_values",
        sa.Column("entity", whole, nullable=False),
        sa.Column("column", sa.String(length=200), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("used", whole, nullable=False),
        sa.Column("last_time", sa.Double(), nullable=False),
        sa.Column("sum_level", whole, nullable=False),
        sa.Column("sum_square", whole, nullable=False),
        sa.ForeignKeyConstraint(["entity"], ["entities.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("entity", "column", "value"),
    )


def downgrade() -> None:
    """Drop them, and what they hold."""
    op.drop_table("used_values")
    op.drop_index("transactions_by_time", table_name="transactions")
    op.drop_index("transactions_by_id", table_name="transactions")
    op.drop_table("transactions")
    op.drop_table("session_epochs")
    op.drop_table("labelled")
    op.drop_index("sessions_of_tenant", table_name="sessions")
    op.drop_table("sessions")
    op.drop_table("models")
    op.drop_table("labelled_hours")
    op.drop_index("entities_by_name", table_name="entities")
    op.drop_table("entities")
    op.drop_table("api_keys")
