package sign_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/walhook/walhook/sign"
)

// The key pair of RFC 8032, section 7.1, TEST 1.
const (
	rfcSecret = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"
	rfcPublic = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
)

func base64OfHex(t testing.TB, digits string) string {
	t.Helper()
	raw, err := hex.DecodeString(digits)
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(raw)
}

func TestPublicKey(t *testing.T) {
	t.Parallel()
	want := "whpk_" + base64OfHex(t, rfcPublic)
	for _, secret := range []string{"whsk_" + base64OfHex(t, rfcSecret), "whsk_" + base64OfHex(t, rfcSecret+rfcPublic)} {
		if got, err := sign.PublicKey(secret); err != nil || got != want {
			t.Errorf("PublicKey(%s) = %s, %v, want %s", secret, got, err, want)
		}
	}
	for _, bad := range []string{"", secret, want, "whsk_", "whsk_AAAA", "whsk_" + base64OfHex(t, rfcSecret) + "=", "whsk_" + base64OfHex(t, rfcSecret+rfcSecret)} {
		if got, err := sign.PublicKey(bad); !errors.Is(err, sign.ErrKey) {
			t.Errorf("PublicKey(%q) = %q, %v", bad, got, err)
		}
		if _, err := sign.New(bad); (strings.HasPrefix(bad, "whsk_") || strings.HasPrefix(bad, "whpk_")) && !errors.Is(err, sign.ErrKey) {
			t.Errorf("New(%q): %v", bad, err)
		}
	}
}

// The signature is of id.timestamp.body, by the key of the standard library.
func TestEd25519Signature(t *testing.T) {
	t.Parallel()
	raw, err := hex.DecodeString(rfcSecret)
	if err != nil {
		t.Fatal(err)
	}
	message := goldenID + "." + strconv.FormatInt(1700000000, 10) + "." + goldenBody
	want := "v1a," + base64.StdEncoding.EncodeToString(ed25519.Sign(ed25519.NewKeyFromSeed(raw), []byte(message)))
	key := "whsk_" + base64OfHex(t, rfcSecret)
	if got := newSigner(t, key).Standard(goldenID, 1700000000, []byte(goldenBody)); got != want {
		t.Errorf("Standard = %s, want %s", got, want)
	}
	hmac := newSigner(t, secret).Standard(goldenID, 1700000000, []byte(goldenBody))
	if got := newSigner(t, secret, key).Standard(goldenID, 1700000000, []byte(goldenBody)); got != hmac+" "+want {
		t.Errorf("in a change from one to the other: %s, want %s", got, hmac+" "+want)
	}
}

func TestVerifyEd25519(t *testing.T) {
	t.Parallel()
	key := "whsk_" + base64OfHex(t, rfcSecret)
	public, err := sign.PublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	other := "whpk_" + base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{1}, 32))
	now := time.Now()
	good, overlap := signed(t, now, goldenBody, key), signed(t, now, goldenBody, secret, key)
	forged := signed(t, now, goldenBody, "whsec_"+strings.TrimPrefix(public, "whpk_")) // the HMAC that the public key's bytes make
	byText := hmac.New(sha256.New, []byte(public))                                     // and its text
	byText.Write([]byte(goldenBody))
	forgedText := with(good, sign.HeaderBodySignature, hex.EncodeToString(byText.Sum(nil)))
	for _, tc := range []struct {
		name    string
		header  http.Header
		body    string
		secrets []string
		want    error
	}{
		{"by the public key", good, goldenBody, []string{public}, nil},
		{"by the secret key", good, goldenBody, []string{key}, nil},
		{"one of several", good, goldenBody, []string{secret, other, public}, nil},
		{"in an overlap, by either", overlap, goldenBody, []string{public}, nil},
		{"in an overlap, by either", overlap, goldenBody, []string{secret}, nil},
		{"another key", good, goldenBody, []string{other}, sign.ErrMismatch},
		{"another body", good, goldenBody + " ", []string{public}, sign.ErrMismatch},
		{"another id", with(good, sign.HeaderID, "x"), goldenBody, []string{public}, sign.ErrMismatch},
		{"stale", signed(t, now.Add(-time.Hour), goldenBody, key), goldenBody, []string{public}, sign.ErrStale},
		{"a v1 made of the public key", forged, goldenBody, []string{public}, sign.ErrMismatch},
		{"v1a, and nothing", with(good, sign.HeaderSignature, "v1a,"), goldenBody, []string{public}, sign.ErrMismatch},
		{"a malformed public key", good, goldenBody, []string{"whpk_AAAA"}, sign.ErrKey},
		{"a malformed secret key", good, goldenBody, []string{"whsk_AAAA"}, sign.ErrKey},
	} {
		if err := sign.Verify(tc.header, []byte(tc.body), tc.secrets...); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
		}
	}
	if err := (sign.Verifier{Secrets: []string{public}}).VerifyBody(forgedText, []byte(goldenBody)); !errors.Is(err, sign.ErrMismatch) {
		t.Errorf("a body signature made of the public key: %v", err)
	}
}
