"""Talk to one DynamoDB table: items by (partition, key), read and written in the few ways that the store needs.

Calls that DynamoDB asks to repeat (throttled, or in conflict with another transaction) are repeated within their time.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, NoRegionError, ParamValidationError

from headrace.core.errors import ConfigurationError, HeadraceError, Unavailable
from headrace.storage.keyvalue.errors import absent

PARTITION, KEY, VALUE = "pk", "sk", "val"
WRITE_TOGETHER, READ_TOGETHER = 100, 25  # items of one transaction; DynamoDB reads 100 too, stand-ins for it fewer
BATCH_GET, BATCH_WRITE = 100, 25
PAGE = 500
PAUSES = 0.005, 0.2
REPEAT = {
    "ProvisionedThroughputExceededException",
    "RequestLimitExceeded",
    "ThrottlingException",
    "TransactionConflictException",
    "TransactionInProgressException",
}
OPERATORS = {
    "AccessDeniedException",
    "IncompleteSignatureException",
    "InvalidSignatureException",
    "MissingAuthenticationTokenException",
    "UnrecognizedClientException",
    "ExpiredTokenException",
    "ValidationException",
}

Item = dict[str, Any]
Place = tuple[str, bytes]


@dataclass(frozen=True)
class Condition:
    """Demand something of an item: an expression, and the values that it names."""

    expression: str
    values: Mapping[str, Any]


class Table:
    """Hold the client of one table.

    Args:
        name: the table.
        region: where it lies; AWS's own settings unless said.
        endpoint: another address than AWS's.
        timeout: seconds for reads of the request path.
        commit: seconds for everything else.
        pool: connections at most.
        where: names the store in errors.
    """

    def __init__(
        self, name: str, *, region: str, endpoint: str, timeout: float, commit: float, pool: int, where: str
    ) -> None:
        self.name, self.where, self.timeout, self.commit = name, where, timeout, commit
        session = boto3.session.Session(region_name=region or None)
        try:
            self._quick, self._patient = (
                session.client("dynamodb", endpoint_url=endpoint or None, config=self._config(seconds, pool))
                for seconds in (timeout, commit)
            )
        except (BotoCoreError, ValueError) as error:
            raise self._translated(error) from error

    def _config(self, seconds: float, pool: int) -> Config:
        return Config(
            connect_timeout=seconds,
            read_timeout=seconds,
            max_pool_connections=pool,
            retries={"total_max_attempts": 1},
            parameter_validation=False,
        )

    def close(self) -> None:
        """Close the connections."""
        for client in (self._quick, self._patient):
            client.close()

    def exists(self) -> bool:
        """Tell whether the table is there."""
        return self._call("describe_table", missing=True) is not None

    def create(self) -> None:
        """Create the table, paid for by use, and wait until it can be used."""
        names = ((PARTITION, "S", "HASH"), (KEY, "B", "RANGE"))
        schema = [{"AttributeName": name, "KeyType": kind} for name, _, kind in names]
        attributes = [{"AttributeName": name, "AttributeType": kind} for name, kind, _ in names]
        self._call(
            "create_table",
            repeat={"ResourceInUseException"},
            KeySchema=schema,
            AttributeDefinitions=attributes,
            BillingMode="PAY_PER_REQUEST",
        )
        end = time.monotonic() + self.commit
        while (self._call("describe_table") or {})["Table"]["TableStatus"] != "ACTIVE":
            if time.monotonic() > end:
                raise Unavailable("the table is still being created", where=self.where, next_step="try again")
            time.sleep(PAUSES[1])

    def get(self, place: Place) -> Item | None:
        """Return an item as the last write left it."""
        return self.get_together([place], quick=False)[0]

    def get_together(self, places: Sequence[Place], *, quick: bool = True) -> list[Item | None]:
        """Return at most `READ_TOGETHER` different items, all as they were at one moment."""
        asked = [{"Get": {"TableName": self.name, "Key": _key(place)}} for place in places]
        found = self._call("transact_get_items", quick=quick, table=False, TransactItems=asked)
        return [_plain(answer.get("Item")) for answer in self._said(found, "Responses", len(places))]

    def get_batch(self, places: Iterable[Place]) -> dict[Place, Item]:
        """Return those of many different items that are there, each as the last write left it."""
        waiting, found = [_key(place) for place in places], {}
        while waiting:
            asked, waiting = waiting[:BATCH_GET], waiting[BATCH_GET:]
            request = {self.name: {"Keys": asked, "ConsistentRead": True}}
            answer = self._call("batch_get_item", table=False, RequestItems=request) or {}
            for raw in self._said(answer, "Responses").get(self.name, ()):
                item = _plain(raw) or {}
                found[item[PARTITION], item[KEY]] = item
            waiting += self._said(answer, "UnprocessedKeys").get(self.name, {}).get("Keys", [])
        return found

    def write_batch(self, puts: Iterable[Item] = (), deletes: Iterable[Place] = ()) -> None:
        """Write and remove many items, one by one."""
        waiting = [{"PutRequest": {"Item": _typed(item)}} for item in puts]
        waiting += [{"DeleteRequest": {"Key": _key(place)}} for place in deletes]
        while waiting:
            asked, waiting = waiting[:BATCH_WRITE], waiting[BATCH_WRITE:]
            answer = self._call("batch_write_item", table=False, RequestItems={self.name: asked}) or {}
            waiting += self._said(answer, "UnprocessedItems").get(self.name, [])

    def write_together(self, guard: Item, puts: Sequence[Item], deletes: Sequence[Place], name: str) -> bool:
        """Write all or nothing, at most 99 items and the guard; return False where the guard's condition does not hold.

        `name` makes it one transaction, however often it is sent.
        """
        actions = [guard]
        actions += [{"Put": {"TableName": self.name, "Item": _typed(item)}} for item in puts]
        actions += [{"Delete": {"TableName": self.name, "Key": _key(place)}} for place in deletes]
        answer = self._call(
            "transact_write_items", table=False, refusable=True, TransactItems=actions, ClientRequestToken=name
        )
        return answer is not None

    def guard(self, place: Place, condition: Condition, change: str = "") -> Item:
        """Return the part of a transaction that demands something of an item, and may change it."""
        about = {"TableName": self.name, "Key": _key(place), "ConditionExpression": condition.expression}
        about["ExpressionAttributeValues"] = _typed(condition.values)
        return {"Update": about | {"UpdateExpression": change}} if change else {"ConditionCheck": about}

    def update(self, place: Place, change: str, condition: Condition) -> Item | None:
        """Change an item and return it as it was before, empty if it was not there; None where the condition does not hold."""
        arguments: Item = {"UpdateExpression": change, "ConditionExpression": condition.expression}
        if condition.values:
            arguments["ExpressionAttributeValues"] = _typed(condition.values)
        answer = self._call("update_item", refusable=True, Key=_key(place), ReturnValues="ALL_OLD", **arguments)
        return None if answer is None else _plain(answer.get("Attributes", {}))

    def walk(self, partition: str, low: bytes = b"", high: bytes | None = None) -> Iterator[Item]:
        """Yield a partition's items from `low` to `high`, both included, in the order of their keys."""
        expression, values = f"{PARTITION} = :p", {":p": partition}
        bounds: dict[str, Any] = {}
        if low and high is not None:
            expression, bounds = f"{expression} AND {KEY} BETWEEN :low AND :high", {":low": low, ":high": high}
        elif low:
            expression, bounds = f"{expression} AND {KEY} >= :low", {":low": low}
        asked: Item = {
            "KeyConditionExpression": expression,
            "ExpressionAttributeValues": _typed(values | bounds),
            "ConsistentRead": True,
            "Limit": PAGE,
        }
        while True:
            page = self._call("query", **asked) or {}
            for raw in self._said(page, "Items"):
                yield _plain(raw) or {}
            if "LastEvaluatedKey" not in page:
                return
            asked["ExclusiveStartKey"] = page["LastEvaluatedKey"]

    def _said(self, answer: Item | None, name: str, count: int | None = None) -> Any:
        """Return what every whole answer has.

        Raises:
            Unavailable: this one lacks it; without this check half an answer would read as missing rows.
        """
        found = (answer or {}).get(name)
        if found is None or (count is not None and len(found) != count):
            raise Unavailable("DynamoDB answered in part", where=self.where, got=answer, next_step="try again")
        return found

    def _call(
        self,
        operation: str,
        *,
        quick: bool = False,
        table: bool = True,
        refusable: bool = False,
        missing: bool = False,
        repeat: Iterable[str] = (),
        **arguments: Any,
    ) -> Item | None:
        """Call an operation; None where its condition did not hold (`refusable`), or there is no table (`missing`)."""
        client = self._quick if quick else self._patient
        end = time.monotonic() + (self.timeout if quick else self.commit)
        pause, longest = PAUSES
        if table:
            arguments["TableName"] = self.name
        while True:
            try:
                found: Item = getattr(client, operation)(**arguments)
                return found
            except ClientError as error:
                code, reasons = _code(error), _reasons(error)
                if code in repeat or (missing and code == "ResourceNotFoundException"):
                    return None
                if refusable and (code == "ConditionalCheckFailedException" or "ConditionalCheckFailed" in reasons):
                    return None
                again = code in REPEAT or bool(reasons & {"TransactionConflict", "ThrottlingError"})
                if not again or time.monotonic() + pause > end:
                    raise self._translated(error) from error
            except BotoCoreError as error:
                raise self._translated(error) from error
            time.sleep(pause)
            pause = min(2 * pause, longest)

    def _translated(self, error: Exception) -> HeadraceError:
        code = _code(error) if isinstance(error, ClientError) else ""
        if code == "ResourceNotFoundException":
            return absent(self.where, error)
        local = (NoCredentialsError, NoRegionError, ParamValidationError, ValueError)
        if code in OPERATORS or isinstance(error, local):
            return ConfigurationError(
                "DynamoDB refuses the call",
                where=self.where,
                got=error,
                next_step="check credentials, region and rights",
            )
        return Unavailable(
            "DynamoDB cannot be reached" if not code else "DynamoDB failed",
            where=self.where,
            got=error,
            next_step="try again",
        )


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _reasons(error: ClientError) -> set[str]:
    return {str(reason.get("Code")) for reason in error.response.get("CancellationReasons", ())}


def _key(place: Place) -> Item:
    return {PARTITION: {"S": place[0]}, KEY: {"B": place[1]}}


def _typed(values: Mapping[str, Any]) -> Item:
    return {
        name: {
            "B" if isinstance(v, bytes) else "S" if isinstance(v, str) else "N": v
            if isinstance(v, bytes | str)
            else str(v)
        }
        for name, v in values.items()
    }


def _plain(item: Mapping[str, Any] | None) -> Item | None:
    if item is None:
        return None
    return {name: int(v["N"]) if "N" in v else v.get("B", v.get("S")) for name, v in item.items()}
