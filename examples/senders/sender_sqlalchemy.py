"""Sends by SQLAlchemy 1.4 or 2, here with psycopg2. PGHOST, PGUSER and the like say where to:

    python3 sender_sqlalchemy.py org_1 4200
"""

import sys

from sqlalchemy import BigInteger, Column, Text, create_engine, update
from sqlalchemy.dialects.postgresql import JSONB, UUID
from sqlalchemy.orm import Session, declarative_base

Base = declarative_base()


class Account(Base):
    __tablename__ = "accounts"
    organization_id = Column(Text, primary_key=True)
    balance = Column(BigInteger, nullable=False)


class Payment(Base):
    __tablename__ = "payments"
    id = Column(BigInteger, primary_key=True)
    organization_id = Column(Text, nullable=False)
    amount = Column(BigInteger, nullable=False)


class WebhookEvent(Base):
    """Only what an application writes. The database fills in the rest, the id too."""

    __tablename__ = "webhook_outbox"
    id = Column(UUID, primary_key=True, server_default="")  # any default says that the database has one
    organization_id = Column(Text, nullable=False)
    event_type = Column(Text, nullable=False)
    payload = Column(JSONB, nullable=False)


def pay(session, organization, amount):
    with session.begin():  # an exception rolls back: the event goes with the payment
        payment = Payment(organization_id=organization, amount=amount)
        session.add(payment)
        session.flush()  # INSERT now: the event needs the id
        session.add(
            WebhookEvent(
                organization_id=organization,
                event_type="payment.succeeded",
                payload={"paymentId": payment.id, "amount": amount, "currency": "EUR"},
            )
        )
        taken = session.execute(
            update(Account)
            .where(Account.organization_id == organization, Account.balance >= amount)
            .values(balance=Account.balance - amount)
            .execution_options(synchronize_session=False)
        )
        if taken.rowcount == 0:
            raise ValueError("the account has not enough")


if __name__ == "__main__":
    with Session(create_engine("postgresql+psycopg2://", future=True), future=True) as s:
        pay(s, sys.argv[1], int(sys.argv[2]))
