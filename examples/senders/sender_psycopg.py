"""Sends by psycopg 3. PGHOST, PGUSER and the like say where to:

    python3 sender_psycopg.py org_1 4200
"""

import sys

import psycopg
from psycopg.types.json import Jsonb


def pay(conn, organization, amount):
    with conn.transaction():  # an exception rolls back: the event goes with the payment
        (payment,) = conn.execute(
            "INSERT INTO payments (organization_id, amount) VALUES (%s, %s) RETURNING id", (organization, amount)
        ).fetchone()
        conn.execute(
            "INSERT INTO webhook_outbox (organization_id, event_type, payload) VALUES (%s, %s, %s)",
            (organization, "payment.succeeded", Jsonb({"paymentId": payment, "amount": amount, "currency": "EUR"})),
        )
        taken = conn.execute(
            "UPDATE accounts SET balance = balance - %(amount)s WHERE organization_id = %(organization)s AND balance >= %(amount)s",
            {"organization": organization, "amount": amount},
        )
        if taken.rowcount == 0:
            raise ValueError("the account has not enough")


if __name__ == "__main__":
    with psycopg.connect(autocommit=True) as connection:  # transaction() begins and ends them, and nothing else does
        pay(connection, sys.argv[1], int(sys.argv[2]))
