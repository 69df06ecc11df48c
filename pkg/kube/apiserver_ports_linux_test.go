//go:build apiserver

package kube

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// otherPorts: whoever installed flock in one way may change its ports in another. With server-side
// apply, the ports of the first way stay beside the new ones until nobody owns them any more, and the API
// server takes no two ports of one name.
func otherPorts(t *testing.T, s *server) {
	namespace := ""
	var objects []map[string]any
	for document := range strings.SplitSeq(s.Kubectl("", "kustomize", "../../deploy"), "\n---\n") {
		object := map[string]any{}
		if err := yaml.Unmarshal([]byte(document), &object); err != nil {
			t.Fatal(err)
		}
		if kind := object["kind"]; kind == "Service" || kind == "DaemonSet" || kind == "Deployment" {
			objects = append(objects, object)
		}
	}
	if len(objects) != 4 {
		t.Fatalf("%d objects with ports, want 4: the test does not know the manifests", len(objects))
	}
	manifest := func(plus int) string {
		ports := 0
		var all []string
		for _, o := range objects {
			o["metadata"].(map[string]any)["namespace"] = namespace
			all = append(all, string(must(yaml.Marshal(movePorts(o, plus, &ports)))))
		}
		if ports < 5 {
			t.Fatalf("%d ports are changed", ports)
		}
		return strings.Join(all, "---\n")
	}
	client, kubectl := []string{"apply"}, []string{"apply", "--server-side", "--force-conflicts"}
	helm := append(slices.Clone(kubectl), "--field-manager=helm")
	for i, way := range []struct {
		name        string
		first, then []string
	}{
		{"client-side, then server-side", client, kubectl},
		{"client-side, then Helm", client, helm},
		{"server-side, then client-side", kubectl, client},
		{"server-side, then Helm", kubectl, helm},
		{"Helm, then server-side", helm, kubectl},
		{"client-side twice", client, client},
	} {
		t.Run(way.name, func(t *testing.T) {
			namespace = fmt.Sprintf("ports%d", i)
			s.Kubectl("", "create", "namespace", namespace)
			// No garbage collector and no namespace controller run here.
			t.Cleanup(func() {
				s.Kubectl("", "--namespace="+namespace, "delete", "services,daemonsets,deployments", "--all", "--cascade=background", "--wait=false")
			})
			s.Kubectl(manifest(0), append(slices.Clone(way.first), "--filename=-")...)
			out, err := s.TryKubectl(manifest(10), append(slices.Clone(way.then), "--filename=-")...)
			if err != nil {
				t.Errorf("%v: %s", err, out)
			}
			for _, want := range []string{"9490", "9492"} {
				if got := s.Kubectl("", "--namespace="+namespace, "get", "services,daemonsets,deployments", "--output=yaml"); !strings.Contains(got, "targetPort: "+want) || !strings.Contains(got, "containerPort: "+want) {
					t.Errorf("no port %s in\n%s", want, got)
				}
			}
		})
	}
}

// movePorts is a copy of what a manifest has, with the ports of pods moved, as the chart's values do.
func movePorts(v any, plus int, ports *int) any {
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for key, value := range v {
			out[key] = movePorts(value, plus, ports)
			if n, ok := value.(float64); ok && (key == "containerPort" || key == "targetPort") {
				*ports++
				out[key] = int(n) + plus
			}
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = movePorts(v[i], plus, ports)
		}
		return out
	case string:
		if flag, port, ok := strings.Cut(v, "=:"); ok && plus > 0 && strings.HasPrefix(flag, "--metrics-address") {
			return fmt.Sprintf("%s=:%s", flag, map[string]string{"9480": "9490", "9482": "9492"}[port])
		}
	}
	return v
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
