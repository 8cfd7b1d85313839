package faults

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/walhook/walhook/internal/process"
)

// A Process is a walhook process. It dies with the test process.
type Process struct {
	*process.Process
	Name  string // its User-Agent and its application_name
	log   string // file
	admin string // address; "": off
	began time.Time
	idle  *Usage // while it held the slot and had nothing to do yet; nil: not measured
}

// startProcess starts a walhook with no other environment than env.
func startProcess(binary, folder, name, admin string, env []string) (*Process, error) {
	p := &Process{Name: name, admin: admin, log: filepath.Join(folder, name+".log"), began: time.Now()}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer log.Close() // the process has its own descriptor
	cmd := exec.Command(binary, "run")
	cmd.Env = append(env, "WALHOOK_ADMIN_ADDR="+admin, "WALHOOK_ADMIN_TOKEN="+adminToken, "WALHOOK_USER_AGENT="+name)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p.Process, err = process.Start(cmd)
	return p, err
}

// kill is kill -9.
func (p *Process) kill() error {
	if err := p.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-p.Exited
	return nil
}

// stop stops the process gracefully. It returns how long that took, and an error if it
// took too long or the exit code is not 0.
func (p *Process) stop(within time.Duration) (time.Duration, error) {
	began := time.Now()
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return 0, err
	}
	select {
	case <-p.Exited:
		took := time.Since(began)
		if p.Err != nil {
			return took, fmt.Errorf("%s ended after SIGTERM with %w", p.Name, p.Err)
		}
		return took, nil
	case <-time.After(within):
		return time.Since(began), errors.Join(fmt.Errorf("%s still runs %s after SIGTERM", p.Name, within), p.kill())
	}
}

// fate says whether the process still runs, or how it ended.
func (p *Process) fate() string {
	switch {
	case p.Running():
		return "stands by"
	case p.Err != nil:
		return p.Err.Error()
	}
	return "ended well"
}

// adminToken is every process's WALHOOK_ADMIN_TOKEN.
const adminToken = "the-operators-own-token"

// ask asks the admin server with the token, and returns the status and the body.
func (p *Process) ask(ctx context.Context, path string, within time.Duration) (status int, body []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.admin+path, nil)
	if err != nil {
		return 0, nil, err
	}
	req.SetBasicAuth("", adminToken)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	return resp.StatusCode, body, err
}

// metric returns a metric that has no labels, and whether it exists.
func (p *Process) metric(ctx context.Context, name string) (float64, bool) {
	_, body, err := p.ask(ctx, "/metrics", time.Second)
	if err != nil {
		return 0, false
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(body))
	family := families[name]
	if err != nil || family == nil || len(family.Metric) == 0 {
		return 0, false
	}
	m := family.Metric[0]
	return m.GetGauge().GetValue() + m.GetCounter().GetValue() + m.GetUntyped().GetValue(), true
}

// ready returns the status and body of GET /readyz; 0: no answer.
func (p *Process) ready(ctx context.Context) (status int, says string) {
	status, body, err := p.ask(ctx, "/readyz", 2*time.Second)
	if err != nil {
		return 0, err.Error()
	}
	return status, string(bytes.TrimSpace(body))
}

// logged counts the lines of the log that contain a text.
func (p *Process) logged(text string) (lines int) {
	content, err := os.ReadFile(p.log)
	if err != nil {
		return 0
	}
	for line := range bytes.Lines(content) {
		if bytes.Contains(line, []byte(text)) {
			lines++
		}
	}
	return lines
}

// tail is the end of the process's log.
func (p *Process) tail() string {
	const most = 6000
	content, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(bytes.TrimSpace(content[max(0, len(content)-most):]))
}
