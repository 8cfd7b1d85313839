package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/process"
	"github.com/walhook/walhook/sign"
)

// The image is built from what .dockerignore leaves: that has to be all that the binary needs.
func TestTheImageHasWhatTheBinaryNeeds(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(".dockerignore")
	if err != nil {
		t.Fatal(err)
	}
	var roots, never []string
	for i, line := range strings.Fields(string(text)) {
		root, kept := strings.CutPrefix(line, "!")
		name, anywhere := strings.CutPrefix(line, "**/")
		switch {
		case i == 0 && line == "*":
		case kept && !strings.Contains(root, "/"):
			roots = append(roots, root)
		case anywhere:
			never = append(never, name)
		default:
			t.Fatalf(".dockerignore: this test knows *, !name and **/name, and not %q", line)
		}
	}
	matches := func(patterns []string, name string) bool {
		for _, p := range patterns {
			if ok, _ := path.Match(p, name); ok {
				return true
			}
		}
		return false
	}
	left := t.TempDir()
	copied := 0
	err = fs.WalkDir(os.DirFS("."), ".", func(name string, d fs.DirEntry, err error) error {
		first, _, _ := strings.Cut(name, "/")
		switch {
		case err != nil || name == ".":
			return err
		case !matches(roots, first) || matches(never, d.Name()):
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		case d.IsDir():
			return os.Mkdir(filepath.Join(left, name), 0o755)
		}
		copied++
		content, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(left, name), content, 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
	list := exec.CommandContext(t.Context(), "go", "list", "-deps", ".")
	list.Dir = left
	if output, err := list.CombinedOutput(); err != nil || copied == 0 {
		t.Errorf("go list of the %d files that .dockerignore leaves: %v: %s", copied, err, output)
	}
}

// The image in WALHOOK_TEST_IMAGE, which .ci/image builds, delivers as the manifests run it: by nobody, with nothing to write
// to and no capability. Its version is WALHOOK_TEST_IMAGE_VERSION.
func TestTheImage(t *testing.T) {
	image := os.Getenv("WALHOOK_TEST_IMAGE")
	if image == "" {
		t.Skip("WALHOOK_TEST_IMAGE names no image: .ci/image builds one")
	}
	w := newWorld(t)
	if got, want := docker(t, "run", "--rm", image, "version"), os.Getenv("WALHOOK_TEST_IMAGE_VERSION"); !strings.Contains(got, want) {
		t.Errorf("version: %q, want %q", got, want)
	}
	if got := filesOf(t, image); !slices.Equal(got, []string{"etc/ssl/certs/ca-certificates.crt", "walhook"}) {
		t.Errorf("the image has the files %q", got)
	}

	rcv := newReceiver(t, always(200))
	_, secret := w.endpoint(rcv.URL)
	port, err := process.ForWalhook.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"run", "--detach", "--network", "host", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--health-interval", "1s"}
	for _, variable := range append(w.env, fmt.Sprintf("WALHOOK_ADMIN_ADDR=127.0.0.1:%d", port)) { // for docker the last of two counts
		args = append(args, "--env", variable)
	}
	container := docker(t, append(args, image)...)
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := exec.Command("docker", "logs", container).CombinedOutput()
			t.Logf("%s", out)
		}
		_ = exec.Command("docker", "rm", "--force", container).Run()
	})
	pgtest.Eventually(t, patience, "docker says healthy", func() bool {
		return docker(t, "inspect", "--format", "{{.State.Health.Status}}", container) == "healthy"
	})
	event := w.insert("payment.succeeded")
	w.eventually("the row", `SELECT count(*) = 1 FROM webhook_deliveries WHERE event_id = $1 AND status = 'success'`, event)
	if got := rcv.requests(); len(got) != 1 || sign.Verify(got[0].header, []byte(got[0].body), secret) != nil {
		t.Errorf("%d requests, or a signature that is none", len(got))
	}

	var config struct {
		User   string
		Labels map[string]string
	}
	if err := json.Unmarshal([]byte(docker(t, "inspect", "--format", "{{json .Config}}", container)), &config); err != nil {
		t.Fatal(err)
	}
	for _, label := range []string{"title", "description", "licenses", "version", "revision"} {
		if v := config.Labels["org.opencontainers.image."+label]; v == "" || v == "dev" || v == "unknown" {
			t.Errorf("the label %s is %q", label, v)
		}
	}
	if config.User != "65534:65534" {
		t.Errorf("it runs as %q", config.User)
	}
	docker(t, "stop", "--time", "20", container)
	if code := docker(t, "inspect", "--format", "{{.State.ExitCode}}", container); code != "0" {
		t.Errorf("exit code %s after a SIGTERM", code)
	}
}

// docker runs a command of docker, and returns what it prints to stdout.
func docker(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker", args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("docker %s: %v: %s", args[0], err, stderr.String())
	}
	return strings.TrimSpace(stdout.String())
}

// filesOf returns the files of an image, but for the empty ones that docker adds for what it mounts there.
func filesOf(t *testing.T, image string) (files []string) {
	t.Helper()
	container := docker(t, "create", image)
	defer docker(t, "rm", container)
	archive := tar.NewReader(strings.NewReader(docker(t, "export", container)))
	for {
		switch h, err := archive.Next(); {
		case errors.Is(err, io.EOF):
			slices.Sort(files)
			return files
		case err != nil:
			t.Fatal(err)
		case h.Typeflag != tar.TypeDir && h.Size > 0:
			files = append(files, h.Name)
		}
	}
}
