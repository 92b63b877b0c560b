"""Forecast item demand per store for the weeks ahead, every Monday; batch only."""

from lightgbm import LGBMRegressor

import headrace as hr


class Sales(hr.Source):
    store: hr.Column[str] = hr.entity()
    item: hr.Column[str] = hr.entity()
    day: hr.Column[hr.Date] = hr.event_date(tz="Europe/Paris", known_after="6h")
    units: hr.Column[int] = hr.column(ge=0)
    in_stock: hr.Column[bool] = hr.column()
    row_id = hr.row_id(store, item, day)


class Promotions(hr.Source):
    store: hr.Column[str] = hr.entity()
    item: hr.Column[str] = hr.entity()
    day: hr.Column[hr.Date] = hr.event_date(tz="Europe/Paris")
    announced: hr.Column[hr.Instant] = hr.column()
    discount: hr.Column[float] = hr.column(ge=0, le=1)
    known_at = announced


class Demand(hr.FeatureGroup, of=Sales, entity=(Sales.store, Sales.item)):
    units = hr.sum(Sales.units).over("7d", "28d", "364d", fill=0)
    same_week = hr.sum(Sales.units).over("7d", offset="364d", fill=0)


class Planned(hr.FeatureGroup, of=Promotions, entity=(Promotions.store, Promotions.item)):
    promo_days = hr.count().ahead("7d")
    discount = hr.max(Promotions.discount).ahead("7d")


mondays = hr.grid(
    (Sales.store, Sales.item), every="7d", on="mon", tz="Europe/Paris", active=hr.count(Sales).over("56d") > 0
)

dataset = hr.Dataset(  # four weeks ahead, a label each
    rows=mondays,
    features=[Demand, Planned],
    label=hr.sum(Sales.units).ahead("7d", offset=[0, 7, 14, 21], fill=0),
    labelled_if=Sales.in_stock,  # where stock ran out nobody saw the demand
)

next_week = hr.Dataset(
    rows=mondays,
    features=[Demand, Planned],
    label=hr.sum(Sales.units).ahead("7d", fill=0),
    labelled_if=Sales.in_stock,
    mature="8d",  # the last day of the week is known six hours after its end
)


@hr.train(next_week, split=hr.by_time(valid="28d", test="56d"))
def demand(data: hr.TrainingData, p: hr.Params) -> hr.Model:
    model = LGBMRegressor(
        objective="tweedie",
        n_estimators=100,
        num_leaves=15,
        random_state=p.seed,
        n_jobs=p.threads,
        deterministic=True,
        verbose=-1,
    )
    return hr.model(model.fit(data.train.X, data.train.y))


pipeline = hr.Pipeline(model=demand, gates=[hr.metric("wape") <= 0.5, hr.model_size() <= "20MB"])
