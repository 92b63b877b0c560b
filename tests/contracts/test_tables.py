"""Enroll every embedded store of tables in the tables contract."""

from headrace.testing import enrolled
from headrace.testing.tables import TablesContract

globals().update(enrolled(TablesContract, "tables"))
