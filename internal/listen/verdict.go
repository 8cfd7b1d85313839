package listen

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/walhook/walhook/internal/terminal"
	"github.com/walhook/walhook/sign"
)

// A verdict is what a signature comes to.
type verdict struct {
	header string
	says   string
	color  terminal.Color
}

// verdicts judges both signatures of a request.
func verdicts(h http.Header, body []byte, secrets []string) []verdict {
	return []verdict{
		judge(sign.HeaderBodySignature, secrets, func(v sign.Verifier) error { return v.VerifyBody(h, body) }),
		judge(sign.HeaderSignature, secrets, func(v sign.Verifier) error { return v.Verify(h, body) }),
	}
}

// judge asks for each secret by itself, to say which one it was.
func judge(header string, secrets []string, verify func(sign.Verifier) error) verdict {
	if len(secrets) == 0 {
		return verdict{header, "not verified: no --secret", terminal.Yellow}
	}
	var good, stale, tried []string
	var other error
	for _, secret := range secrets {
		if header == sign.HeaderBodySignature && isPublicKey(secret) {
			continue // it verifies no HMAC
		}
		tried = append(tried, name(secret))
		switch err := verify(sign.Verifier{Secrets: []string{secret}}); {
		case err == nil:
			good = append(good, name(secret))
		case errors.Is(err, sign.ErrStale):
			stale = append(stale, name(secret))
		case !errors.Is(err, sign.ErrMismatch):
			other = err
		}
	}
	switch {
	case len(good) > 0:
		return verdict{header, "verified: made with " + strings.Join(good, " and "), terminal.Green}
	case len(stale) > 0:
		return verdict{header, fmt.Sprintf("REFUSED: made with %s, but webhook-timestamp is more than %s from now",
			strings.Join(stale, " and "), sign.DefaultTolerance), terminal.Red}
	case len(tried) == 0:
		return verdict{header, "not verified: it is no signature of a public key", terminal.Yellow}
	case errors.Is(other, sign.ErrNoSignature):
		return verdict{header, "REFUSED: there is none", terminal.Red}
	case other != nil:
		return verdict{header, "REFUSED: " + other.Error(), terminal.Red}
	default:
		return verdict{header, "REFUSED: not made with " + strings.Join(tried, " or "), terminal.Red}
	}
}

func isPublicKey(secret string) bool { return strings.HasPrefix(secret, "whpk_") }

// name says which secret it is, and does not show it.
func name(secret string) string {
	if isPublicKey(secret) {
		return "public key " + sign.Fingerprint(secret)
	}
	return "secret " + sign.Fingerprint(secret)
}
