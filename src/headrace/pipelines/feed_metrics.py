"""Show how far streams were taken in: lag, watermark, late events and dead letters, as Prometheus metrics."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from headrace.core.time import SECOND
from headrace.pipelines.feed import Feed

PARTITION = ("source", "partition")


class FeedCollector(Collector):
    """Collect a feed's figures as they stood after its last look at the streams; a scrape reads no store."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        lag = GaugeMetricFamily(
            "headrace_stream_lag", "Positions between what was applied and the partition's end", labels=PARTITION
        )
        applied = GaugeMetricFamily(
            "headrace_stream_arrival_seconds", "Arrival of the newest applied event, Unix time", labels=PARTITION
        )
        events = CounterMetricFamily("headrace_stream_events", "Applied events with an event time", labels=PARTITION)
        late = CounterMetricFamily("headrace_stream_late", "Events older than the watermark", labels=PARTITION)
        for (source, partition), state in sorted(self.feed.states.copy().items()):
            labels = (source, str(partition))
            if (source, partition) in self.feed.lags:
                lag.add_metric(labels, self.feed.lags[source, partition])
            events.add_metric(labels, state.events)
            late.add_metric(labels, state.late)
            if state.arrival > 0:
                applied.add_metric(labels, state.arrival / SECOND)
        watermark = GaugeMetricFamily(
            "headrace_stream_watermark_seconds",
            "Event time up to which a source is complete, Unix time",
            labels=["source"],
        )
        letters = GaugeMetricFamily("headrace_dead_letters", "Open dead letters", labels=["source"])
        for source in sorted(self.feed.events):
            reached = self.feed.watermark(source)
            if reached is not None:
                watermark.add_metric([source], reached / SECOND)
            letters.add_metric([source], self.feed.letters[source])
        yield from (lag, applied, events, late, watermark, letters)
