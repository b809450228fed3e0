"""The first schema, rewritten until 1.0."""

import sqlalchemy as sa
from alembic import op

revision = "20261126_1540_first_schema"
down_revision = None
oldest_compatible = revision
branch_labels = None
depends_on = None

MANY_UPDATED_ROWS = {
    "fillfactor": 90,
    "autovacuum_vacuum_scale_factor": 0.02,
    "autovacuum_analyze_scale_factor": 0.02,
}
IS_COUNTED = "charge = COALESCE(counted_charge, '') AND posts = COALESCE(counted_posts, -1)"
FEW_BUSY_ROWS = {"fillfactor": 50, "autovacuum_vacuum_scale_factor": 0, "autovacuum_vacuum_threshold": 200}
# What was booked stays booked: a correction is another entry.
APPEND_ONLY = "the ledger is append-only"
REFUSAL = f"""
CREATE FUNCTION refuse_to_change_ledger() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION '{APPEND_ONLY}'; END $$
"""
REFUSED = """
CREATE TRIGGER ledger_entries_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger_entries
FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_ledger()
"""


def upgrade() -> None:
    """The first schema, rewritten until 1.0."""
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("key_hash", sa.String(length=64), nullable=False),
        sa.Column("is_admin", sa.Boolean(), nullable=False),
        sa.Column("scopes", sa.String(length=64), nullable=False),
        sa.Column("weight", sa.Integer(), nullable=False),
        sa.Column("is_configured", sa.Boolean(), nullable=False),
        sa.Column("is_delisted", sa.Boolean(), nullable=False),
        sa.Column("secret_generation", sa.Integer(), nullable=False),
        sa.Column("secret_rotated_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("secret_key", sa.String(length=8), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("key_hash", name=op.f("uq_api_keys_key_hash")),
    )
    op.create_table(
        "audit_entries",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.String(length=32), nullable=False),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("target", sa.String(length=32), nullable=True),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_entries")),
    )
    with op.batch_alter_table("audit_entries", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_audit_entries_created_at_id"), ["created_at", "id"], unique=False)
    _refuse_changes_of_the_audit_log()

    op.create_table(
        "budgets",
        sa.Column("api_key_id", sa.String(length=32), nullable=False),
        sa.Column("credit_limit", sa.BigInteger(), nullable=True),
        sa.Column("window", sa.String(length=32), nullable=True),
        sa.Column("starts_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("spent", sa.BigInteger(), nullable=False),
        sa.Column("reserved", sa.BigInteger(), nullable=False),
        sa.Column("charged", sa.BigInteger(), nullable=False),
        sa.Column("balance", sa.BigInteger(), nullable=False),
        sa.Column("entries", sa.BigInteger(), nullable=False),
        sa.Column("booked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("is_low", sa.Boolean(), nullable=False),
        sa.Column("is_exhausted", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["api_key_id"], ["api_keys.id"], name=op.f("fk_budgets_api_key_id")),
        sa.PrimaryKeyConstraint("api_key_id", name=op.f("pk_budgets")),
        postgresql_with=FEW_BUSY_ROWS,
    )
    op.create_table(
        "ledger_entries",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("api_key_id", sa.String(length=32), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("task_id", sa.String(length=32), nullable=True),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("credits", sa.BigInteger(), nullable=False),
        sa.Column("balance", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["api_key_id"], ["api_keys.id"], name=op.f("fk_ledger_entries_api_key_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ledger_entries")),
    )
    with op.batch_alter_table("ledger_entries", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_ledger_entries_api_key_id_created_at_number"),
            ["api_key_id", "created_at", "number"],
            unique=False,
        )

    if op.get_context().dialect.name == "postgresql":
        op.execute(REFUSAL)
        op.execute(REFUSED)
    else:
        for change in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER ledger_entries_no_{change.lower()} BEFORE {change} ON ledger_entries "
                f"BEGIN SELECT RAISE(ABORT, '{APPEND_ONLY}'); END"
            )

    op.create_table(
        "queue_tags",
        sa.Column("api_key_id", sa.String(length=32), nullable=False),
        sa.Column("tag", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("api_key_id", name=op.f("pk_queue_tags")),
        postgresql_with=FEW_BUSY_ROWS,
    )
    op.create_table(
        "former_keys",
        sa.Column("key_hash", sa.String(length=64), nullable=False),
        sa.Column("api_key_id", sa.String(length=32), nullable=False),
        sa.Column("works_until", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["api_key_id"], ["api_keys.id"], name=op.f("fk_former_keys_api_key_id")),
        sa.PrimaryKeyConstraint("key_hash", name=op.f("pk_former_keys")),
    )
    op.create_table(
        "periodic_jobs",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("fence", sa.String(length=32), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_periodic_jobs")),
        postgresql_with=FEW_BUSY_ROWS,
    )
    op.create_table(
        "compatible_revisions",
        sa.Column("revision", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("revision", name=op.f("pk_compatible_revisions")),
    )
    op.create_table(
        "pace_slots",
        sa.Column("slot", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("free_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("fence", sa.String(length=32), nullable=True),
        sa.PrimaryKeyConstraint("slot", name=op.f("pk_pace_slots")),
        postgresql_with=FEW_BUSY_ROWS,
    )
    op.create_table(
        "stored_objects",
        sa.Column("key", sa.String(length=100), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("fence", sa.String(length=32), nullable=True),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_stored_objects")),
    )
    with op.batch_alter_table("stored_objects", schema=None) as batch_op:
        batch_op.create_index(
            "ix_stored_objects_due",
            ["due_at"],
            unique=False,
            postgresql_where=sa.text("due_at IS NOT NULL"),
            sqlite_where=sa.text("due_at IS NOT NULL"),
        )

    op.create_table(
        "idempotency_keys",
        sa.Column("api_key_id", sa.String(length=32), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("task_id", sa.String(length=32), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["api_key_id"], ["api_keys.id"], name=op.f("fk_idempotency_keys_api_key_id")),
        sa.PrimaryKeyConstraint("api_key_id", "key", name=op.f("pk_idempotency_keys")),
    )
    with op.batch_alter_table("idempotency_keys", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_idempotency_keys_created_at"), ["created_at"], unique=False)

    op.create_table(
        "spent_charges",
        sa.Column("task_id", sa.String(length=32), nullable=False),
        sa.Column("api_key_id", sa.String(length=32), nullable=False),
        sa.Column("charge", sa.String(length=32), nullable=False),
        sa.Column("posts", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("counted_charge", sa.String(length=32), nullable=True),
        sa.Column("counted_posts", sa.Integer(), nullable=True),
        sa.Column("is_counted", sa.Boolean(), sa.Computed(IS_COUNTED, persisted=True), nullable=False),
        sa.ForeignKeyConstraint(["api_key_id"], ["api_keys.id"], name=op.f("fk_spent_charges_api_key_id")),
        sa.PrimaryKeyConstraint("task_id", name=op.f("pk_spent_charges")),
    )
    with op.batch_alter_table("spent_charges", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_spent_charges_created_at"), ["created_at"], unique=False)
        batch_op.create_index(
            batch_op.f("ix_spent_charges_api_key_id_created_at_charge_posts"),
            ["api_key_id", "created_at", "charge", "posts"],
            unique=False,
        )
        batch_op.create_index(
            "ix_spent_charges_uncounted",
            ["api_key_id", "created_at"],
            unique=False,
            postgresql_where=sa.text("NOT is_counted"),
            sqlite_where=sa.text("is_counted = 0"),
        )

    op.create_table(
        "usage_sums",
        sa.Column("api_key_id", sa.String(length=32), nullable=False),
        sa.Column("period", sa.String(length=32), nullable=False),
        sa.Column("starts_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("charge", sa.String(length=32), nullable=False),
        sa.Column("tasks", sa.BigInteger(), nullable=False),
        sa.Column("posts", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["api_key_id"], ["api_keys.id"], name=op.f("fk_usage_sums_api_key_id")),
        sa.PrimaryKeyConstraint("api_key_id", "period", "starts_at", "charge", name=op.f("pk_usage_sums")),
    )

    op.create_table(
        "rate_limit_hits",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("api_key_id", sa.String(length=32), nullable=False),
        sa.Column("made_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["api_key_id"], ["api_keys.id"], name=op.f("fk_rate_limit_hits_api_key_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_submits")),
    )
    with op.batch_alter_table("rate_limit_hits", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_rate_limit_hits_api_key_id_made_at"), ["api_key_id", "made_at"], unique=False
        )

    op.create_table(
        "tasks",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("api_key_id", sa.String(length=32), nullable=False),
        sa.Column("status", sa.String(length=32), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("sound_loop", sa.Boolean(), nullable=False),
        sa.Column("sound_tempo", sa.Integer(), nullable=True),
        sa.Column("sound_key", sa.String(length=8), nullable=False),
        sa.Column("grab_lyrics", sa.Boolean(), nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("webhook_url", sa.Text(), nullable=True),
        sa.Column("callback_url", sa.Text(), nullable=True),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("upstream_task_id", sa.String(length=200), nullable=True),
        sa.Column("resolved_by", sa.String(length=32), nullable=True),
        sa.Column("was_unconfirmed", sa.Boolean(), nullable=False),
        sa.Column("error_code", sa.String(length=32), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("upstream_code", sa.BigInteger(), nullable=True),
        sa.Column("charge", sa.String(length=32), nullable=False),
        sa.Column("posts", sa.Integer(), nullable=False),
        sa.Column("counted_charge", sa.String(length=32), nullable=True),
        sa.Column("counted_posts", sa.Integer(), nullable=True),
        sa.Column("is_counted", sa.Boolean(), sa.Computed(IS_COUNTED, persisted=True), nullable=False),
        sa.Column("audio_checks", sa.Integer(), nullable=False),
        sa.Column("upstream_calls", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("trace_context", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("sound_digest", sa.String(length=64), nullable=False),
        sa.Column("order_digest", sa.String(length=64), nullable=True),
        sa.Column("price", sa.BigInteger(), nullable=False),
        sa.Column("booked", sa.String(length=32), nullable=True),
        sa.Column("reserved_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("submitted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("completed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("fence", sa.String(length=32), nullable=True),
        sa.ForeignKeyConstraint(["api_key_id"], ["api_keys.id"], name=op.f("fk_tasks_api_key_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tasks")),
        postgresql_with=MANY_UPDATED_ROWS,
    )
    with op.batch_alter_table("tasks", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_tasks_created_at_id"), ["created_at", "id"], unique=False)
        batch_op.create_index(
            batch_op.f("ix_tasks_api_key_id_created_at_id_charge_posts"),
            ["api_key_id", "created_at", "id", "charge", "posts"],
            unique=False,
        )
        batch_op.create_index(
            batch_op.f("ix_tasks_api_key_id_status_created_at_id"),
            ["api_key_id", "status", "created_at", "id"],
            unique=False,
        )
        batch_op.create_index(
            batch_op.f("ix_tasks_api_key_id_model_created_at_id"),
            ["api_key_id", "model", "created_at", "id"],
            unique=False,
        )
        batch_op.create_index(
            "ix_tasks_uncounted",
            ["api_key_id", "created_at"],
            unique=False,
            postgresql_where=sa.text("NOT is_counted"),
            sqlite_where=sa.text("is_counted = 0"),
        )
        batch_op.create_index(
            "ix_tasks_queue",
            ["api_key_id", "priority", "due_at", "id"],
            unique=False,
            postgresql_where=sa.text("status = 'queued' AND due_at IS NOT NULL"),
            sqlite_where=sa.text("status = 'queued' AND due_at IS NOT NULL"),
        )
        batch_op.create_index(
            "ix_tasks_held",
            ["api_key_id", "priority", "id"],
            unique=False,
            postgresql_where=sa.text("status = 'queued' AND due_at IS NULL"),
            sqlite_where=sa.text("status = 'queued' AND due_at IS NULL"),
        )
        batch_op.create_index(
            "ix_tasks_reusable",
            ["api_key_id", "sound_digest", "completed_at"],
            unique=False,
            postgresql_where=sa.text("status = 'succeeded'"),
            sqlite_where=sa.text("status = 'succeeded'"),
        )
        batch_op.create_index(batch_op.f("ix_tasks_completed_at"), ["completed_at"], unique=False)
        batch_op.create_index(
            "ix_tasks_resolved",
            ["completed_at"],
            unique=False,
            postgresql_where=sa.text("resolved_by IS NOT NULL"),
            sqlite_where=sa.text("resolved_by IS NOT NULL"),
        )
        batch_op.create_index(
            "ix_tasks_due",
            ["status", "due_at", "id"],
            unique=False,
            postgresql_where=sa.text("due_at IS NOT NULL"),
            sqlite_where=sa.text("due_at IS NOT NULL"),
        )

    op.create_table(
        "task_labels",
        sa.Column("task_id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("value", sa.String(length=512), nullable=False),
        sa.Column("api_key_id", sa.String(length=32), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name=op.f("fk_task_labels_task_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("task_id", "name", name=op.f("pk_task_labels")),
    )
    with op.batch_alter_table("task_labels", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_task_labels_api_key_id_name_value_created_at_task_id"),
            ["api_key_id", "name", "value", "created_at", "task_id"],
            unique=False,
        )

    op.create_table(
        "webhook_endpoints",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("api_key_id", sa.String(length=32), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("event_types", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("secret_generation", sa.Integer(), nullable=False),
        sa.Column("secret_rotated_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("secret_key", sa.String(length=8), nullable=True),
        sa.Column("headers", sa.LargeBinary(), nullable=True),
        sa.Column("headers_key", sa.String(length=8), nullable=True),
        sa.Column("header_names", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("rate", sa.String(length=32), nullable=True),
        sa.Column("full_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("failing_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("paused_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("disabled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("disabled_by", sa.String(length=32), nullable=True),
        sa.Column("sweep", sa.String(length=32), nullable=True),
        sa.Column("sweep_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("sweep_after", sa.String(length=32), nullable=True),
        sa.Column("sweep_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["api_key_id"], ["api_keys.id"], name=op.f("fk_webhook_endpoints_api_key_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_endpoints")),
    )
    with op.batch_alter_table("webhook_endpoints", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_webhook_endpoints_api_key_id_id"), ["api_key_id", "id"], unique=False)
        batch_op.create_index(
            "ix_webhook_endpoints_sweep",
            ["id"],
            unique=False,
            postgresql_where=sa.text("sweep IS NOT NULL"),
            sqlite_where=sa.text("sweep IS NOT NULL"),
        )

    op.create_table(
        "endpoint_sends",
        sa.Column("delivery_id", sa.String(length=32), nullable=False),
        sa.Column("fence", sa.String(length=32), nullable=False),
        sa.Column("endpoint_id", sa.String(length=32), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["endpoint_id"],
            ["webhook_endpoints.id"],
            name=op.f("fk_endpoint_sends_endpoint_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("delivery_id", "fence", name=op.f("pk_endpoint_sends")),
    )
    with op.batch_alter_table("endpoint_sends", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_endpoint_sends_endpoint_id_ended_at"), ["endpoint_id", "ended_at"], unique=False
        )

    op.create_table(
        "callbacks",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("task_id", sa.String(length=32), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("headers", sa.JSON(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("outcome", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name=op.f("fk_callbacks_task_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_callbacks")),
    )
    with op.batch_alter_table("callbacks", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_callbacks_task_id_received_at_id"), ["task_id", "received_at", "id"], unique=False
        )

    op.create_table(
        "clips",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("task_id", sa.String(length=32), nullable=False),
        sa.Column("index", sa.Integer(), nullable=False),
        sa.Column("upstream_clip_id", sa.Text(), nullable=True),
        sa.Column("title", sa.Text(), nullable=True),
        sa.Column("tags", sa.Text(), nullable=True),
        sa.Column("duration", sa.Double(), nullable=True),
        sa.Column("model_name", sa.Text(), nullable=True),
        sa.Column("image_url", sa.Text(), nullable=True),
        sa.Column("upstream_audio_url", sa.Text(), nullable=True),
        sa.Column("source_audio_url", sa.Text(), nullable=True),
        sa.Column("content_type", sa.String(length=64), nullable=True),
        sa.Column("size", sa.Integer(), nullable=True),
        sa.Column("sha256", sa.String(length=64), nullable=True),
        sa.Column("storage_key", sa.String(length=100), nullable=True),
        sa.Column("archived_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("archive_started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("archive_error", sa.Text(), nullable=True),
        sa.Column("given_up_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("image_key", sa.String(length=100), nullable=True),
        sa.Column("image_type", sa.String(length=64), nullable=True),
        sa.Column("image_size", sa.Integer(), nullable=True),
        sa.Column("image_sha256", sa.String(length=64), nullable=True),
        sa.Column("image_archived_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("lyrics", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("lane", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("fence", sa.String(length=32), nullable=True),
        sa.ForeignKeyConstraint(["image_key"], ["stored_objects.key"], name=op.f("fk_clips_image_key")),
        sa.ForeignKeyConstraint(["storage_key"], ["stored_objects.key"], name=op.f("fk_clips_storage_key")),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name=op.f("fk_clips_task_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_clips")),
        sa.UniqueConstraint("task_id", "index", name=op.f("uq_clips_task_id_index")),
    )
    with op.batch_alter_table("clips", schema=None) as batch_op:
        batch_op.create_index(
            "ix_clips_due",
            ["lane", "attempts", "due_at"],
            unique=False,
            postgresql_where=sa.text("due_at IS NOT NULL"),
            sqlite_where=sa.text("due_at IS NOT NULL"),
        )
        batch_op.create_index(batch_op.f("ix_clips_image_key"), ["image_key"], unique=False)
        batch_op.create_index(batch_op.f("ix_clips_storage_key"), ["storage_key"], unique=False)

    op.create_table(
        "deliveries",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("api_key_id", sa.String(length=32), nullable=False),
        sa.Column("endpoint_id", sa.String(length=32), nullable=True),
        sa.Column("task_id", sa.String(length=32), nullable=True),
        sa.Column("event_id", sa.String(length=32), nullable=False),
        sa.Column("event_type", sa.String(length=32), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("host", sa.String(length=32), nullable=False),
        sa.Column("lane", sa.String(length=32), nullable=False),
        sa.Column("is_ready", sa.Boolean(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("status", sa.String(length=32), nullable=False),
        sa.Column("attempts_made", sa.Integer(), nullable=False),
        sa.Column("delivered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("fence", sa.String(length=32), nullable=True),
        sa.ForeignKeyConstraint(["api_key_id"], ["api_keys.id"], name=op.f("fk_deliveries_api_key_id")),
        sa.ForeignKeyConstraint(
            ["endpoint_id"], ["webhook_endpoints.id"], name=op.f("fk_deliveries_endpoint_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name=op.f("fk_deliveries_task_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deliveries")),
        postgresql_with=MANY_UPDATED_ROWS,
    )
    with op.batch_alter_table("deliveries", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_deliveries_api_key_id_id"), ["api_key_id", "id"], unique=False)
        batch_op.create_index(
            batch_op.f("ix_deliveries_api_key_id_status_id"), ["api_key_id", "status", "id"], unique=False
        )
        batch_op.create_index(
            "ix_deliveries_due",
            ["due_at"],
            unique=False,
            postgresql_where=sa.text("due_at IS NOT NULL AND NOT is_ready"),
            sqlite_where=sa.text("due_at IS NOT NULL AND is_ready = 0"),
        )
        batch_op.create_index(
            "ix_deliveries_undelivered",
            ["endpoint_id", "created_at", "id"],
            unique=False,
            postgresql_where=sa.text("delivered_at IS NULL"),
            sqlite_where=sa.text("delivered_at IS NULL"),
        )
        batch_op.create_index(
            "ix_deliveries_ready",
            ["api_key_id", "host", "lane", "due_at"],
            unique=False,
            postgresql_where=sa.text("is_ready"),
            sqlite_where=sa.text("is_ready = 1"),
        )
        batch_op.create_index(batch_op.f("ix_deliveries_endpoint_id_id"), ["endpoint_id", "id"], unique=False)
        batch_op.create_index(batch_op.f("ix_deliveries_task_id_id"), ["task_id", "id"], unique=False)
        batch_op.create_index(
            "ix_deliveries_without_task",
            ["created_at"],
            unique=False,
            postgresql_where=sa.text("task_id IS NULL"),
            sqlite_where=sa.text("task_id IS NULL"),
        )

    op.create_table(
        "events",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("task_id", sa.String(length=32), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("type", sa.String(length=32), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name=op.f("fk_events_task_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
        sa.UniqueConstraint("task_id", "version", name=op.f("uq_events_task_id_version")),
    )
    op.create_table(
        "delivery_attempts",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("delivery_id", sa.String(length=32), nullable=False),
        sa.Column("attempted_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("duration_ms", sa.Integer(), nullable=False),
        sa.Column("status_code", sa.Integer(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("response", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["delivery_id"], ["deliveries.id"], name=op.f("fk_delivery_attempts_delivery_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_delivery_attempts")),
    )
    with op.batch_alter_table("delivery_attempts", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_delivery_attempts_delivery_id_attempted_at_id"),
            ["delivery_id", "attempted_at", "id"],
            unique=False,
        )


def _refuse_changes_of_the_audit_log() -> None:
    """Entries are written and, after their retention, deleted: not even a mistake of ours changes one."""
    if op.get_bind().dialect.name == "sqlite":
        op.execute(
            "CREATE TRIGGER audit_entries_never_change BEFORE UPDATE ON audit_entries"
            " BEGIN SELECT RAISE(ABORT, 'audit entries are never changed'); END"
        )
        return
    op.execute(
        "CREATE FUNCTION refuse_change_of_audit() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'audit entries are never changed'; END $$"
    )
    op.execute(
        "CREATE TRIGGER audit_entries_never_change BEFORE UPDATE ON audit_entries"
        " FOR EACH ROW EXECUTE FUNCTION refuse_change_of_audit()"
    )


def downgrade() -> None:
    """Take it back."""
    with op.batch_alter_table("delivery_attempts", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_delivery_attempts_delivery_id_attempted_at_id"))

    op.drop_table("delivery_attempts")
    op.drop_table("events")
    with op.batch_alter_table("deliveries", schema=None) as batch_op:
        batch_op.drop_index(
            "ix_deliveries_without_task",
            postgresql_where=sa.text("task_id IS NULL"),
            sqlite_where=sa.text("task_id IS NULL"),
        )
        batch_op.drop_index(batch_op.f("ix_deliveries_task_id_id"))
        batch_op.drop_index(batch_op.f("ix_deliveries_endpoint_id_id"))
        batch_op.drop_index(
            "ix_deliveries_due",
            postgresql_where=sa.text("due_at IS NOT NULL"),
            sqlite_where=sa.text("due_at IS NOT NULL"),
        )
        batch_op.drop_index(batch_op.f("ix_deliveries_api_key_id_status_id"))
        batch_op.drop_index(batch_op.f("ix_deliveries_api_key_id_id"))

    op.drop_table("deliveries")
    with op.batch_alter_table("clips", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_clips_storage_key"))
        batch_op.drop_index(batch_op.f("ix_clips_image_key"))
        batch_op.drop_index(
            "ix_clips_due", postgresql_where=sa.text("due_at IS NOT NULL"), sqlite_where=sa.text("due_at IS NOT NULL")
        )

    op.drop_table("clips")
    with op.batch_alter_table("callbacks", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_callbacks_task_id_received_at_id"))

    op.drop_table("callbacks")
    with op.batch_alter_table("endpoint_sends", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_endpoint_sends_endpoint_id_ended_at"))

    op.drop_table("endpoint_sends")
    with op.batch_alter_table("webhook_endpoints", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_webhook_endpoints_api_key_id_id"))

    op.drop_table("webhook_endpoints")
    with op.batch_alter_table("task_labels", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_task_labels_api_key_id_name_value_created_at_task_id"))

    op.drop_table("task_labels")
    with op.batch_alter_table("tasks", schema=None) as batch_op:
        batch_op.drop_index(
            "ix_tasks_due", postgresql_where=sa.text("due_at IS NOT NULL"), sqlite_where=sa.text("due_at IS NOT NULL")
        )
        batch_op.drop_index(
            "ix_tasks_resolved",
            postgresql_where=sa.text("resolved_by IS NOT NULL"),
            sqlite_where=sa.text("resolved_by IS NOT NULL"),
        )
        batch_op.drop_index(batch_op.f("ix_tasks_completed_at"))
        batch_op.drop_index(
            "ix_tasks_reusable",
            postgresql_where=sa.text("status = 'succeeded'"),
            sqlite_where=sa.text("status = 'succeeded'"),
        )
        batch_op.drop_index(
            "ix_tasks_held",
            postgresql_where=sa.text("status = 'queued' AND due_at IS NULL"),
            sqlite_where=sa.text("status = 'queued' AND due_at IS NULL"),
        )
        batch_op.drop_index(
            "ix_tasks_queue",
            postgresql_where=sa.text("status = 'queued' AND due_at IS NOT NULL"),
            sqlite_where=sa.text("status = 'queued' AND due_at IS NOT NULL"),
        )
        batch_op.drop_index(
            "ix_tasks_uncounted",
            postgresql_where=sa.text("NOT is_counted"),
            sqlite_where=sa.text("is_counted = 0"),
        )
        batch_op.drop_index(batch_op.f("ix_tasks_api_key_id_model_created_at_id"))
        batch_op.drop_index(batch_op.f("ix_tasks_api_key_id_status_created_at_id"))
        batch_op.drop_index(batch_op.f("ix_tasks_api_key_id_created_at_id_charge_posts"))
        batch_op.drop_index(batch_op.f("ix_tasks_created_at_id"))

    op.drop_table("tasks")
    op.drop_table("usage_sums")
    with op.batch_alter_table("spent_charges", schema=None) as batch_op:
        batch_op.drop_index(
            "ix_spent_charges_uncounted",
            postgresql_where=sa.text("NOT is_counted"),
            sqlite_where=sa.text("is_counted = 0"),
        )
        batch_op.drop_index(batch_op.f("ix_spent_charges_api_key_id_created_at_charge_posts"))
        batch_op.drop_index(batch_op.f("ix_spent_charges_created_at"))

    op.drop_table("spent_charges")
    with op.batch_alter_table("rate_limit_hits", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_rate_limit_hits_api_key_id_made_at"))

    op.drop_table("rate_limit_hits")
    with op.batch_alter_table("idempotency_keys", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_idempotency_keys_created_at"))

    op.drop_table("idempotency_keys")
    with op.batch_alter_table("stored_objects", schema=None) as batch_op:
        batch_op.drop_index(
            "ix_stored_objects_due",
            postgresql_where=sa.text("due_at IS NOT NULL"),
            sqlite_where=sa.text("due_at IS NOT NULL"),
        )

    op.drop_table("stored_objects")
    op.drop_table("pace_slots")
    op.drop_table("queue_tags")
    with op.batch_alter_table("ledger_entries", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_ledger_entries_api_key_id_created_at_number"))

    op.drop_table("ledger_entries")
    if op.get_context().dialect.name == "postgresql":
        op.execute("DROP FUNCTION refuse_to_change_ledger()")
    op.drop_table("budgets")
    with op.batch_alter_table("audit_entries", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_audit_entries_created_at_id"))

    op.drop_table("audit_entries")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION refuse_change_of_audit()")
    op.drop_table("compatible_revisions")
    op.drop_table("periodic_jobs")
    op.drop_table("former_keys")
    op.drop_table("api_keys")
