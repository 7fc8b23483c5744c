"""Alembic's side: how the tables came to be, revision by revision.

Revisions only add: tables, columns with a default, indexes. What an older release needs stays until
no host can go back to it, because a release that fails gives way to the one before it, and that one
meets a database that has been migrated already.
"""
