"""Hold the steps that bring a ledger's tables to the present format; run by Alembic through `migrate.py`."""
