"""Score card transactions for fraud as they happen; chargebacks tell the truth up to 90 days later."""

from lightgbm import LGBMClassifier

import headrace as hr


class Transactions(hr.Source):
    txn_id: hr.Column[str] = hr.row_id()
    ts: hr.Column[hr.Instant] = hr.event_time()
    card: hr.Column[str] = hr.entity(pii=True)
    merchant: hr.Column[str] = hr.entity()
    device: hr.Column[str | None] = hr.entity()
    amount: hr.Column[float] = hr.column(ge=0, unit="EUR")
    approved: hr.Column[bool | None] = hr.column(known_at=ts + "2s")


class Chargebacks(hr.Source):
    chargeback_id: hr.Column[str] = hr.row_id()
    txn_id: hr.Column[str] = hr.foreign_key(Transactions.txn_id)
    merchant: hr.Column[str] = hr.entity()
    reported: hr.Column[hr.Instant] = hr.event_time()


class Merchants(hr.Source, history="scd2"):
    merchant: hr.Column[str] = hr.entity()
    valid_from: hr.Column[hr.Instant] = hr.valid_from()
    valid_to: hr.Column[hr.Instant | None] = hr.valid_to()
    mcc: hr.Column[str] = hr.column()
    country: hr.Column[str] = hr.column()


class Card(hr.FeatureGroup, of=Transactions, entity=Transactions.card):
    n = hr.count().over("1m", "1h", "24h")
    spend = hr.sum(Transactions.amount).over("1h", "24h", "30d")
    avg = hr.mean(Transactions.amount).over("30d")
    merchants = hr.count_distinct(Transactions.merchant).over("24h")


class Device(hr.FeatureGroup, of=Transactions, entity=Transactions.device):
    cards = hr.count_distinct(Transactions.card).over("24h")


class MerchantRisk(hr.FeatureGroup, of=Chargebacks, entity=Chargebacks.merchant):
    chargebacks = hr.count().over("90d")


class MerchantProfile(hr.FeatureGroup, of=Merchants, entity=Merchants.merchant):
    mcc = hr.latest(Merchants.mcc)
    country = hr.latest(Merchants.country)


@hr.on_demand(amount=Transactions.amount, avg=Card.avg["30d"])
def amount_ratio(amount: float, avg: float | None) -> float | None:
    return None if not avg else amount / avg


dataset = hr.Dataset(
    rows=Transactions,
    where=Transactions.amount > 0,
    at=Transactions.ts,
    features=[Transactions.amount, Card, Device, MerchantRisk, MerchantProfile, amount_ratio],
    label=hr.exists(Chargebacks, on=Chargebacks.txn_id).within("90d"),
    labelled_if=Transactions.approved,  # what was declined can never be charged back
    sample=hr.downsample(False, 0.05, weight=True),
)


@hr.train(
    dataset,
    split=hr.by_time(valid="30d", test="60d", embargo="90d"),
    search=hr.Search(trials=4, metric="pr_auc"),
)
def fraud(data: hr.TrainingData, p: hr.Params) -> hr.Model:
    model = LGBMClassifier(
        n_estimators=100,
        num_leaves=p.int("num_leaves", 7, 63),
        learning_rate=0.05,
        random_state=p.seed,
        n_jobs=p.threads,
        deterministic=True,
        verbose=-1,
    )
    return hr.model(model.fit(data.train.X, data.train.y, sample_weight=data.train.weight))


pipeline = hr.Pipeline(
    model=fraud,
    decision=hr.threshold(0.1),
    gates=[
        hr.metric("auc") >= 0.6,
        hr.metric("recall") >= 0.1,
        hr.metric("pr_auc").beats_champion(),
        hr.model_size() <= "20MB",
    ],
    endpoint=hr.Endpoint(fallback=0.0, on_missing="default"),
    rollout=hr.Rollout(
        unit=Transactions.card,
        steps=[hr.shadow("1d"), hr.canary(0.05, "12h", min_rows=500)],
        abort_if=[
            hr.live("error_rate") > 0.001,
            hr.live("latency_p99") > "50ms",
            hr.live("prediction_psi", against="champion") > 0.2,
        ],
    ),
    monitors=[
        hr.when(hr.drift(dataset).unusual(windows="1d", k=2, n=3), every="1d").alert("risk"),
        hr.when(hr.live("pr_auc", over="30d", matured="90d") < 0.1, every="1d").alert("risk").retrain(),
    ],
    retrain_on=[hr.every("28d")],
)
