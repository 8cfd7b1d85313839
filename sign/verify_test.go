package sign_test

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walhook/walhook/sign"
)

const secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

// signed returns the headers of a request as net/http's server hands them over.
func signed(t testing.TB, at time.Time, body string, secrets ...string) http.Header {
	t.Helper()
	s := newSigner(t, secrets...)
	h := http.Header{}
	h.Set(sign.HeaderBodySignature, s.Body([]byte(body)))
	h.Set(sign.HeaderID, goldenID)
	h.Set(sign.HeaderTimestamp, strconv.FormatInt(at.Unix(), 10))
	h.Set(sign.HeaderSignature, s.Standard(goldenID, at.Unix(), []byte(body)))
	return h
}

func without(h http.Header, names ...string) http.Header {
	h = h.Clone()
	for _, n := range names {
		h.Del(n)
	}
	return h
}

func with(h http.Header, name string, values ...string) http.Header {
	h = h.Clone()
	h[http.CanonicalHeaderKey(name)] = values
	return h
}

func TestVerify(t *testing.T) {
	t.Parallel()
	now := time.Now()
	good := signed(t, now, goldenBody, secret)
	other := signed(t, now, goldenBody, "another secret of ours")
	standard := []string{sign.HeaderSignature, sign.HeaderID, sign.HeaderTimestamp}
	for _, tc := range []struct {
		name   string
		header http.Header
		body   string
		v      sign.Verifier
		want   error
	}{
		{"both schemes", good, goldenBody, sign.Verifier{}, nil},
		{"headers spelled as they are sent", http.Header{
			sign.HeaderID: good.Values(sign.HeaderID), sign.HeaderTimestamp: good.Values(sign.HeaderTimestamp),
			sign.HeaderSignature: good.Values(sign.HeaderSignature),
		}, goldenBody, sign.Verifier{}, nil},
		{"webhook-signature alone", without(good, sign.HeaderBodySignature), goldenBody, sign.Verifier{}, nil},
		{"X-Webhook-Signature alone", without(good, standard...), goldenBody, sign.Verifier{}, sign.ErrNoSignature},
		{"webhook-signature decides alone", with(good, sign.HeaderBodySignature, strings.Repeat("0", 64)), goldenBody, sign.Verifier{}, nil},
		{"a wrong webhook-signature is not saved by the other", with(good, sign.HeaderSignature, other.Get(sign.HeaderSignature)), goldenBody, sign.Verifier{}, sign.ErrMismatch},
		{"an empty webhook-signature is not saved by the other", with(good, sign.HeaderSignature, ""), goldenBody, sign.Verifier{}, sign.ErrMismatch},
		{"another version is no signature", with(good, sign.HeaderSignature, "v2"+good.Get(sign.HeaderSignature)[2:]), goldenBody, sign.Verifier{}, sign.ErrMismatch},
		{"one of several signatures is enough", with(good, sign.HeaderSignature, "v1a,xyz "+other.Get(sign.HeaderSignature)+" "+good.Get(sign.HeaderSignature)), goldenBody, sign.Verifier{}, nil},
		{"whichever it is", with(good, sign.HeaderSignature, good.Get(sign.HeaderSignature)+" "+other.Get(sign.HeaderSignature)), goldenBody, sign.Verifier{}, nil},
		{"the older of several secrets is enough", good, goldenBody, sign.Verifier{Secrets: []string{secret, "a newer secret of ours"}}, nil},
		{"one of several secrets is enough", good, goldenBody, sign.Verifier{Secrets: []string{"a newer secret of ours", secret}}, nil},
		{"another body", good, goldenBody + " ", sign.Verifier{}, sign.ErrMismatch},
		{"another id", with(good, sign.HeaderID, "x"), goldenBody, sign.Verifier{}, sign.ErrMismatch},
		{"another time", with(good, sign.HeaderTimestamp, strconv.FormatInt(now.Unix()+1, 10)), goldenBody, sign.Verifier{}, sign.ErrMismatch},
		{"no id", without(good, sign.HeaderID), goldenBody, sign.Verifier{}, sign.ErrMalformed},
		{"two ids", with(good, sign.HeaderID, goldenID, goldenID), goldenBody, sign.Verifier{}, sign.ErrMalformed},
		{"no time", without(good, sign.HeaderTimestamp), goldenBody, sign.Verifier{}, sign.ErrMalformed},
		{"a time that is no number", with(good, sign.HeaderTimestamp, "now"), goldenBody, sign.Verifier{}, sign.ErrMalformed},
		{"a time in another spelling", with(good, sign.HeaderTimestamp, "+"+good.Get(sign.HeaderTimestamp)), goldenBody, sign.Verifier{}, sign.ErrMalformed},
		{"no header", http.Header{}, goldenBody, sign.Verifier{}, sign.ErrNoSignature},
		{"an unset secret verifies nothing", signed(t, now, goldenBody, "x"), goldenBody, sign.Verifier{Secrets: []string{""}}, sign.ErrNoSecret},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			if tc.v.Secrets == nil {
				tc.v.Secrets = []string{secret}
			}
			if got := tc.v.Verify(tc.header, []byte(tc.body)); !errors.Is(got, tc.want) {
				t.Errorf("Verify = %v, want %v", got, tc.want)
			}
		})
	}
}

// The signature of the body alone is asked for by name.
func TestVerifyBody(t *testing.T) {
	t.Parallel()
	good := signed(t, time.Now().Add(-time.Hour), goldenBody, secret)
	alone := without(good, sign.HeaderSignature, sign.HeaderID, sign.HeaderTimestamp)
	for _, tc := range []struct {
		name    string
		header  http.Header
		body    string
		secrets []string
		want    error
	}{
		{"both schemes", good, goldenBody, []string{secret}, nil},
		{"X-Webhook-Signature alone", alone, goldenBody, []string{secret}, nil},
		{"spelled as it is sent", http.Header{sign.HeaderBodySignature: good.Values(sign.HeaderBodySignature)}, goldenBody, []string{secret}, nil},
		{"webhook-signature alone", without(good, sign.HeaderBodySignature), goldenBody, []string{secret}, sign.ErrNoSignature},
		{"webhook-signature does not save it", with(good, sign.HeaderBodySignature, strings.Repeat("0", 64)), goldenBody, []string{secret}, sign.ErrMismatch},
		{"the older of several secrets is enough", alone, goldenBody, []string{secret, "a newer secret of ours"}, nil},
		{"one of several secrets is enough", alone, goldenBody, []string{"a newer secret of ours", secret}, nil},
		{"another body", alone, goldenBody + " ", []string{secret}, sign.ErrMismatch},
		{"a short one", with(alone, sign.HeaderBodySignature, "00"), goldenBody, []string{secret}, sign.ErrMalformed},
		{"one that is not hex", with(alone, sign.HeaderBodySignature, strings.Repeat("g", 64)), goldenBody, []string{secret}, sign.ErrMalformed},
		{"two", with(alone, sign.HeaderBodySignature, good.Get(sign.HeaderBodySignature), good.Get(sign.HeaderBodySignature)), goldenBody, []string{secret}, sign.ErrMalformed},
		{"no header", http.Header{}, goldenBody, []string{secret}, sign.ErrNoSignature},
		{"an unset secret", alone, goldenBody, []string{""}, sign.ErrNoSecret},
	} {
		if got := (sign.Verifier{Secrets: tc.secrets}).VerifyBody(tc.header, []byte(tc.body)); !errors.Is(got, tc.want) {
			t.Errorf("%s: VerifyBody = %v, want %v", tc.name, got, tc.want)
		}
	}
}

func TestARequestOutsideTheToleranceIsStale(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name      string
		ahead     time.Duration
		tolerance time.Duration
		want      error
	}{
		{"five minutes are within", -5 * time.Minute, 0, nil},
		{"a second more is not", -5*time.Minute - time.Second, 0, sign.ErrStale},
		{"five minutes ahead are within", 5 * time.Minute, 0, nil},
		{"a second more ahead is not", 5*time.Minute + time.Second, 0, sign.ErrStale},
		{"a tolerance of its own", -2 * time.Second, time.Second, sign.ErrStale},
		{"a negative tolerance checks nothing", -time.Hour, -1, nil},
		{"a time before all clocks", -time.Duration(1<<63 - 1), 0, sign.ErrStale},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				h := signed(t, time.Now().Add(tc.ahead), goldenBody, secret)
				v := sign.Verifier{Secrets: []string{secret}, Tolerance: tc.tolerance}
				if got := v.Verify(h, []byte(goldenBody)); !errors.Is(got, tc.want) {
					t.Errorf("Verify = %v, want %v", got, tc.want)
				}
			})
		})
	}
}

func TestExtremeTimestampsAreStale(t *testing.T) {
	t.Parallel()
	s := newSigner(t, secret)
	for _, unix := range []int64{-1 << 63, -1, 0, 1<<63 - 1} {
		h := http.Header{}
		h.Set(sign.HeaderID, goldenID)
		h.Set(sign.HeaderTimestamp, strconv.FormatInt(unix, 10))
		h.Set(sign.HeaderSignature, s.Standard(goldenID, unix, []byte(goldenBody)))
		if err := sign.Verify(h, []byte(goldenBody), secret); !errors.Is(err, sign.ErrStale) {
			t.Errorf("at %d: Verify = %v, want ErrStale", unix, err)
		}
	}
}

// FuzzVerify looks for a request that verifies although it differs from the
// signed one, and for a panic.
func FuzzVerify(f *testing.F) {
	h := signed(f, time.Unix(goldenUnix, 0), goldenBody, secret)
	names := []string{sign.HeaderBodySignature, sign.HeaderID, sign.HeaderTimestamp, sign.HeaderSignature}
	f.Add(h.Get(names[0]), h.Get(names[1]), h.Get(names[2]), h.Get(names[3]), []byte(goldenBody))
	f.Add(h.Get(names[0]), "", "", "", []byte(goldenBody))
	f.Add("", "", "", "v1,", []byte(nil))
	v := sign.Verifier{Secrets: []string{secret}, Tolerance: -1}
	f.Fuzz(func(t *testing.T, bodySignature, id, timestamp, signature string, body []byte) {
		got := http.Header{}
		for i, value := range []string{bodySignature, id, timestamp, signature} {
			if value != "" {
				got.Set(names[i], value)
			}
		}
		standard, bodyOnly := v.Verify(got, body) == nil, v.VerifyBody(got, body) == nil
		if (standard || bodyOnly) && string(body) != goldenBody {
			t.Errorf("a body that nobody signed verifies: %q", body)
		}
		if standard && (id != goldenID || timestamp != h.Get(sign.HeaderTimestamp)) {
			t.Errorf("an id or time that nobody signed verifies: %q %q", id, timestamp)
		}
	})
}
