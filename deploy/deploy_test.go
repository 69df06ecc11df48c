// Package deploy_test holds what the DaemonSet promises to operators. That it fits the
// image, and works in a cluster, is tested in lab/.
package deploy_test

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

func daemonSet(t *testing.T) appsv1.DaemonSet {
	t.Helper()
	content, err := os.ReadFile("chart/base/daemonset.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var ds appsv1.DaemonSet
	if err := yaml.UnmarshalStrict(content, &ds); err != nil {
		t.Fatal(err)
	}
	return ds
}

func container(t *testing.T, all []corev1.Container, name string) corev1.Container {
	t.Helper()
	i := slices.IndexFunc(all, func(c corev1.Container) bool { return c.Name == name })
	if i < 0 {
		t.Fatalf("there is no container %s", name)
	}
	return all[i]
}

// TestRollOut: a broken image stops at the first node, and the next node's turn comes
// when flock serves pods here and withdrawals reach the routers.
func TestRollOut(t *testing.T) {
	ds := daemonSet(t)
	update := ds.Spec.UpdateStrategy
	if update.Type != appsv1.RollingUpdateDaemonSetStrategyType || update.RollingUpdate.MaxUnavailable.IntValue() != 1 || update.RollingUpdate.MaxSurge != nil {
		t.Errorf("%+v: want one node at a time, and never two agents on one", update)
	}
	if ds.Spec.MinReadySeconds < 10 {
		t.Errorf("minReadySeconds is %d: want an agent that ends a moment after its start to be noticed", ds.Spec.MinReadySeconds)
	}
	agent := container(t, ds.Spec.Template.Spec.Containers, "agent")
	for name, c := range map[string]struct {
		probe *corev1.Probe
		path  string
		least int32 // seconds until it fails
	}{
		"startup":   {agent.StartupProbe, "/healthz", 60},
		"readiness": {agent.ReadinessProbe, "/readyz", 2},
		"liveness":  {agent.LivenessProbe, "/healthz", 120},
	} {
		switch p := c.probe; {
		case p == nil || p.Exec == nil:
			t.Errorf("the agent has no %s probe that no other program could answer", name)
		case !slices.Equal(p.Exec.Command, []string{"/usr/local/bin/flock-probe", c.path}):
			t.Errorf("the agent's %s probe is %q: want flock-probe %s", name, p.Exec.Command, c.path)
		case p.PeriodSeconds*p.FailureThreshold < c.least:
			t.Errorf("the agent's %s probe fails after %d s: want at least %d", name, p.PeriodSeconds*p.FailureThreshold, c.least)
		}
	}
	bird := container(t, ds.Spec.Template.Spec.Containers, "bird")
	if bird.LivenessProbe == nil || bird.ReadinessProbe == nil {
		t.Error("BIRD has no probes")
	}
}

// TestEnd: BIRD ends as the agent has decided, and has the time for it.
func TestEnd(t *testing.T) {
	spec := daemonSet(t).Spec.Template.Spec
	bird := container(t, spec.Containers, "bird")
	if l := bird.Lifecycle; l == nil || l.PreStop == nil || !slices.Equal(l.PreStop.Exec.Command, []string{"/usr/local/bin/flock-bird-stop"}) {
		t.Errorf("%+v: want flock-bird-stop before BIRD is stopped", bird.Lifecycle)
	}
	if !slices.Contains(bird.Command, "-R") {
		t.Errorf("%q: without -R the start of BIRD withdraws all routes for a moment", bird.Command)
	}
	if g := spec.TerminationGracePeriodSeconds; g == nil || *g < 15 {
		t.Error("terminationGracePeriodSeconds: want 15, flock-bird-stop takes up to 10")
	}
}

// TestPlace: flock runs on every node with its label, whatever happens there, and first.
func TestPlace(t *testing.T) {
	ds := daemonSet(t)
	spec := ds.Spec.Template.Spec
	if !spec.HostNetwork || spec.PriorityClassName != "system-node-critical" || spec.DNSPolicy != corev1.DNSDefault {
		t.Errorf("hostNetwork %t, priority %s, DNS %s", spec.HostNetwork, spec.PriorityClassName, spec.DNSPolicy)
	}
	if want := []corev1.Toleration{{Operator: corev1.TolerationOpExists}}; !reflect.DeepEqual(spec.Tolerations, want) {
		t.Errorf("%+v: want every taint tolerated", spec.Tolerations)
	}
	if want := map[string]string{"flock.fritzlab.net/agent": ""}; !reflect.DeepEqual(spec.NodeSelector, want) {
		t.Errorf("%v, want %v", spec.NodeSelector, want)
	}
	if ds.Name != "flock" {
		t.Error("package departure and the rights of the agent go by the name flock")
	}
}

// TestPrivileges: each container has what it needs and no more.
func TestPrivileges(t *testing.T) {
	spec := daemonSet(t).Spec.Template.Spec
	if spec.SecurityContext == nil || spec.SecurityContext.SeccompProfile == nil || spec.SecurityContext.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Error("want the runtime's seccomp profile")
	}
	if s := spec.SecurityContext.SELinuxOptions; s == nil || s.Type != "spc_t" {
		t.Error("want the SELinux type spc_t: container_t may not write the plugin, nor connect to the runtime")
	}
	if m := spec.AutomountServiceAccountToken; m == nil || *m {
		t.Error("want the token in the agent's container alone")
	}
	capabilities := map[string][]corev1.Capability{
		"install": {"DAC_OVERRIDE"},
		"agent":   {"NET_ADMIN", "SYS_ADMIN"},
		"bird":    {"NET_ADMIN", "NET_BIND_SERVICE", "NET_RAW"},
	}
	for _, c := range slices.Concat(spec.InitContainers, spec.Containers) {
		s := c.SecurityContext
		if s == nil || s.Privileged != nil || s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) {
			t.Errorf("%s: %+v", c.Name, s)
		} else if want, ok := capabilities[c.Name]; !ok || !slices.Equal(s.Capabilities.Add, want) {
			t.Errorf("%s has %v, want %v", c.Name, s.Capabilities.Add, want)
		}
		if c.Resources.Requests.Cpu().IsZero() || c.Resources.Requests.Memory().IsZero() {
			t.Errorf("%s requests no CPU or memory", c.Name)
		}
		if len(c.Resources.Limits) > 0 {
			t.Errorf("%s has limits: %v: withdrawals would wait for its share", c.Name, c.Resources.Limits)
		}
		token := slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == "api-access" })
		if token != (c.Name == "agent") {
			t.Errorf("%s has a token: %t", c.Name, token)
		}
	}
}

// roles are the rules that the manifests give to a service account of flock-system.
func roles(t *testing.T, account string) (rules []rbacv1.PolicyRule) {
	t.Helper()
	type document struct {
		metav1.TypeMeta   `json:",inline"`
		metav1.ObjectMeta `json:"metadata"`
		Rules             []rbacv1.PolicyRule `json:"rules"`
		Subjects          []rbacv1.Subject    `json:"subjects"`
		RoleRef           rbacv1.RoleRef      `json:"roleRef"`
	}
	files, err := filepath.Glob("chart/base/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no manifests", err)
	}
	of, bound := map[rbacv1.RoleRef][]rbacv1.PolicyRule{}, map[rbacv1.RoleRef]bool{}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for text := range strings.SplitSeq(string(content), "\n---\n") {
			var d document
			if err := yaml.Unmarshal([]byte(text), &d); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			switch d.Kind {
			case "Role", "ClusterRole":
				of[rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: d.Kind, Name: d.Name}] = d.Rules
			case "RoleBinding", "ClusterRoleBinding":
				if slices.ContainsFunc(d.Subjects, func(s rbacv1.Subject) bool { return s.Kind != "ServiceAccount" || s.Name == account }) {
					bound[d.RoleRef] = true
				}
			}
		}
	}
	if len(bound) == 0 {
		t.Fatalf("no role is bound to %s", account)
	}
	for ref := range bound {
		if of[ref] == nil {
			t.Errorf("%s is bound to %s %s, which is not in the manifests", account, ref.Kind, ref.Name)
		}
		rules = append(rules, of[ref]...)
	}
	return rules
}

// TestSecrets: no node reads a Secret. flock-controller follows those of flock-system, to
// encrypt each password for the node that needs it.
func TestSecrets(t *testing.T) {
	reads := func(r rbacv1.PolicyRule) bool {
		return slices.ContainsFunc(r.Resources, func(s string) bool { return s == "*" || strings.HasPrefix(s, "secrets") }) ||
			slices.Contains(r.APIGroups, "*") || slices.Contains(r.Verbs, "*")
	}
	for _, r := range roles(t, "flock") {
		if reads(r) {
			t.Errorf("the agents have %+v", r)
		}
	}
	found := 0
	for _, r := range roles(t, "flock-controller") {
		if reads(r) {
			found++
			if !slices.Equal(r.Verbs, []string{"list", "watch"}) || !slices.Equal(r.Resources, []string{"secrets"}) {
				t.Errorf("flock-controller has %+v", r)
			}
		}
	}
	if found != 1 {
		t.Errorf("flock-controller has %d rules about Secrets, want one", found)
	}
	content, err := os.ReadFile("chart/base/controller.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for text := range strings.SplitSeq(string(content), "\n---\n") {
		var r rbacv1.ClusterRole
		if err := yaml.Unmarshal([]byte(text), &r); err == nil && r.Kind == "ClusterRole" && slices.ContainsFunc(r.Rules, reads) {
			t.Errorf("flock-controller reads Secrets of all namespaces")
		}
		var d appsv1.Deployment
		if err := yaml.Unmarshal([]byte(text), &d); err == nil && d.Kind == "Deployment" && !d.Spec.Template.Spec.HostNetwork {
			t.Error("without hostNetwork flock-controller could not work before the routes that need its passwords")
		}
	}
}
