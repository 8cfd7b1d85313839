-- Sends by psql. PGHOST, PGUSER and the like say where to:
--
--   psql -X -v organization=org_1 -v amount=4200 -f sender.sql
\set ON_ERROR_STOP on
BEGIN;

INSERT INTO payments (organization_id, amount) VALUES (:'organization', :'amount') RETURNING id AS payment \gset

INSERT INTO webhook_outbox (organization_id, event_type, payload)
VALUES (:'organization', 'payment.succeeded',
        jsonb_build_object('paymentId', :payment, 'amount', :'amount'::bigint, 'currency', 'EUR'));

-- \gset wants exactly one row. If there is none, psql ends here, and PostgreSQL rolls back: the event goes with the payment.
UPDATE accounts SET balance = balance - :'amount'::bigint
WHERE organization_id = :'organization' AND balance >= :'amount'::bigint RETURNING balance \gset

COMMIT;
