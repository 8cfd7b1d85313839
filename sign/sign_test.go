package sign_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"pgregory.net/rapid"

	"github.com/walhook/walhook/sign"
)

const (
	goldenID   = "0193a1f0-7c00-7abc-8def-0123456789ab"
	goldenUnix = 1795435200 // 2026-11-23T12:00:00Z
	goldenBody = `{"id":"0193a1f0-7c00-7abc-8def-0123456789aa","event":"payment.succeeded","data":{"amount": 4200},"organizationId":"org_1","timestamp":"2026-11-23T12:00:00.000Z"}`
)

// The vectors were made with openssl:
//
//	printf %s "$body"          | openssl dgst -sha256 -hmac "$secret"
//	printf %s "$id.$unix.$body" | openssl dgst -sha256 -mac HMAC -macopt hexkey:"$key" -binary | base64
func TestGoldenSignatures(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, secret, body, standard string }{
		{
			"a prefixed secret is decoded for Standard Webhooks only", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
			"77ffe399bbe65d6b26c073c3a711b18572e54fba9437ae97623f9ed839da80ea", "v1,JZ3DtbS9roAujTU1868UveWIdxXzBkHkK3w4AlV9D4w=",
		},
		{
			"hex is base64 too", "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
			"4ce47228b980736d4ef20aa4707df105faf3f6c0622c4b9fcb8bfc85f7f69ee0", "v1,OcsceoFSHiY0JeFaFN8NwBFmadeocoZDl5tv1IpYASQ=",
		},
		{
			"what does not decode is its own bytes", "a secret of many words!",
			"1446e81a6d0398b24c44403f220c2f864a794aa2d2dfaca57bd2baad94291055", "v1,5bbBlCMUDcoT1G2T8u5rakpV2rtbH5z9RdmVAas42gc=",
		},
		{
			"a prefix before what does not decode is a part of the secret", "whsec_not base64 at all",
			"6d2bbeeb1ca6287b71b5fcaa8dfb79da97100b6f6cd3264ac3ef4161eb5ac163", "v1,k7RDrhEbibY+on4ZZYKNfL8Us/0XS9Fda3ySdqlG6gg=",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := newSigner(t, tc.secret)
			for range 2 { // the second time with a key that was used
				if got := s.Body([]byte(goldenBody)); got != tc.body {
					t.Errorf("Body = %s, want %s", got, tc.body)
				}
				if got := s.Standard(goldenID, goldenUnix, []byte(goldenBody)); got != tc.standard {
					t.Errorf("Standard = %s, want %s", got, tc.standard)
				}
			}
		})
	}
}

func newSigner(t testing.TB, secrets ...string) *sign.Signer {
	t.Helper()
	s, err := sign.New(secrets...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestRotationSignsTheBodyWithTheOlderAndStandardWithBoth(t *testing.T) {
	t.Parallel()
	older, newer := newSigner(t, "older-older-older!"), newSigner(t, "newer-newer-newer!")
	both := newSigner(t, "older-older-older!", "newer-newer-newer!")
	body := []byte(goldenBody)
	if got, want := both.Body(body), older.Body(body); got != want {
		t.Errorf("Body = %s, want the older's %s", got, want)
	}
	want := older.Standard(goldenID, goldenUnix, body) + " " + newer.Standard(goldenID, goldenUnix, body)
	if got := both.Standard(goldenID, goldenUnix, body); got != want {
		t.Errorf("Standard = %s, want %s", got, want)
	}
}

func TestWithoutASecretThereIsNoSigner(t *testing.T) {
	t.Parallel()
	for _, secrets := range [][]string{nil, {""}, {"", ""}} {
		if _, err := sign.New(secrets...); !errors.Is(err, sign.ErrNoSecret) {
			t.Errorf("New(%q) = %v, want ErrNoSecret", secrets, err)
		}
	}
}

func TestASignerIsSafeForConcurrentUse(t *testing.T) {
	t.Parallel()
	s := newSigner(t, "a secret of many words!")
	wantBody, wantStandard := s.Body([]byte(goldenBody)), s.Standard(goldenID, goldenUnix, []byte(goldenBody))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 500 {
				if s.Body([]byte(goldenBody)) != wantBody || s.Standard(goldenID, goldenUnix, []byte(goldenBody)) != wantStandard {
					t.Error("a concurrent signature differs")
					return
				}
			}
		})
	}
	wg.Wait()
}

// The oracle is the Standard Webhooks project's own library; for secrets that it
// refuses, its raw constructor.
func TestStandardWebhooksVerifiesWhatWeSign(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		secret := rapid.OneOf(
			rapid.StringMatching(`[!-~]{16,256}`),
			rapid.StringMatching(`whsec_[A-Za-z0-9+/]{32}`),
			rapid.StringMatching(`[0-9a-f]{64}`),
		).Draw(t, "secret")
		body := rapid.SliceOf(rapid.Byte()).Draw(t, "body")
		id := rapid.StringMatching(`[0-9a-f-]{1,36}`).Draw(t, "id")
		unix := time.Now().Unix()

		oracle, err := standardwebhooks.NewWebhook(secret)
		if err != nil {
			oracle, _ = standardwebhooks.NewWebhookRaw([]byte(secret))
		}
		s, err := sign.New(secret, "another secret of ours")
		if err != nil {
			t.Fatal(err)
		}
		h := http.Header{}
		h.Set(sign.HeaderID, id)
		h.Set(sign.HeaderTimestamp, strconv.FormatInt(unix, 10))
		h.Set(sign.HeaderSignature, s.Standard(id, unix, body))
		if err := oracle.Verify(body, h); err != nil {
			t.Fatalf("the oracle refuses ours: %v", err)
		}
		theirs, err := oracle.Sign(id, time.Unix(unix, 0), body)
		if err != nil {
			t.Fatal(err)
		}
		h.Set(sign.HeaderSignature, theirs)
		if err := sign.Verify(h, body, secret); err != nil {
			t.Fatalf("we refuse the oracle's: %v", err)
		}
	})
}

func TestTheBodySignatureIsPlainHMAC(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		secret := rapid.StringMatching(`[!-~]{16,256}`).Draw(t, "secret")
		body := rapid.SliceOf(rapid.Byte()).Draw(t, "body")
		h := hmac.New(sha256.New, []byte(secret))
		h.Write(body)
		s, err := sign.New(secret)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := s.Body(body), hex.EncodeToString(h.Sum(nil)); got != want {
			t.Fatalf("Body = %s, want %s", got, want)
		}
	})
}

func BenchmarkSign(b *testing.B) {
	const secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	body := []byte(strings.Repeat("x", 1024))
	b.Run("signer", func(b *testing.B) {
		s := newSigner(b, secret)
		b.ReportAllocs()
		for b.Loop() {
			s.Body(body)
			s.Standard(goldenID, goldenUnix, body)
		}
	})
	b.Run("plain", func(b *testing.B) {
		key, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
		b.ReportAllocs()
		for b.Loop() {
			h := hmac.New(sha256.New, []byte(secret))
			h.Write(body)
			_ = hex.EncodeToString(h.Sum(nil))
			h = hmac.New(sha256.New, key)
			h.Write([]byte(goldenID + "." + strconv.Itoa(goldenUnix) + "."))
			h.Write(body)
			_ = base64.StdEncoding.EncodeToString(h.Sum(nil))
		}
	})
}
