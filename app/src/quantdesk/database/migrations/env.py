"""What Alembic runs: the revisions, on the connection and in the transaction of `migrate`."""

from alembic import context

from quantdesk.database.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
