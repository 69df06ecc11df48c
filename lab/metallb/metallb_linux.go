// Package metallb runs MetalLB in a lab, which flock's Services are held against: in the
// benchmarks, and in the test of the migration from it.
//
// Controller and speaker are built from MetalLB's Go module and run as its own manifest says,
// in native BGP mode, which is IPv4 only. In the mode FRR it waits for three seconds before it
// has FRR read a new configuration, by a script of the package frr-pythontools; native mode
// waits for nothing.
//
// The speakers have sessions with a BIRD of their own on the router, at another port than the
// lab's and with a table of its own in the kernel, which is asked before the main one. The
// lab's router stays as it is.
package metallb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"flock.fritzlab.net/flock/lab/cluster"
	"flock.fritzlab.net/flock/lab/components"
	"flock.fritzlab.net/flock/lab/image"
	"flock.fritzlab.net/flock/lab/plan"
	"flock.fritzlab.net/flock/lab/process"
)

// Table is that of the router's kernel with the routes to what MetalLB announces.
const Table = 250

const (
	namespace = "metallb-system"
	// rulePreference is before that of the main table.
	rulePreference = 100
	port           = 1179 // MetalLB takes none above 16384
	routerAS       = plan.TorAS + 1
	speakerAS      = plan.TorAS + 2
	routerName     = "bird-metallb"
	rolloutLimit   = "--timeout=120s"
)

// Settings say which Services MetalLB serves, and how.
type Settings struct {
	// Class is the loadBalancerClass of the Services that it serves; empty: those
	// without one.
	Class string
	// Pool holds their addresses, all IPv4.
	Pool netip.Prefix
	// Node is where the one speaker runs; empty: one on each node.
	Node string
}

// Install deploys MetalLB and its router, and returns when the speakers have their sessions.
func Install(ctx context.Context, l *cluster.Lab, s Settings, progress io.Writer) error {
	bin, err := components.BuildMetalLB(ctx, l.Checkout, progress)
	if err != nil {
		return err
	}
	source, err := components.MetalLBSource(ctx, l.Checkout)
	if err != nil {
		return err
	}
	content, err := os.ReadFile(filepath.Join(source, "config", "manifests", "metallb-native.yaml"))
	if err != nil {
		return err
	}
	specs, err := images(string(content), bin)
	if err != nil {
		return err
	}
	archive := l.Dir.Path("images", "metallb.tar")
	if err := image.Write(archive, specs...); err != nil {
		return err
	}
	if err := l.ImportImages("metallb", archive); err != nil {
		return err
	}
	if err := startRouter(ctx, l); err != nil {
		return err
	}
	manifests, err := adapt(string(content), s)
	if err != nil {
		return err
	}
	if _, err := l.Kubectl(ctx, manifests, "apply", "--server-side", "--filename=-"); err != nil {
		return err
	}
	for _, crd := range []string{"ipaddresspools", "bgppeers", "bgpadvertisements"} {
		if _, err := l.Kubectl(ctx, "", "wait", "--for=condition=Established", "--timeout=60s", "crd/"+crd+".metallb.io"); err != nil {
			return err
		}
	}
	if _, err := l.Kubectl(ctx, configuration(s.Pool), "apply", "--filename=-"); err != nil {
		return err
	}
	for _, rollout := range []string{"deployment/controller", "daemonset/speaker"} {
		if _, err := l.Kubectl(ctx, "", "--namespace="+namespace, "rollout", "status", rollout, rolloutLimit); err != nil {
			return err
		}
	}
	want := l.Nodes
	if s.Node != "" {
		want = 1
	}
	return process.Await(ctx, "the sessions of MetalLB's speakers", nil, func(ctx context.Context) error {
		out, err := onRouter(ctx, l, "birdc", "-s", controlSocket, "show", "protocols")
		if got := strings.Count(out, "Established"); err == nil && got != want {
			err = fmt.Errorf("%d of %d", got, want)
		}
		return err
	})
}

// Remove takes MetalLB and its router away. What is not there is no error.
func Remove(ctx context.Context, l *cluster.Lab) error {
	_, namespaced := l.Kubectl(ctx, "", "delete", "--ignore-not-found", "namespace", namespace)
	_, rest := l.Kubectl(ctx, "", "delete", "--ignore-not-found", "--selector=app=metallb", "clusterroles,clusterrolebindings")
	crds, err := l.Kubectl(ctx, "", "get", "crds", "--output=name")
	for crd := range strings.FieldsSeq(crds) {
		if strings.HasSuffix(crd, ".metallb.io") {
			_, gone := l.Kubectl(ctx, "", "delete", "--ignore-not-found", crd)
			err = errors.Join(err, gone)
		}
	}
	return errors.Join(namespaced, rest, err, stopRouter(ctx, l))
}

var imageOfManifest = regexp.MustCompile(`(?m)^\s*image: (\S+/(controller|speaker):\S+)$`)

// images are those that the manifest names, with the programs in bin.
func images(manifests, bin string) (all []image.Spec, err error) {
	programs := map[string]string{"controller": components.MetalLBController, "speaker": components.MetalLBSpeaker}
	for _, m := range imageOfManifest.FindAllStringSubmatch(manifests, -1) {
		ref, name := m[1], m[2]
		all = append(all, image.Spec{
			Ref: ref, Entrypoint: []string{"/" + name},
			Entries: []image.Entry{image.File("/"+name, filepath.Join(bin, programs[name]))},
		})
	}
	if len(all) != len(programs) {
		return nil, fmt.Errorf("the manifest of MetalLB %s has %d images, want one of controller and one of speaker", components.MetalLB, len(all))
	}
	return all, nil
}

// adapt makes of MetalLB's manifest that of the lab. The API server of the lab has no way to
// Services, and so cannot ask the webhooks that check MetalLB's objects.
func adapt(manifests string, s Settings) (string, error) {
	var out strings.Builder
	for doc := range strings.SplitSeq(manifests, "\n---\n") {
		object := map[string]any{}
		if err := yaml.Unmarshal([]byte(doc), &object); err != nil {
			return "", fmt.Errorf("manifest of MetalLB %s: %w", components.MetalLB, err)
		}
		var arguments []string
		switch object["kind"] {
		case "ValidatingWebhookConfiguration":
			continue
		case "CustomResourceDefinition":
			unstructured.RemoveNestedField(object, "spec", "conversion")
			widenFormats(object)
		case "Deployment":
			arguments = append(arguments, "--webhook-mode=disabled")
			fallthrough
		case "DaemonSet":
			if s.Class != "" {
				arguments = append(arguments, "--lb-class="+s.Class)
			}
			if err := addArguments(object, arguments); err != nil {
				return "", err
			}
			if object["kind"] == "DaemonSet" && s.Node != "" {
				if err := unstructured.SetNestedField(object, s.Node, "spec", "template", "spec", "nodeSelector", "kubernetes.io/hostname"); err != nil {
					return "", err
				}
			}
		}
		text, err := yaml.Marshal(object)
		if err != nil {
			return "", err
		}
		out.WriteString("---\n" + string(text))
	}
	return out.String(), nil
}

// widenFormats takes the format int32 off numbers whose maximum is greater, as MetalLB's AS
// numbers: the API server refuses every value of these.
func widenFormats(schema any) {
	switch schema := schema.(type) {
	case map[string]any:
		if most, ok := schema["maximum"].(float64); ok && most > math.MaxInt32 && schema["format"] == "int32" {
			delete(schema, "format")
		}
		for _, inner := range schema {
			widenFormats(inner)
		}
	case []any:
		for _, inner := range schema {
			widenFormats(inner)
		}
	}
}

// addArguments adds to those of the only container of a workload.
func addArguments(object map[string]any, arguments []string) error {
	path := []string{"spec", "template", "spec", "containers"}
	containers, _, err := unstructured.NestedSlice(object, path...)
	if err != nil || len(containers) != 1 {
		return fmt.Errorf("MetalLB's %v has %d containers, want 1: %w", object["kind"], len(containers), err)
	}
	container := containers[0].(map[string]any)
	have, _, err := unstructured.NestedStringSlice(container, "args")
	if err != nil {
		return err
	}
	if err := unstructured.SetNestedStringSlice(container, append(have, arguments...), "args"); err != nil {
		return err
	}
	return unstructured.SetNestedSlice(object, containers, path...)
}

// configuration has MetalLB announce the pool to its router.
func configuration(pool netip.Prefix) string {
	return fmt.Sprintf(`
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: lab, namespace: %[1]s}
spec: {addresses: ["%[2]s"]}
---
apiVersion: metallb.io/v1beta1
kind: BGPAdvertisement
metadata: {name: lab, namespace: %[1]s}
spec: {ipAddressPools: [lab]}
---
apiVersion: metallb.io/v1beta2
kind: BGPPeer
metadata: {name: lab, namespace: %[1]s}
spec: {myASN: %[3]d, peerASN: %[4]d, peerAddress: %[5]s, peerPort: %[6]d}
`, namespace, pool, speakerAS, routerAS, plan.TorLAN.IPv4.Addr(), port)
}
