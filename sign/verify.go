package sign

import (
	"cmp"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// The reasons to refuse a request. Answer it with a 4xx.
var (
	ErrNoSignature = errors.New("request is not signed")
	ErrMalformed   = errors.New("signature headers are malformed")
	ErrMismatch    = errors.New("no signature matches")
	ErrStale       = errors.New("webhook-timestamp is outside the tolerance")
)

// DefaultTolerance is how far webhook-timestamp may be from the receiver's clock. It
// bounds how long a captured request can be replayed. The Standard Webhooks libraries use
// the same value.
const DefaultTolerance = 5 * time.Minute

// A Verifier checks that requests were signed with one of a receiver's secrets. It is
// safe for concurrent use.
type Verifier struct {
	Secrets   []string      // or public keys (whpk_...); one match is enough; during a rotation, give the old and the new one
	Tolerance time.Duration // 0: DefaultTolerance; negative: the timestamp is not checked
}

// Verify checks a request's headers and raw body with the default tolerance.
// See Verifier.Verify.
func Verify(h http.Header, body []byte, secrets ...string) error {
	return Verifier{Secrets: secrets}.Verify(h, body)
}

// Verify checks a request's headers and its raw body: the bytes as received, before any
// parsing. One of the signatures in webhook-signature must verify, and the timestamp must
// be within the tolerance. X-Webhook-Signature is not looked at.
//
// The error is nil, ErrNoSecret, ErrKey, ErrNoSignature, ErrMalformed, ErrMismatch or
// ErrStale, possibly wrapped. A request that is stale is authentic: the
// signature is checked first.
func (v Verifier) Verify(h http.Header, body []byte) error {
	secrets, err := v.usable()
	if err != nil {
		return err
	}
	signatures := values(h, HeaderSignature)
	if len(signatures) == 0 {
		return ErrNoSignature
	}
	return v.verifyStandard(h, signatures, body, secrets)
}

// VerifyBody checks X-Webhook-Signature alone, for receivers that can do no more than an
// HMAC of the raw body. That scheme covers no time: whoever captured a request can send it
// again at any time, so drop deliveries whose id in the body you have seen. During a
// rotation it is made with the older secret. The errors are Verify's, without ErrStale.
func (v Verifier) VerifyBody(h http.Header, body []byte) error {
	secrets, err := v.usable()
	if err != nil {
		return err
	}
	signatures := values(h, HeaderBodySignature)
	if len(signatures) == 0 {
		return ErrNoSignature
	}
	return verifyBody(signatures, body, secrets)
}

// usable returns the secrets, if all of them can be used.
func (v Verifier) usable() ([]string, error) {
	secrets := nonEmpty(v.Secrets)
	if len(secrets) == 0 {
		return nil, ErrNoSecret
	}
	for _, secret := range secrets {
		if _, _, err := verifyingKey(secret); err != nil {
			return nil, err
		}
	}
	return secrets, nil
}

// values is Header.Values, but also finds the spelling that walhook sends, for
// headers that did not come through net/http.
func values(h http.Header, name string) []string {
	if vs := h.Values(name); len(vs) > 0 {
		return vs
	}
	return h[name]
}

func (v Verifier) verifyStandard(h http.Header, signatures []string, body []byte, secrets []string) error {
	ids, times := values(h, HeaderID), values(h, HeaderTimestamp)
	if len(ids) != 1 || len(times) != 1 || ids[0] == "" {
		return fmt.Errorf("%w: want one %s and one %s", ErrMalformed, HeaderID, HeaderTimestamp)
	}
	unix, err := strconv.ParseInt(times[0], 10, 64)
	if err != nil || times[0] != strconv.FormatInt(unix, 10) {
		return fmt.Errorf("%w: %s is not a number of seconds", ErrMalformed, HeaderTimestamp)
	}
	if !matchStandard(signatures, ids[0], unix, body, secrets) {
		return ErrMismatch
	}
	tolerance := cmp.Or(v.Tolerance, DefaultTolerance)
	if age := time.Since(time.Unix(unix, 0)); tolerance > 0 && (age > tolerance || age < -tolerance) {
		return ErrStale
	}
	return nil
}

// verifyingKey returns the public key of an Ed25519 pair, given either of the two, and whether
// it is one. Its text must never be the key of an HMAC: everybody may have it.
func verifyingKey(secret string) (key ed25519.PublicKey, is bool, err error) {
	switch {
	case isPublicKey(secret):
		key, err = publicKey(secret)
		return key, true, err
	case isSecretKey(secret):
		pair, err := secretKey(secret)
		if err != nil {
			return nil, true, err
		}
		return ed25519.PublicKey(pair[ed25519.SeedSize:]), true, nil
	default:
		return nil, false, nil
	}
}

// matchStandard reports whether any signature was made with any secret. How long it
// takes depends on the request and the number of secrets, not on which of them match.
func matchStandard(signatures []string, id string, unix int64, body []byte, secrets []string) bool {
	matched := false
	for _, secret := range secrets {
		if key, is, _ := verifyingKey(secret); is { // Verify has seen the error
			matched = matchesEd25519(key, signatures, id, unix, body) || matched
			continue
		}
		want := newKey(standardKey(secret)).standard(nil, id, unix, body)
		for _, list := range signatures {
			for got := range strings.FieldsSeq(list) {
				matched = hmac.Equal([]byte(got), want) || matched
			}
		}
	}
	return matched
}

func verifyBody(signatures []string, body []byte, secrets []string) error {
	if len(signatures) != 1 {
		return fmt.Errorf("%w: want one %s", ErrMalformed, HeaderBodySignature)
	}
	var got [sha256.Size]byte
	if len(signatures[0]) != hex.EncodedLen(len(got)) {
		return fmt.Errorf("%w: %s is not 64 hex digits", ErrMalformed, HeaderBodySignature)
	}
	if _, err := hex.Decode(got[:], []byte(signatures[0])); err != nil {
		return fmt.Errorf("%w: %s is not 64 hex digits", ErrMalformed, HeaderBodySignature)
	}
	matched := false
	for _, secret := range secrets {
		if isPublicKey(secret) {
			continue
		}
		h := hmac.New(sha256.New, []byte(secret))
		h.Write(body)
		matched = hmac.Equal(got[:], h.Sum(nil)) || matched
	}
	if !matched {
		return ErrMismatch
	}
	return nil
}
