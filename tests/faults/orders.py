"""A project whose file imports no training library, so that workers start quickly."""

from __future__ import annotations

import headrace as hr


class Orders(hr.Source):
    order_id: hr.Column[str] = hr.row_id()
    placed: hr.Column[hr.Instant] = hr.event_time()
    shop: hr.Column[str] = hr.entity(matches=r"shop-[0-9]+")
    items: hr.Column[int] = hr.column(ge=1, le=100)
    delivered: hr.Column[hr.Instant | None] = hr.column()
    hours: hr.Column[float | None] = hr.column(ge=0, unit="h", known_at=delivered)


class Shop(hr.FeatureGroup, of=Orders, entity=Orders.shop):
    hours = hr.mean(Orders.hours).over("1d", "7d")
    late = hr.rate(Orders.hours > 24).over("7d")
    orders = hr.count(Orders.items).over("1d")


dataset = hr.Dataset(rows=Orders, at=Orders.placed, features=[Orders.items, Shop], label=Orders.hours > 24, mature="4d")


@hr.train(dataset, split=hr.by_time(valid="14d", test="14d"))
def late_delivery(data: hr.TrainingData, p: hr.Params) -> hr.Model:
    raise NotImplementedError


pipeline = hr.Pipeline(model=late_delivery, decision=hr.threshold(0.5), gates=[hr.metric("auc") >= 0.6])
