package deploy

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"
)

const chart = checkout + "/deploy/chart"

// helm runs Helm as an operator does. It returns what Helm prints, or its complaint.
func helm(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command("go", append([]string{"tool", "-modfile=" + checkout + "/tools/helm/go.mod", "helm"}, args...)...)
	home := t.TempDir() // it reads and writes settings there
	cmd.Env = append(os.Environ(), "HELM_CONFIG_HOME="+home, "HELM_CACHE_HOME="+home, "HELM_DATA_HOME="+home, "GOWORK=off")
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	if err := cmd.Run(); err != nil {
		return out.String() + complaints.String(), err
	}
	return out.String(), nil
}

func template(t *testing.T, args ...string) []runtime.Object {
	t.Helper()
	out, err := helm(t, slices.Concat([]string{"template", "flock", chart, "--namespace=flock-system"}, args)...)
	if err != nil {
		t.Fatalf("helm template: %v: %s", err, out)
	}
	var objects []runtime.Object
	for _, document := range strings.Split("\n"+out, "\n---\n") {
		if lines := strings.TrimSpace(document); lines != "" {
			objects = append(objects, decode(t, []byte(document)))
		}
	}
	return objects
}

func key(o runtime.Object) string {
	a, err := meta.Accessor(o)
	if err != nil {
		panic(err)
	}
	return o.GetObjectKind().GroupVersionKind().Kind + " " + a.GetNamespace() + "/" + a.GetName()
}

// TestChartIsKustomize: without values, the chart installs what kustomize makes of
// deploy/, but that uninstalling it leaves what has users' data.
func TestChartIsKustomize(t *testing.T) {
	want := map[string]runtime.Object{}
	for _, o := range build(t, checkout+"/deploy") {
		switch o.(type) {
		case *admissionv1.ValidatingAdmissionPolicy, *admissionv1.ValidatingAdmissionPolicyBinding:
			// This kustomize does not know that they are of the cluster.
			a, _ := meta.Accessor(o)
			a.SetNamespace("")
		}
		want[key(o)] = o
	}
	got := map[string]runtime.Object{}
	for _, o := range template(t) {
		got[key(o)] = o
		switch o := o.(type) {
		case *apiextensionsv1.CustomResourceDefinition, *corev1.Namespace:
			a, _ := meta.Accessor(o)
			annotations := a.GetAnnotations()
			if annotations["helm.sh/resource-policy"] != "keep" {
				t.Errorf("%s: helm uninstall would delete it, with all objects in it", key(o))
			}
			delete(annotations, "helm.sh/resource-policy")
			if len(annotations) == 0 {
				a.SetAnnotations(nil)
			}
		}
	}
	for k, w := range want {
		g, ok := got[k]
		if !ok {
			t.Errorf("%s is not in the chart: its file belongs into deploy/chart/base", k)
			continue
		}
		// kustomize labels all objects, and the chart leaves labels to Helm.
		for _, o := range []runtime.Object{g, w} {
			a, _ := meta.Accessor(o)
			labels := a.GetLabels()
			delete(labels, "app.kubernetes.io/name")
			if len(labels) == 0 {
				a.SetLabels(nil)
			}
		}
		if diff := cmp.Diff(w, g); diff != "" {
			t.Errorf("%s differs (-kustomize +chart):\n%s", k, diff)
		}
	}
	for k := range got {
		if want[k] == nil {
			t.Errorf("%s is in the chart alone", k)
		}
	}
}

// TestChartLint: Helm finds nothing wrong, with each file of values.
func TestChartLint(t *testing.T) {
	files, err := filepath.Glob(chart + "/values/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no files of values", err)
	}
	for _, f := range append(files, "") {
		args := []string{"lint", "--strict", "--namespace=flock-system", chart}
		if f != "" {
			args = append(args, "--values="+f)
		}
		if out, err := helm(t, args...); err != nil {
			t.Errorf("%s: %s", f, out)
		}
	}
}

// TestChartValues: each value gets to where it belongs.
func TestChartValues(t *testing.T) {
	ds := func(args ...string) *appsv1.DaemonSet { return only[*appsv1.DaemonSet](t, template(t, args...)) }
	path := func(ds *appsv1.DaemonSet, volume string) string {
		for _, v := range ds.Spec.Template.Spec.Volumes {
			if v.Name == volume {
				return v.HostPath.Path
			}
		}
		return "no such volume"
	}
	agent := func(ds *appsv1.DaemonSet) corev1.Container {
		for _, c := range ds.Spec.Template.Spec.Containers {
			if c.Name == "agent" {
				return c
			}
		}
		t.Fatal("no agent")
		return corev1.Container{}
	}

	cpu := func(c corev1.Container) string {
		return c.Resources.Requests.Cpu().String()
	}
	t.Run("all", func(t *testing.T) {
		got := ds("--set=image.repository=registry.example/flock,image.tag=v1,image.pullPolicy=Always",
			"--set=imagePullSecrets[0].name=registry", "--set=maxUnavailable=3", "--set=podLabels.team=net",
			"--set=podAnnotations.a=b", "--set=priorityClassName=other", "--set=seLinuxOptions.type=spc_t",
			"--set=tolerations[0].key=only", "--set=nodeSelector.more=yes",
			"--set=agent.healthAddress=[::1]:1234,agent.logLevel=debug,agent.logFormat=json,agent.otlpEndpoint=http://127.0.0.1:4318,agent.extraArgs={--exit-sources=cri}",
			"--set=agent.resources.requests.cpu=2,bird.resources.requests.memory=1Gi",
			"--set=metrics.address=:1235", "--set=apiServer.host=localhost,apiServer.port=7445",
			"--set=paths.cniBin=/a,paths.cniConf=/b,paths.podsAPI=/c,paths.runtime=/d")
		pod := got.Spec.Template.Spec
		for _, c := range containers(got) {
			if c.Image != "registry.example/flock:v1" || c.ImagePullPolicy != corev1.PullAlways {
				t.Errorf("%s: image %s, %s", c.Name, c.Image, c.ImagePullPolicy)
			}
		}
		if diff := cmp.Diff([]string{"--metrics-address=:1235", "--health-address=[::1]:1234", "--log-level=debug", "--log-format=json", "--otlp-endpoint=http://127.0.0.1:4318", "--exit-sources=cri"}, agent(got).Args); diff != "" {
			t.Errorf("the agent's flags (-want +got):\n%s", diff)
		}
		env := map[string]string{}
		for _, e := range agent(got).Env {
			env[e.Name] = e.Value
		}
		if env["KUBERNETES_SERVICE_HOST"] != "localhost" || env["KUBERNETES_SERVICE_PORT"] != "7445" {
			t.Errorf("environment %v", env)
		}
		have := map[string]any{
			"secret": pod.ImagePullSecrets[0].Name, "unavailable": got.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable.IntValue(),
			"label": got.Spec.Template.Labels["team"], "annotation": got.Spec.Template.Annotations["a"], "priority": pod.PriorityClassName,
			"seLinux": pod.SecurityContext.SELinuxOptions.Type, "toleration": pod.Tolerations[0].Key, "selector": pod.NodeSelector["more"],
			"cpu": cpu(agent(got)), "bin": path(got, "cni-bin"), "conf": path(got, "cni-conf"),
			"pods": path(got, "pods-api"), "runtime": path(got, "runtime"),
		}
		want := map[string]any{
			"secret": "registry", "unavailable": 3, "label": "net", "annotation": "b", "priority": "other", "seLinux": "spc_t", "toleration": "only",
			"selector": "yes", "cpu": "2", "bin": "/a", "conf": "/b", "pods": "/c", "runtime": "/d",
		}
		if diff := cmp.Diff(want, have); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
	t.Run("controller", func(t *testing.T) {
		d := only[*appsv1.Deployment](t, template(t, "--set=controller.replicas=3,controller.withoutClass=true,controller.extraArgs={--health-address=[::1]:1}",
			"--set=controller.resources.requests.cpu=2,agent.logFormat=json,apiServer.host=localhost", "--set=image.repository=registry.example/flock,image.tag=v1"))
		c := d.Spec.Template.Spec.Containers[0]
		if diff := cmp.Diff([]string{"--metrics-address=:9482", "--without-class", "--log-format=json", "--health-address=[::1]:1"}, c.Args); diff != "" {
			t.Errorf("flags (-want +got):\n%s", diff)
		}
		if *d.Spec.Replicas != 3 || cpu(c) != "2" || c.Image != "registry.example/flock:v1" || c.Env[len(c.Env)-1].Value != "localhost" {
			t.Errorf("%+v", d.Spec)
		}
	})
	t.Run("collector", func(t *testing.T) {
		got := ds("--set=agent.otlpEndpoint=https://192.0.2.1:4318,agent.otlpHeaders.secret=collector,agent.otlpCompression=gzip,agent.otlpCA.configMap=collector-ca,agent.otlpCA.key=root.pem")
		env := map[string]corev1.EnvVar{}
		for _, e := range agent(got).Env {
			env[strings.TrimPrefix(e.Name, "OTEL_EXPORTER_OTLP_TRACES_")] = e
		}
		if headers := env["HEADERS"]; headers.Value != "" || headers.ValueFrom == nil || headers.ValueFrom.SecretKeyRef.Name != "collector" || headers.ValueFrom.SecretKeyRef.Key != "headers" || !*headers.ValueFrom.SecretKeyRef.Optional {
			t.Errorf("headers: %+v", headers)
		}
		if env["COMPRESSION"].Value != "gzip" {
			t.Errorf("compression: %+v", env["COMPRESSION"])
		}
		mounted := false
		for _, m := range agent(got).VolumeMounts {
			mounted = mounted || m.Name == "otlp-ca" && m.ReadOnly && m.SubPath == "" && env["CERTIFICATE"].Value == m.MountPath+"/ca.crt"
		}
		found := false
		for _, v := range got.Spec.Template.Spec.Volumes {
			if c := v.ConfigMap; v.Name == "otlp-ca" && c != nil {
				found = c.Name == "collector-ca" && c.Items[0].Key == "root.pem" && c.Items[0].Path == "ca.crt" && *c.Optional
			}
		}
		if !mounted || !found {
			t.Errorf("the CA: %+v of %+v", agent(got).VolumeMounts, got.Spec.Template.Spec.Volumes)
		}
	})
	t.Run("real time", func(t *testing.T) {
		got := ds("--set=realtimePriority=1,agent.extraArgs={--exit-sources=cri}")
		for _, c := range got.Spec.Template.Spec.Containers {
			flags := c.Args
			if c.Name == "bird" {
				flags = c.Command
			}
			if !slices.Contains(flags, "--realtime-priority=1") || !slices.Contains(c.SecurityContext.Capabilities.Add, "SYS_NICE") {
				t.Errorf("%s: %q with %v", c.Name, flags, c.SecurityContext.Capabilities.Add)
			}
			if c.Name == "bird" && (!strings.HasSuffix(c.Command[0], "/flock-slice") || c.Command[2] != "/usr/sbin/bird") {
				t.Errorf("BIRD's command is %q", c.Command)
			}
		}
		for _, c := range got.Spec.Template.Spec.InitContainers {
			if c.SecurityContext != nil && c.SecurityContext.Capabilities != nil && slices.Contains(c.SecurityContext.Capabilities.Add, "SYS_NICE") {
				t.Errorf("%s has SYS_NICE", c.Name)
			}
		}
	})
	t.Run("digest", func(t *testing.T) {
		digest := strings.Repeat("0123456789abcdef", 4)
		got := ds("--set=image.repository=registry.example/flock,image.tag=v1,image.digest=sha256:" + digest)
		if image := containers(got)[0].Image; image != "registry.example/flock@sha256:"+digest {
			t.Errorf("image %s", image)
		}
	})
	t.Run("distributions", func(t *testing.T) {
		for file, want := range map[string][4]string{ // plugins, configurations, runtime, SELinux
			"kubeadm": {"/opt/cni/bin", "/etc/cni/net.d", "/run/containerd", "spc_t"},
			"flatcar": {"/opt/cni/bin", "/etc/cni/net.d", "/run/containerd", "spc_t"},
			"talos":   {"/opt/cni/bin", "/etc/cni/net.d", "/run/containerd", ""},
			"k3s":     {"/var/lib/rancher/k3s/data/cni", "/var/lib/rancher/k3s/agent/etc/cni/net.d", "/run/k3s/containerd", "spc_t"},
			"rke2":    {"/opt/cni/bin", "/etc/cni/net.d", "/run/k3s/containerd", "spc_t"},
		} {
			d := ds("--values=" + chart + "/values/" + file + ".yaml")
			got := [4]string{path(d, "cni-bin"), path(d, "cni-conf"), path(d, "runtime")}
			if o := d.Spec.Template.Spec.SecurityContext.SELinuxOptions; o != nil {
				got[3] = o.Type
			}
			if got != want {
				t.Errorf("%s: %q, want %q", file, got, want)
			}
		}
	})
	t.Run("without", func(t *testing.T) {
		for _, o := range template(t, "--set=crds.install=false,namespace.create=false") {
			switch o.(type) {
			case *apiextensionsv1.CustomResourceDefinition, *corev1.Namespace:
				t.Errorf("%s is there", key(o))
			}
		}
	})
	t.Run("monitoring", func(t *testing.T) {
		out, err := helm(t, "template", "flock", chart, "--namespace=flock-system", "--set=metrics.reader.namespace=monitoring,metrics.reader.name=prometheus",
			"--set=metrics.serviceMonitor.enabled=true,metrics.serviceMonitor.labels.release=main", "--set=metrics.alerts.enabled=true,metrics.dashboard.enabled=true", "--set=metrics.address=:1235,metrics.controllerAddress=:1236")
		if err != nil {
			t.Fatal(out)
		}
		var kinds []string
		for _, document := range strings.Split("\n"+out, "\n---\n") {
			var o struct {
				Kind     string
				Metadata struct {
					Name   string
					Labels map[string]string
				}
				Spec map[string]any
				Data map[string]string
			}
			if err := yaml.Unmarshal([]byte(document), &o); err != nil {
				t.Fatalf("%v in:\n%s", err, document)
			}
			switch o.Kind {
			case "ServiceMonitor":
				if o.Metadata.Labels["release"] != "main" || o.Spec["endpoints"] == nil {
					t.Errorf("ServiceMonitor: %+v", o)
				}
			case "PrometheusRule":
				if !strings.Contains(document, `node {{ $labels.node }}`) || o.Spec["groups"] == nil {
					t.Errorf("the rules are not as in the file:\n%.500s", document)
				}
			case "ConfigMap":
				if !strings.Contains(o.Data["flock.json"], `"title": "flock"`) || o.Metadata.Labels["grafana_dashboard"] != "1" {
					t.Errorf("dashboard: %.300s", document)
				}
			case "Service":
				port := map[string]string{"flock-metrics": "port: 9480\n    targetPort: 1235", "flock-controller-metrics": "port: 9482\n    targetPort: 1236"}[o.Metadata.Name]
				// The ServiceMonitor selects this label.
				if !strings.Contains(document, port) || o.Metadata.Labels["app.kubernetes.io/name"] != "flock" {
					t.Errorf("Service: %s", document)
				}
				continue
			case "ClusterRoleBinding":
				if o.Metadata.Name != "flock-metrics" {
					continue
				}
			default:
				continue
			}
			kinds = append(kinds, o.Kind)
		}
		slices.Sort(kinds)
		if want := []string{"ClusterRoleBinding", "ConfigMap", "PrometheusRule", "ServiceMonitor"}; !slices.Equal(kinds, want) {
			t.Errorf("objects of the kinds %q, want %q", kinds, want)
		}
	})
	t.Run("no metrics", func(t *testing.T) {
		objects := template(t, "--set=metrics.address=")
		a := agent(only[*appsv1.DaemonSet](t, objects))
		if len(a.Args) > 0 || len(a.Ports) > 0 {
			t.Errorf("the agent has %q and the ports %v", a.Args, a.Ports)
		}
		for _, o := range all[*corev1.Service](objects) {
			if o.Name == "flock-metrics" {
				t.Error("there is a Service for the metrics")
			}
		}
	})
	t.Run("nothing", func(t *testing.T) { // null takes the default away
		d := ds("--set-json=tolerations=null,nodeSelector=null,podLabels=null,podAnnotations=null,affinity=null,imagePullSecrets=null,seLinuxOptions=null",
			"--set-json=agent.extraArgs=null,controller.extraArgs=null,agent.resources=null,bird.resources=null")
		if pod := d.Spec.Template; len(pod.Spec.Tolerations) > 0 || len(pod.Spec.NodeSelector) > 0 || pod.Labels["app.kubernetes.io/name"] != "flock" {
			t.Errorf("%+v", pod)
		}
	})
	t.Run("refused", func(t *testing.T) {
		for _, tc := range []struct{ arg, want string }{
			{"--namespace=elsewhere", "flock must be in flock-system"},
			{"--set=agent.logLevel=loud", "logLevel"},
			{"--set=agent.otlpEndpoint=127.0.0.1:4318", "otlpEndpoint"},
			{"--set=agent.otlpCompression=zstd", "otlpCompression"},
			{"--set=agent.otlpHeaders.authorization=x", "otlpHeaders"},
			{"--set=paths.cniBin=relative", "cniBin"},
			{"--set=realtimePriority=100", "realtimePriority"},
			{"--set=nodeselector.a=b", "nodeselector"}, // nothing is ignored silently
			{"--set=agent.healthAdress=x", "healthAdress"},
			{"--set=metrics.address=nowhere", "address"},
			{"--set=metrics.reader.name=prometheus", "metrics.reader.namespace"},
			{"--set=metrics.reader.namespace=monitoring", "metrics.reader.name"},
			{"--set=metrics.address=:9482", "which the agent has on the same node"},
			{"--set=metrics.address=:99999", "metrics/address"},
			{"--set=metrics.address=:0", "metrics/address"},
			{"--set=agent.healthAddress=nowhere", "healthAddress"},
			{"--set=apiServer.port=https", "apiServer/port"},
			{"--set=apiServer.port=70000", "apiServer/port"},
			// The API server refuses these, with other words and when half is installed.
			{"--set=nodeSelector.worker=true", "nodeSelector/worker"},
			{"--set=podLabels.team=1", "podLabels/team"},
			{"--set=podAnnotations.a=true", "podAnnotations/a"},
			{"--set=metrics.dashboard.labels.grafana_dashboard=1", "grafana_dashboard"},
			{"--set=maxUnavailable=0%", "maxUnavailable"},
			{"--set=maxUnavailable=150%", "maxUnavailable"},
			{"--set=tolerations[0].operater=Exists", "operater"},
			{"--set=affinity.nodeAfinity.a=b", "nodeAfinity"},
			{"--set=imagePullSecrets[0].nam=registry", "imagePullSecrets"},
			{"--set=image.digest=sha256:0123", "digest"},
			{"--set-json=agent=null", "agent"},
			{"--set=paths.runtime=null", "runtime"},
		} {
			if out, err := helm(t, "template", "flock", chart, "--namespace=flock-system", tc.arg); err == nil || !strings.Contains(out, tc.want) {
				t.Errorf("%s: %v, want a refusal that has %q: %.300s", tc.arg, err, tc.want, out)
			}
		}
	})
}

// TestValuesAreDocumented: the schema knows each value, and each has a comment above it.
func TestValuesAreDocumented(t *testing.T) {
	text, err := os.ReadFile(chart + "/values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var values map[string]any
	if err := yaml.UnmarshalStrict(text, &values); err != nil {
		t.Fatal(err)
	}
	schema, err := os.ReadFile(chart + "/values.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	var s struct{ Properties map[string]any }
	if err := yaml.Unmarshal(schema, &s); err != nil {
		t.Fatal(err)
	}
	for name := range values {
		if s.Properties[name] == nil {
			t.Errorf("values.schema.json does not know %s", name)
		}
	}
	for name := range s.Properties {
		if _, ok := values[name]; !ok && name != "global" {
			t.Errorf("values.yaml does not have %s", name)
		}
	}
}
