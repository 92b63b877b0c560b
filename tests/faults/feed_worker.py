"""Take a project's streams in until everything was applied, by whomever; started, killed and replaced by tests."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

from headrace.core.errors import Conflict, Unavailable
from headrace.core.settings import LimitSettings, SourceSettings, StoreSettings
from headrace.core.time import SystemClock
from headrace.features.stream import StreamPath
from headrace.pipelines.feed import Feed, PartitionState, open_project_streams
from headrace.pipelines.gatekeeper import Gatekeeper
from headrace.pipelines.project import Project, load_project
from headrace.pipelines.stores import CONTROL, Stores, open_stores

TOPIC = "orders"  # in four partitions
ORDERED = "orders-in-order"  # in one
BATCH = 400
FOLDER = Path(__file__).parent


def streaming(url: str, stream: str = TOPIC, batch: int = BATCH) -> Project:
    """Return the project of this folder with its orders in a stream."""
    project = load_project("orders:pipeline", folder=FOLDER)
    settings = project.settings.model_copy(
        update={
            "sources": {"Orders": SourceSettings.model_validate({"stream": stream})},
            "stores": StoreSettings(streams=url),
            "limits": LimitSettings(stream_batch_events=batch),
        }
    )
    return replace(project, settings=settings)


def feed_of(project: Project, stores: Stores, clock: SystemClock) -> Feed:
    """Return a feed of all sources; the online state is begun where it is empty."""
    path = StreamPath([project.plan])
    with stores.online.write() as transaction:
        path.begin(transaction)
    streams = open_project_streams(project, stores, clock)
    gatekeeper = Gatekeeper(project, stores.ledger, stores.tables, streaming=True)
    sources = project.plan.sources
    return Feed(project, stores, streams, clock, sources=sources, gatekeeper=gatekeeper, path=path)


def applied(stores: Stores) -> int:
    """Return how many records were applied, of all partitions of a counted stream."""
    with stores.online.read() as snapshot:
        return sum(PartitionState.load(blob).position for _, blob in snapshot.items(CONTROL, b"stream/Orders/"))


def main(state: str, url: str, stream: str, total: int, batch: int) -> None:
    """Work until `total` records were applied; say how it goes."""
    clock, project = SystemClock(), streaming(url, stream, batch)
    with open_stores(project, state, clock=clock, write=True, alone=False) as stores:
        feed = feed_of(project, stores, clock)
        say("ready")
        while applied(stores) < total:
            try:
                taken = sum(feed.take_in().values())
            except (Unavailable, Conflict) as error:
                say(error.code)
                taken = 0
            if taken:
                say(f"took {taken}")
            else:
                time.sleep(0.05)
        feed.close()
    say("done")


def say(text: str) -> None:
    """Tell the test at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
