// Package deploy holds what is deployed against what is there to deploy. The
// manifests are data; these tests are their compiler.
package deploy

import (
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"

	"flock.fritzlab.net/flock/lab/image"
)

const checkout = "../.."

// build is what `kubectl apply -k dir` applies, decoded strictly: a field that
// Kubernetes does not know is an error.
func build(t *testing.T, dir string) (objects []runtime.Object) {
	t.Helper()
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range resources.Resources() {
		objects = append(objects, decode(t, []byte(r.MustYaml())))
	}
	return objects
}

// decode reads an object strictly: a field that Kubernetes does not know is an error.
func decode(t *testing.T, document []byte) runtime.Object {
	t.Helper()
	known := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{scheme.AddToScheme, apiextensionsv1.AddToScheme} {
		if err := add(known); err != nil {
			t.Fatal(err)
		}
	}
	o, _, err := serializer.NewCodecFactory(known, serializer.EnableStrict).UniversalDeserializer().Decode(document, nil, nil)
	if err != nil {
		t.Fatalf("%v in:\n%s", err, document)
	}
	return o
}

// only is the one object of type T.
func only[T runtime.Object](t *testing.T, objects []runtime.Object) T {
	t.Helper()
	found := all[T](objects)
	if len(found) != 1 {
		t.Fatalf("%d objects of type %T, want 1", len(found), *new(T))
	}
	return found[0]
}

func all[T runtime.Object](objects []runtime.Object) (found []T) {
	for _, o := range objects {
		if o, ok := o.(T); ok {
			found = append(found, o)
		}
	}
	return found
}

func containers(ds *appsv1.DaemonSet) []corev1.Container {
	return slices.Concat(ds.Spec.Template.Spec.InitContainers, ds.Spec.Template.Spec.Containers)
}

func TestEveryCRDIsDeployed(t *testing.T) {
	var deployed int
	for _, o := range build(t, checkout+"/deploy") {
		if _, ok := o.(*apiextensionsv1.CustomResourceDefinition); ok {
			deployed++
		}
	}
	files, err := filepath.Glob(checkout + "/deploy/chart/base/crds/*.yaml")
	if err != nil || len(files) == 0 || deployed != len(files) {
		t.Errorf("%d CRDs deployed, %d in deploy/chart/base/crds (%v): name each in deploy/kustomization.yaml", deployed, len(files), err)
	}
}

// The image's content is known, so a command that is not in it is found here and
// not on a node; so is a mount without a volume, or a volume that none mounts.
func TestPodsFitTheImage(t *testing.T) {
	objects := build(t, checkout+"/deploy")
	for _, pod := range []corev1.PodSpec{only[*appsv1.DaemonSet](t, objects).Spec.Template.Spec, only[*appsv1.Deployment](t, objects).Spec.Template.Spec} {
		podFitsTheImage(t, pod)
	}
}

func podFitsTheImage(t *testing.T, pod corev1.PodSpec) {
	bin := t.TempDir()
	spec, err := image.Flock(checkout, bin)
	if err != nil {
		t.Fatal(err)
	}
	has := func(file string) bool {
		return slices.ContainsFunc(spec.Entries, func(e image.Entry) bool { return e.Path == file })
	}
	mounted := map[string]bool{}
	for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
		if c.Image != image.FlockRef {
			t.Errorf("container %s: image %s, want %s, which is what kustomize's images: replaces", c.Name, c.Image, image.FlockRef)
		}
		commands := [][]string{c.Command}
		if len(c.Command) > 1 && path.Base(c.Command[0]) == "flock-slice" {
			commands = append(commands, c.Command[1:])
		}
		for _, p := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
			if p != nil && p.Exec != nil {
				commands = append(commands, p.Exec.Command)
			}
		}
		if c.Lifecycle != nil && c.Lifecycle.PreStop != nil {
			commands = append(commands, c.Lifecycle.PreStop.Exec.Command)
		}
		for _, command := range commands {
			if len(command) == 0 || !has(command[0]) {
				t.Errorf("container %s: command %q is not in the image", c.Name, command)
				continue
			}
			for i, arg := range command[:len(command)-1] {
				next := command[i+1]
				if arg == "-c" && !has(next) || arg == "-s" && !below(c, path.Dir(next)) {
					t.Errorf("container %s: %s %s: is neither in the image nor mounted", c.Name, arg, next)
				}
			}
		}
		for _, m := range c.VolumeMounts {
			mounted[m.Name] = true
			if !slices.ContainsFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name }) {
				t.Errorf("container %s: mounts the volume %s, which is not there", c.Name, m.Name)
			}
		}
	}
	for _, v := range pod.Volumes {
		if !mounted[v.Name] {
			t.Errorf("volume %s: no container mounts it", v.Name)
		}
	}
	conf, err := os.ReadFile(checkout + "/deploy/bird.conf")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
		if c.Name == "bird" && (!strings.Contains(string(conf), `include "/run/flock/bird/bird.con[f]"`) || !below(c, "/run/flock/bird")) {
			t.Error("container bird: what deploy/bird.conf includes is not mounted")
		}
	}
}

func below(c corev1.Container, dir string) bool {
	return slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool {
		return dir == m.MountPath || strings.HasPrefix(dir, m.MountPath+"/")
	})
}

// What each part may do is listed here a second time: more takes two edits.
func TestLeastPrivilege(t *testing.T) {
	objects := build(t, checkout+"/deploy")
	ds := only[*appsv1.DaemonSet](t, objects)
	pod := ds.Spec.Template.Spec

	capabilities := map[string][]corev1.Capability{
		"install": {"DAC_OVERRIDE"},
		"agent":   {"NET_ADMIN", "SYS_ADMIN"},
		"bird":    {"NET_ADMIN", "NET_BIND_SERVICE", "NET_RAW"},
	}
	for _, c := range containers(ds) {
		s := c.SecurityContext
		want, known := capabilities[c.Name]
		switch {
		case !known:
			t.Errorf("container %s: say here what it may do", c.Name)
		case s == nil || s.Capabilities == nil || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) || !slices.Equal(s.Capabilities.Add, want):
			t.Errorf("container %s: capabilities %+v, want ALL dropped and %v added", c.Name, s, want)
		case s.Privileged != nil && *s.Privileged:
			t.Errorf("container %s: is privileged", c.Name)
		case s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem:
			t.Errorf("container %s: may write to its root", c.Name)
		}
		for _, m := range c.VolumeMounts {
			if m.Name == "api-access" && c.Name != "agent" {
				t.Errorf("container %s: has the agent's token", c.Name)
			}
		}
	}
	if a := pod.AutomountServiceAccountToken; a == nil || *a {
		t.Error("the service account's token is mounted in all containers")
	}
	if pod.HostPID || pod.HostIPC || !pod.HostNetwork {
		t.Errorf("hostPID %t hostIPC %t hostNetwork %t: want the network alone", pod.HostPID, pod.HostIPC, pod.HostNetwork)
	}
	if sc := pod.SecurityContext; sc == nil || sc.SeccompProfile == nil || sc.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Error("no seccomp profile: want the runtime's default")
	}

	if may, want := rights(t, objects, "flock"), []string{
		"get,list,watch flock.fritzlab.net/nodeconfigs",
		"get,list,watch flock.fritzlab.net/addresspools",
		"get,list,watch flock.fritzlab.net/nodeconfigtemplates",
		"create,update flock.fritzlab.net/nodeconfigs",
		"get,list,watch /nodes",
		"get,list,watch /pods",
		"get,list,watch /namespaces",
		"list,watch networking.k8s.io/networkpolicies",
		"list,watch policy.networking.k8s.io/clusternetworkpolicies",
		"watch apiextensions.k8s.io/customresourcedefinitions",
		"list,watch /services", "list,watch discovery.k8s.io/endpointslices",
		"get,patch flock.fritzlab.net/nodeconfigs/status",
		"patch /nodes",
		"patch /nodes/status",
		"get,list,watch,create,update,delete flock.fritzlab.net/addressclaims",
		"create authentication.k8s.io/tokenreviews",
		"create authorization.k8s.io/subjectaccessreviews",
		"create,patch events.k8s.io/events",
	}; !slices.Equal(may, want) {
		t.Errorf("the agent may %q, want %q", may, want)
	}
	if may, want := rights(t, objects, "flock-controller"), []string{
		"get,list,watch /services",
		"get,list,watch /namespaces",
		"get,list,watch /nodes",
		"get,list,watch /pods",
		"patch /services/status",
		"get,list,watch flock.fritzlab.net/nodeconfigs",
		"get,list,watch flock.fritzlab.net/nodeconfigtemplates",
		"get,list,watch flock.fritzlab.net/addresspools",
		"patch flock.fritzlab.net/nodeconfigs/status",
		"patch flock.fritzlab.net/nodeconfigtemplates/status",
		"patch flock.fritzlab.net/addresspools/status",
		"get,list,watch,create,update,delete flock.fritzlab.net/addressclaims",
		"create,patch events.k8s.io/events",
		"create authentication.k8s.io/tokenreviews", "create authorization.k8s.io/subjectaccessreviews",
	}; !slices.Equal(may, want) {
		t.Errorf("the controller may %q, want %q", may, want)
	}
	denied := map[string]bool{}
	for _, b := range all[*admissionv1.ValidatingAdmissionPolicyBinding](objects) {
		denied[b.Spec.PolicyName] = slices.Equal(b.Spec.ValidationActions, []admissionv1.ValidationAction{admissionv1.Deny})
	}
	for _, p := range all[*admissionv1.ValidatingAdmissionPolicy](objects) {
		if !denied[p.Name] {
			t.Errorf("policy %s is not bound, or does not deny", p.Name)
		}
	}
}

// rights are those of a ClusterRole, which its name's account has.
func rights(t *testing.T, objects []runtime.Object, name string) (may []string) {
	t.Helper()
	for _, role := range all[*rbacv1.ClusterRole](objects) {
		if role.Name != name {
			continue
		}
		for _, r := range role.Rules {
			for _, g := range r.APIGroups {
				for _, resource := range r.Resources {
					may = append(may, strings.Join(r.Verbs, ",")+" "+g+"/"+resource)
				}
			}
		}
	}
	for _, b := range all[*rbacv1.ClusterRoleBinding](objects) {
		if b.RoleRef.Name == name && (len(b.Subjects) != 1 || b.Subjects[0].Name != name) {
			t.Errorf("ClusterRole %s is bound to %+v", name, b.Subjects)
		}
	}
	return may
}

// The controller has two instances on different nodes, works without a network for pods, and
// has no capability.
func TestController(t *testing.T) {
	d := only[*appsv1.Deployment](t, build(t, checkout+"/deploy"))
	pod := d.Spec.Template.Spec
	if d.Name != "flock-controller" || d.Namespace != "flock-system" || d.Spec.Replicas == nil || *d.Spec.Replicas != 2 || pod.ServiceAccountName != "flock-controller" {
		t.Errorf("%s/%s: %v replicas, account %s", d.Namespace, d.Name, d.Spec.Replicas, pod.ServiceAccountName)
	}
	if a := pod.AutomountServiceAccountToken; a == nil || *a || !pod.HostNetwork || pod.HostPID || pod.HostIPC {
		t.Errorf("hostNetwork %t hostPID %t hostIPC %t", pod.HostNetwork, pod.HostPID, pod.HostIPC)
	}
	if sc := pod.SecurityContext; sc == nil || sc.RunAsNonRoot == nil || !*sc.RunAsNonRoot || sc.SeccompProfile == nil || sc.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Errorf("security context %+v", pod.SecurityContext)
	}
	const name = "app.kubernetes.io/name"
	if labels := d.Spec.Template.Labels; labels[name] != "flock-controller" || d.Spec.Selector.MatchLabels[name] != "flock-controller" {
		t.Errorf("labels %v, selector %v: want other ones than the DaemonSet's", labels, d.Spec.Selector.MatchLabels)
	}
	anti := pod.Affinity.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution
	if len(anti) != 1 || anti[0].PodAffinityTerm.TopologyKey != corev1.LabelHostname {
		t.Errorf("anti-affinity %+v", anti)
	}
	for _, taint := range []corev1.Taint{
		{Key: corev1.TaintNodeNotReady, Effect: corev1.TaintEffectNoSchedule}, {Key: corev1.TaintNodeNotReady, Effect: corev1.TaintEffectNoExecute},
		{Key: corev1.TaintNodeNetworkUnavailable, Effect: corev1.TaintEffectNoSchedule}, {Key: "flock.fritzlab.net/starting", Effect: corev1.TaintEffectNoExecute},
		{Key: "node-role.kubernetes.io/control-plane", Effect: corev1.TaintEffectNoSchedule},
	} {
		if !slices.ContainsFunc(pod.Tolerations, func(x corev1.Toleration) bool {
			return x.Key == taint.Key && (x.Effect == "" || x.Effect == taint.Effect) && x.TolerationSeconds == nil
		}) {
			t.Errorf("taint %s:%s is not tolerated", taint.Key, taint.Effect)
		}
	}
	c := pod.Containers[0]
	s := c.SecurityContext
	if len(pod.Containers) != 1 || s == nil || s.Capabilities == nil || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) || len(s.Capabilities.Add) > 0 || s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem {
		t.Errorf("container %s: %+v", c.Name, s)
	}
	if c.ReadinessProbe == nil || c.LivenessProbe == nil || c.Resources.Requests.Cpu().IsZero() || c.Resources.Requests.Memory().IsZero() {
		t.Errorf("container %s: probes %v %v, resources %v", c.Name, c.ReadinessProbe, c.LivenessProbe, c.Resources)
	}
}

// The nodes that opt in, whatever their taints, one at a time.
func TestRollOut(t *testing.T) {
	ds := only[*appsv1.DaemonSet](t, build(t, checkout+"/deploy"))
	pod := ds.Spec.Template.Spec
	if len(pod.NodeSelector) != 1 || pod.NodeSelector["flock.fritzlab.net/agent"] != "" {
		t.Errorf("nodeSelector %v", pod.NodeSelector)
	}
	if !slices.Equal(pod.Tolerations, []corev1.Toleration{{Operator: corev1.TolerationOpExists}}) {
		t.Errorf("tolerations %v: want all tolerated", pod.Tolerations)
	}
	if u := ds.Spec.UpdateStrategy.RollingUpdate; u == nil || u.MaxUnavailable.IntValue() != 1 {
		t.Errorf("updateStrategy %+v: want one node at a time", ds.Spec.UpdateStrategy)
	}
	if ds.Namespace != "flock-system" || pod.PriorityClassName != "system-node-critical" {
		t.Errorf("namespace %s, priority %s", ds.Namespace, pod.PriorityClassName)
	}
	const name = "app.kubernetes.io/name"
	if ds.Spec.Template.Labels[name] != "flock" || ds.Spec.Selector.MatchLabels[name] != "flock" {
		t.Errorf("labels %v, selector %v", ds.Spec.Template.Labels, ds.Spec.Selector.MatchLabels)
	}
}

// The lab deploys the same but for where the images come from.
func TestLabOverlay(t *testing.T) {
	base, lab := build(t, checkout+"/deploy"), build(t, ".")
	pull := func(pod *corev1.PodSpec) {
		for _, list := range [][]corev1.Container{pod.InitContainers, pod.Containers} {
			for i := range list {
				if list[i].ImagePullPolicy != corev1.PullNever {
					t.Errorf("container %s: imagePullPolicy %q, but there is no registry", list[i].Name, list[i].ImagePullPolicy)
				}
				list[i].ImagePullPolicy = ""
			}
		}
	}
	ds, d := only[*appsv1.DaemonSet](t, lab), only[*appsv1.Deployment](t, lab)
	pull(&ds.Spec.Template.Spec)
	pull(&d.Spec.Template.Spec)
	if diff := cmp.Diff(only[*appsv1.DaemonSet](t, base).Spec, ds.Spec); diff != "" {
		t.Errorf("the lab's DaemonSet differs (-base +lab):\n%s", diff)
	}
	if diff := cmp.Diff(only[*appsv1.Deployment](t, base).Spec, d.Spec); diff != "" {
		t.Errorf("the lab's Deployment differs (-base +lab):\n%s", diff)
	}
}
