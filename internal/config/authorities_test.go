package config

import (
	"crypto/x509"
	"encoding/pem"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestAuthorities(t *testing.T) {
	t.Parallel()
	server := httptest.NewTLSServer(nil)
	t.Cleanup(server.Close)
	certificate := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
	damaged := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw[1:]}))
	key := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("key")}))
	for name, tc := range map[string]struct{ text, says string }{
		"one certificate":                 {certificate, ""},
		"two, with comments and a key":    {"# internal\n" + certificate + key + certificate, ""},
		"a damaged one behind a good one": {certificate + damaged, "its certificate number 2 is damaged"},
		"a key alone":                     {key, "there is no certificate in it"},
		"half of a certificate":           {certificate[:len(certificate)/2], "there is no certificate in it"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "ca.pem")
			if err := os.WriteFile(path, []byte(tc.text), 0o600); err != nil {
				t.Fatal(err)
			}
			env := "WALHOOK_CA_FILE=" + path
			if tc.says != "" {
				if ps := problems(t, env, someURL); len(ps) != 1 || !strings.Contains(ps.Error(), tc.says) {
					t.Errorf("got %v, want one problem that says %q", ps, tc.says)
				}
				return
			}
			_, err := server.Certificate().Verify(x509.VerifyOptions{Roots: load(t, env).RootCAs()})
			if err != nil {
				t.Errorf("it is not trusted: %v", err)
			}
		})
	}
}

// The file adds to the system's authorities.
func TestTheSystemsAuthoritiesAreTrustedToo(t *testing.T) {
	t.Parallel()
	server := httptest.NewTLSServer(nil)
	t.Cleanup(server.Close)
	path := filepath.Join(t.TempDir(), "ca.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	want, err := x509.SystemCertPool()
	if err != nil {
		t.Fatal(err)
	}
	want.AddCert(server.Certificate())
	if !load(t, "WALHOOK_CA_FILE="+path).RootCAs().Equal(want) {
		t.Error("the pool is not that of the system with the file's certificate")
	}
}
