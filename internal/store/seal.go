package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/walhook/walhook/internal/webhook"
)

// ErrSecretKey means that the keys open none of the sealed secrets that were tried.
var ErrSecretKey = errors.New("the signing secrets in webhook_secrets are sealed, and none of those tried can be opened")

// checkedSecrets bounds how many secrets a start tries from either end. That is enough to tell
// a wrong key from damaged rows, and takes a few milliseconds.
const checkedSecrets = 1000

const selectSealed = `
SELECT endpoint_id, secret FROM (
    (SELECT * FROM webhook_secrets ORDER BY id LIMIT @limit) UNION ALL (SELECT * FROM webhook_secrets ORDER BY id DESC LIMIT @limit)) s
WHERE starts_with(secret, 'sealed:') AND (expires_at IS NULL OR expires_at > now())`

// CheckSecrets returns ErrSecretKey if nothing could be sent with the configured keys. A single
// damaged secret concerns its endpoint only.
func (s *Store) CheckSecrets(ctx context.Context) error {
	tried, opened := 0, 0
	var failed error
	err := s.read(ctx, selectSealed, pgx.NamedArgs{"limit": checkedSecrets}, func(rows pgx.Rows) error {
		var endpoint uuid.UUID
		var stored string
		_, err := pgx.ForEachRow(rows, []any{&endpoint, &stored}, func() error {
			tried++
			_, _, err := s.sealer.open(place{endpoint: endpoint}, stored)
			if err == nil {
				opened++
			} else {
				failed = err
			}
			return nil
		})
		return err
	})
	switch {
	case err != nil:
		return fmt.Errorf("check whether signing secrets can be opened: %w", err)
	case tried == 0 || opened > 0:
		return nil
	default:
		return fmt.Errorf("%w: for example, %w; %s", ErrSecretKey, failed, fixKey)
	}
}

const fixKey = "set it to the key that sealed them, or set WALHOOK_SECRET_KEY_OLD to that key and WALHOOK_SECRET_KEY to a new one; " +
	"if the key is lost, make new secrets: SELECT id, webhook_rotate_secret(id, '0') FROM webhook_endpoints"

// sealLimit bounds one transaction that seals.
const sealLimit = 100

// A sealedTable is a table with texts that are sealed at rest. all reads a chunk of it,
// unsealed what an index knows to be text. xmin identifies a row's version: comparing the text
// would make the text a parameter, which PostgreSQL may log.
type sealedTable struct{ all, unsealed, update, first string }

// Of an endpoint, texts has its headers; of a secret, itself under "".
var sealedTables = []sealedTable{{
	all: `
SELECT id::text AS key, endpoint_id, pg_catalog.jsonb_build_object('', secret), xmin::text FROM webhook_secrets WHERE id > @after::text::bigint ORDER BY id LIMIT @limit`,
	unsealed: `
SELECT id::text AS key, endpoint_id, pg_catalog.jsonb_build_object('', secret), xmin::text FROM webhook_secrets WHERE NOT starts_with(secret, 'sealed:') ORDER BY id LIMIT @limit`,
	update: `UPDATE webhook_secrets SET secret = @sealed::jsonb ->> ''::text WHERE id = @id::text::bigint AND xmin = @version::text::xid`,
	first:  strconv.Itoa(math.MinInt64),
}, {
	all: `
SELECT id::text AS key, id, headers, xmin::text FROM webhook_endpoints WHERE id > @after::text::uuid AND headers <> '{}'::jsonb AND ` + textHeaders + ` ORDER BY id LIMIT @limit`,
	unsealed: `
SELECT id::text AS key, id, headers, xmin::text FROM webhook_endpoints WHERE ` + unsealedHeaders + ` AND ` + textHeaders + ` ORDER BY id LIMIT @limit`,
	update: `UPDATE webhook_endpoints SET headers = @sealed::jsonb WHERE id = @id::text::uuid AND xmin = @version::text::xid`,
	first:  uuid.Nil.String(),
}}

// unsealedHeaders is the predicate of webhook_endpoints_unsealed_idx.
const unsealedHeaders = `pg_catalog.jsonb_path_exists(headers, '$.* ? (!(@ starts with "sealed:"))'::jsonpath)`

// textHeaders is false for headers that are no object of name to text, as a row of before may
// have: nothing is sent with them.
const textHeaders = `jsonb_typeof(headers) = 'object' AND NOT pg_catalog.jsonb_path_exists(headers, '$.* ? (@.type() != "string")'::jsonpath)`

// A sealedRow is a row of a sealedTable.
type sealedRow struct {
	ID       string
	Endpoint uuid.UUID
	Texts    map[string]string // by the header's name; "": the signing secret
	Version  string
}

// SealAll seals a chunk of the signing secrets, and one of the headers, that are not sealed,
// and returns how many it has sealed: 0 means that all are. Without a Sealer it does nothing.
func (s *Store) SealAll(ctx context.Context) (sealed int, err error) {
	if s.sealer == nil {
		return 0, nil
	}
	for i := range sealedTables {
		t := &sealedTables[i]
		var walk Resealing
		if _, err := s.sealChunk(ctx, t, t.unsealed, "", &walk); err != nil {
			return sealed, fmt.Errorf("seal signing secrets and headers: %w", err)
		}
		sealed += walk.Stale
	}
	return sealed, nil
}

// A Resealing is a pass over all signing secrets and headers. What is not sealed with
// WALHOOK_SECRET_KEY in the present form is sealed anew.
type Resealing struct {
	Look     bool // only count
	Rows     int  // rows so far
	Seen     int  // texts in them
	Stale    int  // of them, that were sealed anew, or would be
	Unopened int  // that no key opens
	Done     bool
	table    int
	after    string
}

// Reseal continues a pass by one chunk. Without a Sealer it only counts.
func (s *Store) Reseal(ctx context.Context, walk *Resealing) error {
	t := &sealedTables[walk.table]
	found, err := s.sealChunk(ctx, t, t.all, cmp.Or(walk.after, t.first), walk)
	if err != nil {
		return fmt.Errorf("reseal signing secrets and headers: %w", err)
	}
	if len(found) == sealLimit {
		walk.after = found[len(found)-1].ID
		return nil
	}
	walk.table, walk.after = walk.table+1, ""
	walk.Done = walk.table == len(sealedTables)
	return nil
}

// sealChunk seals the rows that a statement finds as they should be sealed, and counts them.
// What has changed since it was read stays as it is.
func (s *Store) sealChunk(ctx context.Context, t *sealedTable, sql, after string, walk *Resealing) (found []sealedRow, err error) {
	args := pgx.NamedArgs{"limit": sealLimit}
	if after != "" {
		args["after"] = after
	}
	err = s.read(ctx, sql, args, func(rows pgx.Rows) error {
		found, err = pgx.CollectRows(rows, pgx.RowToStructByPos[sealedRow])
		return err
	})
	if err != nil {
		return nil, err
	}
	var b pgx.Batch
	b.Queue(prepareWrite)
	seen, stale, unopened := 0, 0, 0
	for i := range found {
		row := &found[i]
		n, bad := s.sealer.sealRow(row)
		seen, stale, unopened = seen+len(row.Texts), stale+n, unopened+bad
		if n > 0 {
			b.Queue(t.update, pgx.NamedArgs{"id": row.ID, "version": row.Version, "sealed": row.Texts})
		}
	}
	if stale > 0 && !walk.Look && s.sealer != nil {
		if err := s.send(ctx, &b); err != nil {
			return nil, err
		}
	}
	walk.Rows += len(found)
	walk.Seen, walk.Stale, walk.Unopened = walk.Seen+seen, walk.Stale+stale, walk.Unopened+unopened
	return found, nil
}

// sealRow seals the texts of a row that are not sealed as they should be, and counts them and
// those that no key opens.
func (s *Sealer) sealRow(row *sealedRow) (stale, unopened int) {
	for name, stored := range row.Texts {
		at := place{row.Endpoint, name}
		text, current, err := s.open(at, stored)
		switch {
		case err != nil:
			unopened++
		case !current:
			stale++
			if s != nil {
				row.Texts[name] = s.seal(at, text)
			}
		}
	}
	return stale, unopened
}

const selectLive = `
SELECT secret, created_at, expires_at FROM webhook_secrets
WHERE endpoint_id = @endpoint::uuid AND (expires_at IS NULL OR expires_at > now()) ORDER BY created_at, id`

// A LiveSecret is a signing secret of an endpoint. Of two, the first makes
// X-Webhook-Signature.
type LiveSecret struct {
	Text      webhook.Secret
	CreatedAt time.Time
	ExpiresAt *time.Time // nil: never
	Err       error      // why it cannot be opened
}

// LiveSecrets returns an endpoint's live signing secrets.
func (s *Store) LiveSecrets(ctx context.Context, endpoint uuid.UUID) (live []LiveSecret, err error) {
	err = s.read(ctx, selectLive, pgx.NamedArgs{"endpoint": pgtype.UUID{Bytes: endpoint, Valid: true}}, func(rows pgx.Rows) error {
		live, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (l LiveSecret, err error) {
			var stored string
			err = row.Scan(&stored, &l.CreatedAt, &l.ExpiresAt)
			if err == nil {
				stored, _, l.Err = s.sealer.open(place{endpoint: endpoint}, stored)
				l.Text = webhook.Secret(stored)
			}
			return l, err
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read signing secrets: %w", err)
	}
	return live, nil
}

// Keys says which keys are at hand, by their ids.
func (s *Store) Keys() string { return s.sealer.have() }
