//go:build cluster

package e2e

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/lab/plan"
)

// example is one of package examples, a workload and what is to become of its pods.
type example struct {
	Name                        string
	Namespace, Kind, App, Image string
	Annotations                 map[string]string
	Eth0                        [][]netip.Prefix // a line for each pod
	Announced                   []netip.Prefix
	Warnings                    []string
	Refused                     string
}

// loadExamples returns those of docs/addresses.md and the objects that they build on.
func loadExamples(t *testing.T) (setup string, all []example) {
	t.Helper()
	cmd := exec.Command("go", "run", "./pkg/address/grant/examples/print", "docs/addresses.md")
	cmd.Dir = "../.."
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	var page struct {
		Setup    string
		Examples []example
	}
	if err == nil {
		err = json.Unmarshal(out, &page)
	}
	if err != nil || len(page.Examples) < 20 {
		t.Fatalf("%s: %d examples, %v: %s", cmd, len(page.Examples), err, &complaint)
	}
	return page.Setup, page.Examples
}

// workedExamples: each one's pods have exactly what the page says, or are refused
// in its very words.
func workedExamples(t *testing.T, c *podClient, all []example) {
	node := plan.Nodes(1)[0]
	for _, e := range all {
		c.createExample(t, e, node.Name())
	}
	var announcedByAll []netip.Prefix
	for _, e := range all {
		t.Run(e.Name, func(t *testing.T) {
			if e.Refused != "" {
				c.says(t, e.Namespace, e.App, "AddressRefused", "pod "+e.Namespace+"/"+e.App+": "+e.Refused)
				return
			}
			c.hasAddresses(t, e)
			announced(t, node, addrsOf(e.Announced)...)
			hasCommunity(t, e.Announced)
		})
		announcedByAll = append(announcedByAll, e.Announced...)
	}
	if t.Failed() {
		return
	}

	t.Run("flockctl shows it", func(t *testing.T) {
		out := flockctl(t, "pod", "shop/shopfront")
		for _, claimed := range []string{"2001:db8:200::7", "2001:db8:200::8", "203.0.113.7"} {
			if !strings.Contains(out, "  "+claimed+"   ") {
				t.Errorf("flockctl pod shop/shopfront shows no claim to %s:\n%s", claimed, out)
			}
		}
		rendersAsTheAgent(t, node) // with what the pools add
	})
	t.Run("nothing else is announced", func(t *testing.T) {
		for _, r := range routesAtTor(t) {
			proof := slices.ContainsFunc(plan.LoadBalancers.All(), func(p netip.Prefix) bool { return p.Overlaps(r.Prefix) })
			if r.Proto == unix.RTPROT_BIRD && r.Prefix.IsSingleIP() && !proof && !slices.Contains(announcedByAll, r.Prefix) && !slices.Contains(wantedTwice, r.Prefix.Addr()) {
				t.Errorf("tor has learned route %s", r)
			}
		}
	})
	t.Run("withdrawn with its pod", func(t *testing.T) {
		for _, e := range all {
			if e.Kind == "Pod" && len(e.Announced) > 0 {
				c.remove(t, e.Namespace, e.App)
				withdrawn(t, addrsOf(e.Announced)...)
				return
			}
		}
		t.Error("no bare pod among the examples announces anything")
	})
}

// hasCommunity: the router sees that of the setup's pool dns on its addresses, and
// on no others.
func hasCommunity(t *testing.T, announced []netip.Prefix) {
	t.Helper()
	for _, p := range announced {
		dns := p.Addr() == netip.MustParseAddr("203.0.113.53") || netip.MustParsePrefix("2001:db8:53::/64").Contains(p.Addr())
		eventually(t, 60*time.Second, func() error {
			out, err := lab("exec", plan.Tor, "--", "birdc", "show", "route", p.String(), "all")
			if err == nil && strings.Contains(out, "(64512,53)") != dns {
				err = fmt.Errorf("want community (64512,53): %t, and the router has\n%s", dns, out)
			}
			return err
		})
	}
}

// createExample makes the object that the example says makes its pods.
func (c *podClient) createExample(t *testing.T, e example, node string) {
	t.Helper()
	if e.Image != "echo:dev" {
		t.Fatalf("example %s: image %s: the lab has echo:dev", e.Name, e.Image)
	}
	replicas := int32(len(e.Eth0))
	named := metav1.ObjectMeta{Name: e.App}
	selector := &metav1.LabelSelector{MatchLabels: map[string]string{"app": e.App}}
	template := echoPod(e.App, node, e.Annotations)
	var err error
	switch e.Kind {
	case "Pod":
		c.create(t, e.Namespace, e.App, node, e.Annotations)
	case "Deployment":
		_, err = c.AppsV1().Deployments(e.Namespace).Create(t.Context(), &appsv1.Deployment{ObjectMeta: named,
			Spec: appsv1.DeploymentSpec{Replicas: &replicas, Selector: selector, Template: template}}, metav1.CreateOptions{})
	case "StatefulSet":
		_, err = c.AppsV1().StatefulSets(e.Namespace).Create(t.Context(), &appsv1.StatefulSet{ObjectMeta: named,
			Spec: appsv1.StatefulSetSpec{Replicas: &replicas, Selector: selector, Template: template}}, metav1.CreateOptions{})
	case "DaemonSet":
		_, err = c.AppsV1().DaemonSets(e.Namespace).Create(t.Context(), &appsv1.DaemonSet{ObjectMeta: named,
			Spec: appsv1.DaemonSetSpec{Selector: selector, Template: template}}, metav1.CreateOptions{})
	default:
		t.Fatalf("example %s: kind %q", e.Name, e.Kind)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// hasAddresses: what is on eth0, what the API says, and what the outside host sees
// are the same, and as documented.
func (c *podClient) hasAddresses(t *testing.T, e example) {
	t.Helper()
	pods := c.ready(t, e.Namespace, e.App, len(e.Eth0))
	lines := slices.Clone(e.Eth0)
	for _, p := range pods {
		on := c.eth0(t, p)
		i := slices.IndexFunc(lines, func(line []netip.Prefix) bool { return inOrder(line, on) != nil })
		if i < 0 {
			t.Fatalf("pod %s has %v on eth0, want that of one of %v", p.Name, on, lines)
		}
		all := inOrder(lines[i], on)
		lines = slices.Delete(lines, i, i+1)
		if got, want := podIPs(t, p), own(all); !slices.Equal(got, want) {
			t.Errorf("pod %s: status.podIPs %v, want %v", p.Name, got, want)
		}
		c.reached(t, p, all...)
		for _, w := range e.Warnings {
			eventually(t, 60*time.Second, func() error {
				events := c.events(t, p.Namespace, p.Name)
				if !slices.ContainsFunc(events, func(e corev1.Event) bool {
					return e.Type == corev1.EventTypeWarning && e.Reason == "AnnotationIgnored" && e.Message == w
				}) {
					return fmt.Errorf("no Warning AnnotationIgnored that says %q:\n%s", w, texts(events))
				}
				return nil
			})
		}
	}
}

// inOrder pairs the addresses with the prefixes, each of which stands for one of
// them, and returns them in the prefixes' order; nil if they do not pair up.
func inOrder(prefixes []netip.Prefix, addrs []netip.Addr) []netip.Addr {
	if len(prefixes) != len(addrs) {
		return nil
	}
	// The most exact first, so that no wide one takes what is another's.
	byLength := make([]int, len(prefixes))
	for i := range byLength {
		byLength[i] = i
	}
	slices.SortFunc(byLength, func(i, j int) int { return cmp.Compare(prefixes[j].Bits(), prefixes[i].Bits()) })
	ordered, left := make([]netip.Addr, len(addrs)), slices.Clone(addrs)
	for _, i := range byLength {
		at := slices.IndexFunc(left, prefixes[i].Contains)
		if at < 0 {
			return nil
		}
		ordered[i] = left[at]
		left = slices.Delete(left, at, at+1)
	}
	return ordered
}

// own are the first of each family, IPv6 first as in the lab's cluster.
func own(addrs []netip.Addr) (first []netip.Addr) {
	for _, is := range []func(netip.Addr) bool{netip.Addr.Is6, netip.Addr.Is4} {
		if i := slices.IndexFunc(addrs, is); i >= 0 {
			first = append(first, addrs[i])
		}
	}
	return first
}

func addrsOf(prefixes []netip.Prefix) (addrs []netip.Addr) {
	for _, p := range prefixes {
		addrs = append(addrs, p.Addr())
	}
	return addrs
}
