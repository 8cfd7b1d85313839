package admin

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// certificateEvery bounds how often the files of a certificate are read: once a second costs
// nothing, and whoever renews it waits for no more.
const certificateEvery = time.Second

// A Certificate is what the server shows to who connects by TLS. It reads its files again, so
// that a renewed certificate needs no restart. While they cannot be used, because the one is
// renewed and the other not yet, or somebody made a mistake, the former one stays in force.
type Certificate struct {
	certFile, keyFile string
	log               *slog.Logger

	mu      sync.Mutex
	current *tls.Certificate
	until   time.Time // current is not compared with the files
	wrong   string    // what the log says already
}

// LoadCertificate reads PEM files.
func LoadCertificate(certFile, keyFile string, log *slog.Logger) (*Certificate, error) {
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, err
	}
	return &Certificate{certFile: certFile, keyFile: keyFile, log: log, current: &pair, until: time.Now().Add(certificateEvery)}, nil
}

// get is tls.Config's GetCertificate.
func (c *Certificate) get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if now.Before(c.until) {
		return c.current, nil
	}
	c.until = now.Add(certificateEvery)
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err == nil {
		c.current, c.wrong = &pair, ""
		return c.current, nil
	}
	if said := err.Error(); said != c.wrong {
		c.wrong = said
		c.log.WarnContext(hello.Context(), "the renewed certificate of the admin server cannot be used; the former one stays in force",
			"error", fmt.Errorf("WALHOOK_ADMIN_TLS_CERT_FILE, WALHOOK_ADMIN_TLS_KEY_FILE: %w", err))
	}
	return c.current, nil
}

// config is of HTTP/1.1 alone.
func (c *Certificate) config() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: c.get, NextProtos: []string{"http/1.1"}}
}
