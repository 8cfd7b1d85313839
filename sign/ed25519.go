package sign

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// The prefixes of an Ed25519 key pair, as Standard Webhooks writes it. Whoever has the public
// key can verify, and cannot sign.
const (
	secretKeyPrefix = "whsk_"
	publicKeyPrefix = "whpk_"
)

// versionEd25519 begins a Standard Webhooks signature by Ed25519 (RFC 8032).
const versionEd25519 = "v1a,"

// ErrKey means that a text begins as an Ed25519 key, and is none.
var ErrKey = errors.New("not an Ed25519 key")

// PublicKey returns the public key, whpk_ and base64, of a secret key. That is whsk_ and the
// base64 of 32 bytes (RFC 8032 calls them the private key), or of these and the public key.
// Its errors wrap ErrKey.
func PublicKey(secret string) (string, error) {
	key, err := secretKey(secret)
	if err != nil {
		return "", err
	}
	return publicKeyPrefix + base64.StdEncoding.EncodeToString(key[ed25519.SeedSize:]), nil
}

func isSecretKey(secret string) bool { return strings.HasPrefix(secret, secretKeyPrefix) }

func isPublicKey(secret string) bool { return strings.HasPrefix(secret, publicKeyPrefix) }

func secretKey(secret string) (ed25519Key, error) {
	text, ok := strings.CutPrefix(secret, secretKeyPrefix)
	raw, err := base64.StdEncoding.DecodeString(text)
	if !ok || err != nil || len(raw) != ed25519.SeedSize && len(raw) != ed25519.PrivateKeySize {
		return nil, fmt.Errorf("%w: want %s and the base64 of 32 or 64 bytes", ErrKey, secretKeyPrefix)
	}
	key := ed25519.NewKeyFromSeed(raw[:ed25519.SeedSize])
	if len(raw) == ed25519.PrivateKeySize && !key.Equal(ed25519.PrivateKey(raw)) {
		return nil, fmt.Errorf("%w: the second half is not the public key of the first", ErrKey)
	}
	return ed25519Key(key), nil
}

func publicKey(public string) (ed25519.PublicKey, error) {
	raw, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(public, publicKeyPrefix))
	if err != nil || len(raw) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("%w: want %s and the base64 of 32 bytes", ErrKey, publicKeyPrefix)
	}
	return raw, nil
}

// An ed25519Key makes v1a signatures.
type ed25519Key ed25519.PrivateKey

func (k ed25519Key) standard(dst []byte, id string, unix int64, body []byte) []byte {
	signature := ed25519.Sign(ed25519.PrivateKey(k), append(signedPrefix(nil, id, unix), body...))
	return base64.StdEncoding.AppendEncode(append(dst, versionEd25519...), signature)
}

// signedPrefix appends what Standard Webhooks signs before the body.
func signedPrefix(b []byte, id string, unix int64) []byte {
	b = append(append(b, id...), '.')
	return append(strconv.AppendInt(b, unix, 10), '.')
}

// matchesEd25519 reports whether any of the lists has a v1a signature of a key.
func matchesEd25519(key ed25519.PublicKey, lists []string, id string, unix int64, body []byte) (matched bool) {
	message := append(signedPrefix(nil, id, unix), body...)
	for _, list := range lists {
		for got := range strings.FieldsSeq(list) {
			encoded, ok := strings.CutPrefix(got, versionEd25519)
			if signature, err := base64.StdEncoding.DecodeString(encoded); ok && err == nil {
				matched = ed25519.Verify(key, message, signature) || matched
			}
		}
	}
	return matched
}
