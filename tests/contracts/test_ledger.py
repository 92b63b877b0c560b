"""Enroll every embedded ledger in the ledger contract."""

from headrace.testing import enrolled
from headrace.testing.ledger import LedgerContract

globals().update(enrolled(LedgerContract, "ledger"))
