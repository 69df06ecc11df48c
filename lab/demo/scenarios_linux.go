package demo

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"flock.fritzlab.net/flock/lab/fabric"
	"flock.fritzlab.net/flock/lab/plan"
)

// address is the demos' anycast address, and the Service's.
const address = "2001:db8:57::1"

// deployment are pods of the echo program, one on each of some nodes.
func deployment(replicas int, use, annotations string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Namespace
metadata: {name: %[1]s}
---
apiVersion: flock.fritzlab.net/v1alpha1
kind: AddressPool
metadata: {name: %[1]s}
spec:
  cidrs: ["2001:db8:57::/64"]
  uses: [%[4]s]
  namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: %[1]s}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: dns, namespace: %[1]s}
spec:
  replicas: %[2]d
  selector: {matchLabels: {app: dns}}
  template:
    metadata:
      labels: {app: dns}
      annotations: {%[3]s}
    spec:
      terminationGracePeriodSeconds: 2
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: dns}}}
      containers:
      - name: echo
        image: echo:dev
        imagePullPolicy: Never
        env:
        - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        - {name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
        ports: [{containerPort: 8080}]
        readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1, failureThreshold: 1}
`, namespace, replicas, annotations, use)
}

// scenario is the one of a name.
func (s *show) scenario(name string) (scenario, error) {
	anycast := deployment(3, "anycast", fmt.Sprintf("flock.fritzlab.net/anycast: %q", address))
	lost := func(f figures, _ []answer) string {
		if f.failed == 0 {
			return fmt.Sprintf("no request failed; the longest time between two answers was %d ms", f.gap.Milliseconds())
		}
		return fmt.Sprintf("%d of %d requests failed", f.failed, f.failed+f.answered)
	}
	switch name {
	case "anycast":
		return scenario{
			title: "anycast: one address on three nodes, while pods come and go", manifest: anycast, address: address, ready: 3, lasts: 16 * time.Second, result: lost,
			acts: []act{
				{3 * time.Second, "the pod on node2 becomes not Ready: its node withdraws the address", s.podReady("node2", false)},
				{7 * time.Second, "it is Ready again", s.podReady("node2", true)},
				{10 * time.Second, "kubectl delete pod, the one on node3", s.deletePod("node3")},
			},
		}, nil
	case "policy":
		return scenario{
			title: "policy: a NetworkPolicy closes and opens", manifest: deployment(1, "anycast", ""), ready: 1, lasts: 12 * time.Second,
			acts: []act{
				{3 * time.Second, "kubectl apply: a NetworkPolicy that lets nobody in", s.apply(closed)},
				{8 * time.Second, "kubectl delete networkpolicy", s.kubectl("--namespace="+namespace, "delete", "networkpolicy", "closed")},
			},
			result: func(f figures, all []answer) string {
				return fmt.Sprintf("closed for %.1f s; %d of %d requests got no answer, none while it was open", f.gap.Seconds(), f.failed, f.failed+f.answered)
			},
		}, nil
	case "failure":
		return scenario{
			title: "failure: a node is cut off, and BFD sees it", manifest: anycast, address: address, ready: 3, lasts: 16 * time.Second,
			acts: []act{
				{3 * time.Second, "node2 is cut off: no link goes down, packets are lost", func(context.Context) error { return fabric.Cut(s.lab.Dir, "node2") }},
				{9 * time.Second, "node2 is back", func(context.Context) error { return fabric.Restore(s.lab.Dir, "node2") }},
			},
			prepare: func(ctx context.Context) error { return s.bfd(ctx, true) },
			restore: func(ctx context.Context) error {
				return errors.Join(fabric.Restore(s.lab.Dir, "node2"), s.bfd(ctx, false))
			},
			result: lost,
		}, nil
	case "service":
		return scenario{
			title: "service: an address of a Service, announced by the nodes with its endpoints", manifest: deployment(3, "service", "") + service, address: address, ready: 3, lasts: 16 * time.Second, result: lost,
			acts: []act{
				{3 * time.Second, "the endpoint on node2 becomes not Ready: its node withdraws the Service's address", s.podReady("node2", false)},
				{7 * time.Second, "it is Ready again", s.podReady("node2", true)},
				{10 * time.Second, "kubectl delete pod, the one on node3", s.deletePod("node3")},
			},
		}, nil
	}
	return scenario{}, fmt.Errorf("there is no demo %q: want one of %s", name, strings.Join(Names, ", "))
}

const closed = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed, namespace: ` + namespace + `}
spec: {podSelector: {}, policyTypes: [Ingress]}
`

const service = `---
apiVersion: v1
kind: Service
metadata: {name: dns, namespace: ` + namespace + `}
spec:
  type: LoadBalancer
  loadBalancerClass: flock.fritzlab.net/bgp
  externalTrafficPolicy: Local
  ipFamilies: [IPv6]
  selector: {app: dns}
  ports: [{port: 8080}]
`

func (s *show) kubectl(args ...string) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := s.lab.Kubectl(ctx, "", args...)
		return err
	}
}

func (s *show) apply(manifest string) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := s.lab.Kubectl(ctx, manifest, "apply", "--filename=-")
		return err
	}
}

// podOn is the name of the demo's pod on a node.
func (s *show) podOn(node string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.pods {
		if s.pods[i].Spec.NodeName == node && s.pods[i].DeletionTimestamp == nil {
			return s.pods[i].Name, nil
		}
	}
	return "", fmt.Errorf("no pod is on %s", node)
}

// podReady has the pod on a node become Ready, or not.
func (s *show) podReady(node string, ready bool) func(context.Context) error {
	return func(ctx context.Context) error {
		pod, err := s.podOn(node)
		if err != nil {
			return err
		}
		return s.kubectl("--namespace="+namespace, "exec", pod, "--", "/echo", "ready", fmt.Sprint(ready))(ctx)
	}
}

func (s *show) deletePod(node string) func(context.Context) error {
	return func(ctx context.Context) error {
		pod, err := s.podOn(node)
		if err != nil {
			return err
		}
		return s.kubectl("--namespace="+namespace, "delete", "pod", pod, "--wait=false")(ctx)
	}
}

// bfd turns BFD on or off in the sessions of all nodes.
func (s *show) bfd(ctx context.Context, on bool) error {
	var errs []error
	for _, n := range plan.Nodes(s.lab.Nodes) {
		patch := `[{"op": "remove", "path": "/spec/bgp/peers/0/bfd"}, {"op": "remove", "path": "/spec/bgp/peers/1/bfd"}]`
		if on {
			patch = `[{"op": "add", "path": "/spec/bgp/peers/0/bfd", "value": {}}, {"op": "add", "path": "/spec/bgp/peers/1/bfd", "value": {}}]`
		}
		errs = append(errs, s.kubectl("patch", "nodeconfig", n.Name(), "--type=json", "--patch="+patch)(ctx))
	}
	return errors.Join(errs...)
}
