package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/walhook/walhook/internal/config"
)

// healthTimeout bounds the request. Docker's default for a health check is 30 s.
const healthTimeout = 3 * time.Second

// runHealthcheck asks the walhook on this machine, or in this container, whether its loops make
// progress. It needs no setting but WALHOOK_ADMIN_ADDR.
func runHealthcheck(ctx context.Context, args []string) error {
	if err := parseFlags(newFlags("healthcheck"), args); err != nil {
		return err
	}
	addr, err := config.AdminAddr(os.Environ())
	if err != nil {
		return fmt.Errorf("%w: %w", errConfig, err)
	}
	if addr == "" {
		return fmt.Errorf("%w: WALHOOK_ADMIN_ADDR is empty, so there is no admin server to ask", errConfig)
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("%w: WALHOOK_ADMIN_ADDR: %w", errConfig, err)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(host, port)+"/healthz", nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: &http.Transport{}}).Do(req) // no proxy: it is this machine
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
