package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/walhook/walhook/internal/listen"
	"github.com/walhook/walhook/internal/terminal"
	"github.com/walhook/walhook/sign"
)

// runListen receives webhooks and prints them, until SIGINT or SIGTERM. It needs no database and no
// setting.
func runListen(ctx context.Context, args []string, stdout io.Writer) error {
	flags := newFlags("listen")
	cfg := listen.Config{Out: stdout, Paint: terminal.PaintFor(stdout)}
	var secrets []string
	var to string
	flags.StringVar(&cfg.Addr, "addr", "127.0.0.1:3000", "")
	flags.Func("secret", "", func(s string) error { secrets = append(secrets, s); return nil }) // checked later: package flag would quote it
	flags.StringVar(&to, "forward", "", "")
	flags.IntVar(&cfg.Fail, "fail", 0, "")
	flags.IntVar(&cfg.Status, "status", 0, "")
	flags.DurationVar(&cfg.Delay, "delay", 0, "")
	if err := parseFlags(flags, args); err != nil {
		return err
	}
	given := map[string]bool{}
	flags.Visit(func(f *flag.Flag) { given[f.Name] = true })
	if err := listenAnswers(&cfg, to, given); err != nil {
		return fmt.Errorf("%w: %w", errConfig, err)
	}
	var err error
	if cfg.Secrets, err = listenSecrets(secrets); err != nil {
		return fmt.Errorf("%w: %w", errConfig, err)
	}
	return listen.Run(ctx, cfg)
}

// listenAnswers checks and completes what is said of the answers.
func listenAnswers(cfg *listen.Config, to string, given map[string]bool) error {
	if _, _, err := net.SplitHostPort(cfg.Addr); err != nil {
		return fmt.Errorf("--addr %q is not an address, as in 127.0.0.1:3000", cfg.Addr)
	}
	switch {
	case cfg.Fail < 0:
		return fmt.Errorf("--fail %d is negative", cfg.Fail)
	case cfg.Delay < 0:
		return fmt.Errorf("--delay %s is negative", cfg.Delay)
	case given["status"] && (cfg.Status < http.StatusOK || cfg.Status > 599):
		return fmt.Errorf("--status %d is not the status of an answer, 200 to 599", cfg.Status)
	case given["forward"] && given["status"] && cfg.Fail == 0:
		return errors.New("--forward answers as the application does, so --status needs --fail: how many attempts get it")
	case !given["status"] && cfg.Fail > 0:
		cfg.Status = http.StatusInternalServerError
	case !given["status"]:
		cfg.Status = http.StatusOK
	}
	if !given["forward"] {
		return nil
	}
	u, err := url.Parse(to)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
		return errors.New("--forward wants the URL of an application, as in http://127.0.0.1:4000, without a user") // it may hold a credential
	}
	cfg.Forward = u
	return nil
}

// maxSecretFile bounds what is read of a file with secrets.
const maxSecretFile = 64 << 10

// listenSecrets returns the secrets that were given, or stand in the lines of a file that was: every
// user of the machine can read a command line.
func listenSecrets(given []string) ([]string, error) {
	var secrets []string
	for _, text := range given {
		path, isFile := strings.CutPrefix(text, "@")
		if !isFile {
			secrets = append(secrets, text)
			continue
		}
		found, err := secretsOfFile(path)
		if err != nil {
			return nil, err
		}
		secrets = append(secrets, found...)
	}
	for i, secret := range secrets {
		switch err := sign.Verify(nil, nil, secret); {
		case errors.Is(err, sign.ErrNoSecret):
			return nil, errors.New("--secret is empty")
		case errors.Is(err, sign.ErrKey):
			return nil, fmt.Errorf("secret %d of %d: %w", i+1, len(secrets), err)
		}
	}
	return secrets, nil
}

func secretsOfFile(path string) ([]string, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("--secret @FILE: %w", err)
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxSecretFile))
	if err != nil {
		return nil, fmt.Errorf("--secret @FILE: %w", err)
	}
	var secrets []string
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		if lines.Text() != "" {
			secrets = append(secrets, lines.Text())
		}
	}
	if len(secrets) == 0 {
		return nil, fmt.Errorf("--secret @FILE: no line of %s has a secret", path)
	}
	return secrets, nil
}
