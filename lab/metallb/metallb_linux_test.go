package metallb

import (
	"net/netip"
	"strings"
	"testing"
)

// TestAdapt: the lab's manifest differs from MetalLB's in what the lab cannot do, and in what
// was asked for.
func TestAdapt(t *testing.T) {
	t.Parallel()
	const manifests = `apiVersion: v1
kind: Namespace
metadata: {name: metallb-system}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
spec: {conversion: {strategy: Webhook}, scope: Namespaced, versions: [{schema: {asn: {format: int32, maximum: 4294967295}, port: {format: int32, maximum: 16384}}}]}
---
apiVersion: apps/v1
kind: Deployment
spec: {template: {spec: {containers: [{name: controller, args: [--port=7472]}]}}}
---
apiVersion: apps/v1
kind: DaemonSet
spec: {template: {spec: {containers: [{name: speaker, args: [--port=7472]}], nodeSelector: {kubernetes.io/os: linux}}}}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
`
	for _, tc := range []struct {
		name       string
		settings   Settings
		want, none []string
	}{
		{"of no class", Settings{}, []string{"kind: Namespace", "scope: Namespaced", "asn:\n        maximum: 4294967295", "port:\n        format: int32", "kubernetes.io/os: linux", "- --webhook-mode=disabled"}, []string{"Webhook", "lb-class", "hostname"}},
		{"of a class, on one node", Settings{Class: "example.net/lb", Node: "node1"}, []string{
			"- --port=7472\n        - --webhook-mode=disabled\n        - --lb-class=example.net/lb\n",
			"- --port=7472\n        - --lb-class=example.net/lb\n        name: speaker\n      nodeSelector:\n        kubernetes.io/hostname: node1\n        kubernetes.io/os: linux\n",
		}, []string{"Webhook"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := adapt(manifests, tc.settings)
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range tc.want {
				if !strings.Contains(got, want) {
					t.Errorf("%q is missing:\n%s", want, got)
				}
			}
			for _, none := range tc.none {
				if strings.Contains(got, none) {
					t.Errorf("%q is there:\n%s", none, got)
				}
			}
		})
	}
}

// TestConfiguration: the speakers speak with the router that the lab starts for them.
func TestConfiguration(t *testing.T) {
	t.Parallel()
	speakers, router := configuration(netip.MustParsePrefix("10.99.0.0/16")), routerConfig()
	for _, want := range []string{"peerAddress: 192.0.2.1, peerPort: 1179", "myASN: 64514, peerASN: 64513", `addresses: ["10.99.0.0/16"]`} {
		if !strings.Contains(speakers, want) {
			t.Errorf("%q is missing:\n%s", want, speakers)
		}
	}
	for _, want := range []string{"local 192.0.2.1 port 1179 as 64513;", "neighbor range 192.0.2.0/24 as 64514;", "kernel table 250;"} {
		if !strings.Contains(router, want) {
			t.Errorf("%q is missing:\n%s", want, router)
		}
	}
}
