package store

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/walhook/walhook/internal/webhook"
)

// sealedPrefix marks a sealed secret. It is followed by the base64 of a 12-byte nonce and the
// AES-256-GCM ciphertext. The endpoint's id is authenticated with it, so a sealed secret
// cannot be opened in the row of another endpoint.
const sealedPrefix = "sealed:v1:"

// A Sealer seals signing secrets with WALHOOK_SECRET_KEY, and opens those sealed with that key
// or with WALHOOK_SECRET_KEY_OLD.
type Sealer struct{ keys []cipher.AEAD }

// NewSealer returns a Sealer for a key of 32 bytes, and a former key, which may be empty.
func NewSealer(key, old []byte) (*Sealer, error) {
	s := &Sealer{}
	for i, key := range [][]byte{key, old} {
		if i > 0 && len(key) == 0 {
			break
		}
		if len(key) != 32 {
			return nil, fmt.Errorf("the secret key has %d bytes, not 32", len(key))
		}
		block, err := aes.NewCipher(key)
		if err != nil {
			return nil, err
		}
		aead, err := cipher.NewGCM(block)
		if err != nil {
			return nil, err
		}
		s.keys = append(s.keys, aead)
	}
	return s, nil
}

func (s *Sealer) seal(endpoint uuid.UUID, text string) string {
	aead := s.keys[0]
	nonce := make([]byte, aead.NonceSize())
	_, _ = rand.Read(nonce) // never fails
	return sealedPrefix + base64.StdEncoding.EncodeToString(aead.Seal(nonce, nonce, []byte(text), endpoint[:]))
}

// open returns the text of a stored secret, and whether it was sealed with the former key. A
// secret that is not sealed is its own text: it was just inserted, or there is no key.
func (s *Sealer) open(endpoint uuid.UUID, stored string) (text webhook.Secret, former bool, err error) {
	encoded, sealed := strings.CutPrefix(stored, sealedPrefix)
	if !sealed {
		return webhook.Secret(stored), false, nil
	}
	rotate := fmt.Sprintf("SELECT webhook_rotate_secret('%s', '0')", endpoint)
	if s == nil {
		return "", false, errors.New("its secret is sealed, and WALHOOK_SECRET_KEY is not set; set it to the key that sealed the secrets, or make a new secret: " + rotate)
	}
	box, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return "", false, errors.New("its sealed secret is damaged; make a new one: " + rotate)
	}
	for i, aead := range s.keys {
		if len(box) < aead.NonceSize() {
			break
		}
		if text, err := aead.Open(nil, box[:aead.NonceSize()], box[aead.NonceSize():], endpoint[:]); err == nil {
			return webhook.Secret(text), i > 0, nil
		}
	}
	return "", false, errors.New("its secret was sealed with another key than WALHOOK_SECRET_KEY, or is damaged; set WALHOOK_SECRET_KEY_OLD to that key, or make a new secret: " + rotate)
}

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
	err := s.read(ctx, selectSealed, pgx.NamedArgs{"limit": checkedSecrets}, func(rows pgx.Rows) error {
		var endpoint uuid.UUID
		var stored string
		_, err := pgx.ForEachRow(rows, []any{&endpoint, &stored}, func() error {
			tried++
			if _, _, err := s.sealer.open(endpoint, stored); err == nil {
				opened++
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
	case s.sealer == nil:
		return fmt.Errorf("%w: WALHOOK_SECRET_KEY is not set; %s", ErrSecretKey, fixKey)
	default:
		return fmt.Errorf("%w: WALHOOK_SECRET_KEY is another key; %s", ErrSecretKey, fixKey)
	}
}

const fixKey = "set it to the key that sealed them, or set WALHOOK_SECRET_KEY_OLD to that key and WALHOOK_SECRET_KEY to a new one; " +
	"if the key is lost, make new secrets: SELECT id, webhook_rotate_secret(id, '0') FROM webhook_endpoints"

// sealChunk bounds one transaction that seals.
const sealChunk = 100

const selectUnsealed = `
SELECT id, endpoint_id, secret, xmin::text FROM webhook_secrets WHERE NOT starts_with(secret, 'sealed:') ORDER BY id LIMIT @limit`

const selectSecrets = `
SELECT id, endpoint_id, secret, xmin::text FROM webhook_secrets WHERE id > @after::bigint ORDER BY id LIMIT @limit`

// xmin identifies the row's version. Comparing the text would make the secret a parameter,
// which PostgreSQL may log.
const updateSealed = `UPDATE webhook_secrets SET secret = @sealed WHERE id = @id::bigint AND xmin = @version::text::xid`

// A storedSecret is a row of webhook_secrets.
type storedSecret struct {
	ID       int64
	Endpoint uuid.UUID
	Text     string
	Version  string
}

// SealSecrets seals a chunk of the secrets that are not sealed, and returns how many. Fewer
// than sealChunk means that all are sealed. Without a Sealer it does nothing.
func (s *Store) SealSecrets(ctx context.Context) (sealed int, err error) {
	if s.sealer == nil {
		return 0, nil
	}
	found, err := s.secrets(ctx, selectUnsealed, 0)
	if err == nil {
		err = s.sealAll(ctx, found)
	}
	if err != nil {
		return 0, fmt.Errorf("seal signing secrets: %w", err)
	}
	return len(found), nil
}

// A Resealing is a pass over all secrets, which reseals those sealed with
// WALHOOK_SECRET_KEY_OLD.
type Resealing struct {
	Resealed int  // so far
	Unopened int  // neither key opens them
	Done     bool // all secrets were seen
	after    int64
}

// Reseal continues a pass by one chunk. Without a former key there is nothing to do.
func (s *Store) Reseal(ctx context.Context, walk *Resealing) error {
	if s.sealer == nil || len(s.sealer.keys) < 2 {
		walk.Done = true
		return nil
	}
	found, err := s.secrets(ctx, selectSecrets, walk.after)
	var former []storedSecret
	unopened := 0
	for _, f := range found {
		text, old, err := s.sealer.open(f.Endpoint, f.Text)
		if f.Text = string(text); old {
			former = append(former, f)
		}
		if err != nil {
			unopened++
		}
	}
	if err == nil {
		err = s.sealAll(ctx, former)
	}
	if err != nil {
		return fmt.Errorf("reseal signing secrets: %w", err)
	}
	walk.Resealed += len(former)
	walk.Unopened += unopened
	if walk.Done = len(found) < sealChunk; !walk.Done {
		walk.after = found[len(found)-1].ID
	}
	return nil
}

func (s *Store) secrets(ctx context.Context, sql string, after int64) (found []storedSecret, err error) {
	err = s.read(ctx, sql, pgx.NamedArgs{"limit": sealChunk, "after": after}, func(rows pgx.Rows) error {
		found, err = pgx.CollectRows(rows, pgx.RowToStructByPos[storedSecret])
		return err
	})
	return found, err
}

// sealAll seals what has not changed since it was read.
func (s *Store) sealAll(ctx context.Context, plain []storedSecret) error {
	if len(plain) == 0 {
		return nil
	}
	var b pgx.Batch
	b.Queue(prepareWrite)
	for _, p := range plain {
		b.Queue(updateSealed, pgx.NamedArgs{"id": p.ID, "version": p.Version, "sealed": s.sealer.seal(p.Endpoint, p.Text)})
	}
	return s.send(ctx, &b)
}
