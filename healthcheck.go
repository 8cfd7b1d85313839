package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/walhook/walhook/internal/config"
)

// healthTimeout bounds the request. Docker's default for a health check is 30 s.
const healthTimeout = 3 * time.Second

// runHealthcheck asks the walhook on this machine, or in this container, whether its loops make
// progress. It needs no setting but WALHOOK_ADMIN_ADDR, and WALHOOK_ADMIN_TLS_CERT_FILE where
// there is TLS.
func runHealthcheck(ctx context.Context, args []string) error {
	if err := parseFlags(newFlags("healthcheck"), args); err != nil {
		return err
	}
	url, err := config.AdminURL(os.Environ())
	if err != nil {
		return fmt.Errorf("%w: %w", errConfig, err)
	}
	if url == "" {
		return fmt.Errorf("%w: WALHOOK_ADMIN_ADDR is empty, so there is no admin server to ask", errConfig)
	}
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/healthz", nil)
	if err != nil {
		return err
	}
	// No proxy: it is this machine. Its certificate has the name that others call it by, and
	// is not checked: nothing secret is said.
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1024))
		return fmt.Errorf("unhealthy: %s: %s", resp.Status, text)
	}
	return nil
}
