// Package sign makes and verifies the signatures of walhook's requests.
//
// Every request carries two schemes:
//
//   - X-Webhook-Signature: the lower-case hex HMAC-SHA256 of the raw body; the
//     key is the secret's own text.
//   - webhook-id, webhook-timestamp and webhook-signature: Standard Webhooks
//     (https://www.standardwebhooks.com), "v1," and the base64 HMAC-SHA256 of
//     "id.timestamp.body", one per live secret.
//
// A receiver written in Go can import this package and call Verify, or use any Standard
// Webhooks library. The package imports nothing else of walhook, and nothing outside the
// standard library.
package sign

import (
	"crypto/sha256"
	"encoding"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"strings"
	"sync"
)

// The headers that carry signatures, spelled as walhook sends them.
const (
	HeaderBodySignature = "X-Webhook-Signature"
	HeaderID            = "webhook-id"
	HeaderTimestamp     = "webhook-timestamp"
	HeaderSignature     = "webhook-signature"
)

// Fingerprint returns the first 8 hex digits of a secret's SHA-256. It tells secrets apart
// where they must not be shown.
func Fingerprint(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:4])
}

// ErrNoSecret means that there is no secret to sign or verify with. An empty secret does
// not count: anyone can compute its signature.
var ErrNoSecret = errors.New("no signing secret")

// A Signer signs with an endpoint's live secrets. Build it once for each version of the
// secrets: it computes the hash states of the keys in advance. It is safe for concurrent
// use.
type Signer struct {
	body     *key             // the oldest secret's text
	standard []standardSigner // all live secrets as Standard Webhooks reads them, oldest first
}

// A standardSigner appends a Standard Webhooks signature to dst.
type standardSigner interface {
	standard(dst []byte, id string, unix int64, body []byte) []byte
}

// New returns a Signer for the live secrets, oldest first. While two overlap in a
// rotation, X-Webhook-Signature is made with the older one, so that its single value
// still verifies at receivers that have not switched. webhook-signature carries one
// signature per secret. A secret that begins with whsk_ is an Ed25519 key (see PublicKey), and
// its signature there is v1a; the error wraps ErrKey if it is none.
func New(secrets ...string) (*Signer, error) {
	live := nonEmpty(secrets)
	if len(live) == 0 {
		return nil, ErrNoSecret
	}
	s := &Signer{body: newKey([]byte(live[0]))}
	for _, secret := range live {
		if isPublicKey(secret) {
			return nil, fmt.Errorf("%w: a public key cannot sign", ErrKey)
		}
		if !isSecretKey(secret) {
			s.standard = append(s.standard, newKey(standardKey(secret)))
			continue
		}
		key, err := secretKey(secret)
		if err != nil {
			return nil, err
		}
		s.standard = append(s.standard, key)
	}
	return s, nil
}

// Body returns the value of X-Webhook-Signature for a raw body.
func (s *Signer) Body(body []byte) string {
	m := macs.Get().(*mac)
	defer macs.Put(m)
	s.body.begin(m)
	m.hash.Write(body)
	s.body.end(m)
	m.text = hex.AppendEncode(m.text[:0], m.sum)
	return string(m.text)
}

// Standard returns the value of webhook-signature for a message id, the
// attempt's time in Unix seconds and a raw body.
func (s *Signer) Standard(id string, unix int64, body []byte) string {
	var room [2 * (standardLen + 1)]byte // for the two HMACs of a rotation; more is allocated
	all := room[:0]
	for i, k := range s.standard {
		if i > 0 {
			all = append(all, ' ')
		}
		all = k.standard(all, id, unix, body)
	}
	return string(all)
}

func nonEmpty(secrets []string) []string {
	var live []string
	for _, s := range secrets {
		if s != "" {
			live = append(live, s)
		}
	}
	return live
}

// standardKey returns the key that the Standard Webhooks libraries derive from a secret:
// they strip "whsec_" and base64-decode the rest. If that does not decode, they refuse
// the secret; the key is then its own bytes, as for their raw constructors.
func standardKey(secret string) []byte {
	k, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	if err != nil || len(k) == 0 {
		return []byte(secret)
	}
	return k
}

// A key is an HMAC's two hash states after the padded key (RFC 2104, section 4), because
// keying costs as much as hashing a small body. Of a state that has read one block only the
// chaining value differs, so even a hundred thousand signers need little memory.
type key struct{ inner, outer chaining }

type chaining [sha256.Size]byte

// chainingAt is where a marshalled state has its chaining value: behind the name of the
// algorithm. Package crypto/sha256 promises that it reads the states of former versions.
const chainingAt = 4

// A mac is the scratch space of one signature, which any key can use.
type mac struct {
	hash  sha256State
	state []byte // marshalled, after one block
	sum   []byte // the raw MAC
	text  []byte // what is signed before the body, then the encoded MAC
}

// A sha256State is a SHA-256 whose state can be read and set, which package crypto/sha256
// documents.
type sha256State interface {
	hash.Hash
	encoding.BinaryMarshaler
	encoding.BinaryUnmarshaler
}

var macs = sync.Pool{New: func() any {
	return &mac{hash: sha256.New().(sha256State), state: afterBlock([sha256.BlockSize]byte{})}
}}

// afterBlock returns the marshalled state of a hash that has read one block.
func afterBlock(block [sha256.BlockSize]byte) []byte {
	h := sha256.New().(sha256State)
	h.Write(block[:])
	return must(h.MarshalBinary())
}

// load sets a mac's hash to the state after one block.
func (m *mac) load(c *chaining) {
	copy(m.state[chainingAt:], c[:])
	must(0, m.hash.UnmarshalBinary(m.state))
}

func newKey(secret []byte) *key {
	if len(secret) > sha256.BlockSize {
		sum := sha256.Sum256(secret)
		secret = sum[:]
	}
	return &key{inner: padded(secret, 0x36), outer: padded(secret, 0x5c)}
}

// padded returns the chaining value after the padded key, XORed with a byte.
func padded(secret []byte, with byte) (c chaining) {
	var block [sha256.BlockSize]byte
	copy(block[:], secret)
	for i := range block {
		block[i] ^= with
	}
	copy(c[:], afterBlock(block)[chainingAt:])
	return c
}

// must panics on an error that only a state not written by sha256 can cause.
func must[T any](v T, err error) T {
	if err != nil {
		panic("sign: " + err.Error())
	}
	return v
}

// begin sets a mac to the state after the inner padded key.
func (k *key) begin(m *mac) { m.load(&k.inner) }

// end leaves the MAC of what was written to m.hash in m.sum.
func (k *key) end(m *mac) {
	m.sum = m.hash.Sum(m.sum[:0])
	m.load(&k.outer)
	m.hash.Write(m.sum)
	m.sum = m.hash.Sum(m.sum[:0])
}

// The version of a Standard Webhooks signature, and the length of a whole signature.
const (
	version     = "v1,"
	standardLen = len(version) + (sha256.Size+2)/3*4
)

// standard appends one Standard Webhooks signature to dst.
func (k *key) standard(dst []byte, id string, unix int64, body []byte) []byte {
	m := macs.Get().(*mac)
	defer macs.Put(m)
	m.text = signedPrefix(m.text[:0], id, unix)
	k.begin(m)
	m.hash.Write(m.text)
	m.hash.Write(body)
	k.end(m)
	return base64.StdEncoding.AppendEncode(append(dst, version...), m.sum)
}
