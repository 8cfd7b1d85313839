-- The application's own tables, for all senders. The role that sends needs:
--
--   GRANT SELECT, INSERT ON payments TO app;
--   GRANT SELECT, UPDATE ON accounts TO app;
--   GRANT INSERT, SELECT (id) ON webhook_outbox TO app;
CREATE TABLE accounts (organization_id text PRIMARY KEY, balance bigint NOT NULL);
CREATE TABLE payments (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, organization_id text NOT NULL, amount bigint NOT NULL);
