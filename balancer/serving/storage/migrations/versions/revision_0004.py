"""The audit of decisions, states of models, expiry of keys, and what a worker may remember."""

from __future__ import annotations

import time

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables and columns. Keys with `admin` get `operator`, which was part of it.

    The scores of transactions that are stored already have no decision.
    """
    whole = sa.BigInteger().with_variant(sa.INTEGER(), "sqlite")
    zero = sa.text("0")

    def entity() -> sa.Column[int]:
        return sa.Column("entity", whole, sa.ForeignKey("entities.id", ondelete="CASCADE"), nullable=False)

    op.add_column("api_keys", sa.Column("expires", sa.Double(), nullable=True))
    _add_operator()
    op.add_column("models", sa.Column("key", sa.String(length=100), nullable=True))
    op.add_column("models", sa.Column("rolled_back", sa.Boolean(), server_default=sa.false(), nullable=False))
    # States are computed again from the rows, and are kept in `entity_states` from now on.
    op.drop_column("entities", "state")
    op.drop_column("entities", "model")
    op.add_column("entities", sa.Column("version", whole, server_default=zero, nullable=False))
    op.add_column("transactions", sa.Column("amount", sa.Double(), nullable=True))
    op.create_index("labelled_of_entity", "labelled", ["entity"], unique=False)
    op.create_table(
        "registered_models",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("share", sa.Double(), server_default=zero, nullable=False),
        sa.Column("registered", sa.Double(), nullable=False),
        sa.Column("changed", sa.Double(), nullable=False),
        sa.Column("changed_by", sa.String(length=100), nullable=True),
        sa.PrimaryKeyConstraint("digest"),
    )
    op.create_index("registered_models_by_name", "registered_models", ["name"], unique=False)
    op.create_table(
        "entity_states",
        entity(),
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("rows", whole, nullable=False),
        sa.Column("state", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("entity"),
    )
    if op.get_bind().dialect.name == "postgresql":  # floats hardly compress, and trying costs time
        op.execute("ALTER TABLE entity_states ALTER COLUMN state SET STORAGE EXTERNAL")
    op.create_table(
        "decisions",
        sa.Column("number", whole, autoincrement=True, nullable=False),
        entity(),
        sa.Column("tenant", sa.String(length=100), nullable=False),
        sa.Column("transaction", sa.Text(), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("received", sa.Double(), nullable=False),
        sa.Column("key", sa.String(length=100), nullable=False),
        sa.Column("request", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=200), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("score", sa.Double(), nullable=False),
        sa.Column("threshold", sa.Double(), nullable=False),
        sa.Column("decision", sa.Boolean(), nullable=False),
        sa.Column("class", sa.Text(), nullable=False),
        sa.Column("action", sa.String(length=20), nullable=False),
        sa.PrimaryKeyConstraint("number"),
    )
    op.create_index("decisions_of_transaction", "decisions", ["tenant", "transaction"], unique=False)
    op.create_index("decisions_in_order", "decisions", ["tenant", "received"], unique=False)
    op.create_index("decisions_of_entity", "decisions", ["entity"], unique=False)
    live = sa.text("kind = 'scored' AND key <> 'import'")
    op.create_index("live_decisions", "decisions", ["received", "number"], unique=False, sqlite_where=live, postgresql_where=live)
    op.create_table(
        "challenger_scores",
        sa.Column("tenant", sa.String(length=100), nullable=False),
        sa.Column("transaction", sa.Text(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        entity(),
        sa.Column("received", sa.Double(), nullable=False),
        sa.Column("score", sa.Double(), nullable=False),
        sa.Column("threshold", sa.Double(), nullable=False),
        sa.Column("decision", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "transaction", "digest"),
    )
    op.create_index("challenger_scores_of_entity", "challenger_scores", ["entity"], unique=False)
    op.create_index("challenger_scores_of_model", "challenger_scores", ["digest", "received"], unique=False)
    op.create_table(
        "context_versions",
        sa.Column("tenant", sa.String(length=100), nullable=False),
        sa.Column("column", sa.String(length=200), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("rows", whole, server_default=zero, nullable=False),
        sa.Column("labels", whole, server_default=zero, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "column", "value"),
    )


def downgrade() -> None:
    """Drop them, and what they hold."""
    op.drop_table("context_versions")
    op.drop_index("challenger_scores_of_model", table_name="challenger_scores")
    op.drop_index("challenger_scores_of_entity", table_name="challenger_scores")
    op.drop_table("challenger_scores")
    for index in ("live_decisions", "decisions_of_entity", "decisions_in_order", "decisions_of_transaction"):
        op.drop_index(index, table_name="decisions")
    op.drop_table("decisions")
    op.drop_table("entity_states")
    op.drop_index("registered_models_by_name", table_name="registered_models")
    op.drop_table("registered_models")
    op.drop_index("labelled_of_entity", table_name="labelled")
    op.drop_column("transactions", "amount")
    op.drop_column("entities", "version")
    op.add_column("entities", sa.Column("model", sa.String(length=64), nullable=True))
    op.add_column("entities", sa.Column("state", sa.LargeBinary(), nullable=True))
    op.drop_column("models", "rolled_back")
    op.drop_column("models", "key")
    # Without the column a key has no end: those that have ended already must not work again.
    table = sa.table("api_keys", sa.column("expires"), sa.column("revoked"))
    ended = table.update().where(table.c.revoked.is_(None), table.c.expires < time.time())
    op.get_bind().execute(ended.values(revoked=table.c.expires))
    op.drop_column("api_keys", "expires")


def _add_operator() -> None:
    """Give `operator` to the keys with `admin`, which included it before this revision.

    Earlier versions know no such scope and leave it alone, so a downgrade does too.
    """
    table = sa.table("api_keys", sa.column("id"), sa.column("scopes"))
    connection = op.get_bind()
    for row in connection.execute(sa.select(table)).all():
        scopes = row.scopes.split(",")
        if "admin" in scopes and "operator" not in scopes:
            connection.execute(table.update().where(table.c.id == row.id).values(scopes=",".join([*scopes, "operator"])))
