-- Where the route app/api/webhooks keeps what arrives. The role of the application owns it. Keep what is done for 30 days: so
-- long walhook can send it again.
CREATE TABLE received_webhooks (
    delivery_id uuid PRIMARY KEY,
    body jsonb NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now(),
    work_at timestamptz DEFAULT now() -- when to work on it; null: done
);
CREATE INDEX ON received_webhooks (work_at);
