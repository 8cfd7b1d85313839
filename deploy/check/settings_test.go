package check

import (
	"crypto/rand"
	"encoding/base64"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/walhook/walhook/internal/config"
	"github.com/walhook/walhook/internal/languages"
)

// shipped are the texts of compose.yaml and of all manifests, by path.
func shipped(t *testing.T) map[string]string {
	t.Helper()
	texts := map[string]string{}
	add := func(path string) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		texts[path] = string(text)
	}
	add(root + "/compose.yaml")
	for _, folder := range []string{"kubernetes", "helm", "systemd"} {
		err := filepath.WalkDir(filepath.Join(root, "deploy", folder), func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				add(path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return texts
}

func TestSettingsExist(t *testing.T) {
	t.Parallel()
	var known []string
	for _, v := range config.Variables {
		known = append(known, v.Name)
		if v.Secret {
			known = append(known, v.Name+"_FILE")
		}
	}
	found := 0
	for path, text := range shipped(t) {
		for _, name := range regexp.MustCompile(`\bWALHOOK_\w+`).FindAllString(text, -1) {
			found++
			if !slices.Contains(known, name) {
				t.Errorf("%s has %s, which walhook does not know", path, name)
			}
		}
	}
	if found < 30 {
		t.Errorf("only %d settings were found", found)
	}
}

// Program, port and user are the image's.
func TestManifestsFitTheImage(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(root + "/Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"USER 65534:65534", "EXPOSE 8080", `ENTRYPOINT ["/walhook"]`, `CMD ["run"]`} {
		if !strings.Contains(string(text), "\n"+line+"\n") {
			t.Errorf("the Dockerfile no longer has %q: adapt compose.yaml, deploy/kubernetes and deploy/helm, and this test", line)
		}
	}
	all := manifests(t)
	all["chart"] = rendered(t, "")
	images := map[string]bool{}
	for where, objects := range all {
		for name, object := range objects {
			template := pod(object)
			if template == nil {
				continue
			}
			for _, c := range template.Spec.Containers {
				if c.Name == "postgres" {
					continue
				}
				images[c.Image] = true
				if len(c.Command) > 0 || len(c.Ports) > 0 && c.Ports[0].ContainerPort != 8080 {
					t.Errorf("%s: %s: %s has the command %v and the ports %v", where, name, c.Name, c.Command, c.Ports)
				}
			}
		}
	}
	if len(images) != 1 {
		t.Errorf("walhook's image has several names: %v", images)
	}
}

// A place is what stands for /etc/walhook here, and for the addresses.
type place struct {
	folder, database, address string
}

func newPlace(t *testing.T) place {
	t.Helper()
	p := place{t.TempDir(), newDatabase(t), freeAddress(t)}
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	p.write(t, "secret-key", base64.StdEncoding.EncodeToString(key))
	p.write(t, "admin-token", "a-token-of-the-test")
	p.write(t, "walhook-password", "it's a password")
	return p
}

func (p place) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(p.folder, name), []byte(text+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (p place) superuser() string { return "postgres://postgres@" + p.database + "/app" }

// environment is a container's, with our places for its own.
func (p place) environment(c corev1.Container) (env []string) {
	here := strings.NewReplacer("/etc/walhook", p.folder, ":8080", p.address, "127.0.0.1/app", p.database+"/app")
	for _, e := range c.Env {
		env = append(env, e.Name+"="+here.Replace(e.Value))
	}
	return env
}

// is starts a container, and has its probes answered.
func (p place) is(t *testing.T, c corev1.Container) {
	t.Helper()
	start(t, walhook(t), c.Args, p.environment(c))
	for _, probe := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe} {
		if probe != nil {
			answers(t, "http://"+p.address+probe.HTTPGet.Path)
		}
	}
}

// The manifests' walhooks start with the settings that they have, beside a database that the manifests prepare.
func TestKubernetesStarts(t *testing.T) {
	t.Parallel()
	t.Run("Deployment", func(t *testing.T) {
		t.Parallel()
		p := newPlace(t)
		all := manifests(t)
		p.write(t, "database-url", p.superuser())
		prepare := pod(all["init.yaml"]["Job/walhook-init"]).Spec.Containers[0]
		run(t, walhook(t), prepare.Args, p.environment(prepare))
		p.write(t, "database-url", "postgres://walhook_run@"+p.database+"/app")
		p.is(t, pod(all["walhook.yaml"]["Deployment/walhook"]).Spec.Containers[0])
	})
	t.Run("sidecar", func(t *testing.T) {
		t.Parallel()
		p := newPlace(t)
		objects := manifests(t)["sidecar.yaml"]
		script := objects["ConfigMap/postgres-initdb"].(*corev1.ConfigMap).Data["walhook.sql"]
		p.write(t, "walhook.sql", strings.ReplaceAll(script, "/etc/walhook", p.folder))
		// As the image does.
		run(t, languages.Program(t, "psql"), []string{"-v", "ON_ERROR_STOP=1", "--no-psqlrc", "-f", filepath.Join(p.folder, "walhook.sql"), p.superuser()}, nil)
		c := pod(objects["StatefulSet/postgres"]).Spec.Containers[1]
		p.is(t, c)
		answers(t, "http://"+p.address+"/readyz") // which is no probe there
	})
}

const unitFile = root + "/deploy/systemd/walhook.service"

// The unit's walhook starts with the settings that it has. What systemd confines can only be looked at.
func TestUnitStarts(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(unitFile)
	if err != nil {
		t.Fatal(err)
	}
	p := newPlace(t)
	run(t, walhook(t), []string{"init", "--roles"}, []string{"WALHOOK_DATABASE_URL=" + p.superuser(), "WALHOOK_SCHEMA=webhooks"})
	p.write(t, "database-url", "postgres://walhook_run@"+p.database+"/app")
	var env []string
	for _, m := range regexp.MustCompile(`(?m)^Environment=(.*)$`).FindAllStringSubmatch(string(text), -1) {
		env = append(env, strings.NewReplacer("%d", p.folder, "127.0.0.1:8080", p.address).Replace(m[1]))
	}
	command := regexp.MustCompile(`(?m)^ExecStart=(.*)$`).FindStringSubmatch(string(text))
	if len(env) < 5 || command == nil {
		t.Fatalf("the unit has the settings %v, and the command %v", env, command)
	}
	start(t, walhook(t), strings.Fields(command[1])[1:], env)
	answers(t, "http://"+p.address+"/healthz")
	answers(t, "http://"+p.address+"/readyz")
}

// systemd finds nothing wrong with the unit, and little that could be confined more.
func TestUnitIsHardened(t *testing.T) {
	t.Parallel()
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("there is no systemd-analyze here")
	}
	text, err := os.ReadFile(unitFile)
	if err != nil {
		t.Fatal(err)
	}
	// systemd wants the program to be there.
	unit := filepath.Join(t.TempDir(), "walhook.service")
	if err := os.WriteFile(unit, []byte(strings.Replace(string(text), "/usr/local/bin/walhook", walhook(t), 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	const exposure = "15" // tenths, of 100: what remains is the network, and reading what everybody may
	for _, args := range [][]string{{"verify", "--man=no", unit}, {"security", "--offline=true", "--threshold=" + exposure, unit}} {
		out, err := exec.CommandContext(t.Context(), analyze, args...).CombinedOutput()
		if err != nil || args[0] == "verify" && len(out) > 0 {
			t.Errorf("systemd-analyze %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}
