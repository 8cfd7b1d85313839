-- Where the route app/api/webhooks keeps what arrives. The role of the application owns it.
CREATE TABLE received_webhooks (
    delivery_id uuid PRIMARY KEY,
    body jsonb NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now(),
    done_at timestamptz
);
