"""Describe values of rows by expressions, and compute them in three ways that agree bit for bit.

`per_row` gives a function of one row, `on_table` computes an Arrow table's column, `to_sql` writes DuckDB's SQL. What an
operator means does not depend on the way:

- Null in, null out. Only `is_null`, `coalesce` (`fill_null`), `&`, `|` and the branch of `if_else` that is not taken
  differ; `&` and `|` follow Kleene's logic.
- Integers are of 64 bits. What they cannot hold is null: it never wraps and never becomes a float. A division by zero is
  null, for floats too. `//` and `%` round down as Python's do.
- Floats follow IEEE 754. NaN is unequal to everything, itself included, and neither less nor greater; `least` and
  `greatest` give NaN if one value is NaN, `isin` never holds for it. NaN has one form: its sign and payload mean nothing.
- -0.0 equals 0.0; only `least` and `greatest` tell them apart (-0.0 is the smaller). Signs of zero are kept otherwise.
- An integer and a float are compared exactly, also above 2^53. In arithmetic, `coalesce`, `if_else`, `least` and
  `greatest` an integer beside a float becomes the nearest float; `/` makes floats of both sides.
- Texts are Unicode code points, compared by their numbers. `lower`, `upper` and `strip` change ASCII only, since other
  mappings differ between systems and their versions.
- Instants and dates are int64 microseconds since 1970-01-01 UTC; a date is its midnight. Calendars and clocks of zones
  are those of `zoneinfo`, in the years 1 to 9999, else null.

There are no powers, logarithms and trigonometric functions: their last bits differ between mathematical libraries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headrace.core.expressions.algebra import Binary as Binary
from headrace.core.expressions.algebra import Call as Call
from headrace.core.expressions.algebra import Expr as Expr
from headrace.core.expressions.algebra import Literal as Literal
from headrace.core.expressions.algebra import Operation as Operation
from headrace.core.expressions.algebra import Row as Row
from headrace.core.expressions.algebra import Shift as Shift
from headrace.core.expressions.algebra import Unary as Unary
from headrace.core.expressions.algebra import lift as lift
from headrace.core.expressions.columns import Column as Column
from headrace.core.expressions.columns import columns_of as columns_of
from headrace.core.expressions.columns import type_of as type_of
from headrace.core.expressions.functions import coalesce as coalesce
from headrace.core.expressions.functions import greatest as greatest
from headrace.core.expressions.functions import if_else as if_else
from headrace.core.expressions.functions import least as least
from headrace.core.expressions.moments import Moment as Moment
from headrace.core.expressions.operators import OPERATORS as OPERATORS
from headrace.core.expressions.rows import per_row as per_row
from headrace.core.expressions.scalars import COMPARE as COMPARE

if TYPE_CHECKING:
    import pyarrow as pa


def on_table(expr: Expr[Any], table: pa.Table) -> pa.ChunkedArray:
    """Compute an expression for every row of an Arrow table that has the columns under their own names."""
    from headrace.core.expressions.arrow import compute

    return compute(expr, table)
