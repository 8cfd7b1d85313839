"""Sends by Django's ORM. PGHOST, PGUSER and the like say where to:

    python3 sender_django.py org_1 4200
"""

import os
import sys

import django
from django.conf import settings

if __name__ == "__main__":  # in a project, settings.py has this
    settings.configure(
        DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "NAME": os.environ["PGDATABASE"]}},
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    )
    django.setup()

from django.db import models, transaction  # noqa: E402
from django.db.models.fields import AutoFieldMixin  # noqa: E402


class Account(models.Model):
    organization_id = models.TextField(primary_key=True)
    balance = models.BigIntegerField()

    class Meta:
        app_label, managed, db_table = "billing", False, "accounts"


class Payment(models.Model):
    organization_id = models.TextField()
    amount = models.BigIntegerField()

    class Meta:
        app_label, managed, db_table = "billing", False, "payments"


class DatabaseUUIDField(AutoFieldMixin, models.UUIDField):
    """A UUID that the database makes: Django leaves it out of the INSERT, and reads it back. It would send NULL for a UUIDField."""


class WebhookEvent(models.Model):
    """Only what an application writes. The database fills in the rest."""

    id = DatabaseUUIDField(primary_key=True)
    organization_id = models.TextField()
    event_type = models.TextField()
    payload = models.JSONField()

    class Meta:
        app_label, managed, db_table = "billing", False, "webhook_outbox"  # no migration may touch it


def pay(organization, amount):
    with transaction.atomic():  # an exception rolls back: the event goes with the payment
        payment = Payment.objects.create(organization_id=organization, amount=amount)
        WebhookEvent.objects.create(
            organization_id=organization,
            event_type="payment.succeeded",
            payload={"paymentId": payment.pk, "amount": amount, "currency": "EUR"},
        )
        account = Account.objects.filter(organization_id=organization, balance__gte=amount)
        if account.update(balance=models.F("balance") - amount) == 0:
            raise ValueError("the account has not enough")


if __name__ == "__main__":
    pay(sys.argv[1], int(sys.argv[2]))
