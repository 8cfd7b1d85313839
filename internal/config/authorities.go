package config

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
)

// maxCAFile bounds what is read of WALHOOK_CA_FILE: the whole list of a browser has a
// quarter of it.
const maxCAFile = 1 << 20

// RootCAs is the authorities that receivers and an https proxy may have their
// certificates from; nil: the system's.
func (c *Config) RootCAs() *x509.CertPool { return c.rootCAs }

// authorities reads WALHOOK_CA_FILE.
func (l *loader) authorities(c *Config) {
	if c.CAFile == "" {
		return
	}
	found, err := readCertificates(c.CAFile)
	if err != nil {
		l.wrong("WALHOOK_CA_FILE", "%s", err)
		return
	}
	if c.rootCAs, err = x509.SystemCertPool(); err != nil {
		l.wrong("WALHOOK_CA_FILE", "the system's authorities, which it adds to, cannot be read: %s", withoutPath(err))
		return
	}
	for _, authority := range found {
		c.rootCAs.AddCert(authority)
	}
}

// readCertificates reads a file of certificates. One that is damaged is an error: its
// receivers would fail later, and look as if it was their fault.
func readCertificates(path string) (found []*x509.Certificate, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("the file cannot be read: %w", withoutPath(err))
	}
	defer f.Close()
	rest, err := io.ReadAll(io.LimitReader(f, maxCAFile+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("the file cannot be read: %w", withoutPath(err))
	case len(rest) > maxCAFile:
		return nil, fmt.Errorf("the file is larger than %d KiB", maxCAFile>>10)
	}
	for block := (*pem.Block)(nil); ; {
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		one, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("its certificate number %d is damaged", len(found)+1)
		}
		found = append(found, one)
	}
	if len(found) == 0 {
		return nil, errors.New("there is no certificate in it: PEM has a line -----BEGIN CERTIFICATE-----")
	}
	return found, nil
}
