package check

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/lint"
	"helm.sh/helm/v3/pkg/lint/support"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

const chartFolder = root + "/deploy/helm/walhook"

// kinds are those that the manifests have. Each has a field for whatever a manifest of it may say.
var kinds = map[string]func() any{
	"apps/v1 Deployment":                 func() any { return &appsv1.Deployment{} },
	"apps/v1 StatefulSet":                func() any { return &appsv1.StatefulSet{} },
	"batch/v1 Job":                       func() any { return &batchv1.Job{} },
	"networking.k8s.io/v1 NetworkPolicy": func() any { return &networkingv1.NetworkPolicy{} },
	"policy/v1 PodDisruptionBudget":      func() any { return &policyv1.PodDisruptionBudget{} },
	"v1 ConfigMap":                       func() any { return &corev1.ConfigMap{} },
	"v1 Service":                         func() any { return &corev1.Service{} },
}

// objects decodes manifests strictly: a field that is unknown, misspelled, or there twice is an error.
func objects(t *testing.T, text []byte) map[string]any {
	t.Helper()
	found := map[string]any{}
	documents := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		var meta struct {
			metav1.TypeMeta   `json:",inline"`
			metav1.ObjectMeta `json:"metadata"`
		}
		if err := yaml.Unmarshal(document, &meta); err != nil {
			t.Fatalf("%v in\n%s", err, document)
		}
		if meta.Kind == "" {
			continue // comments alone
		}
		kind := meta.APIVersion + " " + meta.Kind
		empty, known := kinds[kind]
		if !known {
			t.Fatalf("a manifest is of kind %q, which is not looked at", kind)
		}
		object := empty()
		if err := yaml.UnmarshalStrict(document, object); err != nil {
			t.Fatalf("%s %s: %v", kind, meta.Name, err)
		}
		found[meta.Kind+"/"+meta.Name] = object
	}
}

// pod returns the pods that an object makes.
func pod(object any) *corev1.PodTemplateSpec {
	switch o := object.(type) {
	case *appsv1.Deployment:
		return &o.Spec.Template
	case *appsv1.StatefulSet:
		return &o.Spec.Template
	case *batchv1.Job:
		return &o.Spec.Template
	}
	return nil
}

// manifests are those of the folder, by file.
func manifests(t *testing.T) map[string]map[string]any {
	t.Helper()
	files, err := filepath.Glob(root + "/deploy/kubernetes/*.yaml")
	if err != nil || len(files) != 3 {
		t.Fatalf("%v: %v", files, err)
	}
	all := map[string]map[string]any{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all[filepath.Base(file)] = objects(t, text)
	}
	return all
}

// rendered is the chart, as helm install makes it of these values.
func rendered(t *testing.T, values string) map[string]any {
	t.Helper()
	objects, err := render(t, values)
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

func render(t *testing.T, values string) (map[string]any, error) {
	t.Helper()
	return renderAs(t, "walhook", values)
}

func renderAs(t *testing.T, release, values string) (map[string]any, error) {
	t.Helper()
	chart, err := loader.Load(chartFolder)
	if err != nil {
		t.Fatal(err)
	}
	given, err := chartutil.ReadValues([]byte(values))
	if err != nil {
		t.Fatal(err)
	}
	all, err := chartutil.ToRenderValues(chart, given, chartutil.ReleaseOptions{Name: release, Namespace: "default", IsInstall: true}, nil)
	if err != nil {
		return nil, err
	}
	files, err := engine.Render(chart, all)
	if err != nil {
		return nil, err
	}
	made := map[string]any{}
	for name, text := range files {
		if strings.HasSuffix(name, ".yaml") {
			maps.Copy(made, objects(t, []byte(text)))
		}
	}
	return made, nil
}

func TestManifestsAreHardened(t *testing.T) {
	t.Parallel()
	all := manifests(t)
	all["chart"] = rendered(t, "")
	pods := 0
	for where, objects := range all {
		for name, object := range objects {
			template := pod(object)
			if template == nil {
				continue
			}
			pods++
			if err := hardened(&template.Spec); err != nil {
				t.Errorf("%s: %s: %v", where, name, err)
			}
		}
	}
	if pods != 5 {
		t.Errorf("%d pods were looked at, want 5", pods)
	}
}

// hardened names what the restricted profile of the Pod Security Standards would refuse, and the rest that walhook does
// not need.
func hardened(spec *corev1.PodSpec) error {
	var problems []error
	wrong := func(is bool, format string, args ...any) {
		if is {
			problems = append(problems, fmt.Errorf(format, args...))
		}
	}
	wrong(spec.AutomountServiceAccountToken == nil || *spec.AutomountServiceAccountToken, "it gets a token of the API server")
	wrong(spec.HostNetwork || spec.HostPID || spec.HostIPC, "it is in a namespace of the host")
	outer := spec.SecurityContext
	wrong(outer == nil || outer.SeccompProfile == nil || outer.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault, "no seccomp profile")
	for _, c := range spec.Containers {
		s := c.SecurityContext
		if s == nil || outer == nil {
			problems = append(problems, fmt.Errorf("%s has no securityContext", c.Name))
			continue
		}
		nonRoot, user := s.RunAsNonRoot, s.RunAsUser
		if nonRoot == nil {
			nonRoot, user = outer.RunAsNonRoot, outer.RunAsUser
		}
		wrong(nonRoot == nil || !*nonRoot || user == nil || *user == 0, "%s may run as root", c.Name)
		wrong(s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation, "%s may gain privileges", c.Name)
		wrong(s.Capabilities == nil || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) || len(s.Capabilities.Add) > 0, "%s keeps capabilities", c.Name)
		wrong(c.Name != "postgres" && (s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem), "%s can write to its root", c.Name)
		for _, m := range c.VolumeMounts {
			wrong(!slices.ContainsFunc(spec.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name }) && m.Name != "data", "%s mounts %s, which is no volume", c.Name, m.Name)
			wrong(c.Name != "postgres" && !m.ReadOnly, "%s can write to %s", c.Name, m.Name)
		}
		for _, probe := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe} {
			wrong(probe != nil && probe.HTTPGet != nil && !slices.ContainsFunc(c.Ports, func(p corev1.ContainerPort) bool { return p.Name == probe.HTTPGet.Port.StrVal }),
				"a probe of %s asks a port that it has not", c.Name)
		}
		wrong(c.Name == "walhook" && (c.LivenessProbe == nil || c.Resources.Limits.Memory().IsZero()), "walhook has no liveness probe, or no limit of memory")
	}
	return errors.Join(problems...)
}

// What is checked can fail.
func TestHardeningIsMissed(t *testing.T) {
	t.Parallel()
	template := pod(manifests(t)["walhook.yaml"]["Deployment/walhook"])
	for what, soften := range map[string]func(s *corev1.PodSpec){
		"token":      func(s *corev1.PodSpec) { s.AutomountServiceAccountToken = nil },
		"root":       func(s *corev1.PodSpec) { s.SecurityContext.RunAsUser = new(int64(0)) },
		"seccomp":    func(s *corev1.PodSpec) { s.SecurityContext.SeccompProfile = nil },
		"privileges": func(s *corev1.PodSpec) { s.Containers[0].SecurityContext.AllowPrivilegeEscalation = nil },
		"writing":    func(s *corev1.PodSpec) { s.Containers[0].SecurityContext.ReadOnlyRootFilesystem = nil },
		"a volume":   func(s *corev1.PodSpec) { s.Volumes = nil },
		"a port":     func(s *corev1.PodSpec) { s.Containers[0].Ports = nil },
		"a probe":    func(s *corev1.PodSpec) { s.Containers[0].LivenessProbe = nil },
	} {
		spec := template.Spec.DeepCopy()
		soften(spec)
		if hardened(spec) == nil {
			t.Errorf("nothing is said of %s", what)
		}
	}
}

// Services, budgets and policies are about the pods that are there.
func TestSelectorsSelect(t *testing.T) {
	t.Parallel()
	all := manifests(t)
	all["chart"] = rendered(t, "")
	all["chart with three"] = rendered(t, "{replicas: 3}")
	for where, objects := range all {
		var labels []map[string]string
		for _, object := range objects {
			if template := pod(object); template != nil && where != "init.yaml" {
				labels = append(labels, template.Labels)
			}
		}
		for name, object := range objects {
			var selector map[string]string
			switch o := object.(type) {
			case *appsv1.Deployment:
				selector = o.Spec.Selector.MatchLabels
			case *appsv1.StatefulSet:
				selector = o.Spec.Selector.MatchLabels
			case *corev1.Service:
				selector = o.Spec.Selector
			case *policyv1.PodDisruptionBudget:
				selector = o.Spec.Selector.MatchLabels
			case *networkingv1.NetworkPolicy:
				selector = o.Spec.PodSelector.MatchLabels
			default:
				continue
			}
			selected := 0
			for _, l := range labels {
				if includes(l, selector) {
					selected++
				}
			}
			if selected != 1 {
				t.Errorf("%s: %s selects %d kinds of pods, want 1", where, name, selected)
			}
		}
	}
}

func includes(labels, selector map[string]string) bool {
	for name, value := range selector {
		if labels[name] != value {
			return false
		}
	}
	return len(selector) > 0
}

// The chart's defaults are the manifests, but for labels.
func TestChartIsTheManifests(t *testing.T) {
	t.Parallel()
	plain, made := manifests(t), rendered(t, "")
	for _, pair := range [][2]any{
		{plain["walhook.yaml"]["Deployment/walhook"], made["Deployment/walhook"]},
		{plain["init.yaml"]["Job/walhook-init"], made["Job/walhook-init"]},
	} {
		want, got := pod(pair[0]).Spec, pod(pair[1]).Spec
		for _, spec := range []*corev1.PodSpec{&want, &got} {
			for i := range spec.TopologySpreadConstraints {
				spec.TopologySpreadConstraints[i].LabelSelector = nil
			}
			for i := range spec.Containers {
				spec.Containers[i].ImagePullPolicy = ""
			}
		}
		same(t, want, got)
	}
	same(t, plain["walhook.yaml"]["NetworkPolicy/walhook"].(*networkingv1.NetworkPolicy).Spec.Egress, made["NetworkPolicy/walhook"].(*networkingv1.NetworkPolicy).Spec.Egress)
	same(t, plain["walhook.yaml"]["NetworkPolicy/walhook"].(*networkingv1.NetworkPolicy).Spec.Ingress, made["NetworkPolicy/walhook"].(*networkingv1.NetworkPolicy).Spec.Ingress)
	same(t, plain["walhook.yaml"]["Service/walhook"].(*corev1.Service).Spec.Ports, made["Service/walhook"].(*corev1.Service).Spec.Ports)
	same(t, plain["walhook.yaml"]["Deployment/walhook"].(*appsv1.Deployment).Spec.Strategy, made["Deployment/walhook"].(*appsv1.Deployment).Spec.Strategy)
}

func same(t *testing.T, want, got any) {
	t.Helper()
	if reflect.DeepEqual(want, got) {
		return
	}
	w, _ := yaml.Marshal(want)
	g, _ := yaml.Marshal(got)
	t.Errorf("the manifest has\n%s\nand the chart makes\n%s", w, g)
}

func TestChartLints(t *testing.T) {
	t.Parallel()
	for _, m := range lint.All(chartFolder, nil, "default", true).Messages {
		if m.Severity > support.InfoSev { // an icon is recommended
			t.Error(m)
		}
	}
}

// What looks like a number stays the text that it is, and the longest name of a release makes names that Kubernetes takes.
func TestChartNames(t *testing.T) {
	t.Parallel()
	const values = `{existingSecret: "1", init: {existingSecret: "2"}, schema: "3", env: {WALHOOK_ENVIRONMENT: "4"}, networkPolicy: {monitoringNamespace: "5"},
		image: {repository: "6", tag: "7"}}`
	for _, release := range []string{"1e3", "true", strings.Repeat("x", 53)} {
		made, err := renderAs(t, release, values) // which decodes strictly
		if err != nil {
			t.Fatal(err)
		}
		for name := range made {
			if _, name, _ = strings.Cut(name, "/"); len(name) > 63 {
				t.Errorf("%s has %d characters, more than 63", name, len(name))
			}
		}
	}
}

// A node can be drained while PostgreSQL is away, and so neither walhook is ready.
func TestBudgetsLetUnreadyPodsGo(t *testing.T) {
	t.Parallel()
	for where, objects := range map[string]map[string]any{"walhook.yaml": manifests(t)["walhook.yaml"], "chart": rendered(t, "")} {
		budget := objects["PodDisruptionBudget/walhook"].(*policyv1.PodDisruptionBudget)
		if p := budget.Spec.UnhealthyPodEvictionPolicy; p == nil || *p != policyv1.AlwaysAllow {
			t.Errorf("%s: evicted are %v", where, p)
		}
	}
}

// Each value does what it says.
func TestChartValues(t *testing.T) {
	t.Parallel()
	one := rendered(t, `
image: {repository: example.org/walhook, tag: "1.2.3"}
replicas: 1
init: {enabled: false}
networkPolicy: {enabled: false}
existingSecret: another
schema: public
env: {WALHOOK_ENVIRONMENT: production}
imagePullSecrets: [{name: registry}]
podAnnotations: {prometheus.io/scrape: "true"}
nodeSelector: {kubernetes.io/os: linux}
tolerations: [{key: webhooks, operator: Exists}]`)
	if len(one) != 2 || one["Service/walhook"] == nil {
		t.Errorf("made are %v, want a Deployment and a Service", one)
	}
	spec := pod(one["Deployment/walhook"]).Spec
	text, err := yaml.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"image: example.org/walhook:1.2.3", "secretName: another", "- name: WALHOOK_SCHEMA\n    value: public", "- name: WALHOOK_ENVIRONMENT\n    value: production",
		"- name: registry", "kubernetes.io/os: linux", "key: webhooks",
	} {
		if !bytes.Contains(text, []byte(want)) {
			t.Errorf("want %q in\n%s", want, text)
		}
	}
	if got := pod(one["Deployment/walhook"]).Annotations["prometheus.io/scrape"]; got != "true" {
		t.Errorf("the annotation is %q", got)
	}
	policy := rendered(t, `networkPolicy: {monitoringNamespace: watch, postgres: {cidrs: [10.1.0.0/24, "fd00::5/128"], port: 6432}}`)["NetworkPolicy/walhook"].(*networkingv1.NetworkPolicy)
	if to := policy.Spec.Egress[1]; len(to.To) != 2 || to.To[1].IPBlock.CIDR != "fd00::5/128" || to.Ports[0].Port.IntVal != 6432 {
		t.Errorf("PostgreSQL is reached by %v", to)
	}
	if got := pod(rendered(t, `terminationGracePeriodSeconds: 70`)["Deployment/walhook"]).Spec.TerminationGracePeriodSeconds; *got != 70 {
		t.Errorf("it is given %d seconds to end", *got)
	}
	for _, bad := range []string{
		`env: {WALHOOK_DATABASE_URL: x}`, `env: {WALHOOK_DATABASE_URL_FILE: x}`, `env: {WALHOOK_SCHEMA: x}`, `env: {WALHOOK_ADMIN_ADDR: ":9"}`, // there already
		`replica: 2`, `replicas: 0`, `env: {DATABASE_URL: x}`, `env: {WALHOOK_MAX_IN_FLIGHT: 5}`, `networkPolicy: {postgres: {cidrs: []}}`, `goMemoryLimit: lots`, `existingSecret: ""`,
	} {
		if _, err := render(t, bad); err == nil {
			t.Errorf("values %q are taken", bad)
		}
	}
}
