package support

import (
	"strings"
	"testing"
)

func TestVersions(t *testing.T) {
	node := func(kernel, runtime, kubelet string) func() []Finding {
		return func() []Finding { return Node(kernel, runtime, kubelet) }
	}
	server := func(version string) func() []Finding { return func() []Finding { return APIServer(version) } }
	bird := func(version string) func() []Finding { return func() []Finding { return BIRD(version) } }
	for _, c := range []struct {
		name   string
		judge  func() []Finding
		object string // of the finding; empty if there is none
		breaks bool
		says   string
	}{
		{"all is new", node("6.18.0-amd64", "containerd://2.4.2", "v1.37.2"), "", false, ""},
		{"nothing is known", node("", "", ""), "", false, ""},
		{"what cannot be read", node("next", "other://next", "main"), "", false, ""},
		{"the oldest kernel", node("5.7", "containerd://2.4.2", "v1.37.2"), "", false, ""},
		{"an older kernel", node("5.6.19-300.fc32", "containerd://2.4.2", "v1.37.2"), "kernel", true, "found Linux 5.6.19-300.fc32, needed is Linux 5.7 or newer"},
		{"a kernel of long ago", node("4.19.0", "containerd://2.4.2", "v1.37.2"), "kernel", true, "run a newer kernel"},
		{"two digits", node("5.10.0", "containerd://2.4.2", "v1.37.2"), "", false, ""},
		{"an older kubelet", node("6.1.0", "containerd://2.4.2", "v1.31.14"), "kubelet", true, "Kubernetes 1.32 or newer"},
		{"a kubelet without the Pods API", node("6.1.0", "containerd://2.4.2", "v1.36.5"), "kubelet", false, "Pods API of Kubernetes 1.37"},
		{"a kubelet of a distribution", node("6.1.0", "containerd://2.4.2", "v1.37.0+k3s1"), "", false, ""},
		{"containerd 1.5", node("6.1.0", "containerd://1.5.9", "v1.37.2"), "container runtime", true, "containerd 1.6 or newer"},
		{"containerd 1.6", node("6.1.0", "containerd://1.6.33", "v1.37.2"), "container runtime", false, "containerd 1.7 or newer"},
		{"containerd 1.7", node("6.1.0", "containerd://1.7.24-k3s1", "v1.37.2"), "container runtime", false, "stays Ready"},
		{"CRI-O", node("6.1.0", "cri-o://1.33.0", "v1.37.2"), "", false, ""},
		{"an old CRI-O", node("6.1.0", "cri-o://1.19.3", "v1.37.2"), "container runtime", true, "found cri-o 1.19.3"},
		{"docker", node("6.1.0", "docker://24.0.5", "v1.37.2"), "container runtime", true, "containerd or CRI-O"},

		{"API server", server("v1.37.2"), "", false, ""},
		{"the oldest API server", server("v1.32.0-eks-1234"), "", false, ""},
		{"an older API server", server("v1.31.9"), "API server", true, "found Kubernetes v1.31.9, needed is Kubernetes 1.32 or newer"},
		{"no API server", server(""), "", false, ""},

		{"Debian's BIRD", bird("2.0.12"), "", false, ""},
		{"BIRD 2", bird("2.19.2"), "", false, ""},
		{"an older BIRD", bird("2.0.7"), "BIRD", true, "BIRD 2.0.12 or newer"},
		{"BIRD 1", bird("1.6.8"), "BIRD", true, "refuses the configuration"},
		{"BIRD 3", bird("3.3.2"), "BIRD", false, "asks for sessions every 2 s"},
		{"BIRD is away", bird(""), "", false, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			all := c.judge()
			if c.object == "" {
				if len(all) > 0 {
					t.Errorf("found %v", all)
				}
				return
			}
			if len(all) != 1 {
				t.Fatalf("found %v, want one", all)
			}
			f := all[0]
			if f.Object != c.object || f.Breaks != c.breaks || !strings.Contains(f.String(), c.says) {
				t.Errorf("%+v: %s", f, f)
			}
			whole(t, f)
		})
	}
}

// whole checks that a finding says all that an operator needs.
func whole(t *testing.T, f Finding) {
	t.Helper()
	for what, text := range map[string]string{"object": f.Object, "found": f.Found, "needed": f.Needed, "without": f.Without, "remedy": f.Remedy} {
		if text == "" || strings.HasSuffix(text, " ") || strings.Contains(text, "  ") {
			t.Errorf("%s: %s is %q", f, what, text)
		}
	}
}
