"""The use cases on webhook endpoints and deliveries."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime

from app.auth.audit import record
from app.auth.callers import Caller
from app.database.engine import Database, Session
from app.keyring import Keyring
from app.models import ApiKey, Delivery, DeliveryAttempt, WebhookEndpoint
from app.webhooks import repository
from app.webhooks.lifecycle import WebhookLifecycle
from app.webhooks.schemas import EndpointCreate, EndpointUpdate, Recovery
from app.webhooks.signing import secret_of


class WebhookService:
    """Each method is one use case in one transaction, which it commits. All raise NotFound for another key's rows."""

    def __init__(self, database: Database, lifecycle: WebhookLifecycle, keyring: Keyring) -> None:
        self._database, self._lifecycle, self._keyring = database, lifecycle, keyring

    async def create_endpoint(self, caller: Caller, body: EndpointCreate) -> WebhookEndpoint:
        """Create an endpoint. Raises InvalidRequest, TooManyEndpoints."""
        # Its endpoints are counted under the lock of the key.
        async with self._locking(caller.api_key_id) as (session, now):
            endpoint = await self._lifecycle.create_endpoint(session, caller.api_key_id, body, now)
            # Creating it has locked the caller's key: by this time, endpoints are listed in the order of their commits.
            endpoint.created_at = await self._database.now(session)
            endpoint.secret_key = self._keyring.signer
            record(session, now, caller.actor, "endpoint.created", endpoint.id, fields=sorted(body.model_fields_set))
            return endpoint

    async def list_endpoints(
        self, caller: Caller, after: tuple[datetime, str] | None, limit: int
    ) -> Sequence[WebhookEndpoint]:
        """Up to `limit` endpoints that the caller may read, after this position, oldest first."""
        where = [] if caller.is_admin else [WebhookEndpoint.api_key_id == caller.api_key_id]
        async with self._database.reads() as session:
            return await repository.list_endpoints(session, where, after, limit)

    async def get_endpoint(self, caller: Caller, endpoint_id: str) -> WebhookEndpoint:
        """One endpoint as it stands."""
        async with self._database.reads() as session:
            return caller.require_readable(await repository.find_endpoint(session, endpoint_id))

    async def update_endpoint(self, caller: Caller, endpoint_id: str, body: EndpointUpdate) -> WebhookEndpoint:
        """Change the given fields of an endpoint. Raises InvalidRequest."""
        async with self._locking(endpoint_id) as (session, now):
            endpoint = await self._lock(session, caller, endpoint_id)
            await self._lifecycle.update_endpoint(session, endpoint, body, now)
            record(session, now, caller.actor, "endpoint.changed", endpoint_id, fields=sorted(body.model_fields_set))
        return endpoint

    async def delete_endpoint(self, caller: Caller, endpoint_id: str) -> None:
        """Delete an endpoint with its deliveries."""
        async with self._locking(endpoint_id) as (session, now):
            endpoint = await self._lock(session, caller, endpoint_id)
            await self._lifecycle.delete_endpoint(session, endpoint, now)
            record(session, now, caller.actor, "endpoint.deleted", endpoint_id)

    async def secret(self, caller: Caller, endpoint_id: str) -> str:
        """The secret that signs webhooks to an endpoint, as `whsec_<base64>`."""
        async with self._database.reads() as session:
            endpoint = caller.require_owned(await repository.find_endpoint(session, endpoint_id))
        return await self._give_out(endpoint)

    async def rotate_secret(self, caller: Caller, endpoint_id: str) -> str:
        """Return a new secret for an endpoint; the previous one also signs for 24 hours."""
        async with self._locking(endpoint_id) as (session, now):
            endpoint = await self._lock(session, caller, endpoint_id)
            self._lifecycle.rotate_secret(endpoint, now)
            endpoint.secret_key = self._keyring.signer
            record(session, now, caller.actor, "endpoint.secret_rotated", endpoint_id)
        return secret_of(endpoint).text(self._keyring)

    async def default_secret(self, caller: Caller) -> str:
        """The secret that signs webhooks to the `webhook_url` of the caller's tasks."""
        async with self._database.reads() as session:
            key = await session.get_one(ApiKey, caller.api_key_id)
        return await self._give_out(key)

    async def rotate_default_secret(self, caller: Caller) -> str:
        """Return a new default secret; the previous one also signs for 24 hours."""
        async with self._locking(caller.api_key_id) as (session, now):
            key = await session.get_one(ApiKey, caller.api_key_id, with_for_update={"key_share": True})
            self._lifecycle.rotate_secret(key, now)
            key.secret_key = self._keyring.signer
            record(session, now, caller.actor, "key.secret_rotated", key.id)
        return secret_of(key).text(self._keyring)

    async def send_test(self, caller: Caller, endpoint_id: str) -> Delivery:
        """Enqueue a `webhook.test` to an endpoint."""
        async with self._locking(endpoint_id) as (session, now):
            return self._lifecycle.send_test(session, await self._lock(session, caller, endpoint_id), now)

    async def recover(self, caller: Caller, endpoint_id: str, body: Recovery) -> int:
        """Make the undelivered deliveries of a time range to an endpoint due; return how many, up to MAX_COUNT."""
        async with self._locking(endpoint_id) as (session, now):
            endpoint = await self._lock(session, caller, endpoint_id)
            deliveries = await self._lifecycle.recover(session, endpoint, body, now)
            record(session, now, caller.actor, "endpoint.recovered", endpoint_id, deliveries=deliveries)
            return deliveries

    async def list_deliveries(
        self, caller: Caller, filters: Mapping[str, object], before: str | None, limit: int
    ) -> Sequence[Delivery]:
        """Up to `limit` deliveries whose columns have these values, before this id, newest first."""
        values = dict(filters) if caller.is_admin else {**filters, "api_key_id": caller.api_key_id}
        where = [getattr(Delivery, name) == value for name, value in values.items()]
        async with self._database.reads() as session:
            deliveries = await repository.list_deliveries(session, where, before, limit)
            await repository.show_current_urls(session, deliveries)
        return deliveries

    async def list_attempts(
        self, caller: Caller, delivery_id: str, after: tuple[datetime, str] | None, limit: int
    ) -> Sequence[DeliveryAttempt]:
        """Up to `limit` attempts of a delivery after this position, oldest first."""
        async with self._database.reads() as session:
            delivery = caller.require_readable(await repository.find_delivery(session, delivery_id))
            return await repository.list_attempts(session, delivery.id, after, limit)

    async def resend(self, caller: Caller, delivery_id: str) -> Delivery:
        """Make a delivery due now, whatever its status."""
        async with self._locking(delivery_id) as (session, now):
            delivery = caller.require_owned(await repository.find_delivery(session, delivery_id))
            await self._lifecycle.resend(session, delivery, now)
            if caller.actor != caller.api_key_id:
                record(session, now, caller.actor, "delivery.resent", delivery_id, key=caller.api_key_id)
            await repository.show_current_urls(session, [delivery])
        return delivery

    async def _give_out(self, owner: WebhookEndpoint | ApiKey) -> str:
        """
        The secret of an endpoint or key, which from now on keeps the secret key that it is made with.

        Otherwise a rotation of SOUNDPOST_SECRET_KEYS would change it without a word.
        """
        if owner.secret_key not in self._keyring.fingerprints:
            async with self._locking(owner.id) as (session, _):
                owner = await session.get_one(type(owner), owner.id, with_for_update={"key_share": True})
                if owner.secret_key not in self._keyring.fingerprints:
                    owner.secret_key = self._keyring.signer
        return secret_of(owner).text(self._keyring)

    @asynccontextmanager
    async def _locking(self, row_id: str) -> AsyncIterator[tuple[Session, datetime]]:
        """A transaction that waits for the lock of this row: others of this process that want it have none yet."""
        async with self._database.exclusive(row_id), self._database.transaction() as begun:
            yield begun

    async def _lock(self, session: Session, caller: Caller, endpoint_id: str) -> WebhookEndpoint:
        return caller.require_owned(await repository.lock_endpoint(session, endpoint_id))
