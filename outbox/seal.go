package outbox

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
)

// sealedPrefix marks a secret that is sealed at rest. What follows is the base64
// of a 12-byte nonce and the AES-256-GCM ciphertext. The endpoint's id is
// authenticated with it, so that a sealed secret is worth nothing in the row of
// another endpoint.
const sealedPrefix = "sealed:v1:"

// A Sealer seals signing secrets with WALHOOK_SECRET_KEY.
type Sealer struct{ aead cipher.AEAD }

// NewSealer returns a Sealer for a key of 32 bytes.
func NewSealer(key []byte) (*Sealer, error) {
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
	return &Sealer{aead: aead}, nil
}

func (s *Sealer) seal(endpoint uuid.UUID, text string) string {
	nonce := make([]byte, s.aead.NonceSize())
	_, _ = rand.Read(nonce) // never fails
	return sealedPrefix + base64.StdEncoding.EncodeToString(s.aead.Seal(nonce, nonce, []byte(text), endpoint[:]))
}

// open returns the text of a secret as it is stored. A secret that is not sealed
// is its own text: it was inserted a moment ago, or there is no key.
func (s *Sealer) open(endpoint uuid.UUID, stored string) (Secret, error) {
	encoded, sealed := strings.CutPrefix(stored, sealedPrefix)
	if !sealed {
		return Secret(stored), nil
	}
	if s == nil {
		return "", errors.New("the endpoint's secret is sealed, and WALHOOK_SECRET_KEY is not set")
	}
	box, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil || len(box) < s.aead.NonceSize() {
		return "", errors.New("the endpoint's sealed secret is damaged; call webhook_rotate_secret")
	}
	text, err := s.aead.Open(nil, box[:s.aead.NonceSize()], box[s.aead.NonceSize():], endpoint[:])
	if err != nil {
		return "", errors.New("the endpoint's secret was sealed with another WALHOOK_SECRET_KEY; set that, or call webhook_rotate_secret")
	}
	return Secret(text), nil
}

// sealChunk bounds one transaction that seals.
const sealChunk = 100

const selectUnsealed = `
SELECT id, endpoint_id, secret FROM webhook_secrets WHERE NOT starts_with(secret, 'sealed:') ORDER BY id LIMIT @limit`

const updateSealed = `UPDATE webhook_secrets SET secret = @sealed WHERE id = @id AND secret = @plain`

// SealSecrets seals what is not sealed yet, and returns how many it did; fewer
// than a chunk means that all are. Without a Sealer it does nothing.
func (s *Store) SealSecrets(ctx context.Context) (sealed int, err error) {
	if s.sealer == nil {
		return 0, nil
	}
	type plain struct {
		ID       int64
		Endpoint uuid.UUID
		Text     string
	}
	var found []plain
	err = s.read(ctx, selectUnsealed, pgx.NamedArgs{"limit": sealChunk}, func(rows pgx.Rows) error {
		found, err = pgx.CollectRows(rows, pgx.RowToStructByPos[plain])
		return err
	})
	if err == nil && len(found) > 0 {
		var b pgx.Batch
		b.Queue(prepareWrite)
		for _, p := range found {
			b.Queue(updateSealed, pgx.NamedArgs{"id": p.ID, "plain": p.Text, "sealed": s.sealer.seal(p.Endpoint, p.Text)})
		}
		err = s.send(ctx, &b)
	}
	if err != nil {
		return 0, fmt.Errorf("seal signing secrets: %w", err)
	}
	return len(found), nil
}
