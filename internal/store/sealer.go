package store

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/webhook"
)

// What is sealed begins with sealedPrefix. The id of the key follows, a colon, and the base64
// of what AES-256-GCM made of the text, a random nonce of 12 bytes first. What it is for is
// authenticated with it, so that it cannot be opened in another place.
const sealedPrefix = "sealed:v2:"

// sealedV1 marks secrets that earlier versions have sealed: without the id of the key, and for
// their endpoint alone.
const sealedV1 = "sealed:v1:"

// A Sealer seals signing secrets and header values with WALHOOK_SECRET_KEY, and opens those
// sealed with that key or with WALHOOK_SECRET_KEY_OLD.
type Sealer struct{ keys []sealingKey }

type sealingKey struct {
	id   string
	aead cipher.AEAD // makes its own nonces, as FIPS 140-3 wants it
}

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
		aead, err := cipher.NewGCMWithRandomNonce(block)
		if err != nil {
			return nil, err
		}
		s.keys = append(s.keys, sealingKey{keyID(key), aead})
	}
	return s, nil
}

// keyID returns the first 8 hex digits of a key's SHA-256.
func keyID(key []byte) string {
	sum := sha256.Sum256(key)
	return hex.EncodeToString(sum[:4])
}

// A place is where a sealed text may be opened: an endpoint's secret, or one of its headers.
type place struct {
	endpoint uuid.UUID
	header   string // "": the signing secret
}

func (p place) bytes() []byte {
	if p.header == "" {
		return append(p.endpoint[:], "secret"...)
	}
	return append(append(p.endpoint[:], "header:"...), p.header...)
}

func (s *Sealer) seal(at place, text string) string {
	key := s.keys[0]
	return sealedPrefix + key.id + ":" + base64.StdEncoding.EncodeToString(key.aead.Seal(nil, nil, []byte(text), at.bytes()))
}

var (
	errDamaged     = errors.New("it is damaged")
	errUnknownSeal = errors.New("it is damaged, or a newer walhook has sealed it")
)

// A wrongKeyError means that none of the keys at hand has sealed a text.
type wrongKeyError struct {
	id   string // of the key that has; "": unknown
	have string
}

func (e wrongKeyError) Error() string {
	if e.id == "" {
		return "another key has sealed it, or it is damaged, and " + e.have
	}
	return "the key " + e.id + " has sealed it, and " + e.have
}

// open returns a stored text, and whether it is sealed as it should be: in the present form
// and with the first key. A text that is not sealed is its own: it was just inserted, or there
// is no key.
func (s *Sealer) open(at place, stored string) (text string, current bool, err error) {
	id, encoded, sealed := cutSealed(stored)
	switch {
	case !sealed:
		return stored, false, nil
	case encoded == "":
		return "", false, errUnknownSeal
	}
	box, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return "", false, errDamaged
	}
	with := at.bytes()
	if id == "" {
		with = at.endpoint[:]
	}
	for i, key := range s.all() {
		if id != "" && id != key.id {
			continue
		}
		plain, err := key.aead.Open(nil, nil, box, with)
		switch {
		case err == nil:
			return string(plain), i == 0 && id != "", nil
		case id != "":
			return "", false, errDamaged
		}
	}
	return "", false, wrongKeyError{id, s.have()}
}

// cutSealed takes a sealed text apart. Those of version 1 have no id; of those of versions to
// come nothing is known.
func cutSealed(stored string) (id, encoded string, sealed bool) {
	if encoded, sealed = strings.CutPrefix(stored, sealedV1); sealed {
		return "", encoded, true
	}
	if encoded, sealed = strings.CutPrefix(stored, sealedPrefix); sealed {
		id, encoded, _ = strings.Cut(encoded, ":")
		return id, encoded, true
	}
	return "", "", strings.HasPrefix(stored, "sealed:")
}

func (s *Sealer) all() []sealingKey {
	if s == nil {
		return nil
	}
	return s.keys
}

// have says which keys are at hand.
func (s *Sealer) have() string {
	switch keys := s.all(); len(keys) {
	case 0:
		return "WALHOOK_SECRET_KEY is not set"
	case 1:
		return "WALHOOK_SECRET_KEY is the key " + keys[0].id
	default:
		return "WALHOOK_SECRET_KEY is the key " + keys[0].id + ", WALHOOK_SECRET_KEY_OLD the key " + keys[1].id
	}
}

// openEndpoint opens an endpoint's headers and signing secrets. Where one cannot be opened the
// endpoint waits: its receiver may need just that one.
func (s *Sealer) openEndpoint(e *webhook.Endpoint, secrets []string) {
	for name, stored := range e.Headers {
		text, _, err := s.open(place{e.ID, name}, stored)
		if err != nil {
			e.Sealed = fmt.Sprintf("its header %s cannot be opened: %s; %s, or write the header anew into webhook_endpoints.headers", name, err, fixOldKey)
		}
		e.Headers[name] = text
	}
	for _, stored := range secrets {
		text, _, err := s.open(place{endpoint: e.ID}, stored)
		if err != nil {
			e.Sealed = fmt.Sprintf("its secret cannot be opened: %s; %s, or make a new secret: SELECT webhook_rotate_secret('%s', '0')", err, fixOldKey, e.ID)
			continue
		}
		if secret := webhook.Secret(text); !slices.Contains(e.Secrets, secret) { // SQL cannot tell that two sealed ones are equal
			e.Secrets = append(e.Secrets, secret)
		}
	}
}

const fixOldKey = "set WALHOOK_SECRET_KEY_OLD to the key that has sealed it"
