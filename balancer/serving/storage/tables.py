"""The tables of the database, as the migrations in `migrations/versions` create them.

Every row of customer data has a tenant, and every query selects by it.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    false,
    text,
)
from sqlalchemy.dialects import sqlite

metadata = MetaData()

Whole = BigInteger().with_variant(sqlite.INTEGER(), "sqlite")
"""64 bits in both databases; SQLite increments only columns of the type INTEGER."""

keys = Table(
    "api_keys",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("tenant", String(100), nullable=False),
    Column("name", String(100), nullable=False),
    Column("scopes", String(100), nullable=False),  # separated by commas
    Column("digest", String(64), nullable=False),  # SHA-256 of the secret, which has 256 random bits
    Column("created", Double, nullable=False),
    Column("revoked", Double),
    Column("expires", Double),  # null: never
)

sessions = Table(
    "sessions",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("number", Whole, nullable=False, unique=True),  # order of creation, for paging
    Column("tenant", String(100), nullable=False),
    Column("created", Double, nullable=False),
    Column("request", JSON, nullable=False),
    Column("first", JSON, nullable=False),
    Column("state", JSON, nullable=False),
    Column("epoch", Integer, nullable=False),
    Index("sessions_of_tenant", "tenant", "number"),
)

session_epochs = Table(
    "session_epochs",
    metadata,
    Column("session", String(32), ForeignKey("sessions.id", ondelete="CASCADE"), primary_key=True),
    Column("epoch", Integer, primary_key=True),
    Column("digest", String(64), nullable=False),  # of the report
    Column("answer", JSON, nullable=False),
)

models = Table(
    "models",
    metadata,
    Column("generation", Whole, primary_key=True),  # the highest one is in service
    Column("name", String(200), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("activated", Double, nullable=False),
    Column("key", String(100)),  # who approved it; null: the command line
    Column("rolled_back", Boolean, nullable=False, server_default=false()),  # whether this was a return to the champion before
)

registered_models = Table(
    "registered_models",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("state", String(20), nullable=False),  # candidate, shadow, canary, champion, retired
    Column("share", Double, nullable=False, server_default=text("0")),  # of the transactions that a canary decides
    Column("registered", Double, nullable=False),
    Column("changed", Double, nullable=False),
    Column("changed_by", String(100)),  # id of the key; null: the command line
    Index("registered_models_by_name", "name"),
)
"""The models that may score, by the digest of their files."""

entities = Table(
    "entities",
    metadata,
    Column("id", Whole, primary_key=True, autoincrement=True),
    Column("tenant", String(100), nullable=False),
    Column("name", Text, nullable=False),
    Column("rows", Whole, nullable=False),
    # Statistics of `balancer.data.past` over all rows and of the last row; null before the first row.
    Column("first_time", Double),
    Column("last_time", Double),
    Column("last_gap", Double),
    Column("last_level", Double),
    Column("top_level", Double),
    Column("last_fields", LargeBinary),
    Column("sum_cos", Whole, nullable=False),
    Column("sum_sin", Whole, nullable=False),
    Column("sum_level", Whole, nullable=False),
    Column("sum_square", Whole, nullable=False),
    Column("sum_amount", Double, nullable=False),
    # Score memory: the last log-odds (float32, the latest one last), the sum of all probabilities in fixed
    # point, and digest of the trees that gave them; null without trees.
    Column("first_stage", String(64)),
    Column("last_logits", LargeBinary),
    Column("sum_score", Whole, nullable=False, server_default=text("0")),
    # Changes with everything that is not the scoring of one more transaction.
    Column("version", Whole, nullable=False, server_default=text("0")),
    Index("entities_by_name", "tenant", "name", unique=True),
)

transactions = Table(
    "transactions",
    metadata,
    Column("entity", Whole, ForeignKey("entities.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Whole, primary_key=True),  # 0 for the first row of the entity
    Column("tenant", String(100), nullable=False),
    Column("id", Text, nullable=False),
    Column("digest", String(64), nullable=False),  # of the content, to tell a repeated transaction from a contradicting one
    Column("time", Double, nullable=False),  # effective time: not before the previous transaction
    Column("sent_time", Double, nullable=False),
    # Sums over the earlier rows of the entity.
    Column("sum_cos", Whole, nullable=False),
    Column("sum_sin", Whole, nullable=False),
    Column("sum_level", Whole, nullable=False),
    Column("sum_square", Whole, nullable=False),
    Column("sum_amount", Double, nullable=False),
    Column("fields", LargeBinary, nullable=False),  # float32 numeric fields, NaN where no value was sent
    # float32 score fields, and the sum of the probabilities of the earlier rows, by the trees that the entity
    # names.
    Column("scores", LargeBinary),
    Column("sum_score", Whole, nullable=False, server_default=text("0")),
    Column("texts", JSON, nullable=False),  # values of the categorical and context columns
    Column("answer", JSON, nullable=False),
    Column("label", Text),
    Column("labelled", Double),
    Column("amount", Double),  # as it was sent; null in rows of older versions and where the table has none
    Index("transactions_by_id", "tenant", "id", unique=True),
    Index("transactions_by_time", "entity", "time", "position"),
)

entity_states = Table(
    "entity_states",
    metadata,
    Column("entity", Whole, ForeignKey("entities.id", ondelete="CASCADE"), primary_key=True),
    Column("model", String(64), nullable=False),  # digest
    Column("rows", Whole, nullable=False),  # the state is that after so many rows of the entity
    Column("state", LargeBinary, nullable=False),
)
"""Snapshots of the states of the network. Later rows are read again from `transactions`."""

LIVE = "kind = 'scored' AND key <> 'import'"
"""Which decisions the monitoring counts: those of requests. SQLite uses the index of them only where a
statement has this very text."""

decisions = Table(
    "decisions",
    metadata,
    Column("number", Whole, primary_key=True, autoincrement=True),
    Column("entity", Whole, ForeignKey("entities.id", ondelete="CASCADE"), nullable=False),
    Column("tenant", String(100), nullable=False),
    Column("transaction", Text, nullable=False),  # its id
    Column("kind", String(20), nullable=False),  # scored, or amended
    Column("received", Double, nullable=False),  # seconds since 1970, by the clock of the service
    Column("key", String(100), nullable=False),  # id of the key, or subject of the token; "" without keys
    Column("request", String(64), nullable=False),  # id of the request, as in the log and the answer
    Column("model", String(200), nullable=False),
    Column("digest", String(64), nullable=False),  # of the files of the model
    Column("score", Double, nullable=False),
    Column("threshold", Double, nullable=False),
    Column("decision", Boolean, nullable=False),
    Column("class", Text, nullable=False),
    Column("action", String(20), nullable=False),
    Index("decisions_of_transaction", "tenant", "transaction"),
    Index("decisions_in_order", "tenant", "received"),
    Index("decisions_of_entity", "entity"),
    Index("live_decisions", "received", "number", sqlite_where=text(LIVE), postgresql_where=text(LIVE)),
)
"""The audit: what was decided, when, for whom, and by which model. A row is never changed."""

challenger_scores = Table(
    "challenger_scores",
    metadata,
    Column("tenant", String(100), primary_key=True),
    Column("transaction", Text, primary_key=True),
    Column("digest", String(64), primary_key=True),
    Column("entity", Whole, ForeignKey("entities.id", ondelete="CASCADE"), nullable=False),
    Column("received", Double, nullable=False),
    Column("score", Double, nullable=False),
    Column("threshold", Double, nullable=False),
    Column("decision", Boolean, nullable=False),
    Index("challenger_scores_of_entity", "entity"),
    Index("challenger_scores_of_model", "digest", "received"),  # for the comparison of a time
)
"""Scores by the model that did not decide: the challenger, or the champion where a canary decided."""

context_versions = Table(
    "context_versions",
    metadata,
    Column("tenant", String(100), primary_key=True),
    Column("column", String(200), primary_key=True),
    Column("value", Text, primary_key=True),
    Column("rows", Whole, nullable=False, server_default=text("0")),  # changes with every change of context_rows
    Column("labels", Whole, nullable=False, server_default=text("0")),  # changes with every change of labelled
)
"""Whether what a worker remembers of a context value still holds; locked while the value changes."""

used_values = Table(
    "used_values",
    metadata,
    Column("entity", Whole, ForeignKey("entities.id", ondelete="CASCADE"), primary_key=True),
    Column("column", String(200), primary_key=True),
    Column("value", Text, primary_key=True),  # "" is null; a text is preceded by "="
    Column("used", Whole, nullable=False),
    Column("last_time", Double, nullable=False),
    Column("sum_level", Whole, nullable=False),
    Column("sum_square", Whole, nullable=False),
)
"""`balancer.data.past.KeyPast` per entity, column and value."""

labelled = Table(
    "labelled",
    metadata,
    Column("tenant", String(100), primary_key=True),
    Column("column", String(200), primary_key=True),
    Column("value", Text, primary_key=True),
    Column("time", Double, primary_key=True),
    Column("entity", Whole, ForeignKey("entities.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Whole, primary_key=True),
    Column("fraud", Boolean, nullable=False),
    Index("labelled_in_order", "tenant", "column", "value", "time", "fraud"),
    Index("labelled_frauds", "tenant", "column", "value", "fraud", "time"),
    Index("labelled_of_entity", "entity"),
)
"""Labelled transactions by context value, for the incomplete hours at the ends of a risk window, and to find
the last labels and frauds."""

labelled_hours = Table(
    "labelled_hours",
    metadata,
    Column("tenant", String(100), primary_key=True),
    Column("column", String(200), primary_key=True),
    Column("value", Text, primary_key=True),
    Column("hour", Whole, primary_key=True),
    Column("known", Whole, nullable=False),
    Column("frauds", Whole, nullable=False),
)
"""Counts of labelled transactions by full hours, for the inside of a risk window: its cost does not depend on
the number of transactions."""

labelled_days = Table(
    "labelled_days",
    metadata,
    Column("tenant", String(100), primary_key=True),
    Column("column", String(200), primary_key=True),
    Column("value", Text, primary_key=True),
    Column("day", Whole, primary_key=True),
    Column("known", Whole, nullable=False),
    Column("frauds", Whole, nullable=False),
)
"""The same by full days, for the time since the last fraud, which may be years."""

context_rows = Table(
    "context_rows",
    metadata,
    Column("tenant", String(100), primary_key=True),
    Column("column", String(200), primary_key=True),
    Column("value", Text, primary_key=True),
    Column("time", Double, primary_key=True),  # effective time
    Column("entity", Whole, ForeignKey("entities.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Whole, primary_key=True),
    Column("level", Whole, nullable=False),  # of the amount, in fixed point
    Column("square", Whole, nullable=False),
    Index("context_rows_of_entity", "entity"),
)
"""Transactions by context value, labelled or not: for the time of the last one, and for incomplete spans."""

context_spans = Table(
    "context_spans",
    metadata,
    Column("tenant", String(100), primary_key=True),
    Column("column", String(200), primary_key=True),
    Column("value", Text, primary_key=True),
    Column("width", Integer, primary_key=True),  # seconds; 0 is all time
    Column("number", Whole, primary_key=True),
    Column("rows", Whole, nullable=False),
    Column("sum_level", Whole, nullable=False),
    Column("sum_square", Whole, nullable=False),
)
"""Sums over the transactions of a context value by full minutes, hours and days, and over all of them."""
