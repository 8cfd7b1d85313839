package check

import (
	"encoding/json"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"

	"github.com/walhook/walhook/internal/languages"
	"github.com/walhook/walhook/internal/postgres/pgtest"
)

// stack reads compose.yaml as Docker Compose does: against the specification's schema, with unknown fields refused.
func stack(t *testing.T) *types.Project {
	t.Helper()
	options, err := cli.NewProjectOptions([]string{filepath.Join(root, "compose.yaml")}, cli.WithWorkingDirectory(root),
		cli.WithEnv([]string{"POSTGRES_PASSWORD=a/b+c=@:%", "RUN_PASSWORD=d/e+f=@:%#"})) // as openssl rand -base64 makes them, and worse
	if err != nil {
		t.Fatal(err)
	}
	project, err := options.LoadProject(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return project
}

func TestComposeFilesAreThere(t *testing.T) {
	t.Parallel()
	for name, service := range stack(t).Services {
		if service.Build != nil {
			if _, err := os.Stat(filepath.Join(service.Build.Context, "Dockerfile")); err != nil {
				t.Errorf("service %s is built from %s: %v", name, service.Build.Context, err)
			}
		}
		for _, v := range service.Volumes {
			if _, err := os.Stat(v.Source); v.Type == types.VolumeTypeBind && err != nil {
				t.Errorf("service %s mounts %s: %v", name, v.Source, err)
			}
		}
	}
}

// Docker Compose itself accepts the file, where it is installed.
func TestDockerComposeTakesTheFile(t *testing.T) {
	t.Parallel()
	if out, err := exec.CommandContext(t.Context(), "docker", "compose", "version").CombinedOutput(); err != nil {
		t.Skipf("there is no docker compose here, and its own library alone has read the file: %v: %s", err, out)
	}
	config := exec.CommandContext(t.Context(), "docker", "compose", "config", "--quiet")
	config.Dir = root
	if out, err := config.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// here is the stack on this machine: its programs and settings as compose.yaml has them, but for the addresses.
type here struct {
	project *types.Project
	program string // walhook
	address *strings.Replacer
}

func newHere(t *testing.T) here {
	t.Helper()
	h := here{project: stack(t), program: walhook(t)}
	database := newDatabase(t)
	replaced := []string{h.project.Networks["default"].Ipam.Config[0].Subnet, "127.0.0.0/8", "@postgres:5432/", "@" + database + "/"}
	for _, name := range []string{"receiver:3000", "walhook:8080"} {
		replaced = append(replaced, name, freeAddress(t))
	}
	h.address = strings.NewReplacer(replaced...)
	return h
}

// superuser is the URL that init has.
func (h here) superuser() string {
	return h.address.Replace(*h.project.Services["init"].Environment["WALHOOK_DATABASE_URL"])
}

// environment is a service's.
func (h here) environment(service string, more ...string) (env []string) {
	for name, value := range h.project.Services[service].Environment {
		env = append(env, name+"="+h.address.Replace(*value))
	}
	return append(env, more...)
}

// The stack works, as far as it can without Docker: its SQL, commands, settings and configurations, in its order.
func TestComposeDelivers(t *testing.T) {
	t.Parallel()
	h := newHere(t)
	execute(t, h.superuser(), h.project.Configs["roles"].Content)
	run(t, h.program, h.project.Services["init"].Command, h.environment("init"))
	command := h.project.Services["endpoint"].Command
	for range 2 { // it may be started again
		execute(t, h.superuser(), h.address.Replace(command[len(command)-1]))
	}

	receiver := h.project.Services["receiver"]
	_, port, _ := net.SplitHostPort(h.address.Replace("receiver:3000"))
	worked := start(t, languages.Program(t, receiver.Command[0]), []string{root + "/examples/receivers/receiver.mjs"},
		h.environment("receiver", "PORT="+port, "WEBHOOK_STORE="+filepath.Join(t.TempDir(), "webhooks.jsonl")))
	address := h.address.Replace("walhook:8080")
	start(t, h.program, nil, h.environment("walhook", "WALHOOK_ADMIN_ADDR="+address))
	answers(t, "http://"+address+"/readyz")

	run(t, h.program, []string{"trigger", "org_1", "payment.succeeded"}, h.environment("walhook"))
	pgtest.Eventually(t, patience, "the receiver works on it", func() bool {
		return strings.Contains(worked.String(), "received payment.succeeded of org_1: ")
	})
	t.Run("Prometheus", func(t *testing.T) { h.prometheusScrapes(t) })
}

// prometheusScrapes has a Prometheus with the stack's configuration scrape its walhook, with its token.
func (h here) prometheusScrapes(t *testing.T) {
	program, err := exec.LookPath("prometheus")
	if err != nil {
		t.Skip("there is no prometheus on the PATH: install the package, as .ci/run does")
	}
	rules, err := filepath.Abs(filepath.Join(root, "deploy/prometheus/alerts.yml"))
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	file := filepath.Join(folder, "prometheus.yml")
	content := h.address.Replace(strings.ReplaceAll(h.project.Configs["prometheus"].Content, "/etc/prometheus/alerts.yml", rules))
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	address := freeAddress(t)
	start(t, program, []string{"--config.file", file, "--storage.tsdb.path", folder, "--web.listen-address", address, "--log.level", "warn"}, nil)
	pgtest.Eventually(t, patience, "Prometheus scrapes walhook", func() bool {
		return slices.Contains(ask(t, address, `walhook_role{job="walhook",role="active"} == 1`), "walhook")
	})
	if firing := ask(t, address, `ALERTS{alertstate="firing"}`); len(firing) > 0 {
		t.Errorf("alerts fire: %v", firing)
	}
}

// ask returns the jobs of the series that a query finds.
func ask(t *testing.T, prometheus, query string) (jobs []string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+prometheus+"/api/v1/query", nil)
	if err != nil {
		t.Fatal(err)
	}
	parameters := req.URL.Query()
	parameters.Set("query", query)
	req.URL.RawQuery = parameters.Encode()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil // it starts
	}
	defer resp.Body.Close()
	var answer struct {
		Data struct {
			Result []struct{ Metric map[string]string }
		}
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return nil
	}
	for _, r := range answer.Data.Result {
		jobs = append(jobs, r.Metric["job"])
	}
	return jobs
}
